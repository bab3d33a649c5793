"""Latencies of shipped models on the rows of the run that they came from."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import torch
from torch import Tensor

from rlprune import files
from rlprune.config import config_from_dict
from rlprune.data import Images, load_image_set
from rlprune.deploy import PrunedModel
from rlprune.deploy.bench import Report, Setting, Timing, compare, machine
from rlprune.deploy.rivals import DENSE
from rlprune.deploy.spec import ModelSpec
from rlprune.errors import ArtifactError
from rlprune.export.run import Say, export_point, rows_of, trial_folder
from rlprune.results import ResultRow, latest_points, load, write_rows
from rlprune.results.latency import Latency, with_latency
from rlprune.results.schema import KEY, row_id
from rlprune.training.restore import load_run

Record = Mapping[Any, Any]
_TRIAL = ["experiment", "trial", "config_hash"]


@dataclass(frozen=True)
class Point:
    """Where a shipped model's latency belongs.

    Attributes:
        results: folder of the rows.
        row: of the point that was exported, all columns.
        dense: of the same trial's unpruned backbone, newest step; None where there is none.
    """

    results: str
    row: Record
    dense: Record | None


def find_point(spec: ModelSpec, file: Path, run: str) -> Point:
    """The row that a file was exported from.

    Args:
        spec: of the file.
        file: its name, for messages.
        run: folder of a run, of a sweep, or of one of a sweep's trials.

    Raises:
        ArtifactError: no such row, or the file is no longer what the row describes.
        ResultsError, FileAccessError: the rows cannot be read.
    """
    origin, results = spec.origin, _results_of(run)
    missing = [name for name in KEY if name not in origin]
    if missing:
        raise ArtifactError(
            f"{file}: does not say which row it came from ({', '.join(missing)} is missing). "
            "Export it again with this version of rlprune."
        )
    if spec.dtype != "float32":
        raise ArtifactError(
            f"{file}: rows describe float32 weights, these are {spec.dtype}. Export it without "
            "--dtype to time the point."
        )
    rows = load(results, filters=pc.field("row_id") == _row_id(origin, file))
    if rows.empty:
        raise ArtifactError(
            f"{file}: no row of {run} matches it: trial {origin['trial']} of experiment "
            f"{origin['experiment']}, step {origin['step']}, R_r = {origin['tradeoff_rate']}, "
            f"configuration {origin['config_hash']}. Give the run that it was exported from, "
            "or export it again."
        )
    row = rows.iloc[0].to_dict()
    if row["storage_bytes"] != spec.measured.get("storage_bytes"):
        raise ArtifactError(
            f"{file}: its row in {run} is now of a network of {row['storage_bytes']:,} bytes: it "
            "was trained again since. Export it again."
        )
    return Point(results, row, _dense(load(results, filters=_same_trial(row))))


def _row_id(origin: Record, file: Path) -> int:
    try:
        return row_id([origin[name] for name in KEY])
    except (TypeError, ValueError):
        raise ArtifactError(
            f"{file}: its origin is damaged or was edited. Export it again."
        ) from None


def _results_of(run: str) -> str:
    for folder in (run, os.path.dirname(run.rstrip("/")) or "."):
        if files.exists(files.join(folder, "results")):
            return files.join(folder, "results")
    raise ArtifactError(f"{run}: no results there. Give the folder of a run or of a sweep.")


def _same_trial(row: Record) -> pc.Expression:
    same = pc.field("method") == DENSE
    for name in _TRIAL:
        same = same & (pc.field(name) == row[name])
    return same


def _dense(rows: pd.DataFrame) -> Record | None:
    """The unpruned backbone's row among those of a trial."""
    dense = rows[rows["method"] == DENSE].sort_values("step", kind="stable")
    return None if dense.empty else dense.iloc[-1].to_dict()


def pixels_of(row: Record, count: int) -> Tensor:
    """Test images of a row's data set, as :func:`some`.

    Raises:
        ArtifactError: the row does not tell its configuration.
        ConfigError, DataError: the images cannot be read (any more).
    """
    text = row["configuration"]
    if not isinstance(text, str):
        raise ArtifactError(
            f"the row of trial {row['trial']} tells no configuration, so that its images are "
            "not known. Give image files."
        )
    config = config_from_dict(json.loads(text))
    return some(load_image_set(config.data, config.seed).test, count)


