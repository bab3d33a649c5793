"""A plan as a table in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from rlprune.sweep.estimate import SweepPlan, TrialEstimate

MOST_ROWS = 40


def plan_table(plan: SweepPlan) -> Table:
    """The trials with their estimates and a line of totals.

    More than :data:`MOST_ROWS` trials are grouped by backbone, width and image set.
    """
    grouped = len(plan.trials) > MOST_ROWS
    table = Table(title=_title(plan), caption=escape(totals_line(plan)), caption_justify="left")
    table.add_column("trials" if grouped else "trial", justify="right" if grouped else "left")
    for name in ("backbone", "images"):
        table.add_column(name)
    names = ("MACs", "weights", "trained images", "rollouts", "memory", "CPUs", "GPUs")
    for name in names:
        table.add_column(name, justify="right")
    if grouped:
        for trials in _groups(plan.trials):
            table.add_row(str(len(trials)), *_cells(trials))
    else:
        for trial in plan.trials:
            table.add_row(escape(trial.name), *_cells([trial]))
    return table


def totals_line(plan: SweepPlan) -> str:
    """Trials, images, multiply-accumulates, pretrained networks and shared image bytes."""
    networks = "of the samples " if plan.sampled else ""
    return (
        f"{plan.count} trials train on {_short(plan.training_images)} images, "
        f"{_short(plan.forward_macs)} dense MACs forward (with rollouts). "
        f"{plan.pretrainings} networks {networks}are pretrained, each once. "
        f"Images: {_bytes(plan.shared_image_bytes)} of shared memory per node. "
        "Memory is an estimate."
    )


def _title(plan: SweepPlan) -> str:
    name = escape(plan.spec.name)
    if plan.sampled:
        return f"{name}: {len(plan.trials)} sample points; Optuna will choose {plan.count}"
    return f"{name}: {plan.count} trials"


def _groups(trials: Sequence[TrialEstimate]) -> list[list[TrialEstimate]]:
    groups: dict[Any, list[TrialEstimate]] = {}
    for trial in trials:
        key = (trial.backbone, trial.config.backbone.width, trial.config.data.name)
        groups.setdefault(key, []).append(trial)
    return list(groups.values())


def _cells(trials: Sequence[TrialEstimate]) -> list[str]:
    """One row for trials with the same backbone, width and image set."""
    first = trials[0]
    width = first.config.backbone.width
    return [
        escape(first.backbone) + ("" if width == 1.0 else f" x {width:g}"),
        first.config.data.name,
        _range([trial.dense_macs for trial in trials], _short),
        _range([trial.dense_bytes for trial in trials], _bytes),
        _short(sum(trial.training_images for trial in trials)),
        _short(sum(trial.rollouts for trial in trials)),
        _range([trial.memory.host for trial in trials], _bytes),
        _range([trial.cpus for trial in trials], "{:g}".format),
        _range([trial.gpus for trial in trials], "{:g}".format),
    ]


def _range(values: Sequence[float], shown: Any) -> str:
    low, high = shown(min(values)), shown(max(values))
    return str(low) if low == high else f"{low} - {high}"


def _short(number: float) -> str:
    """Three digits and a unit: 1.23 M."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"


def _bytes(number: float) -> str:
    return f"{_short(number)}B" if number >= 1e3 else f"{number:g} B"
