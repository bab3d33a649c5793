"""What a published method may use while it is fitted, and the interface it is built behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlprune.data import ImageSet
from rlprune.errors import TrainingDivergedError
from rlprune.pruning import Gate, GatedNetwork, Point
from rlprune.replicas import Share
from rlprune.training.cnn import PLAIN_FROZEN, CnnSchedule, CnnTrainer
from rlprune.training.evaluate import Evaluator
from rlprune.training.methods import Method
from rlprune.training.setup import TrialSetup

Fitted = Mapping[str, Any]
"""What fitting has found: tensors, numbers, lists and dictionaries of them (in main memory)."""

Advance = Callable[[int, int, dict[str, float]], None]
"""(steps done, steps in all, values to show); may raise to interrupt."""


@dataclass
class Bench:
    """A trial as a method sees it while it is fitted.

    Attributes:
        setup, network, images, evaluator: of the trial.
        point: the budgets that it is fitted for.
        known: validation accuracies of earlier candidates, in order. A search that was
            interrupted runs again from the start and finds them here, so it must ask for the
            same candidates in the same order.
        advance: progress.
    """

    setup: TrialSetup
    network: GatedNetwork
    images: ImageSet
    evaluator: Evaluator
    point: Point
    known: list[float]
    advance: Advance
    _asked: int = 0

    @property
    def candidates(self) -> int:
        """How many candidates a search may validate: the same number for every method."""
        return self.setup.config.methods.search_candidates

    def generator(self, purpose: int) -> np.random.Generator:
        """Random numbers that follow from the trial's seed."""
        return np.random.default_rng([self.setup.config.seed, 8, purpose])

    def accuracy(self, method: Method) -> float:
        """Validation accuracy of a candidate after a little fine-tuning, BatchNorm re-estimated.

        The weights are as before when it returns.
        """
        self._asked += 1
        if self._asked > len(self.known):
            before = {key: value.clone() for key, value in self.network.state_dict().items()}
            try:
                self._fine_tune(method)
                accuracy = self.evaluator.validate(self.network, method, self.point).accuracy
            except TrainingDivergedError:  # a bad candidate, no reason to give up the trial
                accuracy = 0.0
            self.network.load_state_dict(before)
            self.known.append(accuracy)
            self.advance(self._asked, self.candidates, {"best": max(self.known)})
        return self.known[self._asked - 1]

    def _fine_tune(self, method: Method) -> None:
        """``methods.search_steps`` steps, on the same images for every candidate."""
        config = self.setup.config
        training, steps = config.training, config.methods.search_steps
        if steps == 0:
            return
        self.network.set_predictors(method.predictors, method.boosted)
        schedule = CnnSchedule(
            training.finetune_learning_rate,
            steps,
            min(training.batch_size, len(self.images.train)),
            training.gradient_clip,
            training.label_smoothing,
            decays=False,
        )
        budgets = method.book.table((self.point,))

        def gates(share: Share, _: np.random.Generator) -> Gate:
            return method.gate(
                self.network, budgets.select(torch.zeros(len(share), dtype=torch.int64))
            )

        trainer = CnnTrainer(self.network, self.images, schedule, [config.seed, 11], PLAIN_FROZEN)
        trainer.run(steps, gates)


@dataclass(frozen=True)
class Rival:
    """A published method.

    Attributes:
        name: as in the catalogue.
        make: the method, from what fitting has found.
        fit: finds it, before the network is fine-tuned; its keys "updates" and "rollouts",
            if there are any, are reported as the method's effort.
        improve: goes on fitting before each round's fine-tuning: (bench, fitted, round) ->
            fitted; interrupted, it is called again with what ``keep`` was given last.
        reshapes: whether fitting may change the network's weights (not what it computes).
        prepare: gates under which the preparation phase trains.
    """

    name: str
    make: Callable[[TrialSetup, GatedNetwork, Fitted], Method]
    fit: Callable[[Bench], Fitted]
    improve: Callable[[Bench, Fitted, int, Callable[[Fitted], None]], None] | None = None
    reshapes: bool = False
    prepare: Callable[[TrialSetup, GatedNetwork, Share, np.random.Generator], Gate] | None = None
