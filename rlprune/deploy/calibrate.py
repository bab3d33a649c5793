"""How long each way to run a model takes on this machine, and from where on one beats another.

Layers are timed inside runs of the whole model, where filters come from as far away as they
will later. Everything takes turns, so that a busy machine slows all alike; times are medians.
With one thread they are that thread's processor time: what others do then counts for little.

Legend: T layers, W widths, S stored channels of a layer.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlprune.deploy import fast
from rlprune.deploy.artifact import read_artifact
from rlprune.deploy.calibration import (
    BatchTimes,
    Calibration,
    LayerTimes,
    Table,
    fingerprint,
    read_calibration,
    side_file,
    this_machine,
    write_calibration,
)
from rlprune.deploy.chain import FastLayer
from rlprune.deploy.fast import FastDecisions
from rlprune.deploy.layer import GatedLayer
from rlprune.deploy.model import PrunedModel
from rlprune.deploy.program import GATHERED, MASKED
from rlprune.deploy.spec import ModelSpec, PolicySpec
from rlprune.errors import ArtifactError

WIDTHS = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
"""Shares of the stored channels that are tried in each layer."""
BUDGETS = (0.25, 0.5, 0.75, 1.0)
"""Compute budgets s at which batches are timed, beside the model's own."""
SIZES = (1, 2, 4, 8, 16, 32)
"""Images in a batch."""
_ONE_BY_ONE = 4  # images, to time them one by one
_SECONDS = 4.0  # for layers, and again for batches
_LEAST_LAYERS, _LEAST_BATCHES, _MOST = 15, 5, 60  # repeats
_TOO_LONG = 0.3  # seconds: no larger batches are tried
_CLEARLY = 0.05
"""Part by which another way must be faster than the usual one to be chosen: less is noise."""
_UNLIMITED = 1 << 62
Seconds = NDArray[np.float64]
Report = Callable[[float], None]
_Key = TypeVar("_Key", bound=Hashable)


def calibrate(
    path: str | Path, images: Tensor | None = None, report: Report | None = None
) -> Table:
    """Measures a model with as many threads as torch uses now, and keeps that beside its file.

    Args:
        path: of a file made by ``rlprune export``.
        images: uint8 pixels [B, C, H, W]; they decide how much is computed at a budget.
            None: noise.
        report: called with the part that is done, from 0 to 1.

    Returns:
        The table; the file beside the model holds it, and those of other numbers of threads
        that were measured before.

    Raises:
        ArtifactError: the model cannot be read, there is nothing to choose in it (a plain
            network where numba is missing), or the file beside it cannot be written.
    """
    model = PrunedModel.load(path, calibrated=False)
    if not fast.available() and any(layer.rank is None for layer in model.spec.layers):
        raise ArtifactError(
            f"{path}: a plain network without importance predictors; without numba there is "
            "one way to run it, nothing to calibrate. Install it: pip install 'rlprune[fast]'."
        )
    tell = report or (lambda done: None)
    batch = model.normalize(_pixels(model, images))
    table = Table(torch.get_num_threads(), (), (), (), (), ())
    if fast.available():
        widths, layers = _layers(path, batch[:1], lambda done: tell(done / 2))
        table = replace(table, widths=widths, layers=layers)
        model.use([table])
    table = _batches(model, batch, table, lambda done: tell(0.5 + done / 2))
    _remember(path, table)
    return table


def _remember(path: str | Path, table: Table) -> None:
    side = side_file(path)
    fresh = Calibration(fingerprint(path), this_machine(True), ())
    try:
        known = read_calibration(side)
        same = (known.model, known.machine) == (fresh.model, fresh.machine)
    except ArtifactError:  # none there yet, or it is damaged: to calibrate again is the remedy
        same = False
    write_calibration(side, (known if same else fresh).with_table(table))


def _pixels(model: PrunedModel, images: Tensor | None) -> Tensor:
    """As many images as the largest batch has, over and over."""
    if images is None:
        generator = torch.Generator().manual_seed(0)
        shape = (SIZES[-1], *model.spec.input_shape)
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return images[torch.arange(SIZES[-1]) % len(images)]


