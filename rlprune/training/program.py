"""The course of a trial: which phase comes when, and the state that makes it resumable.

Pure torch. Training the agents is RLlib's work and is handed in by the Algorithm.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from rlprune.agents.networks import RuntimeAgent, StaticAgent
from rlprune.data import ImageSet
from rlprune.mdp.reward import PriceCurve
from rlprune.pruning import Gate, Point, boost_gates
from rlprune.pruning.ranking import rank_importances
from rlprune.training import cascade, methods
from rlprune.training.catalogue import facts_of
from rlprune.training.choices import Choices
from rlprune.training.cnn import reestimate_batchnorm
from rlprune.training.evaluate import Evaluator, Measurement, Validation
from rlprune.training.gates import method_of, method_points
from rlprune.training.judge import AgentWeights, agent_weights, keep_better, validation_rewards
from rlprune.training.methods import Method
from rlprune.training.phases import (
    ALTERNATE,
    LEARNED,
    PRETRAIN,
    RUNTIME_IMPORTANCE,
    STATIC_IMPORTANCE,
    Unit,
    plan_units,
)
from rlprune.training.progress import Reporter
from rlprune.training.setup import TrialSetup, network_of
from rlprune.training.trainer import CnnJob, PhaseTrainer, Trainer, TrainerFactory

_STAGE_OF_PHASE = {PRETRAIN: 0, RUNTIME_IMPORTANCE: 1, STATIC_IMPORTANCE: 1, ALTERNATE: 2}
PRETRAINED, IMPORTANCE = "pretrained", "importance"
_SNAPSHOTS = (PRETRAINED, IMPORTANCE, LEARNED)


class AgentTrainer(Protocol):
    """What the program needs of RLlib."""

    def train_agents(self, updates: int) -> None:
        """Takes PPO updates until ``updates`` have been taken in all."""

    def agents(self) -> tuple[RuntimeAgent, StaticAgent]:
        """The agents as they are now."""


@dataclass
class Counters:
    """What the results report about effort.

    Attributes:
        rl_updates, rollouts: of the agents.
        cnn_images: images that each phase or method has trained on.
        seconds: wall time of each phase or method; agents under "agents".
    """

    rl_updates: int = 0
    rollouts: int = 0
    cnn_images: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class TrialProgram:
    """Runs units in order; knows everything that a checkpoint must hold (but the agents).

    Args:
        setup: costs, budgets, rules.
        images: the image set.
        device: where the CNN is trained.
        reporter: who watches.
        trainers: makes who trains the network through a phase; by default this process.
    """

    def __init__(
        self,
        setup: TrialSetup,
        images: ImageSet,
        device: str,
        reporter: Reporter,
        trainers: TrainerFactory = PhaseTrainer,
    ) -> None:
        self.setup = setup
        self.config = setup.config
        self.images = images
        self.reporter = reporter
        self.units = plan_units(self.config)
        self.position = 0
        self.network = network_of(self.config, images).to(device)
        self.network.eval()
        self.trainer: Trainer | None = None
        self._trainers = trainers
        self.snapshots: dict[str, dict[str, torch.Tensor]] = {}
        self.counters = Counters()
        self.history: list[dict[str, float]] = []
        self.average_loss = math.log(images.num_classes)
        span = setup.mean_range()
        self.price = None if span is None else PriceCurve.over(*span)
        self.evaluator = Evaluator(images, self.config.evaluation, self.config.seed)
        self.choices = Choices(setup, self.network, images, self.evaluator, reporter)
        self.validations: list[Validation] = []
        self.agents_before: AgentWeights | None = None

    # ---------------------------------------------------------------- course

    @property
    def finished(self) -> bool:
        """Whether every unit is done."""
        return self.position >= len(self.units)

    def advance(self, agent_trainer: AgentTrainer) -> list[Measurement]:
        """Runs the next unit; returns what it measured.

        Raises:
            Interrupted: by the reporter, between two steps; call again to go on.
            TrainingDivergedError: a loss became NaN or infinite.
        """
        unit = self.units[self.position]
        started = time.perf_counter()
        measured: list[Measurement] = []
        self._take_snapshots(unit)
        try:
            if unit.kind == "measure":
                measured = self._measure(unit.phase, agent_trainer)
            elif unit.phase == ALTERNATE:
                self._enter(unit)
                self._alternate(unit, agent_trainer)
                if self.config.evaluation.every_round:
                    self.validations = self._validate(agent_trainer)
                    self._record_validations()
            else:
                self._enter(unit)
                point = method_points(self.setup, unit.phase)[0]
                self.choices.fits.improve(unit.phase, point, unit.index)
                self._train_cnn(unit)
        finally:
            if unit.kind == "train":
                seconds = self.counters.seconds
                spent = time.perf_counter() - started
                seconds[unit.phase] = seconds.get(unit.phase, 0.0) + spent
        self.position += 1
        if self.finished or self.units[self.position].phase != unit.phase:
            self.trainer = None
        return measured

    def _alternate(self, unit: Unit, agent_trainer: AgentTrainer) -> None:
        """One round; what of it was done before an interruption is not done again."""
        training = self.config.training
        if training.finetune_first:
            self._train_cnn(unit, agent_trainer.agents())
        goal = (unit.index + 1) * training.updates_per_round
        if training.keep_better and self.agents_before is None:
            if self.counters.rl_updates < goal:
                self.agents_before = agent_weights(agent_trainer.agents())
        agent_trainer.train_agents(goal)
        self._judge(agent_trainer)
        if not training.finetune_first:
            self._train_cnn(unit, agent_trainer.agents())

    def _judge(self, agent_trainer: AgentTrainer) -> None:
        """Puts the agents before the round back, where it has not made them better."""
        if self.agents_before is None:
            return
        rewards = partial(self._validation_rewards, agent_trainer)
        kept = keep_better(agent_trainer.agents(), self.agents_before, rewards)
        self.agents_before = None
        self.history[-1]["agents_kept"] = float(kept)

    def _validation_rewards(self, agent_trainer: AgentTrainer) -> torch.Tensor:
        weights, points = self._weights(), self.setup.evaluation_points()
        method = self._learned(agent_trainer)
        found = validation_rewards(
            self.evaluator, self.network, method, points, self.average_loss, self.price
        )
        self.network.load_state_dict(weights)
        return found

    def _enter(self, unit: Unit) -> None:
        """At the first unit of a phase: the phase's network and a fresh optimizer."""
        if unit.index > 0 or self.trainer is not None:
            return
        if unit.phase not in _STAGE_OF_PHASE:
            facts = facts_of(unit.phase)
            assert facts is not None
            start = self.snapshots[PRETRAINED if facts.plain else IMPORTANCE]
            if not facts.continues(unit.phase):
                self.network.load_state_dict(start)
            self.network.set_predictors(facts.predictors)
            self.choices.choose(unit.phase, start)
        self.trainer = self._new_trainer(unit.phase)

    def _take_snapshots(self, unit: Unit) -> None:
        """Keeps the network as it was after each stage (a stage may have no epochs)."""
        stage = _STAGE_OF_PHASE.get(unit.phase, len(_SNAPSHOTS))
        for name in _SNAPSHOTS[:stage]:
            if name not in self.snapshots:
                self.snapshots[name] = self._weights()
                if name == PRETRAINED:
                    self._make_gates()
        if unit.phase == cascade.LARGE and cascade.SMALL not in self.snapshots:
            self.snapshots[cascade.SMALL] = self._weights()  # ready: the large one comes next

    def _make_gates(self) -> None:
        """What comes after pretraining has gates."""
        if self.config.training.ranked_start:
            rank_importances(self.network)
        if self.config.pruning.boosted:
            boost_gates(self.network)

    def _weights(self) -> dict[str, torch.Tensor]:
        state = self.network.state_dict()
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    # -------------------------------------------------------------- CNN training

    def _new_trainer(self, phase: str) -> Trainer:
        pretrained = None if phase == PRETRAIN else self.snapshots[PRETRAINED]
        job = CnnJob.of(self.config, phase, len(self.images.train), pretrained)
        return self._trainers(self.setup, self.images, self.network, job)

    def _train_cnn(
        self, unit: Unit, agents: tuple[RuntimeAgent, StaticAgent] | None = None
    ) -> None:
        trainer = self.trainer
        assert trainer is not None
        total = trainer.schedule.total_steps
        goal = round(total * (unit.index + 1) / unit.count)
        name = "finetune" if unit.phase == ALTERNATE else unit.phase
        self.reporter.phase(name, trainer.step, total)
        before = trainer.step

        def report(done: int, _: int, loss: float, accuracy: float) -> None:
            images = self.counters.cnn_images
            images[unit.phase] = images.get(unit.phase, 0) + trainer.schedule.batch_size
            if unit.phase in (PRETRAIN, RUNTIME_IMPORTANCE, STATIC_IMPORTANCE):
                # Where the agents' moving average starts. Per step, since a mean over the
                # call would depend on where training was interrupted.
                self.average_loss += 0.02 * (trainer.last_loss - self.average_loss)
            values = {"loss": loss, "accuracy": accuracy}
            if (before + done) % 20 == 0 or before + done == goal:
                tagged = {f"cnn_{name}/{key}": value for key, value in values.items()}
                self.reporter.scalars(before + done, tagged)
            self.reporter.advance(name, before + done, total, values)

        trainer.run(goal - trainer.step, self.choices.recipe(unit.phase, agents), report)

    # ------------------------------------------------------------------ methods

    def _learned(self, agent_trainer: AgentTrainer) -> Method:
        runtime, static = agent_trainer.agents()
        return methods.learned(self.setup, runtime, static)

    def _method(self, name: str, agent_trainer: AgentTrainer | None = None) -> Method:
        agents = None if agent_trainer is None or name != LEARNED else agent_trainer.agents()
        return method_of(self.setup, self.network, self.choices.recipe(name, agents))

    # ------------------------------------------------------------- measuring

    def _measure(self, name: str, agent_trainer: AgentTrainer) -> list[Measurement]:
        points = method_points(self.setup, name)
        self.reporter.phase(f"measure {name}", 0, len(points))
        weights = self._weights()
        measure = self._measurer(name, agent_trainer, weights)
        results = []
        for index, point in enumerate(points):
            results.append(measure(point))
            self.network.load_state_dict(weights)
            done = {"accuracy": results[-1].test.accuracy}
            self.reporter.advance(f"measure {name}", index + 1, len(points), done)
        return results

    def _measurer(
        self, name: str, agent_trainer: AgentTrainer | None, weights: dict[str, torch.Tensor]
    ) -> Callable[[Point], Measurement]:
        """Measures a method, whose network has these weights, at a point."""
        if name == cascade.LARGE:
            both = (self.snapshots[cascade.SMALL], weights)
            parts = (self._method(cascade.SMALL), self._method(cascade.LARGE))
            return partial(cascade.measure, self.evaluator, self.network, both, parts)
        method = self._method(name, agent_trainer)
        return partial(self.evaluator.measure, self.network, method)

    def _validate(self, agent_trainer: AgentTrainer) -> list[Validation]:
        """The learned policy on the validation images, at the configured budgets."""
        weights = self._weights()
        method = self._learned(agent_trainer)
        found = []
        for rate in self.config.evaluation.tradeoff_rates:
            point = self.setup.book.point(rate, None)
            found.append(Validation(rate, self.evaluator.validate(self.network, method, point)))
            self.network.load_state_dict(weights)
        return found

    def _record_validations(self) -> None:
        """A round's validation stands in the history of updates, beside its last one."""
        record: dict[str, float] = {}
        for validation in self.validations:
            record |= validation.record(self.setup.book.dense_macs)
        if self.history:  # no update was planned in this round, or in any
            self.history[-1].update(record)
        tagged = {f"validation/{name}": value for name, value in record.items()}
        self.reporter.scalars(self.counters.rl_updates, tagged)

    # ------------------------------------------------------------------ state

    def pretrained_state(self) -> dict[str, Any] | None:
        """What pretraining has made, at the moment when it is done; None at any other."""
        epochs = self.config.training.pretrain_epochs
        begun = self.trainer is not None  # with the unit after it: that may be interrupted
        if epochs == 0 or self.position != epochs or begun:
            return None
        return {
            "network": self._weights(),
            "average_loss": self.average_loss,
            "images": self.counters.cnn_images[PRETRAIN],
            "seconds": self.counters.seconds[PRETRAIN],
        }

    def adopt_pretrained(self, state: dict[str, Any]) -> None:
        """Skips pretraining: goes on as if this program had made :meth:`pretrained_state`."""
        self.network.load_state_dict(state["network"])
        self.average_loss = state["average_loss"]
        self.counters.cnn_images[PRETRAIN] = state["images"]
        self.counters.seconds[PRETRAIN] = state["seconds"]
        self.trainer = None
        self.position = self.config.training.pretrain_epochs

    def prepare_rollouts(self, agent_trainer: AgentTrainer) -> None:
        """Before a round's rollouts: BatchNorm statistics as under the present policy."""
        method = self._learned(agent_trainer)
        self.network.set_predictors(method.predictors, method.boosted)
        rng = np.random.default_rng([self.config.seed, 6, self.position])

        def gates(count: int) -> Gate:
            budgets = self.setup.sample_episodes(method.book, count, rng)
            return method.gate(self.network, budgets)

        evaluation = self.config.evaluation
        reestimate_batchnorm(
            self.network,
            self.images,
            gates,
            evaluation.batchnorm_images,
            evaluation.batch_size,
            [self.config.seed, 77],
        )

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings, lists and dictionaries only."""
        return {
            "position": self.position,
            "network": self._weights(),
            "trainer": None if self.trainer is None else copy.deepcopy(self.trainer.state_dict()),
            "snapshots": self.snapshots,
            "counters": asdict(self.counters),
            "history": list(self.history),
            "average_loss": self.average_loss,
            "prices": None if self.price is None else list(self.price.prices),
            "price_excess": None if self.price is None else list(self.price.excess),
            "agents_before": self.agents_before,
            **self.choices.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.position = state["position"]
        self.network.load_state_dict(state["network"])
        self.snapshots = dict(state["snapshots"])
        self.counters = Counters(**state["counters"])
        self.history = list(state["history"])
        self.average_loss = state["average_loss"]
        if self.price is not None:
            self.price.prices = list(state["prices"])
            self.price.excess = list(state.get("price_excess") or self.price.excess)
        self.agents_before = state.get("agents_before")  # older checkpoints have none
        self.choices.load_state_dict(state)
        self.trainer = None
        if state["trainer"] is not None and not self.finished:
            self.trainer = self._new_trainer(self.units[self.position].phase)
            self.trainer.load_state_dict(state["trainer"])
