"""What bounds a choice per layer: a search over allocations of equal MACs, then equal fine-tuning.

The preset's network is trained as the preset says up to the end of the importance phases. On it
random allocations (a keep ratio for every layer, the same for all images) are compared on the
validation images, and the best is improved by local search. Then the found allocation and the
uniform ratio are fine-tuned from the same weights on the same images. An agent that shifts
compute between layers cannot expect more than such a search finds.

    python analysis/learning/allocation.py fashion_mean_compute --seeds 0 1 2

prints a table and writes ``results/allocation_<name>_<data>.parquet`` after every seed.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from bounds import NoAgents
from torch import Tensor

from rlprune.config import TrialConfig, load_config
from rlprune.data import load_image_set
from rlprune.mdp.policy import AnchoredRatios, ConstantRatios
from rlprune.presets import preset_path
from rlprune.pruning import Gate, Point, kept_count
from rlprune.replicas import Share
from rlprune.training import methods
from rlprune.training.evaluate import SplitResult
from rlprune.training.methods import Method
from rlprune.training.phases import PRETRAIN, RUNTIME_IMPORTANCE
from rlprune.training.program import PRETRAINED, TrialProgram
from rlprune.training.progress import Reporter
from rlprune.training.setup import TrialSetup, network_of
from rlprune.training.trainer import CnnJob, PhaseTrainer

RESULTS = Path(__file__).parent / "results"


class Search:
    """Allocations of one trial's network before fine-tuning.

    Args:
        config: with ``budgets.compute_mean`` as a number s.
    """

    def __init__(self, config: TrialConfig) -> None:
        # Candidates are measured before fine-tuning: on a network that works at any ratio.
        training = dataclasses.replace(config.training, importance_ratios="varied")
        self.config = config = dataclasses.replace(config, training=training)
        self.images = load_image_set(config.data, config.seed)
        self.setup = TrialSetup.of(config, network_of(config, self.images).channels)
        self.program = TrialProgram(self.setup, self.images, "cpu", Reporter())
        phases = (PRETRAIN, RUNTIME_IMPORTANCE)
        self.program.units = [unit for unit in self.program.units if unit.phase in phases]
        while not self.program.finished:
            self.program.advance(NoAgents())
        self.start = {k: v.clone() for k, v in self.program.network.state_dict().items()}
        self.uniform = methods.uniform(self.setup)
        self.point: Point = self.uniform.book.point(1.0, None)
        self.channels = self.uniform.rules.costs.channels

    def constant(self, ratios: Tensor) -> Method:
        """The same ratios [T] for every image."""
        return dataclasses.replace(
            self.uniform,
            runtime=lambda: ConstantRatios(ratios),
            static=lambda: AnchoredRatios(),
            _plans={},
        )

    def affordable(self, factors: Tensor) -> Tensor:
        """Ratios in proportion to the factors [T], scaled to the budget, by bisection."""
        alpha, budget = self.config.pruning.alpha, self.point.compute_mean
        assert budget is not None
        costs = self.uniform.rules.costs
        form = costs.macs(self.channels.unsqueeze(0), torch.ones(1, dtype=torch.bool))
        low, high = 0.0, 10.0
        for _ in range(40):
            middle = (low + high) / 2
            counts = kept_count((factors * middle).clamp(alpha, 1.0), self.channels)
            fits = bool(form.total(counts.unsqueeze(0)) <= budget)
            low, high = (middle, high) if fits else (low, middle)
        return (factors * low).clamp(alpha, 1.0)

    def before(self, ratios: Tensor) -> SplitResult:
        """An allocation on the validation images, nothing fine-tuned."""
        self.program.network.load_state_dict(self.start)
        return self.program.evaluator.validate(
            self.program.network, self.constant(ratios), self.point
        )

    def best(self, candidates: int, steps: int) -> Tensor:
        """The allocation of least validation loss: random ones, then changes of the best."""
        rng = np.random.default_rng([self.config.seed, 9])
        layers = len(self.channels)
        found, least = torch.ones(layers, dtype=torch.float64), float("inf")
        for index in range(candidates + steps):
            if index < candidates:
                factors = torch.from_numpy(np.exp2(rng.uniform(-1, 1, layers)))
            else:
                moved = rng.normal(0, 0.35, layers) * (rng.random(layers) < 0.4)
                factors = found * torch.from_numpy(np.exp2(moved))
            ratios = self.affordable(factors)
            loss = self.before(ratios).loss
            if loss < least:
                found, least = ratios, loss
        return found

    def fine_tuned(self, method: Method) -> SplitResult:
        """A method on the test images, after the preset's fine-tuning from the same weights."""
        network, evaluator = self.program.network, self.program.evaluator
        network.load_state_dict(self.start)
        network.set_predictors(method.predictors, method.boosted)
        job = CnnJob.of(
            self.config, "uniform", len(self.images.train), self.program.snapshots[PRETRAINED]
        )
        trainer = PhaseTrainer(self.setup, self.images, network, job)
        budgets = method.book.table((self.point,))

        def gates(share: Share, _: np.random.Generator) -> Gate:
            return method.gate(network, budgets.select(torch.zeros(len(share), dtype=torch.int64)))

        trainer.cnn.run(job.schedule.total_steps, gates)
        evaluator.prepare(network, method, budgets)
        return evaluator.split(network, method, budgets, self.images.test)


def rows(config: TrialConfig, candidates: int, steps: int) -> list[dict[str, object]]:
    """Uniform and the best allocation found, for one seed."""
    search = Search(config)
    dense = search.setup.book.dense_macs
    uniform = torch.full((len(search.channels),), float(config.budgets.compute_mean or 0))
    found = search.best(candidates, steps)
    table = []
    for name, ratios in (("uniform", uniform.double()), ("searched", found)):
        before, after = search.before(ratios), search.fine_tuned(search.constant(ratios))
        table.append(
            {
                "name": config.name,
                "data": config.data.name,
                "seed": config.seed,
                "allocation": name,
                "kept": kept_count(ratios, search.channels).tolist(),
                "validation_before": before.accuracy,
                "test_accuracy": after.accuracy,
                "macs_ratio": float(after.macs.mean()) / dense,
                "evaluations": candidates + steps,
            }
        )
        print(table[-1], flush=True)
    return table


def main() -> None:
    """Reads the arguments; writes after every seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="preset or YAML file with budgets.compute_mean")
    parser.add_argument("--set", action="append", default=[], help="override: data.root=...")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--candidates", type=int, default=40, help="random allocations")
    parser.add_argument("--steps", type=int, default=80, help="of local search")
    arguments = parser.parse_args()
    file = Path(arguments.config)
    config = load_config(file if file.suffix else preset_path(file.name), arguments.set)
    found: list[dict[str, object]] = []
    for seed in arguments.seeds:
        found += rows(dataclasses.replace(config, seed=seed), arguments.candidates, arguments.steps)
        out = RESULTS / f"allocation_{config.name}_{config.data.name}.parquet"
        pd.DataFrame(found).to_parquet(out, index=False)
    frame = pd.DataFrame(found)
    columns = ["validation_before", "test_accuracy", "macs_ratio"]
    print(frame.groupby("allocation")[columns].agg(["mean", "sem", "count"]).to_string())
    print(f"Wrote {out}")


if __name__ == "__main__":
    main()
