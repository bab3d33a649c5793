"""What one RL iteration costs beside a plain forward pass, and what a second worker gives.

Three measurements with m_cifarnet at full width on 3x32x32 images:

1. One RL iteration (``PruningAlgorithm.train_agents``: rollouts, advantages, one PPO
   epoch, records) in this process against the dense backbone's forward pass of as many
   images, in turn.
2. Where the iteration's time goes, by part.
3. Images per second of two rollout workers (Ray actors, one thread each) against one, in
   turn, weights sent anew each time.

    python analysis/benchmarks/rl_iteration.py [--repeats N] [--data FOLDER] [--json OUT]

It is a benchmark, not a test: a missed target is printed, the exit status is 0.
README.md beside this file has the last numbers.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import ray
import torch
from PIL import Image
from ray.rllib.core.learner.learner_group import LearnerGroup
from torch import nn

from rlprune.agents.networks import AgentPolicy
from rlprune.backbones import build_backbone
from rlprune.config import (
    AgentConfig,
    DataConfig,
    EvaluationConfig,
    RolloutConfig,
    TrainingConfig,
    TrialConfig,
)
from rlprune.data import normalize
from rlprune.mdp import environment
from rlprune.pruning import BilinearCost, CostModel, GatedNetwork, gated
from rlprune.training import worker
from rlprune.training.algorithm import PruningAlgorithm
from rlprune.training.algorithm_config import PruningAlgorithmConfig
from rlprune.training.cluster import private_ray
from rlprune.training.learner import StackedChunks
from rlprune.training.setup import TrialSetup

SIDE = 32
ROLLOUTS = 128
WARM_UPS = 3
LARGEST_COST = 1.3
LEAST_SPEEDUP = 1.7
STORE_BYTES = 128 * 2**20

CONVOLUTIONS = "CNN: convolutions"
GATING = "CNN: gating (pool, importance, scale, mask)"
LAYERS = "CNN: the rest (ReLU, last pool, classifier)"
IMAGES = "images and budgets drawn"
DECISIONS = "decision process (observations, counts)"
AGENTS = "agents' networks"
MASKS = "masks"
COSTS = "costs and budget projection"
REWARDS = "rewards, trajectories"
WEIGHTS = "weights shipped and loaded"
CONNECTOR = "learner: connector (values, GAE)"
LEARNER = "learner: RLlib's PPO"
OTHER = "records, metrics, other"
INSIDE_CNN = (CONVOLUTIONS, GATING, LAYERS)
OUTSIDE_CNN = (IMAGES, DECISIONS, AGENTS, MASKS, COSTS, REWARDS, WEIGHTS, CONNECTOR, LEARNER, OTHER)
PARTS = (*INSIDE_CNN, *OUTSIDE_CNN)

# (owner, attribute, part): what each part's clock runs in; inner parts stop the outer's.
_TIMED: tuple[tuple[Any, str, str], ...] = (
    (nn.Conv2d, "forward", CONVOLUTIONS),
    (gated.GatedConv, "forward", GATING),
    (GatedNetwork, "forward", LAYERS),
    (worker, "augment", IMAGES),
    (worker, "normalize", IMAGES),
    (TrialSetup, "sample_episodes", IMAGES),
    (environment.PruningGate, "decide", DECISIONS),
    (environment.StaticPlan, "__init__", DECISIONS),
    (AgentPolicy, "ratio", AGENTS),
    (environment, "tradeoff_keep", MASKS),
    (environment, "cap_keep", MASKS),
    (BilinearCost, "total", COSTS),
    (BilinearCost, "largest_count", COSTS),
    (BilinearCost, "proportional_share", COSTS),
    (CostModel, "macs", COSTS),
    (CostModel, "static_macs", COSTS),
    (CostModel, "storage_bytes", COSTS),
    (worker, "roll_out", REWARDS),
    (PruningAlgorithm, "_request", WEIGHTS),
    (worker.RolloutWorker, "_refresh", WEIGHTS),
    (StackedChunks, "__call__", CONNECTOR),
    (LearnerGroup, "update", LEARNER),
)


class PartClock:
    """Sums up seconds by part; a part's time excludes that of the parts inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def running(self, part: str) -> Iterator[None]:
        """Counts the time of the block as ``part``'s."""
        self._switch()
        self._open.append(part)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """``function``, counted as ``part``."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self.running(part):
                return function(*args, **kwargs)

        return wrapper


@contextmanager
def timed_parts(clock: PartClock) -> Iterator[None]:
    """While open, every function of ``_TIMED`` runs on the clock."""
    with ExitStack() as stack:
        for owner, name, part in _TIMED:
            timed = clock.timed(getattr(owner, name), part)
            stack.enter_context(mock.patch.object(owner, name, timed))
        yield


@dataclass(frozen=True)
class IterationResult:
    """One RL iteration against a dense forward pass of the same number of images.

    Attributes:
        dense_ms, dense_channels_last_ms, iteration_ms: medians, milliseconds; the dense
            pass in torch's default memory format and in the one that rollouts use.
        cost: iteration_ms / the smaller of the dense medians.
        paired_costs: the quartiles of the ratios of neighbouring runs (how noisy it was).
        parts_ms: mean milliseconds of an iteration by part (of separate, timed runs).
        outside_cnn: share of the iteration spent outside the CNN, 0-1.
    """

    dense_ms: float
    dense_channels_last_ms: float
    iteration_ms: float
    cost: float
    paired_costs: tuple[float, ...]
    parts_ms: dict[str, float]
    outside_cnn: float


@dataclass(frozen=True)
class WorkerResult:
    """Two rollout workers against one.

    Attributes:
        one, two: median images per second, sampling with weights shipped.
        speedup: two / one.
        paired_speedups: the quartiles of the ratios of neighbouring runs.
        iteration_one, iteration_two: the same for whole RL iterations, learner included.
        iteration_speedup: their ratio.
    """

    one: float
    two: float
    speedup: float
    paired_speedups: tuple[float, ...]
    iteration_one: float
    iteration_two: float
    iteration_speedup: float


def write_digits(folder: Path) -> None:
    """Writes scikit-learn's digits as 32x32 colour PNGs into two Parquet files."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = []
    for pixels, label in zip(digits.images, digits.target, strict=True):
        image = Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8))
        png = io.BytesIO()
        image.resize((SIDE, SIDE), Image.Resampling.BILINEAR).convert("RGB").save(png, "PNG")
        rows.append({"image": {"bytes": png.getvalue(), "path": None}, "label": int(label)})
    frame = pd.DataFrame(rows)
    frame[:1500].to_parquet(folder / "train.parquet")
    frame[1500:].to_parquet(folder / "test.parquet")


