"""Does it pay to choose channels by how large they are on the image at hand?

``uniform`` at R_r = 1, trained like the comparison's networks, but the channels of the last
layers are chosen by their sizes (root mean square behind the ReLU, u_r included, of all channels
before any is left out):

- ``first choice``: as usual, u_r chooses; in so short a training what it chooses first stays;
- ``on average``: the mean size over the past batches: one choice for all images, but a choice
  that may change while the network trains;
- ``foretold``: the size on the image, foretold from the layer's pooled input by ridge regression
  over the past batches, which a predictor could do;
- ``foresight``: the true size on the image, which costs what is saved. Looking is not counted.

What a choice per image is worth is the difference to ``on average``. Sizes are a plausible
measure of what an image uses, not the best one: this bounds nothing. Scales, MACs and images
are the same in all four. Default seeds: those of other trials, not the comparison's.

    python analysis/learning/foresight.py [--seeds 6 7 8] [--layers 2 8]

prints a table and writes ``results/foresight_<data>.parquet`` after every training.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from bounds import NoAgents
from torch import Tensor

from rlprune.config import TrialConfig, load_config
from rlprune.data import load_image_set
from rlprune.pruning import Gate, GatedConv
from rlprune.pruning.predictor import unit_scale
from rlprune.training import methods
from rlprune.training.program import TrialProgram
from rlprune.training.progress import Reporter
from rlprune.training.setup import TrialSetup, network_of

RESULTS = Path(__file__).parent / "results"
TRIAL = Path(__file__).parents[1] / "comparison" / "trial.yaml"
FIRST, AVERAGE, FORETOLD, FORESIGHT = "first choice", "on average", "foretold", "foresight"
LAST_LAYERS = (2, 8)
DECAY, RIDGE, EVERY = 0.99, 1e-3, 10  # per batch; of the mean diagonal; batches between solutions


class Regression:
    """Foretells sizes [B, C] from inputs [B, I]: ridge regression over the past batches."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.squares = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.products = torch.zeros(inputs, outputs, dtype=torch.float64)
        self.batches, self.weights = 0, torch.zeros(inputs, outputs, dtype=torch.float64)

    def learn(self, inputs: Tensor, sizes: Tensor) -> None:
        """Takes in a batch."""
        self.squares = DECAY * self.squares + inputs.t() @ inputs
        self.products = DECAY * self.products + inputs.t() @ sizes
        if self.batches % EVERY == 0:
            self.solve()
        self.batches += 1

    def solve(self) -> None:
        """Makes weights of what was taken in so far."""
        ridge = RIDGE * self.squares.diagonal().mean()
        whole = self.squares + ridge * torch.eye(len(self.squares), dtype=torch.float64)
        self.weights = torch.linalg.solve(whole, self.products)


class _Chosen(Gate):
    """The gate of a pass, but the channels of one layer are the largest of ``sizes``."""

    def __init__(self, gate: Gate, sizes: Tensor) -> None:
        super().__init__()
        self.gate, self.sizes, self.keep = gate, sizes, gate.keep

    def decide(self, layer: int, pooled: Tensor, importance: Tensor) -> Tensor | None:
        """As many channels as the gate keeps, [B, C]."""
        keep = self.gate.decide(layer, pooled, importance)
        return None if keep is None else largest(self.sizes, keep.sum(1))


def largest(sizes: Tensor, count: Tensor) -> Tensor:
    """Masks [B, C] of the ``count`` [B] largest of sizes [B, C]."""
    place = sizes.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return place < count.unsqueeze(1)


class SeeingConv(GatedConv):
    """A gated convolution whose channels are chosen by their sizes, true or foretold."""

    chooser: str
    regression: Regression
    seen: Tensor
    right: float
    images: int

    def forward(self, x: Tensor, gate: Gate) -> Tensor:
        """[B, C_in, H, W] -> [B, C, H', W']."""
        if not self.use_predictor:  # pretraining: nothing is pruned
            return super().forward(x, gate)
        true = self._sizes(x, gate)
        y = super().forward(x, gate if self.chooser == FIRST else _Chosen(gate, self._by(x, true)))
        keep = gate.keep[self.layer.index]
        if keep is not None and not self.training:
            best = largest(true, keep.sum(1))
            self.seen += keep.sum(0)
            self.right += float((keep & best).sum()) / float(keep.sum()) * len(keep)
            self.images += len(keep)
        return y

    @torch.no_grad()
    def _sizes(self, x: Tensor, gate: Gate) -> Tensor:
        """Root mean squares of all channels behind the ReLU, [B, C]."""
        whole = Gate()
        whole.keep = dict(gate.keep)
        tracks = self.norm is not None and self.norm.track_running_stats
        if self.norm is not None:  # the pass that counts takes the batch's statistics in
            self.norm.track_running_stats = False
        y = super().forward(x, whole)
        if self.norm is not None:
            self.norm.track_running_stats = tracks
        return y.relu().square().mean((2, 3)).sqrt()

    @torch.no_grad()
    def _by(self, x: Tensor, true: Tensor) -> Tensor:
        """What the channels are chosen by, [B, C]."""
        if self.chooser == FORESIGHT:
            return true
        one = torch.ones(len(x), 1, dtype=torch.float64)
        inputs = one
        if self.chooser == FORETOLD:
            pooled = unit_scale(x.mean((2, 3)), self.layer.in_channels)
            inputs = torch.cat([pooled.double(), one], 1)
        if self.training:
            self.regression.learn(inputs, true.double())
        return (inputs @ self.regression.weights).to(true)

    def choose_by(self, chooser: str) -> None:
        """Before the training."""
        self.chooser = chooser
        inputs = 1 + (self.layer.in_channels if chooser == FORETOLD else 0)
        self.regression = Regression(inputs, self.layer.out_channels)
        self.begin()

    def begin(self) -> None:
        """Counts anew; the regression is over."""
        if self.regression.batches > 0:
            self.regression.solve()
        self.seen = torch.zeros(self.layer.out_channels, dtype=torch.int64)
        self.right, self.images = 0.0, 0


