"""A small network with images, on which published methods are fitted by tests."""

from __future__ import annotations

import numpy as np
import torch

from rlprune.config import config_from_dict
from rlprune.data import ImageArrays, ImageSet
from rlprune.mdp import PruningGate
from rlprune.pruning import GatedNetwork
from rlprune.training.evaluate import Evaluator
from rlprune.training.methods import Method
from rlprune.training.rivals import RIVALS, Fitted
from rlprune.training.rivals.bench import Bench
from rlprune.training.setup import TrialSetup
from tests.physical import Residual, Sequential, gated


def image_set(shape: tuple[int, int, int], count: int = 24) -> ImageSet:
    """Arbitrary images of three classes."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, *shape)).astype(np.uint8)
    arrays = ImageArrays(pixels, np.arange(count) % 3)
    mean, std = (0.5,) * shape[0], (0.25,) * shape[0]
    return ImageSet("test", arrays, arrays, arrays, ("a", "b", "c"), mean, std, "none")


class RivalTrial:
    """Network, set-up and bench; predictors off, importances as after pretraining."""

    def __init__(
        self,
        backbone: Sequential | Residual | None = None,
        candidates: int = 6,
        hidden: int = 3,
        methods: dict[str, float] | None = None,
        **budgets: object,
    ) -> None:
        config = config_from_dict(
            {
                "budgets": budgets,
                "agents": {"hidden": hidden, "samples_per_image": 1},
                "rollouts": {"rollouts_per_update": 12},
                "training": {"rounds": 2, "updates_per_round": 3},
                "evaluation": {"batchnorm_images": 24, "batch_size": 12},
                "methods": {"search_candidates": candidates, **(methods or {})},
            }
        )
        self.network: GatedNetwork = gated(backbone or Sequential([10, 16, 12]), seed=0)
        with torch.no_grad():
            for layer in self.network.layers:
                layer.static_importance.fill_(1.0)
                layer.runtime_predictor.weight.zero_()
        self.network.set_predictors(False)
        self.setup = TrialSetup.of(config, self.network.channels)
        self.images = image_set(self.setup.graph.input_shape)
        self.evaluator = Evaluator(self.images, config.evaluation, config.seed)
        self.known: list[float] = []

    def bench(self, rate: float = 0.0) -> Bench:
        point = self.setup.book.point(rate)
        return Bench(
            self.setup,
            self.network,
            self.images,
            self.evaluator,
            point,
            self.known,
            lambda *_: None,
        )

    def fitted(self, name: str) -> Fitted:
        before = {key: value.clone() for key, value in self.network.state_dict().items()}
        found = RIVALS[name].fit(self.bench())
        if not RIVALS[name].reshapes:
            self.network.load_state_dict(before)
        return found

    def method(self, name: str) -> Method:
        return RIVALS[name].make(self.setup, self.network, self.fitted(name))

    @torch.no_grad()
    def run(
        self, method: Method, rate: float, ratio: float | None = None, images: int = 4
    ) -> PruningGate:
        self.network.set_predictors(method.predictors, method.boosted)
        budgets = method.book.episodes([self.setup.book.point(rate, ratio)] * images)
        gate = method.gate(self.network, budgets)
        torch.manual_seed(1)
        self.network(torch.randn(images, *self.setup.graph.input_shape), gate)
        assert isinstance(gate, PruningGate)
        return gate
