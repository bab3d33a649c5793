"""What a method chooses before its network is fine-tuned, and keeps from then on (no Ray)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor

from rlprune.agents.networks import RuntimeAgent, StaticAgent
from rlprune.data import ImageSet
from rlprune.pruning import GatedNetwork
from rlprune.training import cascade, methods
from rlprune.training.evaluate import Evaluator
from rlprune.training.gates import GateRecipe, method_points, method_rates
from rlprune.training.progress import Reporter
from rlprune.training.rivals.fitting import RivalFits
from rlprune.training.setup import TrialSetup


class Choices:
    """The choices of all methods of one trial; a checkpoint holds them.

    Args:
        setup, network, images, evaluator, reporter: of the trial.

    Attributes:
        random_factors: of ``random``: "runtime" and "static", [T] each; empty before it.
        static_scores: of ``static_l1``: the filters' norms, [C] per layer; empty before it.
        cascade_pair: sizes of the cascade; None before it.
        fits: of the published methods.
    """

    def __init__(
        self,
        setup: TrialSetup,
        network: GatedNetwork,
        images: ImageSet,
        evaluator: Evaluator,
        reporter: Reporter,
    ) -> None:
        self.setup = setup
        self.network = network
        self.evaluator = evaluator
        self.reporter = reporter
        self.random_factors: dict[str, Tensor] = {}
        self.static_scores: list[Tensor] = []
        self.cascade_pair: cascade.Pair | None = None
        self.fits = RivalFits(setup, network, images, evaluator, reporter)

    def choose(self, phase: str, start: Mapping[str, Tensor]) -> None:
        """Makes the choice of the method to which a phase belongs, if it has one to make.

        Args:
            phase: the phase of a baseline, whose network is ready to be fine-tuned.
            start: the weights that choosing among candidates ends with, as it began.

        Raises:
            Interrupted: by the reporter; the choice begins anew.
        """
        self.fits.fit(phase, method_points(self.setup, phase)[0])
        if phase == "random":
            self._choose_random()
            self.network.load_state_dict(start)
        if phase == cascade.SMALL:
            self._choose_pair()
            self.network.load_state_dict(start)
        if phase == "static_l1":
            scores = methods.static_l1(self.setup, self.network).static_scores
            self.static_scores = list(scores or ())

    def _choose_random(self) -> None:
        """Best of N on validation, before fine-tuning, over all R_r."""
        config = self.setup.config
        rng = np.random.default_rng([config.seed, 5])
        count = config.evaluation.random_candidates
        best = -1.0
        points = self.setup.evaluation_points()[: len(config.evaluation.tradeoff_rates)]
        for index in range(count):
            self.reporter.phase("random candidates", index, count)
            runtime, static = methods.random_factors(self.setup, rng)
            method = methods.random_ratios(self.setup, runtime, static)
            results = [self.evaluator.validate(self.network, method, point) for point in points]
            accuracy = sum(result.accuracy for result in results) / len(results)
            if accuracy > best:
                best = accuracy
                self.random_factors = {"runtime": runtime, "static": static}
            self.reporter.advance("random candidates", index + 1, count, {"best": best})

    def _choose_pair(self) -> None:
        """The cascade's sizes: on validation, before fine-tuning, over all its R_r."""
        name, count = "cascade candidates", len(cascade.CANDIDATES)
        rates = method_rates(self.setup.config, cascade.LARGE)
        points = method_points(self.setup, cascade.LARGE)[: len(rates)]
        self.reporter.phase(name, 0, count)

        def report(done: int, best: float) -> None:
            self.reporter.advance(name, done, count, {"best": best})

        self.cascade_pair = cascade.choose(self.evaluator, self.network, self.setup, points, report)

    def recipe(
        self, name: str, agents: tuple[RuntimeAgent, StaticAgent] | None = None
    ) -> GateRecipe:
        """What a phase's or a method's gates follow from, by the choices so far.

        Args:
            name: of the phase or the method.
            agents: of the learned policy, where it is about that.
        """
        scores, found = tuple(self.static_scores), self.fits.found(name)
        return GateRecipe(name, agents, self.random_factors, scores, self.cascade_pair, found)

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings, lists and dictionaries only."""
        return {
            "random_factors": dict(self.random_factors),
            "static_scores": list(self.static_scores),
            "cascade_pair": None if self.cascade_pair is None else asdict(self.cascade_pair),
            "fits": self.fits.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict`; other entries are left alone."""
        self.random_factors = dict(state["random_factors"])
        self.static_scores = list(state["static_scores"])
        pair = state.get("cascade_pair")  # older checkpoints have none
        self.cascade_pair = None if pair is None else cascade.Pair(**pair)
        if "fits" in state:  # older checkpoints have none
            self.fits.load_state_dict(state["fits"])
