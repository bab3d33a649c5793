"""Pareto fronts of result rows, their hypervolume, and the best row within limits.

These work on any frame with numeric columns. Which column decides is the caller's choice,
with one rule: the validation images choose, the test images report. A front or a best row
chosen by its test accuracy is optimistic, because the luckiest of many rows wins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from rlprune.errors import ResultsError
from rlprune.results.frames import check_columns, group_codes, numeric
from rlprune.results.hypervolume import dominated_volume
from rlprune.results.nondominated import Objective, Positions, nondominated

Names = str | Sequence[str]
_EXACT = 2**53  # float64 holds every integer up to here


def pareto_front(
    df: pd.DataFrame,
    *,
    maximize: Names = (),
    minimize: Names = (),
    group_by: Names | None = None,
) -> pd.DataFrame:
    """The rows that no other row of their group beats.

    A row is on the front if no other row of its group is at least as good in every
    objective and better in one. Equal rows are all kept. A row with a missing value (NaN)
    in any objective is never on the front and beats none; infinities are ordinary values.
    Exact for any number of objectives; made for ten million rows and two or three of them.

    Args:
        df: any rows; the objectives are numeric columns.
        maximize: columns of which larger is better.
        minimize: columns of which smaller is better.
        group_by: columns whose combinations each have a front of their own; missing values
            are a group like any other.

    Returns:
        Some rows of ``df`` with all its columns, in its order, under its index.

    Raises:
        ResultsError: no objective; an unknown, doubled or non-numeric column; a column that
            is to be maximised and minimised at once.
    """
    objectives = [
        replace(objective, values=_comparable(objective.values))
        for objective in _objectives(df, _list(maximize), _list(minimize))
    ]
    if group_by is None:
        return df.iloc[nondominated(objectives)]
    fronts = [nondominated(objectives, rows) for rows in _groups(df, _list(group_by))]
    return df.iloc[np.sort(np.concatenate([np.empty(0, dtype=np.int64), *fronts]))]


def hypervolume(
    df: pd.DataFrame,
    *,
    maximize: Names = (),
    minimize: Names = (),
    reference: Mapping[str, float],
) -> float:
    """The volume between the rows' front and a reference point: larger is better.

    Exact for any number of objectives. Rows that are not better than the reference in every
    objective add nothing, nor do rows with a missing value.

    Args:
        df: any rows; not only the front, but no others count.
        maximize: columns of which larger is better.
        minimize: columns of which smaller is better.
        reference: a value per objective, the worst that is of interest.

    Returns:
        A number in the product of the objectives' units (accuracy x bytes, for example);
        infinite if a row that counts is.

    Raises:
        ResultsError: as in :func:`pareto_front`; a reference that is missing, not finite or
            of no objective.
    """
    chosen = [*_list(maximize), *_list(minimize)]
    objectives = _objectives(df, _list(maximize), _list(minimize))
    _check_reference(chosen, reference)
    front = nondominated(objectives)
    gains = np.stack(
        [
            objective.take(front) - (reference[name] if objective.maximize else -reference[name])
            for name, objective in zip(dict.fromkeys(chosen), objectives, strict=True)
        ]
    )
    return dominated_volume(gains)


def best(
    df: pd.DataFrame,
    *,
    max_storage_bytes: float | None = None,
    max_macs: float | None = None,
    accuracy: str = "validation_accuracy",
    macs: str = "macs_max",
) -> pd.Series[Any]:
    """The most accurate row within the limits.

    Chosen by validation accuracy, so that its test accuracy can be reported as it is.
    Of equally accurate rows the one with fewer bytes, then with fewer MACs, then the first.

    Args:
        df: rows as ``rlprune.results.load`` gives them.
        max_storage_bytes: most bytes of stored weights (``storage_bytes``), None for any.
        max_macs: most multiply-accumulates per image, None for any.
        accuracy: the column that decides.
        macs: the column that ``max_macs`` limits: ``macs_max`` (no image costs more) or
            ``macs_mean``.

    Returns:
        The row, named by its index.

    Raises:
        ResultsError: no row fits (says how near the nearest comes), no row has an accuracy,
            a limit is not above zero, or a column is missing or not numeric.
    """
    values = {name: numeric(df, name) for name in ("storage_bytes", macs)}
    score = numeric(df, accuracy).astype(np.float64)
    limits = [
        (name, limit)
        for name, limit in (("storage_bytes", max_storage_bytes), (macs, max_macs))
        if limit is not None
    ]
    known = ~np.isnan(score)
    if not known.any():
        raise ResultsError(f"best: no row has a value of {accuracy}. Evaluate a trial first.")
    excess = np.ones(len(df))
    for name, limit in limits:
        if not limit > 0:
            raise ResultsError(f"best: the limit of {name} must be above 0 (got {limit}).")
        excess = np.maximum(excess, values[name] / limit)
    fits = np.flatnonzero(known & (excess <= 1.0))  # NaN fits nothing
    if len(fits) == 0:
        raise ResultsError(_nothing_fits(df, np.where(known, excess, np.nan), accuracy, limits))
    order = np.lexsort((values[macs][fits], values["storage_bytes"][fits], -score[fits]))
    return df.iloc[int(fits[order[0]])]


def _list(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _comparable(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same order in numbers that float64 holds exactly."""
    large = values.dtype.kind in "iu" and len(values) > 0
    if large and (int(values.max()) > _EXACT or int(values.min()) < -_EXACT):
        ranks: npt.NDArray[np.intp] = np.unique(values, return_inverse=True)[1]
        return ranks
    return values


