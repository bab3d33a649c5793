"""Image sets read from real files: Fashion-MNIST's IDX, CIFAR-10's pickles."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rlprune.config import DataConfig
from rlprune.data import ImageSet, load_image_set
from rlprune.data.cifar import read_cifar10
from rlprune.data.idx import DEBIAN_FOLDER, FASHION_CLASSES
from rlprune.errors import DataError


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


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that a test fills; afterwards nothing in it may have changed."""
    folder = tmp_path / "system"
    folder.mkdir()
    yield folder
    folder.chmod(0o755)


def freeze(folder: Path) -> list[str]:
    folder.chmod(0o555)
    return sorted(path.name for path in folder.iterdir())


# --- Fashion-MNIST ----------------------------------------------------------


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_fashion(folder: Path, compressed: bool = True, side: int = 28) -> None:
    """Four training images (value = 10 * label + 0..3) and one test image of each class."""
    folder.mkdir(parents=True, exist_ok=True)
    train_labels = np.repeat(np.arange(10, dtype=np.uint8), 4)
    test_labels = np.arange(10, dtype=np.uint8)
    values = 10 * train_labels + np.tile(np.arange(4, dtype=np.uint8), 10)
    contents = {
        "train-images-idx3-ubyte": np.broadcast_to(values[:, None, None], (40, side, side)),
        "train-labels-idx1-ubyte": train_labels,
        "t10k-images-idx3-ubyte": np.broadcast_to(test_labels[:, None, None], (10, side, side)),
        "t10k-labels-idx1-ubyte": test_labels,
    }
    for name, array in contents.items():
        data = idx_bytes(np.ascontiguousarray(array))
        (folder / (f"{name}.gz" if compressed else name)).write_bytes(
            gzip.compress(data) if compressed else data
        )


def check_fashion(images: ImageSet) -> None:
    assert images.input_shape == (1, 28, 28)
    assert images.class_names == FASHION_CLASSES
    assert images.augmentation == "crop_flip"
    assert images.test.labels.tolist() == list(range(10))
    assert np.array_equal(images.test.images[:, 0, 5, 7], images.test.labels)
    for split in (images.train, images.validation):
        assert np.bincount(split.labels).tolist() == [2] * 10
        assert np.array_equal(split.images[:, 0, 27, 0] // 10, split.labels)


def test_fashion_from_compressed_files_in_a_read_only_folder(read_only: Path) -> None:
    write_fashion(read_only)
    before = freeze(read_only)
    check_fashion(load("fashion_mnist", read_only))
    assert freeze(read_only) == before


def test_fashion_from_uncompressed_files(tmp_path: Path) -> None:
    write_fashion(tmp_path, compressed=False)
    check_fashion(load("fashion_mnist", tmp_path))


def test_fashion_from_torchvisions_layout(tmp_path: Path) -> None:
    write_fashion(tmp_path / "FashionMNIST" / "raw", compressed=False)
    check_fashion(load("fashion_mnist", tmp_path))


def test_fashion_missing_and_not_to_be_downloaded(tmp_path: Path) -> None:
    message = failure("fashion_mnist", tmp_path)
    assert message.startswith(f"{tmp_path}: fashion_mnist was not found there and data.download")
    assert "apt-get install dataset-fashion-mnist" in message


def test_fashion_download_that_cannot_be_stored(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = failure("fashion_mnist", tmp_path / "file" / "sub", download=True)
    assert "could not be downloaded" in message and "Not a directory" in message


def test_fashion_with_one_file_missing(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    assert "but not t10k-labels-idx1-ubyte (nor with .gz)" in failure("fashion_mnist", tmp_path)


def test_fashion_label_out_of_range(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    labels = np.repeat(np.arange(10, dtype=np.uint8), 4)
    labels[[5, 9]] = 10
    path.write_bytes(gzip.compress(idx_bytes(labels)))
    assert failure("fashion_mnist", tmp_path).startswith(
        f"{path}, image 5: label 10 is out of range; labels must be 0..9 for 10 classes, "
        "and 1 more labels likewise."
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(idx_bytes(np.zeros(40, np.uint8)))[:-12], "cannot be read (Compressed file"),
        (b"no gzip", "cannot be read (Not a gzipped file"),
        (gzip.compress(idx_bytes(np.zeros((4, 10), np.uint8))), "starts with 00000802 instead of"),
        (gzip.compress(idx_bytes(np.zeros(40, np.uint8))[:-1]), "promises 40 bytes of data [40]"),
        (gzip.compress(b"\0\0\x08\x01\0\0"), "the IDX header is cut off after 6 bytes"),
        (gzip.compress(idx_bytes(np.zeros(39, np.uint8))), "40 images of 28x28 pixels but train-"),
    ],
    ids=["cut off", "no gzip", "two axes", "a byte short", "header cut off", "39 labels"],
)
def test_fashion_damaged_label_file(tmp_path: Path, content: bytes, message: str) -> None:
    write_fashion(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(content)
    text = failure("fashion_mnist", tmp_path)
    assert message in text and "train-labels-idx1-ubyte.gz" in text and "Fetch" in text


def test_fashion_class_without_test_images(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 8], np.uint8))))
    assert (
        f"{tmp_path}: class 'Ankle boot' (label 9) has 0 test images, at least 1 of each"
        in failure("fashion_mnist", tmp_path)
    )


