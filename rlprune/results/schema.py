"""The one schema of result rows: what identifies a row, and how files hold it.

A row is one evaluation point of one trial: a method at one tradeoff rate R_r and one
budget, measured at one step; :mod:`rlprune.results.columns` lists what it says. A table of
rows has :data:`SCHEMA`; the files hold it without the columns :data:`PARTITIONS`, which are
in the names of their folders.

Versions: 2 added ``row_id`` and ``configuration``, made ``checkpoint_uri`` the folder of the
trial (before: one checkpoint in it) and moved :data:`PARTITIONS` out of the files; 3 added
:data:`LATENCY`; 4 added ``image_dependent_ratio``.
"""

from __future__ import annotations

import hashlib
import json
import operator
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

import pyarrow as pa

from rlprune.errors import ResultsError
from rlprune.results.columns import COLUMNS, Column
from rlprune.source import source_digest

SCHEMA_VERSION = 4
METHODS = (
    "learned",
    "dense",
    "uniform",
    "static_l1",
    "random",
    "cascade",
    "fbs",
    "rnp",
    "fpgm",
    "slimming",
    "torch_pruning",
    "legr",
    "amc",
)
KEY = (
    "experiment",
    "trial",
    "config_hash",
    "step",
    "method",
    "tradeoff_rate",
    "budget_s",
)
"""Columns that identify a row: writing a row with the same key again replaces it.

The configuration's hash is in it, so that runs which share a name but not a
configuration (seeds, budgets, widths) stay apart when their folders are read together.
"""
PARTITIONS = ("dataset", "backbone")
"""Columns that are not in the files but in their folders' names: ``dataset=D/backbone=B``."""
LATENCY = tuple(column.name for column in COLUMNS if column.name.startswith("latency_"))
"""Columns that ``rlprune bench`` fills in: of each row all or none but the dense ones."""
PER_LAYER = ("keep_ratio_mean", "keep_ratio_std", "image_dependent_ratio", "stored_ratio")
"""Columns with one value for each of ``layer_names``."""
_OPTIONAL = ("latency_dense_seconds", "latency_ratio")


def _schema(columns: Sequence[Column]) -> pa.Schema:
    return pa.schema([pa.field(c.name, c.type, nullable=c.nullable) for c in columns])


SCHEMA: pa.Schema = _schema(COLUMNS)
"""A table of rows, as :func:`rlprune.results.load` gives it."""
FILE_SCHEMAS: dict[int, pa.Schema] = {
    1: _schema([column for column in COLUMNS if column.since == 1]),
    2: _schema([c for c in COLUMNS if c.name not in PARTITIONS and c.since <= 2]),
    3: _schema([c for c in COLUMNS if c.name not in PARTITIONS and c.since <= 3]),
    4: _schema([c for c in COLUMNS if c.name not in PARTITIONS]),
}
"""What is inside a file, by version. All of version 1 lies in flat folders."""


