"""Image files for a shipped model (needs Pillow; the model itself does not)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlprune.errors import ArtifactError, DataError


def read_picture(path: str | Path, shape: tuple[int, int, int]) -> Tensor:
    """An image file as the model wants it, uint8 [1, C, H, W].

    Args:
        path: any format that Pillow reads; transparency is put on black.
        shape: (C, H, W) of the model; one channel: the image is made grey. Other sizes are
            resized (bilinear).

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
            picture = opened.convert("RGBA")
            black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
            picture = Image.alpha_composite(black, picture)
            picture = picture.convert("L" if channels == 1 else "RGB")
            if picture.size != (width, height):
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(picture, dtype=np.uint8)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image: {error}.") from None
    pixels = pixels[:, :, None] if channels == 1 else pixels
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).unsqueeze(0)
