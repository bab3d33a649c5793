"""Image sets read from real files: trees of JPEG and PNG images, Parquet."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rlprune.config import DataConfig
from rlprune.data import ImageSet, load_image_set
from rlprune.errors import DataError

CIFAR_JPEG = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10-jpeg"


def load(name: str, root: Path | None, **settings: object) -> ImageSet:
    options = {"download": False, "validation_fraction": 0.5, **settings}
    return load_image_set(
        DataConfig(name=name, root=None if root is None else str(root), **options), seed=0
    )


def failure(name: str, root: Path | None, **settings: object) -> str:
    """The message with which loading is refused."""
    with pytest.raises(DataError) as caught:
        load(name, root, **settings)
    return str(caught.value)


# --- image folders ----------------------------------------------------------


def picture(value: int, size: tuple[int, int] = (12, 12), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, value if mode == "L" else (value, 2 * value, 255 - value))


def write_tree(
    root: Path, split: str, counts: dict[str, int], mode: str = "RGB", suffix: str = "png"
) -> None:
    """Image i of class k has grey or red value 10 * k + i."""
    for label, (name, count) in enumerate(counts.items()):
        (root / split / name).mkdir(parents=True)
        for i in range(count):
            picture(10 * label + i, mode=mode).save(root / split / name / f"{i}.{suffix}")


@pytest.mark.parametrize("test_folder", ["test", "val", "validation"])
def test_image_folder_with_its_own_test_images(tmp_path: Path, test_folder: str) -> None:
    write_tree(tmp_path, "train", {"cat": 4, "dog": 6})
    write_tree(tmp_path, test_folder, {"cat": 1, "dog": 2})
    (tmp_path / "train" / "cat" / "._0.png").write_bytes(b"left behind by macOS")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    images = load("imagefolder", tmp_path)
    assert images.class_names == ("cat", "dog") and images.input_shape == (3, 12, 12)
    assert np.bincount(images.train.labels).tolist() == [2, 3]
    assert images.test.labels.tolist() == [0, 1, 1]
    assert images.test.images[:, 0, 0, 0].tolist() == [0, 10, 11]  # red
    assert images.test.images[:, 1, 0, 0].tolist() == [0, 20, 22]  # green
    assert np.array_equal(images.train.images[:, 0, 3, 3] // 10, images.train.labels)
    assert images.augmentation == "crop_flip"


def test_image_folder_without_labelled_test_images_uses_val(tmp_path: Path) -> None:
    write_tree(tmp_path, "train", {"cat": 4, "dog": 6})
    write_tree(tmp_path, "val", {"cat": 1, "dog": 2})
    (tmp_path / "test").mkdir()
    picture(0).save(tmp_path / "test" / "unlabelled.png")
    assert len(load("imagefolder", tmp_path).test) == 3


def test_image_folder_without_splits_holds_out_a_fixed_fifth(tmp_path: Path) -> None:
    write_tree(tmp_path, ".", {"cat": 10, "dog": 15})
    images = load("imagefolder", tmp_path)
    assert np.bincount(images.test.labels).tolist() == [2, 3]
    other = load_image_set(DataConfig(name="imagefolder", root=str(tmp_path)), seed=9)
    assert np.array_equal(other.test.images, images.test.images)
    splits = (images.train, images.validation, images.test)
    values = [value for split in splits for value in split.images[:, 0, 0, 0].tolist()]
    assert sorted(values) == [*range(10), *range(10, 25)]


def test_image_folder_of_grey_jpegs(tmp_path: Path) -> None:
    write_tree(tmp_path, ".", {"cat": 5, "dog": 5}, mode="L", suffix="JPG")
    images = load("imagefolder", tmp_path)
    assert images.input_shape == (1, 12, 12) and images.augmentation == "shift"
    assert np.abs(images.test.images[:, 0, 0, 0].astype(int) // 10 - images.test.labels).max() == 0


def test_images_are_resized_by_8_7_and_cropped_in_the_centre(tmp_path: Path) -> None:
    """128x64, left half red: shorter side to 16 (32x16), centre 14x14 from row 1, column 9."""
    write_tree(tmp_path, "train", {"cat": 2, "dog": 2})
    wide = Image.new("RGB", (128, 64), (0, 0, 255))
    wide.paste((255, 0, 0), (0, 0, 64, 64))
    wide.paste((0, 255, 0), (0, 0, 128, 2))  # green, falls into the row that is cut off
    exact = Image.fromarray(np.random.default_rng(0).integers(0, 256, (14, 14, 3)).astype(np.uint8))
    for name, image in (("cat", wide), ("dog", exact)):
        (tmp_path / "test" / name).mkdir(parents=True)
        image.save(tmp_path / "test" / name / "a.png")
    images = load("imagefolder", tmp_path, image_size=14).test.images
    assert images.shape == (2, 3, 14, 14)
    # the border is at column 64 of 128, 16 of 32, 7 of 14; next to it the colours mix
    assert np.all(images[0, 0, :, :6] == 255) and np.all(images[0, 2, :, :6] == 0)
    assert np.all(images[0, 0, :, 8:] == 0) and np.all(images[0, 2, :, 8:] == 255)
    assert np.all(images[0, 1] == 0)
    # an image of the right size is not touched
    assert np.array_equal(images[1].transpose(1, 2, 0), np.asarray(exact))


def test_unreadable_images_are_listed_and_counted(tmp_path: Path) -> None:
    write_tree(tmp_path, "train", {"cat": 3, "dog": 9}, suffix="jpg")
    write_tree(tmp_path, "val", {"cat": 1, "dog": 1})
    whole = (tmp_path / "train" / "dog" / "0.jpg").read_bytes()
    (tmp_path / "train" / "dog" / "1.jpg").write_bytes(whole[:-8])
    (tmp_path / "train" / "dog" / "2.jpg").write_bytes(b"")
    picture(0, (13, 12)).save(tmp_path / "train" / "dog" / "3.jpg")
    message = failure("imagefolder", tmp_path)
    lines = message.splitlines()
    assert lines[0] == "3 of 12 images cannot be used:"
    assert (
        str(tmp_path / "train" / "dog" / "1.jpg") in lines[1]
        and "image file is truncated" in lines[1]
    )
    assert f"{tmp_path / 'train' / 'dog' / '2.jpg'}: not an image" in lines[2]
    assert "3.jpg: 13x12 pixels, but the first training image has 12x12" in lines[3]
    assert "set data.image_size" in lines[3]
    assert lines[4] == "Replace or remove these images."
    for i in range(4, 9):
        (tmp_path / "train" / "dog" / f"{i}.jpg").write_bytes(b"")
    lines = failure("imagefolder", tmp_path).splitlines()
    assert lines[0] == "8 of 12 images cannot be used:"
    assert len(lines) == 8 and lines[6] == "  - and 3 more"


def test_postscript_and_16_bit_images_are_refused(tmp_path: Path) -> None:
    """Pillow would hand PostScript, a programming language, to Ghostscript."""
    write_tree(tmp_path, "train", {"cat": 2, "dog": 2})
    write_tree(tmp_path, "val", {"cat": 1, "dog": 1})
    picture(0).save(tmp_path / "val" / "cat" / "0.png", format="EPS")
    deep = Image.fromarray(np.full((12, 12), 5000, dtype=np.uint16))
    deep.save(tmp_path / "val" / "dog" / "0.png")
    message = failure("imagefolder", tmp_path)
    assert message.startswith("2 of 2 images cannot be used:")
    assert re.search(r"cat.0\.png: not an image \(JPEG", message)
    assert re.search(r"dog.0\.png: pixels of more than 8 bits \(mode I", message)


def test_first_image_unreadable(tmp_path: Path) -> None:
    write_tree(tmp_path, ".", {"cat": 5, "dog": 5})
    (tmp_path / "cat" / "0.png").write_bytes(b"nothing")
    assert f"{tmp_path / 'cat' / '0.png'}: not an image" in failure("imagefolder", tmp_path)


def test_image_folder_missing_or_empty(tmp_path: Path) -> None:
    assert "needs the folder with the images (got null)" in failure("imagefolder", None)
    missing = tmp_path / "nowhere"
    assert failure("imagefolder", missing).startswith(f"{missing}: there is no such folder. Set")
    assert f"{tmp_path}: there are no class folders" in failure("imagefolder", tmp_path)
    write_tree(tmp_path, "train", {"cat": 3, "dog": 0})
    assert f"{tmp_path / 'train' / 'dog'}: class 'dog' has no images" in failure(
        "imagefolder", tmp_path
    )


def test_image_folder_with_other_test_classes(tmp_path: Path) -> None:
    write_tree(tmp_path, "train", {"cat": 3, "dog": 3})
    write_tree(tmp_path, "test", {"cat": 3, "eel": 3})
    message = failure("imagefolder", tmp_path)
    assert f"{tmp_path / 'test'}: its class folders" in message
    assert "missing: dog; unknown: eel" in message


def test_image_folder_with_too_few_images_of_a_class(tmp_path: Path) -> None:
    write_tree(tmp_path, "train", {"cat": 3, "dog": 1})
    write_tree(tmp_path, "test", {"cat": 1, "dog": 1})
    assert (
        f"{tmp_path / 'train'}: class 'dog' (label 1) has 1 training images, at least 2"
        in failure("imagefolder", tmp_path)
    )


def test_one_class_is_no_classification(tmp_path: Path) -> None:
    write_tree(tmp_path, ".", {"cat": 10})
    assert "at least 2 classes (got 1: cat)" in failure("imagefolder", tmp_path)


# --- Parquet ----------------------------------------------------------------


def png(value: int, size: tuple[int, int] = (8, 8)) -> bytes:
    stream = io.BytesIO()
    picture(value, size).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(
    path: Path,
    labels: list[int | None] | pa.Array,
    images: list[bytes | None] | None = None,
    metadata: dict[str, str] | None = None,
    binary: bool = False,
) -> None:
    """Row i holds an image whose red value is i, in row groups of 3."""
    contents = [png(i) for i in range(len(labels))] if images is None else images
    column = pa.array(contents, pa.binary())
    if not binary:
        paths = pa.array([None] * len(contents), pa.string())
        column = pa.StructArray.from_arrays([column, paths], ["bytes", "path"])
    table = pa.table({"label": labels, "image": column})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=3)


@pytest.mark.parametrize("binary", [False, True])
def test_parquet_in_several_files(tmp_path: Path, binary: bool) -> None:
    write_parquet(tmp_path / "train-00000-of-00002.parquet", [0, 1] * 4, binary=binary)
    write_parquet(tmp_path / "train-00001-of-00002.parquet", [1, 0] * 4, binary=binary)
    write_parquet(tmp_path / "validation.parquet", [1, 0, 1, 0], binary=binary)
    images = load("parquet", tmp_path)
    assert images.class_names == ("0", "1") and images.input_shape == (3, 8, 8)
    assert images.test.labels.tolist() == [1, 0, 1, 0]
    assert images.test.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    pairs = sorted(
        (int(image[0, 0, 0]), int(label))
        for split in (images.train, images.validation)
        for image, label in zip(split.images, split.labels, strict=True)
    )
    assert pairs == sorted([(i, i % 2) for i in range(8)] + [(i, 1 - i % 2) for i in range(8)])


def test_parquet_reads_only_the_images_that_are_used(tmp_path: Path) -> None:
    """Six of 40 are taken, so most of the 39 broken ones after the first go unnoticed."""
    broken = [png(0)] + [b"broken"] * 39
    write_parquet(tmp_path / "train.parquet", [0, 1] * 20, images=broken)
    write_parquet(tmp_path / "test.parquet", [0, 1])
    assert re.match("[56] of 6 images", failure("parquet", tmp_path, max_train_images=6))


HUB = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        ({"classes": "cat,dog"}, ("cat", "dog")),
        ({"classes": '["cat, small", "dog"]'}, ("cat, small", "dog")),
        ({"huggingface": json.dumps(HUB)}, ("cat", "dog")),
        ({"huggingface": "{}"}, ("0", "1")),
        (None, ("0", "1")),
    ],
)
def test_parquet_class_names(
    tmp_path: Path, metadata: dict[str, str] | None, names: tuple[str, ...]
) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1] * 4, metadata=metadata)
    write_parquet(tmp_path / "test.parquet", [0, 1])
    assert load("parquet", tmp_path).class_names == names


def test_parquet_reports_progress(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1] * 100)
    write_parquet(tmp_path / "test.parquet", [0, 1])
    calls: list[tuple[str, int, int]] = []
    config = DataConfig(name="parquet", root=str(tmp_path))
    load_image_set(config, 0, progress=lambda *call: calls.append(call))
    training = [done for what, done, total in calls if what == "training images" and total == 200]
    assert training == sorted(set(training)) and training[-1] == 200 and len(training) > 3
    assert calls[-1] == ("test images", 2, 2)


@pytest.mark.parametrize(
    ("labels", "images", "message"),
    [
        ([0, 1, 0, 2, 1, 2], None, " row 3: label 2 is out of range; labels must be 0..1 for 2 c"),
        ([0, 1, -1, 1], None, " row 2: label -1 is out of range"),
        ([0, 1, None, 1], None, " row 2: has no label (1 such rows)"),
        (pa.array([0.0, 1.0]), None, ": column label must hold integers 0..K-1 (it holds double)"),
        (pa.array(["a", "b"]), None, ": column label must hold integers 0..K-1 (it holds string)"),
        ([0, 1], [png(0), None], " row 1: there are no bytes in the column image"),
        ([0, 1], [png(0), b"broken"], " row 1: not an image"),
        ([0, 1], [png(0), png(0)[:-30]], " row 1: "),
        ([0, 1] * 3, [png(0)] * 4 + [png(0, (8, 9))] * 2, " row 4: 8x9 pixels, but the first"),
    ],
)
def test_parquet_errors_name_file_and_row(
    tmp_path: Path, labels: list[int], images: list[bytes] | None, message: str
) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1] * 4, metadata={"classes": "cat,dog"})
    write_parquet(tmp_path / "test.parquet", labels, images)
    assert f"{tmp_path / 'test.parquet'}{message}" in failure("parquet", tmp_path)


def test_parquet_files_or_columns_missing(tmp_path: Path) -> None:
    assert "(got null)" in failure("parquet", None)
    assert f"{tmp_path}: there is no train*.parquet" in failure("parquet", tmp_path)
    pq.write_table(pa.table({"img": [b""], "target": [0]}), tmp_path / "train.parquet")
    assert "there is no test*.parquet or validation*.parquet" in failure("parquet", tmp_path)
    write_parquet(tmp_path / "test.parquet", [0, 1])
    assert failure("parquet", tmp_path).startswith(
        f"{tmp_path / 'train.parquet'}: column image and label missing (it has: img, target). "
    )
    pq.write_table(pa.table({"image": [[1, 2]], "label": [0]}), tmp_path / "train.parquet")
    assert "(it holds list<" in failure("parquet", tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    assert f"{tmp_path / 'train.parquet'}: cannot be read as Parquet" in failure(
        "parquet", tmp_path
    )


def test_parquet_damaged_pages(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1] * 20)
    write_parquet(tmp_path / "test.parquet", [0, 1])
    path = tmp_path / "train.parquet"
    content = bytearray(path.read_bytes())
    metadata = pq.ParquetFile(path).metadata
    start = metadata.row_group(2).column(1).data_page_offset  # the bytes of rows 6-8
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    assert f"{path}: cannot be read as Parquet" in failure("parquet", tmp_path)


def test_parquet_class_without_training_images(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 0, 2, 2])
    write_parquet(tmp_path / "test.parquet", [0, 1, 2])
    assert f"{tmp_path}: class '1' (label 1) has 0 training images" in failure("parquet", tmp_path)


@pytest.mark.skipif(not CIFAR_JPEG.is_dir(), reason=f"{CIFAR_JPEG} is not there")
def test_cifar10_in_parquet() -> None:
    images = load("parquet", CIFAR_JPEG, max_train_images=500, validation_fraction=0.2)
    assert (len(images.train), len(images.validation), len(images.test)) == (400, 100, 10_000)
    assert images.class_names[0] == "airplane" and images.class_names[9] == "truck"
    assert np.bincount(images.test.labels).tolist() == [1000] * 10
    assert np.bincount(images.train.labels).tolist() == [40] * 10
    assert images.input_shape == (3, 32, 32) and images.augmentation == "crop_flip"
    # the test images' published channel means (JPEG changes them hardly)
    means = images.test.images.mean(axis=(0, 2, 3)) / 255
    assert means == pytest.approx([0.4942, 0.4851, 0.4504], abs=2e-3)
