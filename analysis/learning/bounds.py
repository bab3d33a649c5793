"""What bounds a policy that spends compute image by image: separate networks for each width.

The preset's network is trained as the preset says, and then fine-tuned at several uniform
ratios, a network of its own for each, all with the same images. A policy that chooses a ratio
per image cannot expect to do better than these networks with a perfect choice. Three choosers,
all at the mean MACs of the uniform ratio ``--ratio``:

- ``known difficulty``: ratios by the confidence of the dense network (free of charge), one per
  twentieth of the images, chosen on validation, reported on test;
- ``free look``: the same by the confidence of the narrowest network, whose own pass is free;
- ``oracle``: the cheapest ratio that is right (it uses the test labels: not reachable).

    python analysis/learning/bounds.py fashion_mean_compute --seeds 0 1 2

prints a table and writes ``results/bounds_<name>.parquet``.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from rlprune.agents.networks import RuntimeAgent, StaticAgent
from rlprune.config import TrialConfig, load_config
from rlprune.data import ImageSet, load_image_set
from rlprune.presets import preset_path
from rlprune.training import methods
from rlprune.training.evaluate import Passes
from rlprune.training.methods import Method, with_dial
from rlprune.training.program import IMPORTANCE, PRETRAINED, TrialProgram
from rlprune.training.progress import Reporter
from rlprune.training.setup import TrialSetup, network_of

RATIOS = (0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
BINS = 20
RESULTS = Path(__file__).parent / "results"
Splits = tuple[Passes, Passes]
"""Validation and test."""


class NoAgents:
    """Stands where RLlib does; nothing here trains agents."""

    def train_agents(self, updates: int) -> None:
        """Never called: the alternation is left out of the course."""
        raise NotImplementedError

    def agents(self) -> tuple[RuntimeAgent, StaticAgent]:
        """Never called either."""
        raise NotImplementedError


def course(config: TrialConfig, images: ImageSet, ratio: float) -> TrialProgram:
    """The preset's course up to ``uniform`` at one ratio, without agents."""
    budgets = dataclasses.replace(config.budgets, compute_mean=ratio)
    # Networks of all ratios share what comes before: it must not know one of them.
    training = dataclasses.replace(config.training, importance_ratios="varied")
    config = dataclasses.replace(config, training=training)
    evaluation = dataclasses.replace(config.evaluation, baselines=("uniform",))
    config = dataclasses.replace(config, budgets=budgets, evaluation=evaluation)
    setup = TrialSetup.of(config, network_of(config, images).channels)
    program = TrialProgram(setup, images, "cpu", Reporter())
    program.units = [u for u in program.units if u.phase not in ("alternate", "learned")]
    return program


def measured(program: TrialProgram, method: Method, dial: float | None) -> Splits:
    """The network as it is, on the validation and the test images."""
    images, evaluator = program.images, program.evaluator
    budgets = method.book.episodes([program.setup.book.point(1.0, None)])
    if dial is not None:
        budgets = with_dial(budgets, dial)
    program.network.set_predictors(method.predictors, method.boosted)
    evaluator.prepare(program.network, method, budgets)
    validation, test = (
        evaluator.passes(program.network, method, budgets, split)
        for split in (images.validation, images.test)
    )
    return validation, test


def networks(config: TrialConfig, ratios: tuple[float, ...]) -> tuple[Splits, list[Splits], float]:
    """The dense network and one per ratio, each measured; and the dense network's MACs."""
    images = load_image_set(config.data, config.seed)
    start: dict[str, dict[str, Tensor]] = {}
    found = []
    for ratio in ratios:
        program = course(config, images, ratio)
        if start:  # trained alike up to here: the ratio plays no part in it
            program.snapshots = dict(start)
            program.position = next(
                i for i, unit in enumerate(program.units) if unit.phase == "uniform"
            )
        while not program.finished:
            program.advance(NoAgents())
            unit = program.units[program.position - 1]
            if unit.kind == "train":
                print(f"  {unit.phase} {unit.index + 1}/{unit.count}", flush=True)
        start = {name: program.snapshots[name] for name in (PRETRAINED, IMPORTANCE)}
        found.append(measured(program, methods.uniform(program.setup), None))
        print(f"uniform {ratio}: test {_accuracy(found[-1][1]):.4f}", flush=True)
    program.network.load_state_dict(start[PRETRAINED])
    dense = measured(program, methods.dense(program.setup), None)
    return dense, found, float(program.setup.book.dense_macs)


def _accuracy(passes: Passes) -> float:
    return float(passes.hits[:, 0].double().mean())


