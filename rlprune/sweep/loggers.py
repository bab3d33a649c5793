"""Experiment trackers besides TensorBoard: optional packages, Ray's own callbacks."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from rlprune.errors import ConfigError, Problem
from rlprune.sweep.search import require_optuna
from rlprune.sweep.spec import SweepSpec


@dataclass(frozen=True)
class _Tracker:
    """A tracker: its package, Ray's callback, and the callback's argument for the sweep's name."""

    package: str
    module: str
    callback: str
    argument: str


_TRACKERS = {
    "wandb": _Tracker("wandb", "ray.air.integrations.wandb", "WandbLoggerCallback", "project"),
    "mlflow": _Tracker(
        "mlflow", "ray.air.integrations.mlflow", "MLflowLoggerCallback", "experiment_name"
    ),
    "comet": _Tracker(
        "comet_ml", "ray.air.integrations.comet", "CometLoggerCallback", "project_name"
    ),
}


def check_packages(spec: SweepSpec) -> None:
    """Refuses a sweep whose trackers or searcher need packages that are not installed.

    Raises:
        ConfigError: naming every one, and how to install it.
    """
    problems = []
    for name in spec.loggers:
        tracker = _TRACKERS.get(name)
        if tracker is not None and importlib.util.find_spec(tracker.package) is None:
            rule = f"needs the package {tracker.package}"
            remedy = f"pip install {tracker.package}, or take {name} out of loggers."
            problems.append(Problem("loggers", rule, name, remedy))
    if spec.search.algorithm == "optuna":
        try:
            require_optuna()
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)


def logger_callbacks(spec: SweepSpec) -> list[Any]:
    """Ray's callbacks of the trackers in the specification (Tune brings TensorBoard itself)."""
    callbacks = []
    for name in spec.loggers:
        tracker = _TRACKERS.get(name)
        if tracker is not None:
            kind = getattr(importlib.import_module(tracker.module), tracker.callback)
            callbacks.append(kind(**{tracker.argument: spec.name}))
    return callbacks
