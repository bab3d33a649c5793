"""Where the time goes: each prunable layer of a shipped model beside the dense network's."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlprune.deploy.bench import (
    Report,
    Seconds,
    Setting,
    batches,
    in_format,
    take_turns,
    torch_threads,
)
from rlprune.deploy.model import PrunedModel
from rlprune.deploy.rivals import Way
from rlprune.deploy.spec import LayerSpec


@dataclass(frozen=True)
class LayerTime:
    """One layer, or everything that is none of them.

    Attributes:
        name: of the convolution; "the rest" (normalising, activations, pooling, adding,
            classifier, what Python does between calls).
        channels, computed: of the layer, and on average over images; None for the rest.
        dense_macs, macs: of the convolution per image, without predictor and agent; None
            for the rest.
        dense_seconds, seconds: medians per image; shipped: decision and gathering included.
    """

    name: str
    channels: int | None
    computed: float | None
    dense_macs: float | None
    macs: float | None
    dense_seconds: float
    seconds: float


def layer_times(
    shipped: Way, dense: Way, images: Tensor, setting: Setting, report: Report | None = None
) -> list[LayerTime]:
    """Times both networks layer by layer, in turn.

    Args:
        shipped, dense: how they run, best taken from ``compare``.
        images: as for ``compare``.
        setting, report: likewise.

    Returns:
        One per prunable layer, then the rest; seconds add up to the whole only roughly,
        since each is a median.
    """
    parts = batches(images, setting.batch)
    with torch_threads(setting.threads), contextlib.ExitStack() as stack:
        ways = (shipped, dense)
        clocks = [stack.enter_context(_watched(way.model)) for way in ways]
        runs = [
            _timed(way, clock, in_format(parts, way.channels_last))
            for way, clock in zip(ways, clocks, strict=True)
        ]
        seconds = np.median(take_turns(runs, len(parts), setting, report), axis=1)
    seconds /= len(parts[0])
    return _rows(shipped.model, torch.cat(parts), seconds)


def _timed(
    way: Way, clock: list[float], parts: Sequence[Tensor]
) -> Callable[[int], Sequence[float]]:
    """Seconds of every layer, and of the rest."""

    def run(part: int) -> Sequence[float]:
        clock[:] = [0.0] * len(clock)
        started = time.perf_counter()
        way(parts[part])
        total = time.perf_counter() - started
        return [*clock, total - sum(clock)]

    return run


@contextlib.contextmanager
def _watched(model: PrunedModel) -> Iterator[list[float]]:
    """The seconds spent in each layer of a model are added to a list, for a while."""
    clock = [0.0] * len(model.layers)
    names = ("gathered", "masked")
    for layer in model.layers:
        for name in names:  # on the object, in front of the class's
            setattr(layer, name, _clocked(getattr(layer, name), layer.index, clock))
    try:
        yield clock
    finally:
        for layer in model.layers:
            for name in names:
                delattr(layer, name)


def _clocked(
    function: Callable[..., Tensor], index: int, clock: list[float]
) -> Callable[..., Tensor]:
    def run(*arguments: Any) -> Tensor:
        started = time.perf_counter()
        result = function(*arguments)
        clock[index] += time.perf_counter() - started
        return result

    return run


def _rows(model: PrunedModel, images: Tensor, seconds: Seconds) -> list[LayerTime]:
    told = model.explain(images)
    macs = np.mean([image.layer_macs for image in told], axis=0)
    kept = np.mean([[len(channels) for channels in image.kept] for image in told], axis=0)
    rows = [
        LayerTime(
            layer.name,
            layer.channels,
            float(kept[at]),
            _dense_macs(layer),
            float(macs[at]),
            float(seconds[1, at]),
            float(seconds[0, at]),
        )
        for at, layer in enumerate(model.spec.layers)
    ]
    return [*rows, LayerTime("the rest", None, None, None, None, *map(float, seconds[::-1, -1]))]


def _dense_macs(layer: LayerSpec) -> float:
    area = layer.kernel[0] * layer.kernel[1] * layer.out_size[0] * layer.out_size[1]
    return float(layer.in_channels * layer.channels * area)
