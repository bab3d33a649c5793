"""What a shipped model is timed against: its rivals, and the ways to run each of them.

Rivals have the same program and arbitrary weights: speed does not depend on them.

- ``dense``: the original network as torch runs it, BatchNorm folded;
- ``static``: a plain network with as many channels in each layer as the model computes on
  average: no decisions, nothing gathered, the practical limit; by torch, and compiled as the
  model is;
- ``masked``: the model itself, but computing all that is stored and multiplying by masks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlprune.deploy.artifact import write_artifact
from rlprune.deploy.layer import channel_columns
from rlprune.deploy.model import PrunedModel
from rlprune.deploy.program import MASKED
from rlprune.deploy.spec import LayerSpec, ModelSpec, PolicySpec
from rlprune.errors import ArtifactError

SHIPPED, DENSE, STATIC, MASKS = "shipped", "dense", "static", "masked"
RIVALS = (MASKS, STATIC, DENSE)


@dataclass(frozen=True)
class Way:
    """One way to run a network.

    Attributes:
        name: SHIPPED, or one of RIVALS.
        model: the network.
        mode: of a call of ``PrunedModel``.
        channels_last: how images lie in memory.
        macs: per image; MASKS: of what its masks keep.
    """

    name: str
    model: PrunedModel
    mode: str | None
    channels_last: bool
    macs: float

    def __call__(self, images: Tensor) -> Tensor:
        """Scores of normalised images, which lie in memory as ``channels_last`` says."""
        return self.model(images, mode=self.mode)

    def write(self, path: Path) -> int:
        """Writes the network as a file like that of a shipped model; returns its bytes."""
        return write_artifact(path, self.model.spec, self.model.numbers)


def ways_to_run(
    model: PrunedModel, images: Tensor, rivals: Sequence[str] | None = None
) -> list[Way]:
    """The model and its rivals; dense and static in both memory formats of torch.

    Args:
        model: as loaded.
        images: normalised, float32 [N, C, H, W]; what they compute makes the static rival.
        rivals: of RIVALS; None: all that there are for this model.

    Raises:
        ArtifactError: masks are asked for, but every image computes the same.
    """
    model(images)
    counts = np.array([image.counts for image in model.last], dtype=np.float64)
    widths = np.clip(np.rint(counts.mean(0)).astype(int), 1, None).tolist()
    spent, dynamic = float(model.macs().mean()), model.spec.policy.kind != "none"
    if rivals is None:
        rivals = RIVALS if dynamic else (STATIC, DENSE)
    if MASKS in rivals and not dynamic:
        raise ArtifactError(
            f"{MASKS}: this model has no runtime agent, so that there are no masks. "
            f"Compare it with {STATIC} or {DENSE}."
        )
    ways = [Way(SHIPPED, model, None, False, spent)]
    if MASKS in rivals:
        ways.append(Way(MASKS, model, MASKED, False, spent))
    if STATIC in rivals:
        if model.accelerate is not False:
            rival = static_like(model, widths, accelerate=model.accelerate)
            ways.append(Way(STATIC, rival, None, False, _conv_macs(rival)))
        ways += _both_formats(STATIC, static_like(model, widths, accelerate=False))
    if DENSE in rivals:
        channels = [layer.channels for layer in model.spec.layers]
        rival = static_like(model, channels, accelerate=False)
        ways += _both_formats(DENSE, rival, model.spec.costs.dense_macs)
    return ways


def _both_formats(name: str, model: PrunedModel, macs: float | None = None) -> list[Way]:
    spent = _conv_macs(model) if macs is None else macs
    return [Way(name, model, None, last, spent) for last in (False, True)]


def static_like(
    model: PrunedModel, widths: Sequence[int], seed: int = 0, accelerate: bool | None = None
) -> PrunedModel:
    """A plain network of the model's program with so many channels per layer.

    Args:
        model: whose program and shapes are taken.
        widths: channels of every layer, [T], at least 1, at most C.
        seed: of the arbitrary weights.
        accelerate: as in ``PrunedModel.load``.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = tuple(_plain(layer, w) for layer, w in zip(model.spec.layers, widths, strict=True))
    spec = replace(model.spec, layers=layers, policy=PolicySpec("none"), dtype="float32")
    tensors: dict[str, Tensor] = {}
    for index, layer in enumerate(layers):
        inputs = _columns(spec, [[run.layer, run.channels] for run in layer.inputs])
        shapes = {
            "filter": (layer.stored, inputs, *layer.kernel),
            "channel": (layer.stored, len(channel_columns(layer))),
        }
        for name, shape in shapes.items():
            tensors[f"{index}.{name}"] = _noise(shape, generator)
        if layer.stored < layer.channels:
            tensors[f"{index}.index"] = torch.arange(layer.stored, dtype=torch.int32)
    for node in spec.program:
        if node.kind in ("conv", "linear", "follower", "affine"):
            for name in (f"{node.target}.weight", f"{node.target}.bias"):
                size = list(model.numbers[name].shape)
                if node.kind == "follower":
                    size[0] = layers[int(node.kwargs["layer"])].stored
                elif node.kind in ("conv", "linear") and name.endswith(".weight"):
                    groups = int(node.kwargs.get("groups", 1))
                    columns = _columns(spec, node.kwargs["runs"]) // groups
                    size[1] = columns * int(node.kwargs.get("each", 1))
                tensors[name] = _noise(tuple(size), generator)
    return PrunedModel(spec, tensors, accelerate)


def _plain(layer: LayerSpec, width: int) -> LayerSpec:
    return replace(
        layer,
        stored=int(width),
        static_votes=0,
        rank=None,
        width_affine=False,
        boosted=False,
        norm=False,
    )


def _columns(spec: ModelSpec, runs: Sequence[Sequence[int | None]]) -> int:
    total = 0
    for layer, channels in runs:
        total += int(channels or 0) if layer is None else spec.layers[layer].stored
    return total


def _noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    fan_in = max(1, int(np.prod(shape[1:])))
    return torch.randn(shape, generator=generator) / math.sqrt(fan_in)


def _conv_macs(model: PrunedModel) -> float:
    """MACs of a plain network: what its prunable convolutions compute."""
    counts = [layer.stored for layer in model.spec.layers]
    total = 0.0
    for layer in model.spec.layers:
        inputs = sum(
            run.channels if run.layer is None else counts[run.layer] for run in layer.inputs
        )
        area = layer.kernel[0] * layer.kernel[1] * layer.out_size[0] * layer.out_size[1]
        total += inputs * layer.stored * area
    return total
