"""How much work a trial is, before it has started: pure arithmetic over its plan."""

from __future__ import annotations

from rlprune.config import TrialConfig
from rlprune.training.phases import phase_steps, plan_units


def training_images(config: TrialConfig, images: int) -> dict[str, int]:
    """Images that each phase, and each baseline's network, is trained on.

    The same numbers as ``TrialProgram.counters.cnn_images`` has at the trial's end.

    Args:
        config: the trial.
        images: in the training split.

    Returns:
        Name of the phase or baseline -> images, in the order in which they come.
    """
    phases = dict.fromkeys(unit.phase for unit in plan_units(config) if unit.kind == "train")
    counts = {}
    for phase in phases:
        steps = phase_steps(config.training, phase, images)
        if steps.count:
            counts[phase] = steps.count * steps.batch_size
    return counts


def rollout_images(config: TrialConfig) -> int:
    """Images of all rollouts of the agents: one per episode, forward only."""
    training = config.training
    return training.planned_updates * config.rollouts.rollouts_per_update