def _objectives(df: pd.DataFrame, maximize: list[str], minimize: list[str]) -> list[Objective]:
    if not maximize and not minimize:
        raise ResultsError(
            "no objective: name at least one column to maximise or minimise, as in "
            'maximize=["validation_accuracy"], minimize=["storage_bytes"].'
        )
    both = [name for name in maximize if name in minimize]
    if both:
        raise ResultsError(f"column {both[0]} cannot be both maximised and minimised. Drop one.")
    names = {**dict.fromkeys(maximize, True), **dict.fromkeys(minimize, False)}
    return [Objective(numeric(df, name), larger) for name, larger in names.items()]


def _groups(df: pd.DataFrame, names: list[str]) -> list[Positions]:
    """The positions of each group's rows, ascending."""
    check_columns(df, names)
    if not names:
        raise ResultsError("group_by: no column is named. Leave it out for one front.")
    codes = group_codes(df, names)
    count = int(codes.max(initial=-1)) + 1
    # few groups: NumPy sorts 16-bit numbers in linear time
    order = np.argsort(codes.astype(np.uint16) if count < 2**16 else codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=count))
    return np.split(order, ends[:-1]) if count else []


def _check_reference(names: list[str], reference: Mapping[str, float]) -> None:
    for name in reference:
        if name not in names:
            raise ResultsError(f"reference {name}: not an objective. There are {', '.join(names)}.")
    for name in names:
        if name not in reference:
            raise ResultsError(
                f"reference: {name} is missing. Give each objective the worst value that counts."
            )
        if not math.isfinite(reference[name]):
            raise ResultsError(f"reference {name} must be finite (got {reference[name]}).")


def _nothing_fits(
    df: pd.DataFrame,
    excess: npt.NDArray[np.float64],
    accuracy: str,
    limits: Sequence[tuple[str, float]],
) -> str:
    wanted = " and ".join(f"{name} <= {limit:,.0f}" for name, limit in limits)
    if np.isnan(excess).all():
        return f"best: no row with {wanted}: the values are missing."
    nearest = df.iloc[int(np.nanargmin(excess))]
    found = ", ".join(f"{name} {nearest[name]:,.0f}" for name, limit in limits)
    called = ", ".join(
        f"{name} {nearest[name]}" for name in ("trial", "method", "backbone") if name in nearest
    )
    return (
        f"best: no row with {wanted}. The nearest{f' ({called})' if called else ''} has {found}, "
        f"{accuracy} {nearest[accuracy]:.4f}. Raise the limit, or run trials with smaller budgets."
    )
