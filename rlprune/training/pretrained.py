"""Pretrained networks shared between trials, kept under a content key (no Ray here).

Two trials that start from the same weights, images, order of images and schedule pretrain
the same network; the second one takes the first one's. The key is a digest of all that
decides on the result, so that a changed file or setting can never give a wrong network.
"""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import torch

from rlprune import files
from rlprune.data import ImageSet
from rlprune.errors import CheckpointError
from rlprune.training.program import TrialProgram

FORMAT_VERSION = 1
TRAINED_AS = 2
"""What else decides on the weights; 1: without the stochastic depth that a network has."""


def images_digest(images: ImageSet) -> str:
    """SHA-256 of what pretraining sees of an image set: training images, labels, scaling.

    Of streamed images the files' names, sizes and times stand for the pixels.
    """
    digest = hashlib.sha256(images.train.identity())
    digest.update(repr((images.mean, images.std, images.augmentation)).encode())
    return digest.hexdigest()


def pretrained_key(program: TrialProgram, digest_of_images: str) -> str | None:
    """Content key of a trial's pretraining; None where there is none or it has begun.

    Args:
        program: of a trial that has not trained yet: its network has the initial weights
            (from the seed or from ``backbone.weights``), which are part of the key.
        digest_of_images: :func:`images_digest` of its images.
    """
    training = program.config.training
    if training.pretrain_epochs == 0 or program.position > 0 or program.trainer is not None:
        return None
    settings = {
        "format": FORMAT_VERSION,
        "trained_as": TRAINED_AS,
        "images": digest_of_images,
        "seed": program.config.seed,
        "epochs": training.pretrain_epochs,
        "batch_size": training.batch_size,
        "learning_rate": training.pretrain_learning_rate,
        "gradient_clip": training.gradient_clip,
        "label_smoothing": training.label_smoothing,
        "device": next(program.network.parameters()).device.type,
        "torch": torch.__version__,
    }
    if program.config.resources.cnn_workers > 1:  # rounding differs with the number
        settings["cnn_workers"] = program.config.resources.cnn_workers
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in program.network.state_dict().items():
        digest.update(name.encode())
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


class PretrainedCache:
    """A folder of pretrained networks, one file per content key.

    Files appear whole or not at all. Several processes may write the same key at once:
    they write the same network.

    Args:
        uri: local folder or any pyarrow filesystem URI; made when first written to.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def path(self, key: str) -> str:
        """Where a key's network lies."""
        return files.join(self.uri, f"{key}.pt")

    def load(self, key: str) -> dict[str, Any] | None:
        """What :meth:`save` was given; None if nobody has saved it yet.

        Raises:
            CheckpointError: a damaged or foreign file.
        """
        path = self.path(key)
        if not files.exists(path):
            return None
        try:
            state: Any = torch.load(
                io.BytesIO(files.read_whole(path)), map_location="cpu", weights_only=True
            )
            if not isinstance(state, dict) or state.pop("format_version") != FORMAT_VERSION:
                raise ValueError("another version of rlprune wrote it")
        except Exception as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"pretrained network {path}: cannot be read ({first}). Delete the file: "
                "it will be trained again."
            ) from None
        return dict(state)

    def save(self, key: str, state: dict[str, Any]) -> None:
        """Publishes ``TrialProgram.pretrained_state()`` under a key."""
        buffer = io.BytesIO()
        torch.save({"format_version": FORMAT_VERSION, **state}, buffer)
        files.write_whole(self.path(key), buffer.getvalue())
