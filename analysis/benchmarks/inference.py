"""How fast shipped models run beside dense and statically narrow networks.

Every layer of a network with random weights keeps half of its channels (the budget's own
ratio); what is compared runs in turn after a warm-up, and each number is the median over
runs and their quartiles.

    python analysis/benchmarks/inference.py [--threads N] [--batch B ...] [--backbone NAME ...]
                                            [--repeats N] [--busy] [--out FILE.parquet]

It is a benchmark, not a test: a missed target is printed, the exit status is 0.
README.md beside this file has the last numbers.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from rlprune.agents.networks import RuntimeAgent, runtime_agent_size
from rlprune.backbones import m_cifarnet, resnet20, trace_backbone
from rlprune.config import AgentConfig, BudgetConfig, PruningConfig
from rlprune.deploy import PrunedModel, fast
from rlprune.deploy.decide import Decisions
from rlprune.deploy.layer import GatedLayer, column_positions
from rlprune.deploy.rivals import static_like
from rlprune.export import Pixels, ship
from rlprune.mdp import PruningRules, StaticPlan
from rlprune.mdp.policy import AnchoredRatios
from rlprune.pruning import BudgetBook, CostModel, GatedNetwork

HIDDEN = 32
LEAST_REPEATS = 3
LARGE = 64 * 3 * 32 * 32
"""Numbers in a batch above which there are fewer repeats."""
TARGETS = {1: 2.2, 64: 1.6}
"""Least speed against the best dense way, for m_cifarnet, by batch."""
STATIC_TARGET = 0.85
"""Least share of the half-width network's speed, for m_cifarnet at batch 1."""
OURS, STATIC, HALF, DENSE = "ours", "static, same widths", "half width", "dense"
SHIPPED_STATIC = "static, same widths, shipped"
Runner = Callable[[], Tensor]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Network:
    """What is measured.

    Attributes:
        build: the network at a width.
        shape: of an image, (C, H, W).
    """

    build: Callable[[float], nn.Module]
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Row:
    """One way to run a network.

    Attributes:
        backbone, batch, threads: what was run.
        way: how; "ours" is the shipped model as it runs by default.
        milliseconds: median of a batch.
        speed: median over runs of the way's time / ours of the same turn.
        speed_low, speed_high: quartiles of that.
    """

    backbone: str
    batch: int
    threads: int
    way: str
    milliseconds: float
    speed: float
    speed_low: float
    speed_high: float


def resnet18(width: float) -> nn.Module:
    """torchvision's ResNet-18 at a width."""
    from torchvision.models.resnet import BasicBlock, ResNet

    network = ResNet(BasicBlock, [2, 2, 2, 2])
    return network if width == 1.0 else _narrow(network, width)


def _narrow(network: nn.Module, width: float) -> nn.Module:
    """The same network with every layer's channels times ``width``; new random weights."""

    def scaled(channels: int) -> int:
        return channels if channels <= 3 else round(channels * width)

    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                conv = nn.Conv2d(
                    scaled(child.in_channels),
                    scaled(child.out_channels),
                    child.kernel_size,  # type: ignore[arg-type]
                    child.stride,  # type: ignore[arg-type]
                    child.padding,  # type: ignore[arg-type]
                    bias=child.bias is not None,
                )
                setattr(module, name, conv)
            elif isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.BatchNorm2d(scaled(child.num_features)))
            elif isinstance(child, nn.Linear):
                setattr(module, name, nn.Linear(scaled(child.in_features), child.out_features))
    return network


NETWORKS = {
    "m_cifarnet": Network(lambda width: m_cifarnet(width=width), (3, 32, 32)),
    "resnet20": Network(lambda width: resnet20(width=width), (3, 32, 32)),
    "resnet18": Network(resnet18, (3, 224, 224)),
}


