"""Fetching torchvision's image sets."""

from __future__ import annotations

import logging
from pathlib import Path

from rlprune.errors import DataError

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder for downloads where ``data.root`` is not set."""
    return Path.home() / ".cache" / "rlprune" / "data"


def download(name: str, folder: Path, allowed: bool, dataset: str, remedy: str) -> None:
    """Let torchvision download an image set (it checks what it fetched by MD5).

    Args:
        name: ``data.name``, for messages.
        folder: torchvision's root folder; made if necessary.
        allowed: ``data.download``.
        dataset: name of torchvision's class.
        remedy: what else the user can do, for messages.

    Raises:
        DataError: downloading is not allowed, or fails.
    """
    if not allowed:
        raise DataError(
            f"{folder}: {name} was not found there and data.download is false. "
            f"{remedy}, or allow the download."
        )
    logger.info("%s: downloading to %s", name, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        from torchvision import datasets

        getattr(datasets, dataset)(str(folder), download=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise DataError(
            f"{folder}: {name} was not found there and could not be downloaded ({error}). "
            f"Check the network and that the folder can be written. {remedy}."
        ) from error
