"""How long a measured point takes: on its row, beside what it costs and how accurate it is.

A row has one latency: that of the last time it was timed, with its setting. A row that is
measured again keeps it as long as the network costs the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.compute as pc

from rlprune import files
from rlprune.results.load import load
from rlprune.results.schema import LATENCY, ResultRow, row_from

_SAME = ("storage_bytes", "macs_mean", "macs_max")


@dataclass(frozen=True)
class Latency:
    """Seconds per image, and how they were measured.

    Attributes:
        seconds, p25_seconds, p75_seconds: median and quartiles of the repeats.
        dense_seconds: median of the unpruned backbone, None if it was not timed. As torch runs
            it from ``rlprune bench``; of the comparison's rows the fastest way, see there.
        ratio: median over the repeats of the time / the backbone's, likewise.
        batch: images of a call.
        threads: of torch.
        machine: processor, system and versions.
        measured_at: when.
    """

    seconds: float
    p25_seconds: float
    p75_seconds: float
    dense_seconds: float | None
    ratio: float | None
    batch: int
    threads: int
    machine: str
    measured_at: datetime

    def columns(self) -> dict[str, Any]:
        """As columns of a row."""
        return {f"latency_{name}": value for name, value in asdict(self).items()}


def with_latency(row: Mapping[Any, Any], latency: Latency) -> ResultRow:
    """A loaded row once more, with its latency; newer than the row itself.

    Args:
        row: of a loaded frame (``frame.iloc[k].to_dict()``), all columns.
        latency: in place of one that may be there.
    """
    old = row_from(row)
    # Of two rows with one key the newer counts, whatever this machine's clock says.
    made = max(datetime.now(timezone.utc), old.created_at + timedelta(microseconds=1))
    return replace(old, **latency.columns(), created_at=made)


def keep_latencies(uri: str | Path, rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Rows about to be written, with the latencies of those that they will replace.

    A latency is kept where bytes and MACs are the same as before.

    Args:
        uri: as for :func:`rlprune.results.load`, or a folder that is not there yet.
        rows: measured anew, without latencies.

    Raises:
        ResultsError, FileAccessError: as in :func:`rlprune.results.load`.
    """
    if not files.exists(uri):
        return list(rows)
    mine = pc.field("row_id").isin([row.row_id for row in rows])
    timed = mine & pc.field("latency_seconds").is_valid()
    found: pd.DataFrame = load(uri, filters=timed)
    before = {row.row_id: row for row in map(row_from, found.to_dict("records"))}
    return [_kept(row, before.get(row.row_id)) for row in rows]


def _kept(row: ResultRow, before: ResultRow | None) -> ResultRow:
    if before is None or any(getattr(row, name) != getattr(before, name) for name in _SAME):
        return row
    return replace(row, **{name: getattr(before, name) for name in LATENCY})
