"""The settings of a trial by their dotted names, for example ``budgets.storage_max``."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, get_type_hints

from rlprune.config import TrialConfig
from rlprune.errors import Problem

SET_BY_SWEEP = ("name",)
"""Fields that no search space may have: the sweep itself sets them for each trial."""


@lru_cache(maxsize=1)
def trial_fields() -> tuple[str, ...]:
    """Dotted names of all settings of a trial that a search space may vary, in order."""
    return tuple(name for name in _leaves(TrialConfig, "") if name not in SET_BY_SWEEP)


def _leaves(kind: Any, prefix: str) -> Iterator[str]:
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _leaves(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def get_field(values: Mapping[str, Any], field: str) -> Any:
    """The value at a dotted name in the nested mapping of a complete trial."""
    node: Any = values
    for key in field.split("."):
        node = node[key]
    return node


def set_field(values: dict[str, Any], field: str, value: Any) -> None:
    """Sets the value at a dotted name in a nested mapping, in place."""
    *path, last = field.split(".")
    for key in path:
        values = values.setdefault(key, {})
    values[last] = value


def unknown_field(where: str, field: object) -> Problem | None:
    """What is wrong with ``field`` as the name of a setting; None if it is one."""
    if field in trial_fields():
        return None
    if field in SET_BY_SWEEP:
        remedy = "Leave it out: every trial gets a name of its own."
        return Problem(where, "is set by the sweep", field, remedy)
    near = difflib.get_close_matches(str(field), trial_fields(), n=1)
    if not near:  # "storage_max" for "budgets.storage_max"
        near = [name for name in trial_fields() if name.split(".")[-1] == field]
    remedy = f"Did you mean {near[0]!r}?" if near else "Write a setting such as backbone.width."
    return Problem(where, "is no setting of a trial", field, remedy)


MUTABLE = (
    "agents.learning_rate",
    "agents.entropy_coefficient",
    "agents.clip",
    "training.finetune_learning_rate",
    "training.label_smoothing",
)
"""Fields that may change while a trial runs (population-based training)."""

_PRETRAINING = (
    "seed",
    "data.",
    "backbone.",
    "training.pretrain_",
    "training.batch_size",
    "training.gradient_clip",
    "training.label_smoothing",
    "resources.device",
    "resources.cnn_workers",
)


def pretraining_values(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What decides on a trial's pretrained network: trials with equal ones can share it.

    Args:
        values: the nested mapping of a complete trial.
    """
    names = [name for name in trial_fields() if name.startswith(_PRETRAINING)]
    return tuple((name, repr(get_field(values, name))) for name in names)
