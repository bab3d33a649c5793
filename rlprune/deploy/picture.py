"""Image files for a shipped model (needs Pillow; the model itself does not)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rlprune.errors import ArtifactError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


def read_picture(path: str | Path, shape: tuple[int, int, int], resize: str = "stretch") -> Tensor:
    """An image file as the model wants it, uint8 [1, C, H, W].

    Args:
        path: any format that Pillow reads.
        shape: (C, H, W) of the model; one channel: the image is made grey. Other sizes are
            resized (bilinear).
        resize: as in ``ModelSpec``. "crop" is what was done to the image files of the
            training, to the bit: the shorter side is scaled to 8/7 of the model's and the
            centre cut out, and transparency is ignored. Otherwise it is put on black.

    Raises:
        DataError: missing, or no image.
        ArtifactError: Pillow is not installed, or the model wants neither 1 nor 3 channels.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ArtifactError("Reading image files needs Pillow: pip install pillow.") from None
    channels, height, width = shape
    if channels not in (1, 3):
        raise ArtifactError(f"the model wants {channels} channels, image files have 1 or 3.")
    try:
        with Image.open(path) as opened:
            mode = "L" if channels == 1 else "RGB"
            if resize == "crop":
                picture = opened.convert(mode)
            else:
                picture = opened.convert("RGBA")
                black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
                picture = Image.alpha_composite(black, picture).convert(mode)
            if picture.size != (width, height):
                cut = resize == "crop" and height == width
                if cut:
                    picture = _centre(picture, height)
                else:
                    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(picture, dtype=np.uint8)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image: {error}.") from None
    pixels = pixels[:, :, None] if channels == 1 else pixels
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).unsqueeze(0)


def _centre(picture: Picture, side: int) -> Picture:
    """The same as ``rlprune.data.decode.resize_and_crop``, which a shipped model does without."""
    from PIL.Image import Resampling

    shorter = round(side * 8 / 7)
    scale = shorter / min(picture.size)
    width, height = (max(shorter, round(length * scale)) for length in picture.size)
    left, top = (width - side) // 2, (height - side) // 2
    resized = picture.resize((width, height), Resampling.BILINEAR)
    return resized.crop((left, top, left + side, top + side))