# --- layers -----------------------------------------------------------------------------------


class _Probe:
    """In the place of a compiled layer: forces how much it computes, and takes the time.

    Args:
        layer: of the model of :func:`_forced`.
        compiled: its fast version.

    Attributes:
        share: of the stored channels to keep.
        limit: see ``FastDecisions``; 0: torch's convolution.
        seconds: of the last image.
        rectified: as the fast version's.
    """

    def __init__(self, layer: GatedLayer, compiled: FastLayer) -> None:
        self.layer, self._compiled = layer, compiled
        self.rectified = compiled.rectified
        self.share, self.limit = 1.0, 0
        self.seconds = 0.0
        self._clock = _clock()
        self._anchor: int = fast.load_kernels().places.ANCHOR

    def __call__(self, x: Tensor, image: FastDecisions) -> Tensor:
        spec = self.layer.spec
        image.told[self._anchor] = self.share * spec.stored / spec.channels
        image.limits = np.full(len(image.rules.spec.layers), self.limit)
        started = self._clock()
        y = self._compiled(x, image)
        self.seconds = self._clock() - started
        return y


def _forced(spec: ModelSpec) -> ModelSpec:
    """The same model with the budget's ratio in every layer and nothing else to obey.

    A plain network computes all of itself as it is.
    """
    if any(layer.rank is None for layer in spec.layers):
        return spec
    policy = PolicySpec("constant", projected=False)
    budget = replace(
        spec.budget, tradeoff="permanent", tradeoff_rate=1.0, compute_max=None, alpha=1e-6
    )
    return replace(spec, policy=policy, budget=budget)


def _layers(
    path: str | Path, image: Tensor, report: Report
) -> tuple[tuple[float, ...], tuple[LayerTimes, ...]]:
    """Times of every layer at every width, and where our convolution stops to pay."""
    spec, tensors = read_artifact(path)
    widths = (1.0,) if spec.policy.kind == "none" else WIDTHS
    model = PrunedModel(_forced(spec), tensors, accelerate=True)
    probes = []
    for layer in model.layers:
        assert isinstance(layer.fast, FastLayer)
        layer.fast = probe = _Probe(layer, layer.fast)
        probes.append(probe)

    def run(width: float, limit: int) -> list[float]:
        for probe in probes:
            probe.share, probe.limit = width, limit
        model(image, mode=GATHERED)
        return [probe.seconds for probe in probes]

    def job(width: float, limit: int) -> Callable[[], list[float]]:
        return lambda: run(width, limit)

    jobs = {(width, limit): job(width, limit) for width in widths for limit in (0, _UNLIMITED)}
    seconds = _interleaved(jobs, _LEAST_LAYERS, report)
    layers = []
    for at, layer in enumerate(model.layers):
        torchs = [seconds[width, 0][:, at] for width in widths]
        compiled = [seconds[width, _UNLIMITED][:, at] for width in widths]
        end = break_even(widths, [_gain(*pair) for pair in zip(torchs, compiled, strict=True)])
        times = (tuple(map(_milliseconds, torchs)), tuple(map(_milliseconds, compiled)))
        layers.append(LayerTimes(layer.spec.name, *times, end))
    return widths, tuple(layers)


def _gain(torchs: Seconds, compiled: Seconds) -> float:
    """Logarithm of how many times as fast ours is, by runs that were neighbours."""
    return float(np.median(np.log(torchs / compiled)))


def break_even(widths: Sequence[float], gains: Sequence[float]) -> float:
    """The share of channels up to which the compiled convolution is chosen.

    Usually that is everywhere. It stops earlier, between the two widths where that gains
    most, if torch's is clearly faster from there on. Between the two, it stops where a
    straight line through the gains crosses zero.

    Args:
        widths: ascending, [W].
        gains: logarithms of torch's time over the compiled one's, [W].

    Returns:
        From 0 (never) to 1 (everywhere).
    """
    last = len(gains)
    count = max(range(last + 1), key=lambda n: (sum(gains[:n]), n))
    if count == last or -statistics.fmean(gains[count:]) < _CLEARLY:
        return 1.0
    if count == 0:
        return 0.0
    inside, outside = gains[count - 1], -gains[count]  # not negative, and positive
    low, high = widths[count - 1], widths[count]
    return round(low + inside / (inside + outside) * (high - low), 4)


