"""CIFAR-10 in its original Python files, without trusting the pickles in them."""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlprune.data.download import cache_folder, download
from rlprune.data.images import ByteArray, IntArray
from rlprune.data.source import ImageSource, RawSet, array_source, check_label_range
from rlprune.errors import DataError

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
BATCH_FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"

_ALLOWED_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}

logger = logging.getLogger(__name__)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles dicts, lists, text, numbers and arrays; refuses anything else.

    The second lock after the checksum: even a file that passes it cannot run code.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        # NumPy 2 moved numpy.core; the files are from NumPy 1's days.
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_cifar10(
    root: str | None, may_download: bool, checksums: Mapping[str, str] | None = None
) -> RawSet:
    """Read CIFAR-10 from ``root``, which may be read-only.

    Places: ``root/cifar-10-batches-py``, ``root`` itself, then the archive
    ``root/cifar-10-python.tar.gz`` (read in memory, nothing is unpacked to disk);
    otherwise torchvision downloads it to ``root``.

    Args:
        root: ``data.root``; None: the cache folder.
        may_download: fetch it if it is not there.
        checksums: MD5 by file name in reading order, the test files' names starting with
            "test"; None: the official ones, as torchvision has them.

    Returns:
        Colour images of 10 classes with the official test split.

    Raises:
        DataError: not found, a checksum is wrong, or a file is damaged.
    """
    folder = Path(root).expanduser() if root is not None else cache_folder()
    official = checksums if checksums is not None else _official_checksums()
    contents = _find_contents(folder, list(official))
    if contents is None:
        remedy = f"Set data.root to the folder that holds {BATCH_FOLDER} or {ARCHIVE}"
        download("cifar10", folder, may_download, "CIFAR10", remedy)
        contents = _find_contents(folder, list(official))
        if contents is None:
            raise DataError(f"{folder}: the download left no {BATCH_FOLDER}. {remedy}.")
    for where, content in contents.items():
        _check_md5(content, official[Path(where).name], where)
    train = [where for where in contents if not Path(where).name.startswith("test")]
    test = [where for where in contents if where not in train]
    return RawSet(
        train=_combine({where: contents[where] for where in train}, folder),
        test=_combine({where: contents[where] for where in test}, folder),
        class_names=CIFAR10_CLASSES,
        grey=False,
    )


def _official_checksums() -> dict[str, str]:
    from torchvision.datasets import CIFAR10

    return {name: md5 for name, md5 in CIFAR10.train_list + CIFAR10.test_list}


def _check_md5(content: bytes, expected: str, where: str) -> None:
    """Verify ``content`` before anything unpickles it.

    The files are pickles, which can run any code when loaded; so only the very bytes that
    torchvision's integrity list vouches for are unpickled (the bytes in memory are
    checked, not the file, which could change in between).
    """
    actual = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if actual != expected:
        raise DataError(
            f"{where}: MD5 checksum {actual} instead of {expected}; the file is damaged or "
            "is not the official CIFAR-10, and will not be opened. Delete it and fetch it again."
        )


def _find_contents(folder: Path, names: list[str]) -> dict[str, bytes] | None:
    """Read the batch files into memory, by place; None if there are none."""
    for place in (folder / BATCH_FOLDER, folder):
        present = [name for name in names if (place / name).is_file()]
        if not present:
            continue
        missing = [name for name in names if name not in present]
        if missing:
            raise DataError(
                f"{place}: {', '.join(missing)} missing; all of {', '.join(names)} are "
                f"needed. Delete {place} to fetch it again, or add the missing files."
            )
        logger.info("cifar10: reading %s", place)
        return {str(place / name): _read_bytes(place / name) for name in names}
    archive = folder / ARCHIVE
    return _read_archive(archive, names) if archive.is_file() else None


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}). Check its permissions.") from error


def _read_archive(archive: Path, names: list[str]) -> dict[str, bytes]:
    logger.info("cifar10: reading %s", archive)
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = Path(member.name).name
                stream = tar.extractfile(member) if name in names and member.isfile() else None
                if stream is not None:
                    contents[name] = stream.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{archive}: cannot be read ({error}). Delete it and fetch it again."
        ) from error
    missing = [name for name in names if name not in contents]
    if missing:
        raise DataError(
            f"{archive}: does not contain {', '.join(missing)}. Delete it and fetch it again."
        )
    return {f"{archive}/{name}": contents[name] for name in names}


def _combine(contents: Mapping[str, bytes], folder: Path) -> ImageSource:
    parts = [_decode_batch(content, where) for where, content in contents.items()]
    images = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    return array_source(images, labels, str(folder))


def _decode_batch(content: bytes, where: str) -> tuple[ByteArray, IntArray]:
    """Turn one (already verified) batch file into images and labels.

    Args:
        content: a pickled dict with ``data`` uint8 ``[N, 3072]`` and ``labels``.
        where: the file, for messages.

    Returns:
        uint8 ``[N, 3, 32, 32]`` and int64 ``[N]``.

    Raises:
        DataError: the content is something else.
    """
    try:
        # Written by Python 2, whose byte strings only latin1 maps one to one.
        entry = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
        images = entry["data"].reshape(-1, 3, 32, 32)
        labels = np.asarray(entry["labels"], dtype=np.int64)
    except (pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError, AttributeError) as e:
        raise DataError(
            f"{where}: not a CIFAR-10 batch ({e}). Delete it and fetch the official files."
        ) from e
    if images.dtype != np.uint8 or len(images) != len(labels):
        raise DataError(
            f"{where}: {len(images)} images ({images.dtype}) but {len(labels)} labels; CIFAR-10 "
            "has uint8 images with one label each. Delete it and fetch the official files."
        )
    check_label_range(labels, len(CIFAR10_CLASSES), lambda i: f"{where}, image {i}")
    return images, labels