@torch.no_grad()
def write_model(network: Network, file: Path, rate: float = 1.0) -> None:
    """Writes a model whose every layer keeps half of its channels, at a tradeoff rate R_r.

    An agent decides at run time, as in a real model; untrained, it answers the budget's ratio.
    At R_r = 0 the other half is not stored.
    """
    gated = GatedNetwork(trace_backbone(network.build(1.0), network.shape)).eval()
    for layer in gated.layers:
        nn.init.normal_(layer.runtime_predictor.weight, 0.0, 0.05)
    config, pruning = AgentConfig(hidden=HIDDEN), PruningConfig()
    agent = RuntimeAgent(gated.channels, config)
    costs = CostModel(gated.channels, True, runtime_agent_size(HIDDEN))
    storage = None if rate == 1.0 else 0.5
    book = BudgetBook(costs, BudgetConfig(storage_max=storage, compute_max=0.5), pruning)
    rules = PruningRules(costs, pruning)
    plan = StaticPlan(rules, book.episodes([book.point(rate)]), AnchoredRatios())
    names = tuple(map(str, range(gated.channels.num_classes)))
    pixels = Pixels((0.0,) * network.shape[0], (1.0,) * network.shape[0], names)
    dense = (book.dense_macs, book.dense_bytes)
    ship(gated, rules, plan, agent, pixels, dense).write(file)


# --- ways to run -----------------------------------------------------------------------------


def formats(name: str, network: nn.Module, x: Tensor) -> dict[str, Runner]:
    """The network in both memory formats."""
    rows = copy.deepcopy(network).to(memory_format=torch.channels_last)
    x_rows = x.contiguous(memory_format=torch.channels_last)
    return {name: lambda: network(x), f"{name}, channels_last": lambda: rows(x_rows)}


def dense_ways(network: Network, x: Tensor, compiled: bool) -> dict[str, Runner]:
    """The network at full width."""
    plain = network.build(1.0).eval()
    folded = fuse(copy.deepcopy(plain))
    ways = formats(DENSE, plain, x) | formats(f"{DENSE}, folded", folded, x)
    if compiled:
        x_rows = x.contiguous(memory_format=torch.channels_last)
        quick = torch.compile(copy.deepcopy(folded).to(memory_format=torch.channels_last))
        ways[f"{DENSE}, torch.compile"] = lambda: quick(x_rows)
    return ways


def pruned_ways(network: Network, x: Tensor, file: Path) -> dict[str, Runner]:
    """The shipped model, with and without numba, as masks, and without any decision."""
    model = PrunedModel.load(file)
    ways: dict[str, Runner] = {OURS: lambda: model(x)}
    if fast.available():
        plain = PrunedModel.load(file, accelerate=False)
        ways[f"{OURS}, without numba"] = lambda: plain(x)
    ways["masks"] = lambda: model(x, mode="masked")
    frozen = frozen_model(file, x)
    ways[STATIC] = lambda: frozen(x)
    model(x[:1])
    shipped = static_like(model, model.last[0].counts)
    ways[SHIPPED_STATIC] = lambda: shipped(x)
    return ways


def frozen_model(file: Path, x: Tensor) -> PrunedModel:
    """A model that always computes what it computes for the first image, filters gathered.

    Its scores are wrong (filters are not scaled); its work is that of a static network.
    """
    model = PrunedModel.load(file, accelerate=False)
    model(x[:1])
    chosen = model.last[0]
    for layer in model.layers:
        layer.fast = _frozen_layer(layer, chosen)
    return model


def _frozen_layer(layer: GatedLayer, chosen: Decisions) -> Callable[[Tensor, Decisions], Tensor]:
    kept = chosen.kept[layer.index]
    columns = column_positions(layer.runs, chosen.kept.__getitem__)
    weight = layer._selected(kept, columns)
    shift = layer.beta[: len(weight)]

    def run(x: Tensor, image: Decisions) -> Tensor:
        image.kept[layer.index] = kept
        image.counts.append(len(weight))
        return layer.geometry.convolve(x, weight, shift)

    return run


def ways_of(network: Network, batch: int, compiled: bool, file: Path) -> dict[str, Runner]:
    """Everything that is compared, by name."""
    x = torch.randn(batch, *network.shape, generator=torch.Generator().manual_seed(1))
    half = fuse(network.build(0.5).eval())
    return {
        **dense_ways(network, x, compiled),
        **formats(f"{HALF}, folded", half, x),
        **pruned_ways(network, x, file),
    }


# --- measurement -----------------------------------------------------------------------------


