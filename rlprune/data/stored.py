"""Images that stay in their files and are decoded when they are needed (no Ray here)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rlprune.data.decode import EncodedImage, ImageFormat, decode_images
from rlprune.data.images import ImageArrays, IntArray

WINDOW = 2048
"""Images that are shuffled among each other where they lie together in large files.

Many public Parquet files hold their images sorted by class, so the window must span several
row groups; its encoded images (about 110 KB each in ImageNet) are in memory at once.
"""
PORTION = 256
"""Images that one task decodes where each has a file of its own."""
_DRAWN_GROUPS = 8


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Where encoded images lie, in an order of their own.

    Attributes:
        encoded: maps ascending positions ``[M]`` to the encoded images there.
        format: to which all are brought.
        starts: first position of each group of images that are read together (a Parquet
            row group), ascending int64, the first is 0; None: each can be read by itself.
        identity: a digest of what lies there; takes a look at every file.
    """

    encoded: Callable[[IntArray], Iterator[Sequence[EncodedImage]]]
    format: ImageFormat
    starts: IntArray | None
    identity: Callable[[], bytes]


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Labelled images in files; in memory are labels and positions alone.

    Attributes:
        files: where they lie.
        positions: of these images there, int64 ``[N]``, ascending.
        labels: int64 ``[N]``, class numbers from 0.
    """

    files: ImageFiles
    positions: IntArray
    labels: IntArray

    def __len__(self) -> int:
        """Number of images N."""
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        return self.files.format.shape

    @property
    def nbytes(self) -> int:
        """Bytes of labels and positions; pixels are not kept."""
        return self.labels.nbytes + self.positions.nbytes

    @property
    def portion(self) -> int:
        """How many images of :meth:`shuffled`, one after the other, are best read at once."""
        return PORTION if self.files.starts is None else WINDOW

    def take(self, indices: IntArray | Sequence[int]) -> ImageArrays:
        """Decodes the images at ``indices``, in that order.

        Raises:
            DataError: images that cannot be read; the message names them.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        (found,) = self.stream(chosen, max(1, len(chosen)))
        return found

    def stream(
        self, indices: IntArray, size: int, threads: int | None = None
    ) -> Iterator[ImageArrays]:
        """Decodes the images at ``indices`` in that order, ``size`` at a time.

        All are held encoded, and ``size`` decoded.

        Args:
            indices: int64 ``[M]``.
            size: images in each array but the last.
            threads: that decode; None: as many as there are cores.

        Raises:
            DataError: images that cannot be read; the message names them.
        """
        wanted, place = np.unique(self.positions[indices], return_inverse=True)
        found = [image for batch in self.files.encoded(wanted) for image in batch]
        for start in range(0, max(1, len(indices)), size):
            batch = [found[index] for index in place[start : start + size].tolist()]
            pixels = decode_images([batch], len(batch), self.files.format, "images", None, threads)
            yield ImageArrays(pixels, self.labels[indices[start : start + size]])

    def shuffled(self, generator: np.random.Generator) -> IntArray:
        """An order of all images, int64 ``[N]``.

        Where images lie in groups, groups are shuffled, and then the images within windows of
        :data:`WINDOW`: a window needs a few groups only. This is what a local shuffle buffer
        gives, but known before anything is read, so that training can go on from any step.
        """
        if self.files.starts is None:
            return generator.permutation(len(self))
        groups = self._groups()
        rank = generator.permutation(len(self.files.starts))
        order = np.argsort(rank[groups], kind="stable")
        for start in range(0, len(order), WINDOW):
            generator.shuffle(order[start : start + WINDOW])
        return order

    def drawn(self, generator: np.random.Generator, count: int) -> IntArray:
        """Positions drawn with repetition, int64 ``[count]``; from a few groups, if in groups."""
        if self.files.starts is None:
            return generator.choice(len(self), count)
        groups = self._groups()
        some = generator.choice(groups, _DRAWN_GROUPS)  # large groups the more often
        members = np.flatnonzero(np.isin(groups, some))
        return generator.choice(members, count)

    def identity(self) -> bytes:
        """Digest of the files (names, sizes, times), the choice among them, and the labels."""
        digest = hashlib.sha256(self.files.identity())
        digest.update(repr(self.files.format).encode())
        digest.update(np.ascontiguousarray(self.positions).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.digest()

    def _groups(self) -> IntArray:
        """The group of each image, int64 ``[N]``."""
        assert self.files.starts is not None
        return np.searchsorted(self.files.starts, self.positions, side="right") - 1