# --- batches ----------------------------------------------------------------------------------


def _batches(model: PrunedModel, images: Tensor, table: Table, report: Report) -> Table:
    """The table with times of batches."""
    own = min(model.spec.budget.compute_dial, 1.0)
    budgets: dict[float, float | None] = {1.0: None}
    if model.spec.policy.kind != "none":
        budgets = {s: s for s in BUDGETS if s >= model.spec.budget.alpha} | {own: None}

    def one_by_one(budget: float | None) -> Callable[[], list[float]]:
        return lambda: _timed(model, images[:_ONE_BY_ONE], budget, GATHERED)

    def at_once(size: int) -> Callable[[], list[float]]:
        return lambda: _timed(model, images[:size], None, MASKED)

    jobs: dict[tuple[str, float], Callable[[], list[float]]] = {
        (GATHERED, s): one_by_one(budget) for s, budget in sorted(budgets.items())
    }
    sizes: list[int] = []
    at_once(1)()  # what the first call prepares is not counted
    for size in SIZES:
        sizes.append(size)
        jobs[MASKED, size] = at_once(size)
        if size * jobs[MASKED, size]()[0] > _TOO_LONG:
            break
    seconds = _interleaved(jobs, _LEAST_BATCHES, report)
    found = {key: _milliseconds(taken) for key, taken in seconds.items()}
    masked = tuple(found[MASKED, size] for size in sizes)
    rows = [BatchTimes(s, found[GATHERED, s], None) for s in sorted(budgets)]
    rows = [replace(row, masked_from=batch_from(sizes, masked, row.gathered)) for row in rows]
    return replace(table, sizes=tuple(sizes), masked=masked, batches=tuple(rows))


def _timed(model: PrunedModel, images: Tensor, budget: float | None, mode: str) -> list[float]:
    """Seconds of an image."""
    clock = _clock()
    started = clock()
    model(images, budget, mode)
    return [(clock() - started) / len(images)]


def batch_from(sizes: Sequence[int], masked: Sequence[float], gathered: float) -> int | None:
    """The smallest batch from which on a whole batch at once is clearly faster than one by one.

    Args:
        sizes: of batches, ascending.
        masked: time of an image in them, computed at once.
        gathered: time of an image alone.
    """
    least = None
    for size, time_ in zip(reversed(sizes), reversed(masked), strict=True):
        if time_ > gathered * (1.0 - _CLEARLY):
            break
        least = size
    return least


# --- clock ------------------------------------------------------------------------------------


def _clock() -> Callable[[], float]:
    """Seconds of this thread where it does all the work and the clock is fine, else of the day."""
    fine = time.get_clock_info("thread_time").resolution < 1e-6  # on Windows it is not
    return time.thread_time if fine and torch.get_num_threads() == 1 else time.perf_counter


def _interleaved(
    jobs: Mapping[_Key, Callable[[], list[float]]], least: int, report: Report
) -> dict[_Key, Seconds]:
    """Runs all in turn; what each returned, [repeats, numbers].

    After two rounds that do not count there are so many as fit into a few seconds, and at
    least so many.
    """
    started = 0.0
    for _ in range(2):
        started = time.perf_counter()
        for job in jobs.values():
            job()
    spent = time.perf_counter() - started
    repeats = min(max(int(_SECONDS / spent), least), _MOST)
    seconds: dict[_Key, list[list[float]]] = {key: [] for key in jobs}
    for repeat in range(repeats):
        for key, job in jobs.items():
            seconds[key].append(job())
        report((repeat + 1) / repeats)
    return {key: np.array(rows) for key, rows in seconds.items()}


def _milliseconds(seconds: Seconds) -> float:
    """Their median; of four digits, because more would be noise."""
    return float(f"{1e3 * float(np.median(seconds)):.4g}")
