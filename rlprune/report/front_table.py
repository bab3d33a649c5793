"""The table of a front for the terminal, with units, and what to know when reading it."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from rlprune.report.units import Unit, unit_of
from rlprune.results.query import HOW_TIMED, FrontAnswer
from rlprune.results.statistics import BUDGETS

_WHO = ("dataset", "backbone", "width", "experiment", "trial", "method", "seed", "step")
_SETTINGS = ("tradeoff_rate", "budget_s")
_MEAN_SETTINGS = (*_SETTINGS, *BUDGETS[1:], "budget_rule")  # no trial's name tells them
_REPORTED = ("validation_accuracy", "test_accuracy", "storage_bytes", "macs_max", "budgets_met")
_ALWAYS = ("method", "trial")


def front_table(answer: FrontAnswer) -> Table:
    """The front as a rich table: who, the objectives, what else is reported.

    What is the same for all rows stands in the title. Means over seeds are followed by
    their standard errors.
    """
    front = answer.front
    lead = _lead(answer)
    shown = [name for name in lead if name in _ALWAYS or front[name].nunique(dropna=False) > 1]
    constant = {name: front[name].iloc[0] for name in lead if name not in shown and len(front)}
    title = ", ".join(
        f"{unit_of(name).label} {unit_of(name).text(value)}"
        for name, value in constant.items()
        if not pd.isna(value)
    )
    rest = [name for name in (*answer.query.objectives, *_REPORTED, "n") if name in front]
    table = Table(title=escape(title) or None, title_justify="left")
    columns = list(dict.fromkeys([*shown, *rest]))
    for name in columns:
        unit = unit_of(name)
        table.add_column(escape(unit.heading), justify="right" if unit.number else "left")
    for record in front.to_dict("records"):
        table.add_row(*(_cell(record, name) for name in columns))
    return table


def _lead(answer: FrontAnswer) -> list[str]:
    """What names a row: the groups, then who and which settings."""
    front, query = answer.front, answer.query
    names = [*query.group_by, *_WHO, *(_MEAN_SETTINGS if query.seeds == "mean" else _SETTINGS)]
    names = [name for name in dict.fromkeys(names) if name in front]
    if query.steps == "last":  # it only tells in which order the methods were measured
        names = [name for name in names if name != "step"]
    # a hash tells nobody anything, unless nothing else tells two rows apart
    if "settings_hash" in front and front.duplicated(names).any():
        names.append("settings_hash")
    return names


def notes(answer: FrontAnswer) -> list[str]:
    """Sentences about the front: its size, how it was chosen, its hypervolume."""
    query, front = answer.query, answer.front
    what = "settings (means over seeds)" if query.seeds == "mean" else "points"
    goals = [f"high {name}" for name in query.maximize] + [f"low {name}" for name in query.minimize]
    each = f", one front per {', '.join(query.group_by)}" if query.group_by else ""
    lines = [f"{len(front):,} of {len(answer.points):,} {what}: {', '.join(goals)}{each}."]
    missing = int(answer.points[list(query.objectives)].isna().any(axis=1).sum())
    if missing:
        how = f" {HOW_TIMED}" if answer.timed is not None else ""
        lines.append(f"{missing:,} {what} lack an objective and were left out.{how}")
    if answer.timed is not None:
        lines += _timing_lines(answer, answer.timed)
    if query.seeds == "mean" and answer.points["n"].nunique() > 1:
        least, most = answer.points["n"].min(), answer.points["n"].max()
        lines.append(f"Settings have {least} to {most} seeds; means of few are less certain.")
    on_test = [name for name in query.objectives if name.startswith("test_")]
    if on_test:
        lines.append(
            f"Chosen by {', '.join(on_test)}: these values are optimistic, the luckiest points "
            "win. Choose by validation_accuracy and report the test accuracy."
        )
    if answer.hypervolumes is not None:
        lines += _volume_lines(answer, answer.hypervolumes)
    return lines


def _timing_lines(answer: FrontAnswer, timed: pd.DataFrame) -> list[str]:
    """With what the latencies were measured, and a warning where that differs in one front."""
    settings = [
        f"batch {row['latency_batch']:.0f}, threads {row['latency_threads']:.0f}, "
        f"{row['latency_machine']}"
        for row in timed.to_dict("records")
    ]
    if len(settings) <= 1:
        return [f"Latency: {setting}." for setting in settings]
    mixed = [str(name) for name in timed if timed[name].nunique() > 1]
    apart = set(mixed) <= set(answer.query.group_by)
    advice = "" if apart else f" Compare like with like: --group-by {' --group-by '.join(mixed)}."
    return [f"Latencies of {len(settings)} settings ({'; '.join(settings)}).{advice}"]


def _volume_lines(answer: FrontAnswer, volumes: pd.DataFrame) -> list[str]:
    at = ", ".join(f"{name} {value:g}" for name, value in answer.query.reference.items())
    lines = []
    for record in volumes.to_dict("records"):
        who = ", ".join(unit_of(name).text(record[name]) for name in answer.query.group_by)
        lines.append(
            f"Hypervolume{f' of {who}' if who else ''}: {record['hypervolume']:.6g} "
            f"({' x '.join(answer.query.objectives)}; reference {at})."
        )
    return lines


def _cell(record: dict[Any, Any], name: str) -> str:
    unit: Unit = unit_of(name)
    text = unit.text(record[name])
    error = record.get(f"{name}_se")
    if error is not None and not pd.isna(error):
        text += f" ± {unit.text(error)}"
    return escape(text)