def row_id(key: Sequence[object]) -> int:
    """The first 64 bits of a hash of a row's key, as a signed integer.

    Ten million rows share a number with a probability of 3e-6.

    Args:
        key: values of :data:`KEY`, in this order.
    """
    experiment, trial, config_hash, step, method, *floats = key
    # 1 and 1.0, and 0.0 and -0.0, are the same value of a column of floats
    plain = [None if x is None else float(x) + 0.0 for x in floats]  # type: ignore[arg-type]
    names = [experiment, trial, config_hash, operator.index(step), method]  # type: ignore[arg-type]
    digest = hashlib.sha256(json.dumps([*names, *plain]).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _now() -> datetime:
    return datetime.now(timezone.utc)


def software_versions() -> str:
    """Versions of python, torch, ray and rlprune as a JSON object (null: not installed).

    That of rlprune has a digest of its sources behind it ("-": not installed).
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "ray", "rlprune"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    # a source tree without an installed package has sources all the same
    versions["rlprune"] = f"{versions['rlprune'] or '-'} ({source_digest()})"
    return json.dumps(versions)


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One evaluation point; :data:`COLUMNS` has the unit and meaning of every field.

    Raises:
        ResultsError: unknown method, no name of dataset or backbone, per-layer lists of
            unequal length, a step that is no integer, a time without zone, or a latency
            without its setting.
    """

    schema_version: int = SCHEMA_VERSION
    experiment: str
    trial: str
    step: int
    method: str
    seed: int
    backbone: str
    width: float
    dataset: str
    tradeoff: str
    tradeoff_rate: float | None
    budget_s: float | None
    storage_budget_bytes: float | None
    compute_max_budget_macs: float | None
    compute_mean_budget_macs: float | None
    budget_rule: str
    budgets_met: bool
    validation_accuracy: float
    test_accuracy: float
    test_accuracy_top5: float | None
    validation_loss: float
    test_loss: float
    macs_mean: float
    macs_p5: float
    macs_p50: float
    macs_p95: float
    macs_max: float
    macs_dense: float
    macs_mean_ratio: float
    parameters: int
    storage_bytes: int
    storage_dense_bytes: int
    storage_ratio: float
    layer_names: tuple[str, ...]
    keep_ratio_mean: tuple[float, ...]
    keep_ratio_std: tuple[float, ...]
    image_dependent_ratio: tuple[float, ...] | None = None
    stored_ratio: tuple[float, ...]
    rl_updates: int
    rollouts: int
    training_images: int
    finetune_images: int
    seconds_pretrain: float
    seconds_importance: float
    seconds_agents: float
    seconds_finetune: float
    seconds_evaluate: float
    latency_seconds: float | None = None
    latency_p25_seconds: float | None = None
    latency_p75_seconds: float | None = None
    latency_dense_seconds: float | None = None
    latency_ratio: float | None = None
    latency_batch: int | None = None
    latency_threads: int | None = None
    latency_machine: str | None = None
    latency_measured_at: datetime | None = None
    checkpoint_uri: str | None
    config_hash: str
    configuration: str | None = None
    versions: str = field(default_factory=software_versions)
    created_at: datetime = field(default_factory=_now)
    row_id: int = field(init=False)

    def __post_init__(self) -> None:
        problem = None
        if self.method not in METHODS:
            problem = f"method must be one of {', '.join(METHODS)} (got {self.method!r})"
        for name in PER_LAYER:
            values, wanted = getattr(self, name), len(self.layer_names)
            if values is not None and len(values) != wanted:
                problem = f"{name} must have one value per layer ({wanted}, got {len(values)})"
        for name in PARTITIONS:
            if getattr(self, name) == "":
                problem = f"{name} must not be empty"
        for name in ("created_at", "latency_measured_at"):
            time = getattr(self, name)
            if time is not None and time.tzinfo is None:
                problem = f"{name} must have a time zone (got {time!r})"
        timed = {getattr(self, name) is not None for name in LATENCY if name not in _OPTIONAL}
        if len(timed) > 1:
            problem = f"{', '.join(LATENCY)} must be given together"
        try:
            object.__setattr__(self, "row_id", row_id(self.row_key))
        except (TypeError, ValueError) as error:
            problem = f"{', '.join(KEY)} must have the types of the schema ({error})"
        if problem is not None:
            raise ResultsError(f"result row of trial {self.trial!r}: {problem}")

    @property
    def row_key(self) -> tuple[object, ...]:
        """Values of :data:`KEY`: a row written again under the same key replaces the first."""
        return tuple(getattr(self, name) for name in KEY)


def rows_to_table(rows: list[ResultRow]) -> pa.Table:
    """The rows as an Arrow table of :data:`SCHEMA`.

    Raises:
        ResultsError: a value is missing or of another type; names trial and column.
    """
    arrays = []
    for column in COLUMNS:
        values = [_plain(getattr(row, column.name)) for row in rows]
        missing = [row.trial for row, value in zip(rows, values, strict=True) if value is None]
        if missing and not column.nullable:
            raise ResultsError(
                f"result row of trial {missing[0]!r}: {column.name} ({column.meaning}) is missing"
            )
        try:
            if pa.types.is_integer(column.type):
                # Arrow would truncate 1.5
                values = [None if value is None else operator.index(value) for value in values]
            arrays.append(pa.array(values, type=column.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
            trials = ", ".join(sorted({row.trial for row in rows}))
            raise ResultsError(
                f"result rows of trial {trials}: {column.name} must be {column.type} ({error})"
            ) from error
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def row_from(record: Mapping[Any, Any]) -> ResultRow:
    """A row as it was written, from one of a loaded frame with all columns.

    Args:
        record: of ``frame.to_dict("records")``.

    Raises:
        ResultsError: the values are those of no row.
    """
    known = {c.name: _read(c, record[c.name]) for c in COLUMNS if c.name not in _MADE}
    return ResultRow(**known)


_MADE = ("schema_version", "row_id")


def _read(column: Column, value: Any) -> Any:
    """A value of a frame as a row holds it; frames know missing values as NaN or NaT."""
    many = hasattr(value, "__len__")
    if column.nullable and (value is None or (not many and value != value)):
        return None
    if pa.types.is_list(column.type):
        return tuple(value.tolist() if hasattr(value, "tolist") else value)
    if pa.types.is_timestamp(column.type):
        return value.to_pydatetime() if hasattr(value, "to_pydatetime") else value
    for check, kind in (
        (pa.types.is_boolean, bool),
        (pa.types.is_integer, int),
        (pa.types.is_floating, float),
    ):
        if check(column.type):
            return kind(value)
    return value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
