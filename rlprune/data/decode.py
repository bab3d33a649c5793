"""Decoding image files on several threads, to one shape, with all failures in one message."""

from __future__ import annotations

import io
import logging
import math
import os
import struct
import time
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlprune.data.images import ByteArray
from rlprune.data.source import Progress
from rlprune.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow would start Ghostscript for EPS; only formats that it decodes itself are allowed.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
_FAILURES = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
_IMAGES_PER_TASK = 64
_LISTED_FAILURES = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedImage:
    """An image that is still a file.

    Attributes:
        where: its file, or Parquet file and row, for messages.
        content: the encoded bytes, or the path of the file that holds them, or None where
            a table has no bytes for it.
    """

    where: str
    content: bytes | Path | None


@dataclass(frozen=True)
class ImageFormat:
    """The one shape that all images of a set are brought to.

    Attributes:
        grey: one channel; otherwise three (RGB).
        height: rows in pixels.
        width: columns in pixels.
        resize: scale and crop images of other sizes, rather than refusing them.
    """

    grey: bool
    height: int
    width: int
    resize: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W)."""
        return (1 if self.grey else 3, self.height, self.width)


def probe_format(image: EncodedImage, image_size: int | None) -> ImageFormat:
    """Let the first image decide the format of all.

    Args:
        image: the first image; grey ("L") makes the whole set grey, anything else colour.
        image_size: side in pixels to resize to; None: all must have this image's size.

    Returns:
        The format.

    Raises:
        DataError: the image cannot be read.
    """
    try:
        opened = _open(image)
    except _decode_failures() as error:
        raise _failure_summary([f"{image.where}: {error}"], 1) from error
    width, height = opened.size
    side = image_size
    return ImageFormat(opened.mode == "L", side or height, side or width, side is not None)


def decode_images(
    batches: Iterable[Sequence[EncodedImage]],
    total: int,
    image_format: ImageFormat,
    what: str,
    progress: Progress | None,
    threads: int | None = None,
) -> ByteArray:
    """Decode images on several threads.

    Resizing (if the format says so) is the usual evaluation transform of ImageNet: the
    shorter side to 8/7 of the target (224: 256), bilinear with antialiasing, then the
    centre. An image that has the target size already is kept as it is.

    Args:
        batches: the images in order, in portions that fit into memory.
        total: number of images N.
        image_format: what they are brought to.
        what: named in log and progress, for example "training images".
        progress: called after every portion; see :data:`rlprune.data.source.Progress`.
        threads: how many; None: as many as there are cores.

    Returns:
        uint8 ``[N, C, H, W]``.

    Raises:
        DataError: lists up to five images that cannot be used and says how many there are;
            or there is not enough memory.
    """
    started = time.monotonic()
    pixels = _allocate(total, image_format)
    failures: list[str] = []
    done = 0
    with ThreadPoolExecutor(max_workers=threads or _threads()) as pool:
        for batch in batches:
            starts = range(0, len(batch), _IMAGES_PER_TASK)
            parts = [batch[start : start + _IMAGES_PER_TASK] for start in starts]
            outs = [pixels[done + start : done + start + _IMAGES_PER_TASK] for start in starts]
            for part, found in zip(
                parts, pool.map(partial(_decode_part, image_format), parts, outs), strict=True
            ):
                failures += found
                done += len(part)
                if progress is not None:
                    progress(what, done, total)
    if failures:
        raise _failure_summary(failures, total)
    seconds = time.monotonic() - started
    logger.info("decoded %d %s in %.1f s", total, what, seconds)
    return pixels


def _threads() -> int:
    """Cores this process may use (a container's share where the system can tell)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _allocate(total: int, image_format: ImageFormat) -> ByteArray:
    try:
        return np.empty((total, *image_format.shape), dtype=np.uint8)
    except MemoryError as error:
        size = total * math.prod(image_format.shape) / 2**30
        raise DataError(
            f"{total} images of {image_format.height}x{image_format.width} pixels take "
            f"{size:.1f} GiB, more than there is memory. "
            "Set data.streaming: true, data.max_train_images, or a smaller data.image_size."
        ) from error


def _decode_part(
    image_format: ImageFormat, images: Sequence[EncodedImage], out: ByteArray
) -> list[str]:
    """Decode ``images`` into ``out``; return what went wrong, one text per image."""
    failures: list[str] = []
    for position, image in enumerate(images):
        try:
            out[position] = _decode(image, image_format)
        except _decode_failures() as error:
            failures.append(f"{image.where}: {error}")
    return failures


def _decode_failures() -> tuple[type[Exception], ...]:
    from PIL.Image import DecompressionBombError

    return (*_FAILURES, DecompressionBombError)


def _open(image: EncodedImage) -> Image:
    """Open one image (header only); raises one of ``_decode_failures``."""
    from PIL import Image, UnidentifiedImageError

    if image.content is None:
        raise ValueError("there are no bytes in the column image")
    source = io.BytesIO(image.content) if isinstance(image.content, bytes) else image.content
    try:
        opened = Image.open(source, formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError(f"not an image ({', '.join(_FORMATS)})") from error
    if opened.mode.startswith(("I", "F")):
        raise ValueError(f"pixels of more than 8 bits (mode {opened.mode}); convert to 8 bits")
    return opened


def _decode(image: EncodedImage, image_format: ImageFormat) -> ByteArray:
    """Decode one image to uint8 ``[C, H, W]``; raises one of ``_decode_failures``."""
    with _open(image) as opened:
        size = (image_format.width, image_format.height)
        if opened.size != size and not image_format.resize:
            raise ValueError(
                f"{opened.width}x{opened.height} pixels, but the first training image has "
                f"{size[0]}x{size[1]} (width x height); set data.image_size to resize all"
            )
        converted = opened.convert("L" if image_format.grey else "RGB")
    if converted.size != size:
        converted = resize_and_crop(converted, image_format.height)
    pixels = np.asarray(converted, dtype=np.uint8)
    return pixels[None] if image_format.grey else pixels.transpose(2, 0, 1)


def resize_and_crop(image: Image, side: int) -> Image:
    """Scale the shorter side to round(8/7 side) and cut out the centre.

    Args:
        image: of any size.
        side: rows and columns of the result, in pixels.

    Returns:
        The square centre.
    """
    from PIL.Image import Resampling

    shorter = round(side * 8 / 7)
    scale = shorter / min(image.size)
    width, height = (max(shorter, round(length * scale)) for length in image.size)
    resized = image.resize((width, height), Resampling.BILINEAR)
    left, top = (width - side) // 2, (height - side) // 2
    return resized.crop((left, top, left + side, top + side))


def _failure_summary(failures: Sequence[str], total: int) -> DataError:
    """Merge failures into one error: up to five are listed, all are counted."""
    lines = [f"{len(failures)} of {total} images cannot be used:"]
    lines += [f"  - {failure}" for failure in failures[:_LISTED_FAILURES]]
    if len(failures) > _LISTED_FAILURES:
        lines.append(f"  - and {len(failures) - _LISTED_FAILURES} more")
    lines.append("Replace or remove these images.")
    return DataError("\n".join(lines))