@pytest.mark.skipif(
    not DEBIAN_FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_debians_fashion_mnist_is_found_without_root() -> None:
    images = load("fashion_mnist", None, validation_fraction=0.1)
    assert (len(images.train), len(images.validation), len(images.test)) == (54_000, 6_000, 10_000)
    assert np.bincount(images.train.labels).tolist() == [5400] * 10
    # the published statistics of all 60,000 training images
    assert images.mean == pytest.approx([0.2860], abs=1e-3)
    assert images.std == pytest.approx([0.3530], abs=1e-3)


# --- CIFAR-10 ---------------------------------------------------------------


def python2_batch(images: np.ndarray, labels: list[int]) -> bytes:
    """A batch file opcode by opcode as Python 2 and NumPy 1 wrote CIFAR-10 (protocol 2)."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<I", len(value)) + value

    shape = b"".join(b"M" + struct.pack("<H", size) for size in images.shape) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\0K\1\x87R"
    dtype += b"(K\3" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text(b"b") + b"\x87R"
    )
    array += b"(K\1" + shape + dtype + b"\x89" + text(images.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes((label,)) for label in labels) + b"e"
    items = text(b"labels") + numbers + text(b"data") + array
    return b"\x80\2}(" + items + b"u."


def cifar_files() -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    files = {}
    for name, copies in (("data_batch_1", 2), ("data_batch_2", 1), ("test_batch", 1)):
        pixels = generator.integers(0, 256, size=(10 * copies, 3072)).astype(np.uint8)
        pixels[:, 0] = np.tile(np.arange(10), copies)  # red, top left
        pixels[:, 1024 + 31] = 201  # green, top right
        files[name] = python2_batch(pixels, list(range(10)) * copies)
    return files


def md5s(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.md5(content).hexdigest() for name, content in files.items()}


def write_archive(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("place", ["cifar-10-batches-py", ".", "archive"])
def test_cifar_from_each_layout_in_a_read_only_folder(read_only: Path, place: str) -> None:
    """Tiny batches with checksums of their own; the official ones are tested below."""
    files = cifar_files()
    if place == "archive":
        write_archive(read_only / "cifar-10-python.tar.gz", files)
    else:
        (read_only / place).mkdir(exist_ok=True)
        for name, content in files.items():
            (read_only / place / name).write_bytes(content)
    before = freeze(read_only)
    raw = read_cifar10(str(read_only), False, md5s(files))
    train, test = raw.train.load(), raw.test.load()
    assert train.images.shape == (30, 3, 32, 32) and test.images.shape == (10, 3, 32, 32)
    assert train.labels.tolist() == list(range(10)) * 3 and test.labels.tolist() == [*range(10)]
    assert np.array_equal(train.images[:, 0, 0, 0], train.labels)
    assert set(train.images[:, 1, 0, 31].tolist()) == {201}
    assert raw.class_names[3] == "cat" and not raw.grey
    assert freeze(read_only) == before


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.target,))


def test_cifar_pickle_that_is_not_the_official_one_is_never_opened(tmp_path: Path) -> None:
    target = tmp_path / "attacked"
    content = pickle.dumps(Attack(target))
    pickle.loads(content)
    assert target.exists()  # so the attack works where pickles are trusted
    target.unlink()
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(content)
    message = failure("cifar10", tmp_path)
    assert message.startswith(f"{folder / 'data_batch_1'}: MD5 checksum")
    assert "instead of c99cafc152244af753f735de768cd75f" in message
    assert "will not be opened" in message
    assert not target.exists()


def test_cifar_pickle_cannot_run_code_even_with_the_right_checksum(tmp_path: Path) -> None:
    target = tmp_path / "attacked"
    files = {**cifar_files(), "data_batch_2": pickle.dumps(Attack(target))}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"data_batch_2: not a CIFAR-10 batch \(it refers to"):
        read_cifar10(str(tmp_path), False, md5s(files))
    assert not target.exists()


def test_cifar_files_missing(tmp_path: Path) -> None:
    assert "data.download is false" in failure("cifar10", tmp_path)
    (tmp_path / "data_batch_1").write_bytes(b"")
    assert f"{tmp_path}: data_batch_2, data_batch_3" in failure("cifar10", tmp_path)


def test_cifar_damaged_archive(tmp_path: Path) -> None:
    archive = tmp_path / "cifar-10-python.tar.gz"
    write_archive(archive, {"data_batch_1": b"x"})
    assert "does not contain data_batch_2" in failure("cifar10", tmp_path)
    archive.write_bytes(archive.read_bytes()[:40])
    assert failure("cifar10", tmp_path).startswith(f"{archive}: cannot be read (")