def build(data: Path, runners: int) -> PruningAlgorithm:
    """A trial with defaults but for what the benchmark fixes; ROLLOUTS per worker."""
    trial = TrialConfig(
        data=DataConfig(name="parquet", root=str(data), image_size=SIDE, max_train_images=2000),
        agents=AgentConfig(epochs=1),
        rollouts=RolloutConfig(
            num_env_runners=runners,
            rollouts_per_update=ROLLOUTS * max(1, runners),
            threads_per_runner=1,
        ),
        training=TrainingConfig(updates_per_round=10**6),  # no new round while measuring
        evaluation=EvaluationConfig(batchnorm_images=ROLLOUTS),
    )
    algorithm: PruningAlgorithm = PruningAlgorithmConfig.of(trial).build_algo()
    with torch.no_grad():  # as after training: importances differ between images
        for layer in algorithm.program.network.layers:
            layer.runtime_predictor.weight.normal_(0.0, 0.05)
            layer.static_importance.uniform_(0.5, 1.5)
    return algorithm


def iterate(algorithm: PruningAlgorithm) -> None:
    """One RL iteration."""
    algorithm.train_agents(algorithm.program.counters.rl_updates + 1)


def sample(algorithm: PruningAlgorithm) -> None:
    """One update's rollouts with fresh images, and new weights of CNN and agents."""
    algorithm.program.counters.rl_updates += 1
    algorithm._network_ref = None
    algorithm._collect()


