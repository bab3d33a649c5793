"""From uint8 image arrays to normalised, augmented torch batches.

All randomness comes from the NumPy generator that is passed in, so a run is reproducible
bit by bit, and no function writes into the arrays it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from rlprune.data.images import Augmentation, ByteArray, Images, IntArray
from rlprune.errors import DataError
from rlprune.replicas import Share

Pixels = TypeVar("Pixels", ByteArray, Tensor)


def normalize(
    images: ByteArray | Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    device: str | torch.device = "cpu",
) -> Tensor:
    """Scale pixels to [0, 1], subtract the mean and divide by the standard deviation.

    ``(pixel / 255 - mean) / std`` per channel, computed on ``device`` so that only the
    bytes travel there.

    Args:
        images: uint8 ``[B, C, H, W]``; may be read-only, is not changed.
        mean: C numbers, in units of [0, 1] pixel values.
        std: C numbers > 0, likewise.
        device: where the result shall be.

    Returns:
        float32 ``[B, C, H, W]`` on ``device``.

    Raises:
        DataError: not uint8 ``[B, C, H, W]``, or not C means and standard deviations.
    """
    _check_pixels(images)
    if not len(mean) == len(std) == images.shape[1]:
        raise DataError(
            f"images have {images.shape[1]} channels but {len(mean)} means and {len(std)} "
            "standard deviations were given; use those of the same image set."
        )
    shape = (1, len(mean), 1, 1)
    scale = 1.0 / (255.0 * np.asarray(std, dtype=np.float64))
    offset = -np.asarray(mean, dtype=np.float64) / np.asarray(std, dtype=np.float64)
    scale_tensor = torch.tensor(scale, dtype=torch.float32, device=device).view(shape)
    offset_tensor = torch.tensor(offset, dtype=torch.float32, device=device).view(shape)
    pixels = _as_tensor(images).to(device).to(torch.float32)
    return pixels.mul_(scale_tensor).add_(offset_tensor)


def augment(
    images: Pixels,
    augmentation: Augmentation,
    generator: np.random.Generator,
    share: Share | None = None,
) -> Pixels:
    """Vary each image at random, the usual way for small image sets.

    - ``none``: returns ``images`` itself and draws nothing.
    - ``shift``: moves each image by up to s pixels up/down and left/right, zeros moving
      in; s is 1 for images smaller than 16 and 1/14 of the side, at least 2, otherwise
      (28: 2). For digits and other images that must not be mirrored.
    - ``crop_flip``: pads each side with zeros by 1/8 of the image's side (28 and 32: 4,
      224: 28), crops at random back to the original size and mirrors left-right with
      probability 1/2. The standard CIFAR-10 augmentation, also used for Fashion-MNIST
      and other natural images.

    Draws per batch: the rows' offsets, the columns' offsets, then (``crop_flip`` only)
    the mirroring, B numbers each (of the whole batch, where these are a share of it).

    Args:
        images: uint8 ``[B, C, H, W]``, array or CPU tensor; is not changed.
        augmentation: see above.
        generator: the only source of randomness.
        share: which images of a batch these are; None: all of it.

    Returns:
        uint8 ``[B, C, H, W]`` of the same kind as ``images``.

    Raises:
        DataError: ``images`` is not uint8 ``[B, C, H, W]``, or an unknown augmentation.
    """
    _check_pixels(images)
    if augmentation == "none":
        return images
    if augmentation not in ("shift", "crop_flip"):
        raise DataError(
            f"unknown augmentation {augmentation!r}; use 'none', 'shift' or 'crop_flip'."
        )
    share = share or Share.whole(len(images))
    if isinstance(images, Tensor):
        return torch.from_numpy(_move(images.numpy(), augmentation, generator, share))
    return _move(images, augmentation, generator, share)


def epoch_order(count: int, generator: np.random.Generator) -> IntArray:
    """Draw the order in which one epoch visits ``count`` images.

    Args:
        count: number of images N.
        generator: the only source of randomness.

    Returns:
        int64 ``[N]``: a permutation of 0..N-1.
    """
    return generator.permutation(count)


def iterate_batches(
    arrays: Images,
    batch_size: int,
    generator: np.random.Generator | None,
    mean: Sequence[float],
    std: Sequence[float],
    augmentation: Augmentation = "none",
    drop_last: bool = False,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Visit all images once, in batches ready for a network.

    Args:
        arrays: N images with labels.
        batch_size: images per batch B.
        generator: shuffles and augments; None visits the images in their own order.
        mean: per channel, in units of [0, 1] pixel values.
        std: per channel, likewise.
        augmentation: see :func:`augment`; needs a generator unless "none".
        drop_last: leave out an incomplete last batch, unless it is the only one.
        device: where the batches shall be.

    Returns:
        Iterator over (float32 ``[B, C, H, W]`` normalised images, int64 ``[B]`` labels).

    Raises:
        DataError: no images, ``batch_size`` below 1, or augmentation without generator.
    """
    if batch_size < 1 or len(arrays) == 0:
        raise DataError(
            f"cannot form batches of {batch_size} from {len(arrays)} images; "
            "both numbers must be at least 1."
        )
    if generator is None and augmentation != "none":
        raise DataError(
            f"augmentation {augmentation!r} draws random numbers but no generator was given; "
            "pass np.random.default_rng(seed) or use augmentation 'none'."
        )
    return _generate(arrays, batch_size, generator, mean, std, augmentation, drop_last, device)