def some(images: Images, count: int) -> Tensor:
    """At most so many images, evenly picked, uint8 [N, C, H, W]."""
    chosen = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(np.int64)
    return torch.from_numpy(images.take(chosen).images)


def latency_of(timing: Timing, dense: Timing | None, setting: Setting) -> Latency:
    """What a row says about a timing, taken just now."""
    return Latency(
        seconds=timing.median,
        p25_seconds=timing.low,
        p75_seconds=timing.high,
        dense_seconds=None if dense is None else dense.median,
        ratio=timing.ratio,
        batch=setting.batch,
        threads=setting.threads,
        machine=machine(),
        measured_at=datetime.now(timezone.utc),
    )


def timed_rows(point: Point, timings: Sequence[Timing], setting: Setting) -> list[ResultRow]:
    """The rows of the point and, where it was timed as well, of the unpruned backbone.

    Args:
        point: where they belong.
        timings: of ``compare``.
        setting: how they were taken.
    """
    shipped, *rivals = timings
    dense = next((timing for timing in rivals if timing.name == DENSE), None)
    rows = [with_latency(point.row, latency_of(shipped, dense, setting))]
    if dense is not None and point.dense is not None:
        rows.append(with_latency(point.dense, latency_of(dense, dense, setting)))
    return rows


# --- all points of a sweep ------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How every point is timed.

    Attributes:
        setting: threads, batch, repeats.
        rivals: what else is timed.
        images: most test images.
    """

    setting: Setting
    rivals: Sequence[str]
    images: int


@dataclass(frozen=True)
class Timed:
    """One point of a run, timed and stored.

    Attributes:
        rows: of the point, and maybe of its unpruned backbone.
        timings: of the shipped model and its rivals.
    """

    rows: list[ResultRow]
    timings: list[Timing]


def time_all(run: Path, plan: Plan, say: Say, report: Report | None = None) -> Iterator[Timed]:
    """Exports every learned point of a run or sweep to a temporary file, and times it.

    Of each trial's last step, on its own test images. Rows are written trial by trial.

    Args:
        run: folder of a run, of a sweep, or of one of a sweep's trials.
        plan: how.
        say: told what is going on.
        report: as for ``compare``.

    Raises:
        ArtifactError: nothing learned there, or a network that cannot be shipped.
        CheckpointError, ResultsError, DataError: see the messages.
    """
    rows, trials = rows_of(run)
    last = latest_points(rows)
    learned = last[last["method"] == "learned"]
    if learned.empty:
        raise ArtifactError(f"{run}: no learned network has been measured there. Finish it first.")
    results = str(trials / "results")
    for names, points in learned.groupby(_TRIAL, sort=False):
        same = (rows[_TRIAL] == list(names)).all(axis=1)
        done = _time_trial(points, trials, _dense(rows[same]), plan, say, report)
        write_rows(results, [row for timed in done for row in timed.rows])
        yield from done


def _time_trial(
    points: pd.DataFrame,
    trials: Path,
    dense: Record | None,
    plan: Plan,
    say: Say,
    report: Report | None,
) -> list[Timed]:
    folder, found = trial_folder(trials, points.iloc[0]), []
    say(f"Loading {folder}.")
    learned = load_run(folder)
    pixels = some(learned.images.test, plan.images)
    for _, row in points.iterrows():
        with tempfile.TemporaryDirectory(prefix="rlprune-") as temporary:
            file = Path(temporary, "point.safetensors")
            export_point(learned, row, file, "float32", say)
            model = PrunedModel.load(file)
        say(f"Timing trial {row['trial']}, R_r = {row['tradeoff_rate']:g}.")
        timings = compare(model, model.normalize(pixels), plan.setting, plan.rivals, report)
        rows = timed_rows(Point(str(trials), row.to_dict(), dense), timings, plan.setting)
        found.append(Timed(rows, timings))
    return found