def seconds(action: Callable[[], Any]) -> float:
    """How long an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def in_turn(repeats: int, *actions: Callable[[], Any]) -> list[list[float]]:
    """Seconds of each action, after warm-ups, the actions taking turns."""
    for action in actions:
        for _ in range(WARM_UPS):
            action()
    rows = [[seconds(action) for action in actions] for _ in range(repeats)]
    return [list(column) for column in zip(*rows, strict=True)]


def quartiles(values: list[float]) -> tuple[float, ...]:
    """Lower quartile, median, upper quartile."""
    return tuple(float(x) for x in np.quantile(values, [0.25, 0.5, 0.75]))


def _dense_pass(algorithm: PruningAlgorithm, memory_format: Any) -> Callable[[], None]:
    """The plain backbone on as many images as one update walks, each as often as there."""
    trial, images = algorithm.config.trial, algorithm.program.images
    group = trial.agents.samples_per_image
    pixels = images.train.take(np.arange(ROLLOUTS // group)).images
    batch = normalize(pixels, images.mean, images.std).repeat_interleave(group, 0)
    batch = batch.to(memory_format=memory_format)
    dense = build_backbone(trial.backbone, images.num_classes, images.input_shape)
    dense.eval().to(memory_format=memory_format)

    def forward() -> None:
        with torch.no_grad():
            dense(batch)

    return forward


def measure_iteration(data: Path, repeats: int) -> IterationResult:
    """Measurements 1 and 2."""
    algorithm = build(data, runners=0)
    try:
        passes = [
            _dense_pass(algorithm, memory_format)
            for memory_format in (torch.contiguous_format, torch.channels_last)
        ]
        *dense, whole = in_turn(repeats, *passes, functools.partial(iterate, algorithm))
        parts = _parts(algorithm, max(3, repeats // 2))
    finally:
        algorithm.stop()
    inside = sum(parts[part] for part in INSIDE_CNN)
    faster = min(dense, key=statistics.median)
    return IterationResult(
        dense_ms=1e3 * statistics.median(dense[0]),
        dense_channels_last_ms=1e3 * statistics.median(dense[1]),
        iteration_ms=1e3 * statistics.median(whole),
        cost=statistics.median(whole) / statistics.median(faster),
        paired_costs=quartiles([w / p for w, p in zip(whole, faster, strict=True)]),
        parts_ms=parts,
        outside_cnn=1.0 - inside / sum(parts.values()),
    )


def _parts(algorithm: PruningAlgorithm, repeats: int) -> dict[str, float]:
    clock = PartClock()
    with timed_parts(clock):
        for _ in range(repeats):
            with clock.running(OTHER):
                iterate(algorithm)
    return {part: 1e3 * clock.seconds[part] / repeats for part in PARTS}


def measure_workers(data: Path, repeats: int) -> WorkerResult:
    """Measurement 3."""
    algorithms: list[PruningAlgorithm] = []
    try:
        algorithms.extend(build(data, runners) for runners in (1, 2))
        one, two = in_turn(repeats, *(functools.partial(sample, each) for each in algorithms))
        whole = in_turn(
            max(3, repeats // 2), *(functools.partial(iterate, each) for each in algorithms)
        )
    finally:
        for algorithm in algorithms:
            algorithm.stop()
    rates = [ROLLOUTS / statistics.median(one), 2 * ROLLOUTS / statistics.median(two)]
    whole_rates = [n * ROLLOUTS / statistics.median(s) for n, s in enumerate(whole, start=1)]
    return WorkerResult(
        one=rates[0],
        two=rates[1],
        speedup=rates[1] / rates[0],
        paired_speedups=quartiles([2 * a / b for a, b in zip(one, two, strict=True)]),
        iteration_one=whole_rates[0],
        iteration_two=whole_rates[1],
        iteration_speedup=whole_rates[1] / whole_rates[0],
    )


def _verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def show_iteration(result: IterationResult) -> None:
    """Prints measurements 1 and 2."""
    low, _, high = result.paired_costs
    print(f"\nOne RL iteration, {ROLLOUTS} rollouts, one process, one PPO epoch")
    print(f"  dense forward pass                {result.dense_ms:8.1f} ms")
    print(f"  dense forward pass, channels_last {result.dense_channels_last_ms:8.1f} ms")
    print(f"  RL iteration                      {result.iteration_ms:8.1f} ms")
    print(
        f"  cost against the faster           {result.cost:8.2f} x (pairs: {low:.2f}-{high:.2f}); "
        f"target <= {LARGEST_COST}: {_verdict(result.cost <= LARGEST_COST)}"
    )
    total = sum(result.parts_ms.values())
    print("\nWhere it goes (mean, clocks on)        ms    share")
    for part, spent in result.parts_ms.items():
        print(f"  {part:<44}{spent:7.1f}  {spent / total:6.1%}")
    print(f"  {'together':<44}{total:7.1f}  {1:6.1%}")
    print(f"  outside the CNN: {result.outside_cnn:.1%}")


def show_workers(result: WorkerResult) -> None:
    """Prints measurement 3."""
    low, _, high = result.paired_speedups
    print(f"\nRollout workers of one thread, {ROLLOUTS} rollouts each (images per second)")
    print("                           one worker   two workers   times")
    print(
        f"  sampling, weights sent   {result.one:10.1f}   {result.two:11.1f}   "
        f"{result.speedup:5.2f} (pairs: {low:.2f}-{high:.2f}); "
        f"target >= {LEAST_SPEEDUP}: {_verdict(result.speedup >= LEAST_SPEEDUP)}"
    )
    print(
        f"  whole RL iterations      {result.iteration_one:10.1f}   "
        f"{result.iteration_two:11.1f}   {result.iteration_speedup:5.2f}"
    )


def surroundings() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "load": round(os.getloadavg()[0], 2),  # of the last minute, before we began
        "cpu": _cpu_name(),
        "torch_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "ray": ray.__version__,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=15, help="runs per median (default 15)")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="train.parquet and test.parquet of images (default: scikit-learn's digits as 3x32x32)",
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--iteration-only", action="store_true", help="skip the worker measurement")
    only.add_argument("--workers-only", action="store_true", help="only the worker measurement")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the numbers here")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    return arguments


def main() -> None:
    """Measures and prints."""
    arguments = _arguments()
    logging.getLogger("ray").setLevel(logging.ERROR)
    numbers = surroundings()
    print(", ".join(f"{name} {value}" for name, value in numbers.items()))
    os.environ.pop("RAY_ADDRESS", None)  # this machine is what is measured, no cluster
    slots = 4  # for actors that take turns; not cores
    with private_ray(slots, STORE_BYTES), tempfile.TemporaryDirectory() as scratch:
        data = arguments.data or Path(scratch)
        if arguments.data is None:
            write_digits(data)
        if not arguments.workers_only:
            iteration = measure_iteration(data, arguments.repeats)
            show_iteration(iteration)
            numbers["iteration"] = asdict(iteration)
        if not arguments.iteration_only:
            workers = measure_workers(data, arguments.repeats)
            show_workers(workers)
            numbers["workers"] = asdict(workers)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