@torch.inference_mode()
def measure(
    ways: Mapping[str, Runner], repeats: int, warm_ups: int, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every way, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warm_ups + repeats):
        for name, run in ways.items():
            start = clock()
            run()
            if turn >= warm_ups:
                seconds[name].append(clock() - start)
    return seconds


def rows_of(seconds: Mapping[str, Sequence[float]], backbone: str, batch: int) -> list[Row]:
    """Medians, and how many times faster ours is."""
    rows = []
    for way, spent in seconds.items():
        ratios = [one / ours for one, ours in zip(spent, seconds[OURS], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        median = statistics.median(spent) * 1e3
        threads = torch.get_num_threads()
        rows.append(Row(backbone, batch, threads, way, median, middle, low, high))
    return rows


def show(rows: Sequence[Row]) -> None:
    """Prints one backbone at one batch size."""
    first = rows[0]
    print(f"\n{first.backbone}, batch {first.batch}, {first.threads} threads")
    print(f"  {'':<28}{'ms':>10}   times ours (quartiles)")
    for row in rows:
        spread = f"{row.speed:6.2f} ({row.speed_low:.2f}-{row.speed_high:.2f})"
        print(f"  {row.way:<28}{row.milliseconds:10.2f}   {spread}")
    dense = min((r for r in rows if r.way.startswith(DENSE)), key=lambda row: row.milliseconds)
    half = min((r for r in rows if r.way.startswith(HALF)), key=lambda row: row.milliseconds)
    met = _verdict(dense.speed, TARGETS.get(first.batch), first.backbone)
    print(f"  {dense.speed:.2f} times the best dense way ({dense.way}){met}")
    met = _verdict(half.speed, STATIC_TARGET if first.batch == 1 else None, first.backbone)
    print(f"  {half.speed:.2f} of the speed of a network of half the width{met}")


def _verdict(speed: float, target: float | None, backbone: str) -> str:
    if target is None or backbone != "m_cifarnet":
        return ""
    return f"; target {target}: {'met' if speed >= target else 'MISSED'}"


def surroundings() -> dict[str, object]:
    """What the numbers depend on."""
    return {
        "load": round(os.getloadavg()[0], 2),  # of the last minute, before we began
        "machine": platform.machine(),
        "torch": torch.__version__,
        "numba": fast.available(),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64], metavar="B")
    parser.add_argument("--backbone", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=40, help="runs per median (default 40)")
    parser.add_argument(
        "--busy",
        action="store_true",
        help="the machine has other work: count this thread's processor time (one thread only)",
    )
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write Parquet here")
    arguments = parser.parse_args()
    if arguments.repeats < 2 or arguments.threads < 1 or min(arguments.batch) < 1:
        parser.error("--repeats must be at least 2, --threads and --batch at least 1")
    if arguments.busy and arguments.threads > 1:
        parser.error("--busy counts the time of one thread: leave --threads out")
    return arguments


def _repeats(network: Network, batch: int, most: int) -> int:
    size = batch * network.shape[0] * network.shape[1] * network.shape[2]
    return min(
        most, max(LEAST_REPEATS, most * LARGE // max(size, LARGE) // (4 if batch > 1 else 1))
    )


def main() -> None:
    """Measures and prints."""
    arguments = _arguments()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    numbers = surroundings()
    print(", ".join(f"{name} {value}" for name, value in numbers.items()))
    compiled = not arguments.no_compile and shutil.which("g++") is not None
    if not compiled:
        print("without torch.compile" + ("" if arguments.no_compile else ": no g++ was found"))
    rows: list[Row] = []
    clock = time.thread_time if arguments.busy else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        for name in arguments.backbone:
            write_model(NETWORKS[name], file)
            for batch in arguments.batch:
                ways = ways_of(NETWORKS[name], batch, compiled, file)
                repeats = _repeats(NETWORKS[name], batch, arguments.repeats)
                rows += rows_of(measure(ways, repeats, 2, clock), name, batch)
                show([row for row in rows if (row.backbone, row.batch) == (name, batch)])
    if arguments.out is not None:
        frame = pd.DataFrame([asdict(row) | numbers for row in rows])
        frame.to_parquet(arguments.out, index=False)


if __name__ == "__main__":
    main()