def by_signal(signals: tuple[Tensor, Tensor], levels: list[Splits], budget: float) -> float:
    """Test accuracy when each bin of a signal gets one level, at a mean of ``budget`` MACs.

    Args:
        signals: of each validation and each test image, [N]; bins are validation quantiles.
        levels: networks by rising cost.
        budget: MACs per image, on average over the validation images.

    Returns:
        Accuracy on the test images, linear between the two choices that enclose the budget.
    """
    edges = torch.quantile(signals[0], torch.linspace(0, 1, BINS + 1, dtype=torch.float64)[1:-1])
    bins = [torch.bucketize(signal, edges) for signal in signals]
    right = torch.stack([validation.hits[:, 0].double() for validation, _ in levels])
    tested = torch.stack([test.hits[:, 0].double() for _, test in levels])
    macs = torch.stack([validation.macs for validation, _ in levels])
    share = torch.stack([_mean_by_bin(row, bins[0]) for row in right])  # [levels, bins]
    price_of = torch.stack([_mean_by_bin(row, bins[0]) for row in macs])
    weight = torch.bincount(bins[0], minlength=BINS).double() / len(bins[0])

    def at(price: float) -> tuple[float, float]:
        choice = (share - price * price_of / budget).argmax(0)
        spent = float((price_of.gather(0, choice[None])[0] * weight).sum())
        accuracy = tested[choice[bins[1]], torch.arange(len(bins[1]))].mean()
        return spent, float(accuracy)

    low, high = 0.0, 100.0  # prices: at the first everything is bought, at the second nothing
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[0] > budget else (low, middle)
    (dear, best), (cheap, least) = at(low), at(high)
    if dear <= budget:
        return best
    return least + (best - least) * (budget - cheap) / max(dear - cheap, 1e-9)


def _mean_by_bin(values: Tensor, bins: Tensor) -> Tensor:
    total = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, values)
    return total / torch.bincount(bins, minlength=BINS).clamp(min=1)


def oracle(levels: list[Splits]) -> tuple[float, float]:
    """(accuracy, mean MACs) on test if the cheapest right level is taken for every image."""
    right = torch.stack([test.hits[:, 0] for _, test in levels])
    macs = torch.stack([test.macs for _, test in levels])
    first = right.double().argmax(0)  # level 0 where none is right
    chosen = macs.gather(0, first[None])[0]
    return float(right.any(0).double().mean()), float(chosen.mean())


def rows(config: TrialConfig, ratios: tuple[float, ...]) -> list[dict[str, object]]:
    """One row per network, and per chooser and budget, for one seed."""
    dense, levels, dense_macs = networks(config, ratios)
    shared = {"name": config.name, "seed": config.seed, "data": config.data.name}
    table: list[dict[str, object]] = [
        {
            **shared,
            "chooser": "uniform",
            "ratio": value,
            "test_accuracy": _accuracy(level[1]),
            "macs_ratio": float(level[1].macs.mean()) / dense_macs,
        }
        for value, level in zip(ratios, levels, strict=True)
    ]
    table.append(
        {
            **shared,
            "chooser": "dense",
            "ratio": 1.0,
            "test_accuracy": _accuracy(dense[1]),
            "macs_ratio": 1.0,
        }
    )
    signals = {
        "known difficulty": (dense[0].confidence, dense[1].confidence),
        "free look": (levels[0][0].confidence, levels[0][1].confidence),
    }
    for ratio, level in list(zip(ratios, levels, strict=True))[1:-1]:
        budget = float(level[0].macs.mean())
        for chooser, signal in signals.items():
            table.append(
                {
                    **shared,
                    "chooser": chooser,
                    "ratio": ratio,
                    "test_accuracy": by_signal(signal, levels, budget),
                    "macs_ratio": budget / dense_macs,
                }
            )
    best, spent = oracle(levels)
    table.append(
        {
            **shared,
            "chooser": "oracle",
            "ratio": None,
            "test_accuracy": best,
            "macs_ratio": spent / dense_macs,
        }
    )
    return table


def main() -> None:
    """Reads the arguments; writes after every seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="preset or YAML file with budgets.compute_mean")
    parser.add_argument("--set", action="append", default=[], help="override: data.root=...")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ratios", type=float, nargs="+", default=list(RATIOS))
    arguments = parser.parse_args()
    ratios = tuple(sorted(arguments.ratios))
    file = Path(arguments.config)
    config = load_config(file if file.suffix else preset_path(file.name), arguments.set)
    found: list[dict[str, object]] = []
    for seed in arguments.seeds:
        found += rows(dataclasses.replace(config, seed=seed), ratios)
        file = RESULTS / f"bounds_{config.name}_{config.data.name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(found).to_parquet(file, index=False)
    table = pd.DataFrame(found).groupby(["chooser", "ratio"], dropna=False)[
        ["test_accuracy", "macs_ratio"]
    ]
    print(table.agg(["mean", "sem", "count"]).to_string())
    print(f"Wrote {file}")


if __name__ == "__main__":
    main()