def _generate(
    arrays: Images,
    batch_size: int,
    generator: np.random.Generator | None,
    mean: Sequence[float],
    std: Sequence[float],
    augmentation: Augmentation,
    drop_last: bool,
    device: str | torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    count = len(arrays)
    order = np.arange(count) if generator is None else arrays.shuffled(generator)
    end = count - count % batch_size if drop_last and count >= batch_size else count
    for start in range(0, end, batch_size):
        chosen = arrays.take(order[start : min(start + batch_size, end)])
        images = chosen.images
        if generator is not None:
            images = augment(images, augmentation, generator)
        labels = torch.from_numpy(chosen.labels).to(device)
        yield normalize(images, mean, std, device), labels


def _as_tensor(images: ByteArray | Tensor) -> Tensor:
    if isinstance(images, Tensor):
        return images
    # torch cannot represent read-only memory: it would warn, and allow writes.
    return torch.from_numpy(images if images.flags.writeable else images.copy())


def _check_pixels(images: ByteArray | Tensor) -> None:
    if images.ndim != 4 or images.dtype not in (np.uint8, torch.uint8):
        raise DataError(
            "images must be uint8 with shape [B, C, H, W] "
            f"(got {images.dtype} {list(images.shape)}). "
            "Pass the pixel values 0-255 as they are in ImageArrays.images."
        )


def _move(
    images: ByteArray, augmentation: Augmentation, generator: np.random.Generator, share: Share
) -> ByteArray:
    """Shift each image within zero padding and, for ``crop_flip``, mirror half of them.

    Args:
        images: uint8 ``[B, C, H, W]``.
        augmentation: "shift" or "crop_flip".
        generator: the only source of randomness.
        share: which images of a batch these are.

    Returns:
        uint8 ``[B, C, H, W]``, a new contiguous array.
    """
    count, channels, height, width = images.shape
    pad = _padding(min(height, width), augmentation)
    rows = generator.integers(0, 2 * pad + 1, size=share.total)[share.part]
    columns = generator.integers(0, 2 * pad + 1, size=share.total)[share.part]
    padded = np.zeros((count, channels, height + 2 * pad, width + 2 * pad), dtype=np.uint8)
    padded[:, :, pad : pad + height, pad : pad + width] = images
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    moved = np.ascontiguousarray(windows[np.arange(count), :, rows, columns])
    if augmentation == "crop_flip":
        mirrored = generator.integers(0, 2, size=share.total)[share.part] == 1
        moved[mirrored] = moved[mirrored, :, :, ::-1]
    return moved


def _padding(side: int, augmentation: Augmentation) -> int:
    """Largest displacement in pixels for images whose shorter side is ``side``."""
    if augmentation == "shift":
        return 1 if side < 16 else max(2, side // 14)
    return max(1, (side + 4) // 8)
