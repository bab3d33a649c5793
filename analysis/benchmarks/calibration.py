"""Does calibrating pay? Shipped models with and without their table, beside their rivals.

    python analysis/benchmarks/calibration.py [--network NAME ...] [--batch B ...]
                                              [--budget S ...] [--repeats N]

Networks have random weights, as in inference.py; everything runs in turn with one thread,
and times are that thread's processor time. README.md beside this file has the last numbers.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from inference import NETWORKS, Network, surroundings, write_model
from torch import Tensor

from rlprune.backbones import m_cifarnet
from rlprune.deploy import PrunedModel
from rlprune.deploy.calibrate import calibrate
from rlprune.deploy.rivals import static_like

DIGITS = Network(lambda width: m_cifarnet(in_channels=1, width=0.25 * width), (1, 8, 8))
CASES = {
    f"{name}, R_r = {rate:g}": (network, rate)
    for name, network in (
        ("digits", DIGITS),
        ("m_cifarnet", NETWORKS["m_cifarnet"]),
        ("resnet20", NETWORKS["resnet20"]),
    )
    for rate in (1.0, 0.0)
}
CALIBRATED = "calibrated"


def ways_of(file: Path, x: Tensor, budget: float | None) -> dict[str, Callable[[], object]]:
    """The model in all its ways, and plain networks."""
    tuned = PrunedModel.load(file)
    usual = PrunedModel.load(file, calibrated=False)
    usual(x, budget)
    counts = np.mean([image.counts for image in usual.last], 0)
    static = static_like(usual, [max(1, round(count)) for count in counts])
    whole = [layer.channels for layer in usual.spec.layers]
    dense = static_like(usual, whole, accelerate=False)
    return {
        CALIBRATED: lambda: tuned(x, budget),
        "usual": lambda: usual(x, budget),
        "all at once": lambda: usual(x, budget, mode="masked"),
        "static, same widths": lambda: static(x),
        "dense": lambda: dense(x),
    }


@torch.inference_mode()
def measure(
    ways: Mapping[str, Callable[[], object]], repeats: int, warm_ups: int = 3
) -> dict[str, list[float]]:
    """Seconds of processor time of every way, in turn, in another order each time.

    Who runs behind a way that uses the same code finds it in the cache.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    random = np.random.default_rng(0)
    for turn in range(warm_ups + repeats):
        for name in random.permutation(list(ways)).tolist():
            start = time.thread_time()
            ways[name]()
            if turn >= warm_ups:
                seconds[name].append(time.thread_time() - start)
    return seconds


def show(title: str, seconds: Mapping[str, Sequence[float]]) -> None:
    """Milliseconds of the calibrated model, and how many times as long the others take."""
    tuned = seconds[CALIBRATED]
    parts = [f"{1e3 * statistics.median(tuned):8.2f} ms"]
    for name, spent in seconds.items():
        if name != CALIBRATED:
            ratios = [other / mine for other, mine in zip(spent, tuned, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            parts.append(f"{name} {middle:.2f} ({low:.2f}-{high:.2f})")
    print(f"  {title:<24} {'; '.join(parts)}", flush=True)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--budget", type=float, nargs="+", default=[0.5, 0.75, 1.0])
    parser.add_argument("--repeats", type=int, default=40, help="a quarter of it for batches")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(", ".join(f"{name} {value}" for name, value in surroundings().items()))
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.network:
            network, rate = CASES[name]
            file = Path(folder) / f"{len(name)}.safetensors"
            write_model(network, file, rate)
            calibrate(file)
            print(f"\n{name} (times the calibrated model's time)", flush=True)
            for batch in arguments.batch:
                x = torch.randn(batch, *network.shape)
                repeats = max(3, arguments.repeats // (4 if batch > 1 else 1))
                for budget in arguments.budget if rate > 0 else [None]:
                    seconds = measure(ways_of(file, x, budget), repeats)
                    told = "" if budget is None else f", s = {budget:g}"
                    show(f"batch {batch}{told}", seconds)


if __name__ == "__main__":
    main()
