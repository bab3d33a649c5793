"""The one schema of result rows: name, type, unit and meaning of every column.

A row is one evaluation point of one trial: a method at one tradeoff rate R_r and one
budget, measured at one step. A table of rows has :data:`SCHEMA`; the files hold it without
the columns :data:`PARTITIONS`, which are in the names of their folders.

Versions: 2 added ``row_id`` and ``configuration``, made ``checkpoint_uri`` the folder of the
trial (before: one checkpoint in it) and moved :data:`PARTITIONS` out of the files.
"""

from __future__ import annotations

import hashlib
import json
import operator
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

import pyarrow as pa

from rlprune.errors import ResultsError

SCHEMA_VERSION = 2
METHODS = ("learned", "dense", "uniform", "static_l1", "random", "cascade")
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


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: as in the files and in :class:`ResultRow`.
        type: Arrow type.
        unit: unit of the values, "" for names.
        meaning: one sentence.
        nullable: whether a value may be missing; ``meaning`` says when it is.
        since: the version of the schema that added it.
    """

    name: str
    type: pa.DataType
    unit: str
    meaning: str
    nullable: bool = False
    since: int = 1


_STR, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()
_FLOATS = pa.list_(pa.float64())
_MACS, _FRACTION, _BYTES = "multiply-accumulates per image", "fraction 0-1", "bytes"
_OF_TEST = "over the test images"
_COMPLETE = "predictors and agent included (cascade: of both networks)"
_LAST_PASS = "(cascade: of the last network that ran)"

COLUMNS: tuple[Column, ...] = (
    Column("schema_version", pa.int32(), "", "version of this table of columns"),
    Column("experiment", _STR, "", "name of the run or sweep"),
    Column("trial", _STR, "", "name of the trial, unique in its experiment"),
    Column("step", _INT, "iterations", "training iteration of the trial when measured"),
    Column("method", _STR, "", "learned, dense, uniform, static_l1, random or cascade"),
    Column("seed", _INT, "", "seed of the trial"),
    Column("backbone", _STR, "", "name of the network, or its package.module:factory"),
    Column("width", _FLOAT, "", "multiplier of the network's channels"),
    Column("dataset", _STR, "", "name of the image set"),
    Column("tradeoff", _STR, "", "trade-off rule, permanent or paper (Eq. 4-5)"),
    Column("tradeoff_rate", _FLOAT, _FRACTION, "R_r; null for dense and static_l1", True),
    Column("budget_s", _FLOAT, _FRACTION, "s if the point was at a swept s, else null", True),
    Column("storage_budget_bytes", _FLOAT, _BYTES, "most bytes stored; null = none", True),
    Column("compute_max_budget_macs", _FLOAT, _MACS, "most for any image; null = none", True),
    Column("compute_mean_budget_macs", _FLOAT, _MACS, "most on average; null = none", True),
    Column("budget_rule", _STR, "", "projected (met by construction) or soft (penalised)"),
    Column("budgets_met", pa.bool_(), "", "whether every budget above holds as measured"),
    Column("validation_accuracy", _FLOAT, _FRACTION, "top-1, on the validation images"),
    Column("test_accuracy", _FLOAT, _FRACTION, f"top-1, {_OF_TEST}"),
    Column("test_accuracy_top5", _FLOAT, _FRACTION, "top-5; null with at most 10 classes", True),
    Column("validation_loss", _FLOAT, "nats", "mean cross-entropy, on the validation images"),
    Column("test_loss", _FLOAT, "nats", f"mean cross-entropy, {_OF_TEST}"),
    Column("macs_mean", _FLOAT, _MACS, f"mean {_OF_TEST}, predictors, agent, all passes included"),
    Column("macs_p5", _FLOAT, _MACS, f"5th percentile {_OF_TEST}"),
    Column("macs_p50", _FLOAT, _MACS, f"median {_OF_TEST}"),
    Column("macs_p95", _FLOAT, _MACS, f"95th percentile {_OF_TEST}"),
    Column("macs_max", _FLOAT, _MACS, f"maximum {_OF_TEST}"),
    Column("macs_dense", _FLOAT, _MACS, "cost of the unpruned backbone"),
    Column("macs_mean_ratio", _FLOAT, "ratio", "macs_mean / macs_dense"),
    Column("parameters", _INT, "numbers", f"stored parameters, {_COMPLETE}"),
    Column("storage_bytes", _INT, _BYTES, f"stored weights, {_COMPLETE}"),
    Column("storage_dense_bytes", _INT, _BYTES, "stored weights of the unpruned backbone"),
    Column("storage_ratio", _FLOAT, "ratio", "storage_bytes / storage_dense_bytes"),
    Column("layer_names", pa.list_(_STR), "", "prunable layers, in order of execution"),
    Column(
        "keep_ratio_mean",
        _FLOATS,
        _FRACTION,
        f"per layer: channels computed, mean {_OF_TEST} {_LAST_PASS}",
    ),
    Column("keep_ratio_std", _FLOATS, _FRACTION, f"per layer: its standard deviation {_OF_TEST}"),
    Column(
        "stored_ratio",
        _FLOATS,
        _FRACTION,
        "per layer: channels not permanently pruned (cascade: of the network with more)",
    ),
    Column("rl_updates", _INT, "updates", "PPO updates of the agents so far"),
    Column("rollouts", _INT, "episodes", "rollouts (one image each) of the agents so far"),
    Column("training_images", _INT, "images", "images the CNN has processed, all phases"),
    Column(
        "finetune_images",
        _INT,
        "images",
        "images of fine-tuning this method's network (cascade: both)",
    ),
    Column("seconds_pretrain", _FLOAT, "s", "wall time of pretraining"),
    Column("seconds_importance", _FLOAT, "s", "wall time of both importance phases"),
    Column("seconds_agents", _FLOAT, "s", "wall time of training the agents"),
    Column("seconds_finetune", _FLOAT, "s", "wall time of fine-tuning this method's network"),
    Column("seconds_evaluate", _FLOAT, "s", "wall time of measuring this point"),
    Column(
        "checkpoint_uri",
        _STR,
        "",
        "folder of the trial; its newest checkpoint holds the learned network",
        True,
    ),
    Column("config_hash", _STR, "", "hash of the trial's resolved configuration"),
    Column(
        "configuration",
        _STR,
        "",
        "JSON object: the trial's resolved configuration; null in rows of version 1",
        True,
        since=2,
    ),
    Column("versions", _STR, "", "JSON object: versions of python, torch, ray and rlprune"),
    Column("created_at", pa.timestamp("us", tz="UTC"), "UTC", "when the row was made"),
    Column("row_id", _INT, "", "hash of the columns that identify a row", since=2),
)


def _schema(columns: Sequence[Column]) -> pa.Schema:
    return pa.schema([pa.field(c.name, c.type, nullable=c.nullable) for c in columns])


SCHEMA: pa.Schema = _schema(COLUMNS)
"""A table of rows, as :func:`rlprune.results.load` gives it."""
FILE_SCHEMAS: dict[int, pa.Schema] = {
    1: _schema([column for column in COLUMNS if column.since == 1]),
    2: _schema([column for column in COLUMNS if column.name not in PARTITIONS]),
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
    """Versions of python, torch, ray and rlprune as a JSON object (null: not installed)."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "ray", "rlprune"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return json.dumps(versions)


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One evaluation point; :data:`COLUMNS` has the unit and meaning of every field.

    Raises:
        ResultsError: unknown method, no name of dataset or backbone, per-layer lists of
            unequal length, a step that is no integer, or a time without zone.
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
        for name in ("keep_ratio_mean", "keep_ratio_std", "stored_ratio"):
            given, wanted = len(getattr(self, name)), len(self.layer_names)
            if given != wanted:
                problem = f"{name} must have one value per layer ({wanted}, got {given})"
        for name in PARTITIONS:
            if getattr(self, name) == "":
                problem = f"{name} must not be empty"
        if self.created_at.tzinfo is None:
            problem = f"created_at must have a time zone (got {self.created_at!r})"
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
                values = [operator.index(value) for value in values]  # Arrow would truncate 1.5
            arrays.append(pa.array(values, type=column.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
            trials = ", ".join(sorted({row.trial for row in rows}))
            raise ResultsError(
                f"result rows of trial {trials}: {column.name} must be {column.type} ({error})"
            ) from error
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
