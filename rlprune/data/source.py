"""What a reader hands over: labels at once, pixels only for the images that are used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlprune.data.images import ByteArray, ImageArrays, IntArray
from rlprune.errors import DataError

if TYPE_CHECKING:
    from rlprune.data.stored import ImageFiles

Progress = Callable[[str, int, int], None]
"""Called with (what is being read, images done, images in all) on the caller's thread."""


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Labelled images whose pixels have perhaps not been read yet.

    Attributes:
        labels: int64 ``[N]``, in 0..K-1.
        positions: of these images among those that ``read`` knows, ascending int64 ``[N]``.
        read: maps ascending positions ``[M]`` to their pixels, uint8 ``[M, C, H, W]``.
        where: file or folder, for messages.
        files: the same images for reading a few at a time; None: they are in memory anyway.
    """

    labels: IntArray
    positions: IntArray
    read: Callable[[IntArray], ByteArray]
    where: str
    files: ImageFiles | None = None

    def select(self, indices: IntArray) -> ImageSource:
        """Restrict the source to the ascending positions ``indices``, still unread."""
        return dataclasses.replace(
            self, labels=self.labels[indices], positions=self.positions[indices]
        )

    def load(self) -> ImageArrays:
        """Read all pixels.

        Raises:
            DataError: images that cannot be read; the message names them.
        """
        return ImageArrays(self.read(self.positions), self.labels)


@dataclass(frozen=True, eq=False)
class RawSet:
    """An image set as it lies on disk, before validation images are taken out.

    Attributes:
        train: all training images.
        test: test images; None: a part of ``train`` has to be held out for it.
        class_names: K names in label order.
        grey: True for one channel, False for three.
    """

    train: ImageSource
    test: ImageSource | None
    class_names: tuple[str, ...]
    grey: bool


def array_source(images: ByteArray, labels: IntArray, where: str) -> ImageSource:
    """Wrap images that are in memory already.

    Args:
        images: uint8 ``[N, C, H, W]``.
        labels: int64 ``[N]``.
        where: file or folder, for messages.

    Returns:
        The source of these images.
    """
    return ImageSource(labels, np.arange(len(labels)), lambda chosen: images[chosen], where)


def check_label_range(labels: IntArray, num_classes: int, describe: Callable[[int], str]) -> None:
    """Refuse labels outside 0..num_classes-1.

    Args:
        labels: int64 ``[N]``.
        num_classes: K.
        describe: names the place of the label at a position, for the message.

    Raises:
        DataError: names the first offending place, its label and the number of others.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong) == 0:
        return
    first = int(wrong[0])
    others = f", and {len(wrong) - 1} more labels likewise" if len(wrong) > 1 else ""
    raise DataError(
        f"{describe(first)}: label {int(labels[first])} is out of range; labels must be "
        f"0..{num_classes - 1} for {num_classes} classes{others}. "
        "Correct the label, remove the image, or name all classes."
    )


def check_folder(root: str | None, name: str, content: str) -> Path:
    """Return the folder ``root`` where there is one.

    Args:
        root: ``data.root`` of the configuration; ``~`` is the home folder.
        name: ``data.name``, for the message.
        content: what the folder should hold, for the message.

    Returns:
        The folder.

    Raises:
        DataError: ``root`` is None or not a folder.
    """
    if root is None:
        raise DataError(
            f"data.root: {name} needs the folder with the images (got null). "
            f"Set data.root to a folder with {content}."
        )
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{folder}: there is no such folder. Set data.root to a folder with {content}."
        )
    return folder
