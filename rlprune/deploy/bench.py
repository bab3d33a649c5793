"""How fast a shipped model is on this machine, beside what it could be.

Rivals have the same program and arbitrary weights: speed does not depend on them.

- ``dense``: the original network, BatchNorm folded, in the memory format that is faster;
- ``static``: a plain network with as many channels in each layer as the model computes on
  average: no decisions, nothing gathered, the practical limit;
- ``masked``: the model itself, but computing all that is stored and multiplying by masks.

Times are medians of interleaved repeats, so that a busy machine slows all alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rlprune.deploy.layer import channel_columns
from rlprune.deploy.model import PrunedModel
from rlprune.deploy.spec import LayerSpec, ModelSpec, PolicySpec


@dataclass(frozen=True)
class Timing:
    """One way to run.

    Attributes:
        name: as in the module.
        median: seconds per image.
        low, high: 25 % and 75 % of the repeats.
        macs: per image, of what is computed (``masked``: of what is kept).
    """

    name: str
    median: float
    low: float
    high: float
    macs: float


def static_like(model: PrunedModel, widths: Sequence[int], seed: int = 0) -> PrunedModel:
    """A plain network of the model's program with so many channels per layer.

    Args:
        model: whose program and shapes are taken.
        widths: channels of every layer, [T], at least 1, at most C.
        seed: of the arbitrary weights.
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
    return PrunedModel(spec, tensors)


def _plain(layer: LayerSpec, width: int) -> LayerSpec:
    return replace(
        layer, stored=int(width), static_votes=0, rank=None, width_affine=False, norm=False
    )


def _columns(spec: ModelSpec, runs: Sequence[Sequence[int | None]]) -> int:
    total = 0
    for layer, channels in runs:
        total += int(channels or 0) if layer is None else spec.layers[layer].stored
    return total


def _noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    fan_in = max(1, int(np.prod(shape[1:])))
    return torch.randn(shape, generator=generator) / math.sqrt(fan_in)


def compare(
    model: PrunedModel,
    images: Tensor,
    repeats: int = 40,
    warmup: int = 5,
    report: Callable[[int, int], None] | None = None,
) -> list[Timing]:
    """Times the model and its rivals, each repeat in turn.

    Args:
        model: as loaded.
        images: normalised, float32 [B, C, H, W]; they decide what is computed.
        repeats, warmup: runs that count, and runs before.
        report: called with (repeats done, repeats in all).

    Returns:
        Timings of "shipped", "masked" (where there is a runtime agent), "static", "dense".
    """
    model(images)
    counts = np.array([image.counts for image in model.last], dtype=np.float64)
    spent, channels = float(model.macs().mean()), [layer.channels for layer in model.spec.layers]
    widths = np.clip(np.rint(counts.mean(0)).astype(int), 1, None).tolist()
    dense, static = static_like(model, channels), static_like(model, widths)
    last = images.contiguous(memory_format=torch.channels_last)
    runs: dict[str, Callable[[], object]] = {
        "shipped": lambda: model(images),
        "static": lambda: static(images),
        "static, channels last": lambda: static(last),
        "dense": lambda: dense(images),
        "dense, channels last": lambda: dense(last),
    }
    if model.spec.policy.kind != "none":
        runs["masked"] = lambda: model(images, mode="masked")
    seconds = _interleaved(runs, repeats, warmup, report)
    macs = {
        "shipped": spent,
        "masked": spent,
        "static": _conv_macs(static),
        "dense": model.spec.costs.dense_macs,
    }
    found = []
    for name, amount in macs.items():
        ways = [way for way in seconds if way == name or way.startswith(f"{name},")]
        if ways:
            best = min(ways, key=lambda way: float(np.median(seconds[way])))
            low, median, high = np.quantile(seconds[best], [0.25, 0.5, 0.75]) / len(images)
            found.append(Timing(name, float(median), float(low), float(high), amount))
    return found


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


def _interleaved(
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int,
    report: Callable[[int, int], None] | None,
) -> dict[str, np.ndarray]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(-warmup, repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - started)
        if report is not None and repeat >= 0:
            report(repeat + 1, repeats)
    return {name: np.array(values) for name, values in seconds.items()}
