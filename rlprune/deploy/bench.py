"""How fast a shipped model is on this machine, beside what it could be.

All ways to run (:mod:`rlprune.deploy.rivals`) take turns, each turn in another order, so that
a busy machine slows all alike; before that each one sees all images. A turn's images are
the next ones: an agent computes other channels for every image, and a convolution of new
widths is prepared anew, as in real use. Ratios are of neighbouring runs.
"""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlprune.deploy import fast
from rlprune.deploy.model import PrunedModel
from rlprune.deploy.rivals import DENSE, Way, ways_to_run

Report = Callable[[int, int], None]
Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """How everything is timed.

    Attributes:
        batch: images of a call.
        threads: of torch.
        repeats: turns that count.
        warmup: least number of turns before; all images are run before as well.
    """

    batch: int = 1
    threads: int = 1
    repeats: int = 40
    warmup: int = 5


@dataclass(frozen=True)
class Timing:
    """One network, run the faster way.

    Attributes:
        way: how it was run.
        median: seconds per image.
        low, high: 25 % and 75 % of the repeats.
        ratio: its time / the dense network's of the same turn, median; None: not timed.
    """

    way: Way
    median: float
    low: float
    high: float
    ratio: float | None

    @property
    def name(self) -> str:
        """Of the network, as in :mod:`rlprune.deploy.rivals`."""
        return self.way.name


def compare(
    model: PrunedModel,
    images: Tensor,
    setting: Setting,
    rivals: Sequence[str] | None = None,
    report: Report | None = None,
) -> list[Timing]:
    """Times the model and its rivals.

    Args:
        model: as loaded.
        images: normalised, float32 [N, C, H, W]; they decide what is computed. Fewer than a
            batch are repeated; what is left behind the last whole batch is not run.
        setting: how.
        rivals: which; None: all that there are.
        report: called with (turns done, turns in all).

    Returns:
        Timings of the shipped model and its rivals.

    Raises:
        ArtifactError: a rival that there is not for this model.
    """
    parts = batches(images, setting.batch)
    with torch_threads(setting.threads):
        ways = ways_to_run(model, torch.cat(parts), rivals)
        seconds = take_turns([timed(way, parts) for way in ways], len(parts), setting, report)
    seconds = seconds[..., 0] / len(parts[0])
    chosen = _faster(ways, seconds)
    dense = next((seconds[at] for at in chosen if ways[at].name == DENSE), None)
    return [_timing(ways[at], seconds[at], dense) for at in chosen]


def batches(images: Tensor, size: int) -> list[Tensor]:
    """Whole batches of images [N, C, H, W]; fewer images than one are repeated."""
    repeated = images.repeat(-(-size // len(images)), 1, 1, 1) if len(images) < size else images
    return [repeated[at : at + size] for at in range(0, len(repeated) - size + 1, size)]


def in_format(parts: Sequence[Tensor], channels_last: bool) -> list[Tensor]:
    """The same images, lying in memory as a network is to read them."""
    kind = torch.channels_last if channels_last else torch.contiguous_format
    return [part.contiguous(memory_format=kind) for part in parts]


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads of torch, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def take_turns(
    runs: Sequence[Callable[[int], Sequence[float]]],
    parts: int,
    setting: Setting,
    report: Report | None = None,
) -> Seconds:
    """Runs everything in turn; without Python's garbage collection, as ``timeit``.

    Args:
        runs: take the number of a batch and give seconds, equally many each time.
        parts: number of batches.
        setting: how often.
        report: called between turns with (turns done, turns in all); 0 while warming up.

    Returns:
        [runs, repeats, numbers].
    """
    found: list[list[Sequence[float]]] = [[] for _ in runs]
    collecting = gc.isenabled()
    gc.disable()
    try:
        warmup = max(setting.warmup, parts)
        for turn in range(-warmup, setting.repeats):
            for place in range(len(runs)):
                at = (place + turn) % len(runs)
                seconds = runs[at](turn % parts)
                if turn >= 0:
                    found[at].append(seconds)
            if report is not None:
                report(max(turn + 1, 0), setting.repeats)  # warming up: 0
    finally:
        if collecting:
            gc.enable()
    return np.array(found, dtype=np.float64)


def timed(way: Way, parts: Sequence[Tensor]) -> Callable[[int], Sequence[float]]:
    """One way of running a network, for :func:`take_turns`."""
    lying = in_format(parts, way.channels_last)

    def run(part: int) -> Sequence[float]:
        images = lying[part]
        started = time.perf_counter()
        way(images)
        return (time.perf_counter() - started,)

    return run


def _faster(ways: Sequence[Way], seconds: Seconds) -> list[int]:
    """Of each name the way with the least median, in order."""
    medians = np.median(seconds, axis=1)
    best: dict[str, int] = {}
    for at, way in enumerate(ways):
        if way.name not in best or medians[at] < medians[best[way.name]]:
            best[way.name] = at
    return list(best.values())


def _timing(way: Way, seconds: Seconds, dense: Seconds | None) -> Timing:
    low, median, high = map(float, np.quantile(seconds, [0.25, 0.5, 0.75]))
    ratio = None if dense is None else float(np.median(seconds / dense))
    return Timing(way, median, low, high, ratio)


def machine() -> str:
    """What times depend on: processor, cores, system, and what computes."""
    kernels = f"numba {_version('numba')}" if fast.available() else "no numba"
    parts = (
        _processor(),
        f"{os.cpu_count()} cores",
        f"{platform.system()} {platform.machine()}",
        f"torch {torch.__version__}",
        kernels,
    )
    return ", ".join(parts)


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _processor() -> str:
    """The processor's name, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
