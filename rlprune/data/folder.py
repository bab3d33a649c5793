"""Images in one folder per class, as ImageNet has them."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlprune.data.decode import EncodedImage, ImageFormat, decode_images, probe_format
from rlprune.data.images import ByteArray, IntArray
from rlprune.data.source import ImageSource, Progress, RawSet, check_folder
from rlprune.data.stored import ImageFiles
from rlprune.errors import DataError

_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
)
_TEST_FOLDERS = ("test", "val", "validation")
_BATCH = 1024

logger = logging.getLogger(__name__)


def read_image_folder(
    root: str | None, image_size: int | None, progress: Progress | None
) -> RawSet:
    """Find the images of a tree of class folders; their pixels are read later.

    ``root/train/CLASS/*.jpg`` with test images in ``root/test/CLASS``, else in
    ``root/val/CLASS`` or ``root/validation/CLASS``. Without test folders, or where only
    ``root/CLASS`` exists, the set has no test split of its own. Deeper folders within a
    class are searched too; hidden files are skipped. Classes are sorted by name.

    Args:
        root: ``data.root``.
        image_size: side in pixels to resize to; None: all images must have one size.
        progress: reports the decoding.

    Returns:
        The set; colour unless the first training image is grey.

    Raises:
        DataError: a folder is missing or empty, or the test classes are others.
    """
    folder = check_folder(root, "imagefolder", "train/CLASS/*.jpg and test/CLASS/*.jpg")
    train_folder = folder / "train" if (folder / "train").is_dir() else folder
    class_names = tuple(path.name for path in _subfolders(train_folder))
    if not class_names:
        raise DataError(
            f"{train_folder}: there are no class folders in it. Put the images of each class "
            f"into a folder of their own, {train_folder}/CLASS/*.jpg."
        )
    train_files, train_labels = _list_images(train_folder, class_names)
    image_format = probe_format(EncodedImage(str(train_files[0]), train_files[0]), image_size)
    test_folder = None if train_folder == folder else _find_test_folder(folder)
    test: ImageSource | None = None
    if test_folder is not None:
        files, labels = _list_images(test_folder, class_names)
        test = _source(files, labels, test_folder, image_format, "test images", progress)
    return RawSet(
        train=_source(
            train_files, train_labels, train_folder, image_format, "training images", progress
        ),
        test=test,
        class_names=class_names,
        grey=image_format.grey,
    )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _find_test_folder(root: Path) -> Path | None:
    """First folder of test images that has class folders (ImageNet's test has none)."""
    candidates = [root / name for name in _TEST_FOLDERS]
    usable = [path for path in candidates if path.is_dir() and _subfolders(path)]
    if len(usable) > 1:
        logger.info("%s holds the test images; %s is not used", usable[0], usable[1])
    return usable[0] if usable else None


def _list_images(folder: Path, class_names: tuple[str, ...]) -> tuple[list[Path], IntArray]:
    """List the images of all classes in a fixed order, with their labels ``[N]``."""
    present = {path.name for path in _subfolders(folder)}
    unknown, missing = sorted(present - set(class_names)), sorted(set(class_names) - present)
    if unknown or missing:
        raise DataError(
            f"{folder}: its class folders must be those of the training images; "
            f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}. "
            "Add or rename the class folders."
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        found = _images_below(folder / name)
        if not found:
            raise DataError(
                f"{folder / name}: class {name!r} has no images "
                f"({', '.join(sorted(_SUFFIXES))}). Add images or remove the folder."
            )
        files += found
        labels += [label] * len(found)
    return files, np.array(labels, dtype=np.int64)


def _images_below(folder: Path) -> list[Path]:
    return sorted(
        Path(parent) / name
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if Path(name).suffix.lower() in _SUFFIXES and not name.startswith(".")
    )


def _source(
    files: list[Path],
    labels: IntArray,
    folder: Path,
    image_format: ImageFormat,
    what: str,
    progress: Progress | None,
) -> ImageSource:
    # One array instead of a million paths: processes that share it have one copy per node.
    names = np.array([os.fsencode(path.relative_to(folder)) for path in files])
    encoded = partial(_encoded, folder, names)

    def read(indices: IntArray) -> ByteArray:
        return decode_images(encoded(indices), len(indices), image_format, what, progress)

    stored = ImageFiles(encoded, image_format, None, partial(_identity, folder, names))
    return ImageSource(labels, np.arange(len(labels)), read, str(folder), stored)


def _encoded(
    folder: Path, names: NDArray[np.bytes_], indices: IntArray
) -> Iterator[Sequence[EncodedImage]]:
    """The images at ascending positions, still in their files."""
    for start in range(0, len(indices), _BATCH):
        chosen = names[indices[start : start + _BATCH]].tolist()
        paths = [folder / os.fsdecode(name) for name in chosen]
        yield [EncodedImage(str(path), path) for path in paths]


def _identity(folder: Path, names: NDArray[np.bytes_]) -> bytes:
    """Digest of the files' names, sizes and times of change [s]."""
    digest = hashlib.sha256()
    for name in names.tolist():
        found = (folder / os.fsdecode(name)).stat()
        digest.update(name + f"\0{found.st_size} {int(found.st_mtime)}\0".encode())
    return digest.digest()
