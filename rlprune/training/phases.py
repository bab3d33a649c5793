"""Which phases a trial has, in what order, and how long they are (no Ray here)."""

from __future__ import annotations

from dataclasses import dataclass

from rlprune.config import TrainingConfig, TrialConfig
from rlprune.training.catalogue import CATALOGUE, facts_of

PRETRAIN = "pretrain"
RUNTIME_IMPORTANCE = "runtime_importance"
STATIC_IMPORTANCE = "static_importance"
ALTERNATE = "alternate"
LEARNED = "learned"


@dataclass(frozen=True)
class Unit:
    """One step of a trial's course: one training iteration, one possible checkpoint.

    Attributes:
        phase: PRETRAIN, ..., ALTERNATE, or a method's name.
        kind: "train" (an epoch or a round), or "measure".
        index, count: position among the phase's units.
    """

    phase: str
    kind: str
    index: int
    count: int


def plan_units(config: TrialConfig) -> list[Unit]:
    """All units of a trial in order."""
    training = config.training
    units: list[Unit] = []

    def add(phase: str, kind: str, count: int) -> None:
        units.extend(Unit(phase, kind, index, count) for index in range(count))

    add(PRETRAIN, "train", training.pretrain_epochs)
    add(RUNTIME_IMPORTANCE, "train", training.runtime_importance_epochs)
    add(STATIC_IMPORTANCE, "train", training.static_importance_epochs)
    add(ALTERNATE, "train", training.rounds)
    add(LEARNED, "measure", 1)
    for baseline in config.evaluation.baselines:
        preparation = CATALOGUE[baseline].preparation
        if preparation is not None:
            add(preparation, "train", max(1, training.rounds))
        add(baseline, "train", max(1, training.rounds))
        add(baseline, "measure", 1)
    return units


@dataclass(frozen=True)
class Steps:
    """Optimizer steps of one phase.

    Attributes:
        count: steps in all.
        batch_size: images per step; at most the training images there are.
    """

    count: int
    batch_size: int


def phase_epochs(training: TrainingConfig, phase: str) -> float:
    """Epochs of the network's training in one phase, or for one method's network."""
    importance = training.runtime_importance_epochs + training.static_importance_epochs
    finetune = training.rounds * training.finetune_epochs
    facts = facts_of(phase)
    if facts is not None and facts.plain:
        if facts.preparation is None:
            return importance + finetune
        return finetune if phase == facts.name else float(importance)
    return {
        PRETRAIN: float(training.pretrain_epochs),
        RUNTIME_IMPORTANCE: float(training.runtime_importance_epochs),
        STATIC_IMPORTANCE: float(training.static_importance_epochs),
    }.get(phase, finetune)


def phase_steps(training: TrainingConfig, phase: str, images: int) -> Steps:
    """How many optimizer steps a phase has with ``images`` training images."""
    size = min(training.batch_size, images)
    return Steps(round(phase_epochs(training, phase) * max(1, images // size)), size)
