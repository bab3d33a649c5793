"""Learning curves: what the agents' training recorded, thinned for drawing."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rlprune.errors import ResultsError

METRICS = {
    "reward_runtime": "reward of the runtime agent",
    "reward_static": "reward of the static agent",
    "loss": "CNN loss [nats]",
    "accuracy": "accuracy on the rollouts' images",
    "macs_ratio": "MACs / dense",
    "storage_ratio": "stored bytes / dense",
    "price": "price of compute",
}
"""Columns of ``updates.parquet`` that are drawn, where present, and their names."""

MAX_POINTS = 500
_ALL_POINTS = 30_000  # of all curves together: a page of 1,000 trials must stay usable


@dataclass(frozen=True)
class Curve:
    """One trial's training.

    Attributes:
        trial: name of the trial.
        frame: ``update`` and the columns of :data:`METRICS` that were recorded; each row
            is the mean over ``updates_per_point`` updates.
        updates_per_point: 1 where nothing was thinned.
    """

    trial: str
    frame: pd.DataFrame
    updates_per_point: int


def parquet_frame(path: str, data: bytes) -> pd.DataFrame:
    """The rows of one file of updates.

    Raises:
        ResultsError: not Parquet; names the file.
    """
    try:
        frame: pd.DataFrame = pq.read_table(io.BytesIO(data)).to_pandas()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ResultsError(
            f"learning curve {path}: cannot be read as Parquet ({reason}). Move it away, or "
            "leave it out with --skip-bad."
        ) from error
    return frame


def make_curve(trial: str, path: str, frame: pd.DataFrame, curves: int = 1) -> Curve:
    """Thins a trial's updates to at most :data:`MAX_POINTS` means.

    Args:
        trial: name of the trial.
        path: where the rows are from, for the message.
        frame: one row per update: ``update`` and any of :data:`METRICS`.
        curves: how many curves share the page; many get fewer points each.

    Raises:
        ResultsError: ``update`` or all metrics are missing; names the file.
    """
    metrics = [name for name in METRICS if name in frame]
    if "update" not in frame or not metrics:
        raise ResultsError(
            f"learning curve {path}: needs the column update and one of {', '.join(METRICS)}; "
            f"has {', '.join(map(str, frame.columns)) or 'none'}. Move it away, or leave it out "
            "with --skip-bad."
        )
    frame = frame[["update", *metrics]].astype(float).sort_values("update", ignore_index=True)
    most = max(50, min(MAX_POINTS, _ALL_POINTS // max(1, curves)))
    size = -(-len(frame) // most)
    if size > 1:
        frame = frame.groupby(np.arange(len(frame)) // size).mean()
    return Curve(trial, frame.reset_index(drop=True), max(1, size))
