"""Fashion-MNIST: the four IDX files of the MNIST format, compressed or not."""

from __future__ import annotations

import gzip
import logging
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlprune.data.download import cache_folder, download
from rlprune.data.images import ByteArray, IntArray
from rlprune.data.source import ImageSource, RawSet, array_source, check_label_range
from rlprune.errors import DataError

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` keeps the four files."""

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_UNSIGNED_BYTE = 0x08

logger = logging.getLogger(__name__)


def read_idx(path: Path, rank: int) -> ByteArray:
    """Read an IDX file of unsigned bytes.

    The format: two zero bytes, the element type (8: unsigned byte), the rank, one
    big-endian 32-bit size per dimension, then the elements. It cannot carry code.

    Args:
        path: the file; unpacked in memory if its name ends in ``.gz``.
        rank: the number of dimensions expected (3 for images, 1 for labels).

    Returns:
        uint8 array of the shape in the header, read-only.

    Raises:
        DataError: unreadable, damaged, of another type or rank, or of the wrong length.
    """
    remedy = "Fetch the file again."
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}). {remedy}") from error
    if len(content) < 4 or content[:4] != bytes((0, 0, _UNSIGNED_BYTE, rank)):
        raise DataError(
            f"{path}: not an IDX file of unsigned bytes with {rank} dimension(s): it starts "
            f"with {content[:4].hex()} instead of 0000{_UNSIGNED_BYTE:02x}{rank:02x}. {remedy}"
        )
    header = 4 + 4 * rank
    if len(content) < header:
        raise DataError(f"{path}: the IDX header is cut off after {len(content)} bytes. {remedy}")
    shape: tuple[int, ...] = struct.unpack(f">{rank}I", content[4:header])
    expected = int(np.prod(shape, dtype=object))
    if len(content) - header != expected:
        raise DataError(
            f"{path}: the header promises {expected} bytes of data {list(shape)} but "
            f"{len(content) - header} follow; the file is damaged. {remedy}"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def read_fashion_mnist(root: str | None, may_download: bool) -> RawSet:
    """Read Fashion-MNIST from the first place that has it.

    Places: ``root`` itself (four ``*-ubyte`` or ``*-ubyte.gz`` files; may be read-only),
    then ``root/FashionMNIST/raw`` (torchvision's layout), where it is downloaded to if
    necessary. Without ``root``: Debian's folder, else the cache folder.

    Args:
        root: ``data.root``, or None.
        may_download: fetch missing files.

    Returns:
        Grey images of 10 classes with the official test split.

    Raises:
        DataError: files missing and not to be had, damaged, or not belonging together.
    """
    folder = Path(root).expanduser() if root is not None else _default_folder()
    torchvision_folder = folder / "FashionMNIST" / "raw"
    paths = _locate(folder) or _locate(torchvision_folder)
    if paths is None:
        remedy = (
            "Set data.root to the folder with the four *-ubyte.gz files (on Debian: "
            f"apt-get install dataset-fashion-mnist, then {DEBIAN_FOLDER})"
        )
        download("fashion_mnist", folder, may_download, "FashionMNIST", remedy)
        paths = _locate(torchvision_folder)
        if paths is None:
            raise DataError(f"{torchvision_folder}: the download left no files. {remedy}.")
    train_images, train_labels, test_images, test_labels = paths
    logger.info("fashion_mnist: reading %s", train_images.parent)
    return RawSet(
        train=_pair(train_images, train_labels),
        test=_pair(test_images, test_labels),
        class_names=FASHION_CLASSES,
        grey=True,
    )


def _default_folder() -> Path:
    return DEBIAN_FOLDER if DEBIAN_FOLDER.is_dir() else cache_folder()


def _locate(folder: Path) -> Sequence[Path] | None:
    """Find the four files in ``folder``; None if none of them is there."""
    found: list[Path] = []
    missing: list[str] = []
    for name in _FILES:
        candidates = [folder / name, folder / f"{name}.gz"]
        existing = [path for path in candidates if path.is_file()]
        found += existing[:1]
        missing += [] if existing else [name]
    if not found:
        return None
    if missing:
        raise DataError(
            f"{folder}: has {', '.join(path.name for path in found)} but not "
            f"{', '.join(missing)} (nor with .gz); all four files are needed. "
            "Add the missing ones, or remove the others to download all."
        )
    return found


def _pair(image_path: Path, label_path: Path) -> ImageSource:
    images = read_idx(image_path, rank=3)
    labels: IntArray = read_idx(label_path, rank=1).astype(np.int64)
    if len(images) != len(labels) or images.size == 0:
        raise DataError(
            f"{image_path} has {len(images)} images of {images.shape[1]}x{images.shape[2]} "
            f"pixels but {label_path.name} has {len(labels)} labels; there must be as many "
            "labels as images, and at least one. Fetch both files again from one source."
        )
    check_label_range(labels, len(FASHION_CLASSES), lambda i: f"{label_path}, image {i}")
    return array_source(images[:, None], labels, str(image_path.parent))
