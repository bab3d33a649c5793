"""Who trains the network through a phase: this process, or several (no Ray here)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from rlprune.config import TrialConfig
from rlprune.data import ImageSet
from rlprune.pruning import GateDesign, GatedNetwork
from rlprune.replicas import ALONE, Replicas
from rlprune.training.catalogue import facts_of
from rlprune.training.cnn import (
    PLAIN_FROZEN,
    CnnSchedule,
    CnnTrainer,
    Feed,
    Step,
    StepReport,
)
from rlprune.training.gates import GateRecipe, gates_of
from rlprune.training.phases import (
    ALTERNATE,
    PRETRAIN,
    RUNTIME_IMPORTANCE,
    STATIC_IMPORTANCE,
    phase_steps,
)
from rlprune.training.setup import TrialSetup, build_network, without_weights

_SEED_OF_PHASE = {PRETRAIN: 1, RUNTIME_IMPORTANCE: 2, STATIC_IMPORTANCE: 3, ALTERNATE: 4}
_WITHOUT_STATIC = ("static_importance", "width_scale", "width_shift")


@dataclass(frozen=True)
class CnnJob:
    """One phase of the network's training, but for the weights; can travel.

    Attributes:
        schedule: steps, rates, losses.
        seed: entropy of everything random.
        frozen: names (suffixes) of parameters that stay fixed.
        teacher: weights of the network that is imitated, None: nobody is.
    """

    schedule: CnnSchedule
    seed: tuple[int, ...]
    frozen: tuple[str, ...]
    teacher: dict[str, Tensor] | None

    @classmethod
    def of(
        cls, config: TrialConfig, phase: str, images: int, pretrained: dict[str, Tensor] | None
    ) -> CnnJob:
        """The job of a phase.

        Args:
            config: the trial.
            phase: a phase, or a method's name.
            images: in the training split.
            pretrained: weights after pretraining; None before.
        """
        training = config.training
        steps = phase_steps(training, phase, images)
        frozen: tuple[str, ...] = ()
        facts = facts_of(phase)
        if phase == PRETRAIN:
            frozen = PLAIN_FROZEN
        elif facts is not None and facts.plain:
            frozen = _WITHOUT_STATIC if facts.predictors else PLAIN_FROZEN
        elif phase == RUNTIME_IMPORTANCE:
            frozen = ("static_importance",)
        first = phase == PRETRAIN
        schedule = CnnSchedule(
            training.pretrain_learning_rate if first else training.finetune_learning_rate,
            steps.count,
            steps.batch_size,
            training.gradient_clip,
            training.label_smoothing,
            training.distillation,
            training.distillation_temperature,
            decays=not _is_followed(phase),
            predictor_rate=1.0 if facts is not None and facts.plain else training.predictor_rate,
            held=_held_steps(config, phase, images),
        )
        # Every method sees the same images in the same order.
        seed = (config.seed, _SEED_OF_PHASE.get(phase, _SEED_OF_PHASE[ALTERNATE]))
        teaches = not first and training.distillation > 0.0
        return cls(schedule, seed, frozen, pretrained if teaches else None)


def _held_steps(config: TrialConfig, phase: str, images: int) -> int:
    """Steps of a static method's one phase that take the place of the importances' phases.

    Those train at a rate that stays, and so do these: every method sees an image at the
    same learning rate. A rate that falls from the first step on costs a method a point.
    """
    facts = facts_of(phase)
    if facts is None or not facts.plain or facts.preparation is not None:
        return 0
    training = config.training
    importance = sum(
        phase_steps(training, part, images).count
        for part in (RUNTIME_IMPORTANCE, STATIC_IMPORTANCE)
    )
    return min(importance, phase_steps(training, phase, images).count)


def _is_followed(phase: str) -> bool:
    """Whether another phase trains the phase's network on, at the same rate.

    Falling to zero in between costs accuracy (1.4 points in analysis/learning.md): the second
    phase begins with steps that undo the first one's last.
    """
    facts = facts_of(phase)
    if facts is not None:
        return facts.plain and phase == facts.preparation
    return phase in (RUNTIME_IMPORTANCE, STATIC_IMPORTANCE)


class Trainer(Protocol):
    """What a trial's program needs of whoever trains its network."""

    @property
    def schedule(self) -> CnnSchedule:
        """Of the phase."""

    @property
    def step(self) -> int:
        """Optimizer steps taken."""

    @property
    def last_loss(self) -> float:
        """Of the last step."""

    def run(
        self, steps: int, recipe: GateRecipe, report: StepReport | None = None
    ) -> tuple[float, float]:
        """As :meth:`CnnTrainer.run`; the program's network is trained in place."""

    def state_dict(self) -> dict[str, Any]:
        """Optimizer and position."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`, whoever made it."""


TrainerFactory = Callable[[TrialSetup, ImageSet, GatedNetwork, CnnJob], Trainer]


class PhaseTrainer:
    """Trains a network through one phase, in this process.

    Args:
        setup: of the trial.
        images: the image set.
        network: trained in place.
        job: the phase.
        replicas, feed: see :class:`CnnTrainer`.
    """

    def __init__(
        self,
        setup: TrialSetup,
        images: ImageSet,
        network: GatedNetwork,
        job: CnnJob,
        replicas: Replicas = ALONE,
        feed: Feed | None = None,
    ) -> None:
        self.setup = setup
        self.network = network
        teacher = None if job.teacher is None else _teacher(setup, images, network, job.teacher)
        self.cnn = CnnTrainer(
            network, images, job.schedule, list(job.seed), job.frozen, teacher, replicas, feed
        )

    @property
    def schedule(self) -> CnnSchedule:
        """Of the phase."""
        return self.cnn.schedule

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.cnn.step

    @property
    def last_loss(self) -> float:
        """Of the last step."""
        return self.cnn.last_loss

    def run(
        self, steps: int, recipe: GateRecipe, report: StepReport | None = None
    ) -> tuple[float, float]:
        """See :meth:`CnnTrainer.run`."""
        return self.cnn.run(steps, gates_of(self.setup, self.network, recipe), report)

    def steps(self, recipe: GateRecipe) -> Callable[[], Step]:
        """For who takes the steps one by one: each call takes one."""
        gates = gates_of(self.setup, self.network, recipe)
        self.network.train()
        return lambda: self.cnn.take_step(gates)

    def close(self) -> None:
        """For who takes the steps one by one: after the last of them."""
        self.cnn.close()

    def state_dict(self) -> dict[str, Any]:
        """Optimizer and position."""
        return self.cnn.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.cnn.load_state_dict(state)


def _teacher(
    setup: TrialSetup, images: ImageSet, network: GatedNetwork, weights: dict[str, Tensor]
) -> GatedNetwork:
    """The network whose answers are imitated, on the device of the one that learns."""
    config = setup.config
    design = GateDesign.of(config.pruning)
    shape, classes = images.input_shape, images.num_classes
    backbone = without_weights(config.backbone)
    teacher = build_network(backbone, classes, shape, config.seed, design)
    teacher.load_state_dict(weights)
    return teacher.to(network.layers[0].shift.device).eval().requires_grad_(False)