def course(config: TrialConfig, chooser: str, last: int) -> tuple[TrialProgram, list[SeeingConv]]:
    """A trial of ``uniform`` alone, and the layers that choose otherwise."""
    images = load_image_set(config.data, config.seed)
    setup = TrialSetup.of(config, network_of(config, images).channels)
    program = TrialProgram(setup, images, "cpu", Reporter())
    program.units = [u for u in program.units if u.phase not in ("alternate", "learned")]
    seeing: list[SeeingConv] = []
    for layer in program.network.layers[-last:]:
        layer.__class__ = SeeingConv
        assert isinstance(layer, SeeingConv)
        layer.choose_by(chooser)
        seeing.append(layer)
    return program, seeing


def row(config: TrialConfig, chooser: str, last: int, pretrained: dict[int, Any]) -> dict[str, Any]:
    """Trains one network and measures it; keeps what pretraining made, by seed."""
    program, seeing = course(config, chooser, last)
    if config.seed in pretrained:
        program.adopt_pretrained(pretrained[config.seed])
    while not program.finished:
        program.advance(NoAgents())
        if (state := program.pretrained_state()) is not None:
            pretrained[config.seed] = state
    method, network = methods.uniform(program.setup), program.network
    network.set_predictors(method.predictors, method.boosted)
    for layer in seeing:
        layer.begin()
    budgets = method.book.episodes([program.setup.book.point(1.0, None)])
    program.evaluator.prepare(network, method, budgets)
    images = program.images
    validation = program.evaluator.split(network, method, budgets, images.validation)
    for layer in seeing:
        layer.begin()
    test = program.evaluator.split(network, method, budgets, images.test)
    shares = [layer.seen / layer.images for layer in seeing]
    depends = [((share > 0.01) & (share < 0.99)).double().mean().item() for share in shares]
    return {
        "data": config.data.name,
        "train_images": len(images.train),
        "seed": config.seed,
        "chooser": chooser,
        "last_layers": last,
        "validation_accuracy": validation.accuracy,
        "test_accuracy": test.accuracy,
        "macs_ratio": float(test.macs.mean()) / program.setup.book.dense_macs,
        "image_dependent_ratio": depends,
        "right_channels": [layer.right / layer.images for layer in seeing],
    }


def jobs(seeds: Sequence[int], layers: Sequence[int]) -> list[tuple[int, str, int]]:
    """(seed, chooser, last layers), the usual choice once for each seed."""
    found = []
    for seed in seeds:
        found.append((seed, FIRST, max(layers)))
        others = (AVERAGE, FORETOLD, FORESIGHT)
        found += [(seed, chooser, last) for last in layers for chooser in others]
    return found


def main() -> None:
    """Reads the arguments; writes after every training."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--set", action="append", default=[], help="override: data.root=...")
    parser.add_argument("--seeds", type=int, nargs="+", default=[6, 7, 8])
    parser.add_argument("--layers", type=int, nargs="+", default=list(LAST_LAYERS))
    arguments = parser.parse_args()
    point = ["evaluation.tradeoff_rates=[1.0]", "evaluation.baselines=[uniform]"]
    config = load_config(TRIAL, [*point, *arguments.set])
    file = RESULTS / f"foresight_{config.data.name}.parquet"
    found: list[dict[str, Any]] = []
    pretrained: dict[int, Any] = {}
    for seed, chooser, last in jobs(arguments.seeds, arguments.layers):
        found.append(row(dataclasses.replace(config, seed=seed), chooser, last, pretrained))
        print({k: v for k, v in found[-1].items() if not isinstance(v, list)}, flush=True)
        pd.DataFrame(found).to_parquet(file, index=False)
    print(table(pd.DataFrame(found)).to_string(float_format="{:.2f}".format))
    print(f"Wrote {file}")


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy in percent and the gain over the control, paired by seed and layers."""
    rows = rows.assign(test=100 * rows["test_accuracy"])
    control = rows[rows["chooser"] == AVERAGE][["seed", "last_layers", "test"]]
    rows = rows.merge(control, on=["seed", "last_layers"], suffixes=("", "_control"))
    rows["gain"] = rows["test"] - rows["test_control"]
    groups = rows.groupby(["last_layers", "chooser"])
    return groups[["test", "gain"]].agg(["mean", "sem", "count"])


if __name__ == "__main__":
    main()
