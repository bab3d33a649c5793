"""One question about a folder of results: which points are on the front?

Reads as little as the question needs: the objectives of all rows, everything that names a
row only for the few on the front.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from rlprune import files
from rlprune.errors import ResultsError
from rlprune.results.frames import group_codes
from rlprune.results.load import load
from rlprune.results.pareto import hypervolume, pareto_front
from rlprune.results.parts import results_uri
from rlprune.results.statistics import BUDGETS, MEASURES, SETTING, aggregate_seeds
from rlprune.results.where import parse_where

HOW_TIMED = "`rlprune bench RUN --all` times learned networks and their dense ones."
_SERIES = ("experiment", "trial", "config_hash", "method")  # whose steps are a history
_REPORTED = ("validation_accuracy", "test_accuracy", "storage_bytes", "macs_mean", "macs_max")
_NAMING = (
    "experiment",
    "trial",
    "step",
    "method",
    "seed",
    "dataset",
    "backbone",
    "width",
    "tradeoff_rate",
    *BUDGETS,
    "budgets_met",
    *_REPORTED,
    "config_hash",
    "checkpoint_uri",
    "row_id",
)
_TIMED_WITH = ("latency_machine", "latency_threads", "latency_batch")
_SMALL_BYTES = 64 << 20  # read in one go: listing and opening files costs more than columns


@dataclass(frozen=True)
class FrontQuery:
    """What front is asked for.

    Attributes:
        maximize, minimize: columns of the results.
        group_by: columns whose combinations have a front of their own, () for one front.
        where: a condition on rows (:func:`rlprune.results.where.parse_where`), None for all.
        seeds: "each" row by itself, or the "mean" of rows that differ only in seed.
        steps: "last": only each trial's last step, as in the other tables; "all".
        reference: a value per objective for the hypervolume, empty for none.
    """

    maximize: tuple[str, ...] = ("validation_accuracy",)
    minimize: tuple[str, ...] = ("storage_bytes",)
    group_by: tuple[str, ...] = ()
    where: str | None = None
    seeds: Literal["each", "mean"] = "each"
    steps: Literal["last", "all"] = "last"
    reference: Mapping[str, float] = field(default_factory=dict)

    @property
    def objectives(self) -> tuple[str, ...]:
        """All objectives, the maximised ones first."""
        return (*self.maximize, *self.minimize)


@dataclass(frozen=True)
class FrontAnswer:
    """The front and what it was chosen from.

    Attributes:
        query: the question.
        points: all candidates: objectives and groups; with seeds "mean" one row per setting,
            standard errors as ``<column>_se``, and ``n`` seeds.
        front: the candidates on the front with the columns that name them, by group, the
            first objective's best first.
        hypervolumes: one row per group with the column ``hypervolume``; None if not asked.
        timed: where an objective is a latency, the settings that the candidates were timed
            with, one row each (machine, threads, batch); else None.
    """

    query: FrontQuery
    points: pd.DataFrame
    front: pd.DataFrame
    hypervolumes: pd.DataFrame | None
    timed: pd.DataFrame | None = None


def find_front(uri: str | Path, query: FrontQuery, *, skip_bad: bool = False) -> FrontAnswer:
    """Answers a query from the files.

    Args:
        uri: as for :func:`rlprune.results.load`.
        query: the question.
        skip_bad: leave out files that cannot be used, with a warning.

    Raises:
        ResultsError: a column, condition or reference that is wrong, no rows, or a bad file.
        FileAccessError: the folder cannot be read.
    """
    condition = parse_where(query.where) if query.where is not None else None
    wanted = _columns(query)
    naming = [*dict.fromkeys((*_NAMING, *wanted))]
    at_once = query.seeds == "mean" or _is_small(str(uri))
    df = load(uri, columns=naming if at_once else wanted, filters=condition, skip_bad=skip_bad)
    if df.empty:
        remedy = "" if query.where is None else " with this condition"
        raise ResultsError(f"results {uri}: there are no rows{remedy}.")
    points = _last_steps(df) if query.steps == "last" else df
    _check_values(points, query)
    timed = _timed_with(points) if _is_timed(query) else None
    if query.seeds == "mean":
        points = aggregate_seeds(points)
    front = _front(points, query)
    if not at_once:
        # a row written anew since then may have other values: the front of what is shown
        chosen = pc.field("row_id").isin(front["row_id"].tolist())
        front = _front(load(uri, columns=naming, filters=chosen, skip_bad=skip_bad), query)
    front = _sorted(front, query)
    return FrontAnswer(query, points, front, _hypervolumes(front, query), timed)


def _is_timed(query: FrontQuery) -> bool:
    return any(name.startswith("latency_") for name in query.objectives)


def _timed_with(points: pd.DataFrame) -> pd.DataFrame:
    names = list(_TIMED_WITH)
    known = points[names].dropna().astype({"latency_machine": str}).drop_duplicates()
    return known.sort_values(names, ignore_index=True)


def _check_values(points: pd.DataFrame, query: FrontQuery) -> None:
    """Refuses objectives that no point has; unknown columns are refused before."""
    for name in query.objectives:
        if points[name].isna().all():
            remedy = f" {HOW_TIMED}" if name.startswith("latency_") else " Choose another column."
            raise ResultsError(f"column {name}: none of {len(points):,} rows has a value.{remedy}")


def _columns(query: FrontQuery) -> list[str]:
    """What must be read of all rows."""
    names = [*query.objectives, *query.group_by, "row_id"]
    if query.steps == "last":
        names += [*_SERIES, "step"]
    if _is_timed(query):
        names += _TIMED_WITH
    if query.seeds == "mean":
        odd = [name for name in query.objectives if name not in MEASURES]
        odd += [name for name in query.group_by if name not in SETTING]
        if odd:
            raise ResultsError(
                f"column {odd[0]} has no mean over seeds. Choose another one, or --seeds each."
            )
        names += [*SETTING, "seed", "configuration", "budgets_met", *_REPORTED]
    return list(dict.fromkeys(names))


def _is_small(uri: str) -> bool:
    folder = results_uri(uri)
    suffix = "" if folder.endswith(".parquet") else ".parquet"
    return sum(entry.size for entry in files.list_files(folder, suffix)) <= _SMALL_BYTES


def _last_steps(df: pd.DataFrame) -> pd.DataFrame:
    """As ``latest_points``, for categoricals and millions of rows."""
    codes = group_codes(df, _SERIES)
    steps = df["step"].to_numpy()
    last = np.full(int(codes.max()) + 1, np.iinfo(np.int64).min)
    np.maximum.at(last, codes, steps)
    kept = steps == last[codes]
    return df if kept.all() else df[kept]


def _front(points: pd.DataFrame, query: FrontQuery) -> pd.DataFrame:
    return pareto_front(
        points,
        maximize=query.maximize,
        minimize=query.minimize,
        group_by=query.group_by or None,
    )


def _sorted(front: pd.DataFrame, query: FrontQuery) -> pd.DataFrame:
    order = [*query.group_by, *query.objectives]
    ascending = [name not in query.maximize for name in order]
    return front.sort_values(order, ascending=ascending, kind="stable", ignore_index=True)


def _hypervolumes(front: pd.DataFrame, query: FrontQuery) -> pd.DataFrame | None:
    """Of each group; rows that are not on the front would add nothing."""
    if not query.reference:
        return None
    codes = group_codes(front, query.group_by)
    rows = [front[codes == code] for code in range(int(codes.max(initial=-1)) + 1)]
    volumes = [
        hypervolume(
            group, maximize=query.maximize, minimize=query.minimize, reference=query.reference
        )
        for group in rows
    ]
    result = front.loc[~pd.Series(codes).duplicated().to_numpy(), list(query.group_by)]
    result = result.reset_index(drop=True)
    result["hypervolume"] = volumes
    return result
