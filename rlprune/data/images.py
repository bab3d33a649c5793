"""Image sets: plain arrays that Ray can share between processes, or images left in their files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from rlprune.errors import DataError

ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
Augmentation = Literal["none", "shift", "crop_flip"]

_STATISTICS_CHUNK_BYTES = 1 << 24


class Images(Protocol):
    """Labelled images of one shape, held in memory (:class:`ImageArrays`) or read when needed.

    Attributes:
        labels: int64 ``[N]``, class numbers from 0.
    """

    @property
    def labels(self) -> IntArray: ...  # noqa: D102

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that the set takes in memory."""
        ...

    def __len__(self) -> int: ...

    def take(self, indices: IntArray | Sequence[int]) -> ImageArrays:
        """The images at ``indices`` in that order, as arrays."""
        ...

    def shuffled(self, generator: np.random.Generator) -> IntArray:
        """An order of all images, int64 ``[N]``, in which they can be read at a good pace."""
        ...

    def drawn(self, generator: np.random.Generator, count: int) -> IntArray:
        """Positions of images drawn at random, with repetition, int64 ``[count]``."""
        ...

    def identity(self) -> bytes:
        """A digest that differs where images or labels do."""
        ...


@dataclass(frozen=True, eq=False)
class ImageArrays:
    """Images with their labels.

    The arrays may be read-only (they are when Ray shares them between processes), so
    nothing may write into them.

    Shapes: N images, C channels, H rows, W columns.

    Attributes:
        images: uint8 ``[N, C, H, W]``, pixel values 0-255.
        labels: int64 ``[N]``, class numbers from 0.

    Raises:
        DataError: a wrong rank, element type or length.
    """

    images: ByteArray
    labels: IntArray

    def __post_init__(self) -> None:
        """Check ranks, element types and lengths."""
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise DataError(
                "images must be a uint8 array of shape [N, C, H, W] "
                f"(got {self.images.dtype} {list(self.images.shape)}). "
                "Convert pixel values to 0-255 and put the channels second."
            )
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != np.int64:
            raise DataError(
                f"labels must be an int64 array with one label for each of the "
                f"{len(self.images)} images (got {self.labels.dtype} "
                f"{list(self.labels.shape)}). Give every image one integer label."
            )

    def __len__(self) -> int:
        """Number of images N."""
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def nbytes(self) -> int:
        """Bytes of pixels and labels."""
        return self.images.nbytes + self.labels.nbytes

    def shuffled(self, generator: np.random.Generator) -> IntArray:
        """A permutation of all positions, int64 ``[N]``."""
        return generator.permutation(len(self))

    def drawn(self, generator: np.random.Generator, count: int) -> IntArray:
        """Positions drawn with repetition, int64 ``[count]``."""
        return generator.choice(len(self), count)

    def identity(self) -> bytes:
        """Digest of shape, pixels and labels."""
        digest = hashlib.sha256(str(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.digest()

    def take(self, indices: IntArray | Sequence[int]) -> ImageArrays:
        """Copy the images and labels at ``indices``, in that order.

        Args:
            indices: ``[M]`` positions in 0..N-1.

        Returns:
            M images with their labels, in new arrays.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        return ImageArrays(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A classification task: three splits and what is needed to feed a network.

    Attributes:
        name: the set's name in the configuration.
        train: images to learn from (validation already taken out).
        validation: images held out of training, for choices made during a trial.
        test: images for the reported numbers only.
        class_names: one name per class, in label order.
        mean: per channel, of the training split, pixel values in units of [0, 1].
        std: per channel, likewise; 1.0 for a channel that is constant.
        augmentation: which augmentation training uses, see
            :func:`rlprune.data.batches.augment`.

    Raises:
        DataError: the splits' image shapes differ, or there are fewer than two classes.
    """

    name: str
    train: Images
    validation: Images
    test: Images
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        for split, arrays in (("validation", self.validation), ("test", self.test)):
            if arrays.shape != self.input_shape:
                raise DataError(
                    f"{self.name}: {split} images have shape {list(arrays.shape)} "
                    f"but training images {list(self.input_shape)}; all must agree "
                    "(channels, rows, columns). Convert them to one shape."
                )
        if self.num_classes < 2:
            raise DataError(
                f"{self.name}: classification needs at least 2 classes "
                f"(got {self.num_classes}: {', '.join(self.class_names)}). "
                "Check that each class has its own folder or label."
            )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        return self.train.shape


def channel_statistics(
    images: ByteArray | Iterable[ByteArray],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in units of [0, 1] pixel values.

    Computed exactly from a histogram of the 256 pixel values, so the result depends on
    neither the order of the images nor the number of threads.

    Args:
        images: uint8 ``[N, C, H, W]``, N >= 1; or several such arrays, one after the other.

    Returns:
        ``(mean, std)``, C numbers each; std is 1.0 for a constant channel, so that
        dividing by it is always safe.
    """
    arrays = [images] if isinstance(images, np.ndarray) else images
    histogram = sum(map(_histogram, arrays), start=np.zeros(256, dtype=np.int64))
    values = np.arange(256) / 255.0
    pixels = histogram.sum(axis=1)
    mean = histogram @ values / pixels
    variance = (histogram * (values - mean[:, None]) ** 2).sum(axis=1) / pixels
    constant = np.count_nonzero(histogram, axis=1) <= 1
    std = np.where(constant, 1.0, np.sqrt(variance))
    return tuple(mean.tolist()), tuple(std.tolist())


def _histogram(images: ByteArray) -> IntArray:
    """How often each pixel value occurs in each channel, int64 ``[C, 256]``."""
    count, channels = images.shape[:2]
    histogram = np.zeros((channels, 256), dtype=np.int64)
    step = max(1, _STATISTICS_CHUNK_BYTES // max(1, images[0].size))
    for start in range(0, count, step):
        chunk = images[start : start + step]
        for channel in range(channels):
            histogram[channel] += np.bincount(chunk[:, channel].ravel(), minlength=256)
    return histogram
