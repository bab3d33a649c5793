"""Everything a report is made from, read once: rows, learning curves, how it was started."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rlprune.errors import ResultsError, RlpruneError
from rlprune.files import exists, join, list_files, read_whole
from rlprune.report.curves import Curve, make_curve, parquet_frame
from rlprune.report.settings import add_settings, configurations, flatten
from rlprune.results import latest_points, load

logger = logging.getLogger(__name__)

_COLUMNS_NOT_SHOWN = ("schema_version", "row_id")


@dataclass(frozen=True)
class ReportSource:
    """What a report shows.

    Attributes:
        folder: the folder or URI that was read.
        points: the last step of every trial and method, columns of the schema plus
            ``family``, ``setting`` and ``setting_label`` (see :mod:`.settings`).
        configuration: flat configuration by ``config_hash``, where known.
        curves: learning curves, one per trial that has a file of updates.
        again: the command that runs the same experiment once more, "" if unknown.
    """

    folder: str
    points: pd.DataFrame
    configuration: dict[str, dict[str, Any]]
    curves: list[Curve] = field(default_factory=list)
    again: str = ""


def read_source(folder: str | Path, *, skip_bad: bool = False) -> ReportSource:
    """Reads an experiment's or a run's folder.

    Args:
        folder: local folder or URI with ``results`` below it, or the results themselves.
        skip_bad: leave out damaged or foreign files, with a warning each.

    Raises:
        ResultsError: no rows, or a file of rows or updates that cannot be read.
        FileAccessError: the folder cannot be reached.
    """
    uri = str(folder)
    rows = load(uri, skip_bad=skip_bad)
    if rows.empty:
        raise ResultsError(
            f"report {uri}: there are no result rows. Give the folder of a run or a sweep that "
            "has measured at least one point."
        )
    points = latest_points(rows).reset_index(drop=True)
    points = points.drop(columns=[name for name in _COLUMNS_NOT_SHOWN if name in points])
    configuration = configurations(points) or _configuration_beside(uri, points)
    points = add_settings(points, configuration)
    curves = _read_curves(uri, points, skip_bad)
    again = _again(uri, str(points["experiment"].iloc[0]))
    return ReportSource(uri, points, configuration, curves, again)


def _configuration_beside(uri: str, points: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Rows of schema version 1 have none, but a run's folder has its config.yaml."""
    hashes = points["config_hash"].unique()
    path = join(uri, "config.yaml")
    if len(hashes) != 1 or not exists(path):
        return {}
    try:
        values = yaml.safe_load(read_whole(path))
    except (yaml.YAMLError, RlpruneError) as error:
        logger.warning("report: %s cannot be read and is left out (%s)", path, error)
        return {}
    return {str(hashes[0]): flatten(values)} if isinstance(values, dict) else {}


def _again(uri: str, experiment: str) -> str:
    """The command that starts the same experiment once more, beside the old one."""
    new = shlex.quote(f"{experiment}_again")
    for name, command, option in (
        ("sweep.yaml", "rlprune sweep", f"--set name={new}"),
        ("config.yaml", "rlprune train", f"--out runs/{new}"),
    ):
        path = join(uri, name)
        if exists(path):
            return f"{command} {shlex.quote(path)} {option}"
    return ""


def _read_curves(uri: str, points: pd.DataFrame, skip_bad: bool) -> list[Curve]:
    """``updates/TRIAL.parquet`` of a sweep, ``updates.parquet`` of a run."""
    names = [str(name) for name in points["trial"].unique()]
    single = join(uri, "updates.parquet")
    if len(names) == 1 and exists(single):
        return _curves([single], names, skip_bad, only=names[0])
    folder = join(uri, "updates")
    if not exists(folder):
        return []
    files = [entry.uri for entry in list_files(folder, ".parquet")]
    return _curves(files, names, skip_bad)


def _curves(
    paths: Sequence[str], trials: Sequence[str], skip_bad: bool, only: str | None = None
) -> list[Curve]:
    curves = []
    for path in paths:
        trial = only or Path(path).name.removesuffix(".parquet")
        try:
            frame = parquet_frame(path, read_whole(path))
            curves.append(make_curve(trial, path, frame, len(paths)))
        except RlpruneError as error:
            if not skip_bad:
                raise
            logger.warning("report: left out: %s", error)
    unknown = sorted({curve.trial for curve in curves} - set(trials))
    if unknown:
        logger.warning("report: learning curves without result rows: %s", ", ".join(unknown[:5]))
    return curves
