"""Every column of result rows: name, type, unit and meaning.

:mod:`rlprune.results.schema` says what a row is and how files hold it.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa


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
_TIME = pa.timestamp("us", tz="UTC")
_FLOATS = pa.list_(pa.float64())
_MACS, _FRACTION, _BYTES = "multiply-accumulates per image", "fraction 0-1", "bytes"
_OF_TEST = "over the test images"
_SECONDS = "seconds per image"
_COMPLETE = "predictors and agent included (cascade: of both networks)"
_LAST_PASS = "(cascade: of the last network that ran)"

COLUMNS: tuple[Column, ...] = (
    Column("schema_version", pa.int32(), "", "version of this table of columns"),
    Column("experiment", _STR, "", "name of the run or sweep"),
    Column("trial", _STR, "", "name of the trial, unique in its experiment"),
    Column("step", _INT, "iterations", "training iteration of the trial when measured"),
    Column("method", _STR, "", "learned, or a method that stands beside it: see METHODS"),
    Column("seed", _INT, "", "seed of the trial"),
    Column("backbone", _STR, "", "name of the network, or its package.module:factory"),
    Column("width", _FLOAT, "", "multiplier of the network's channels"),
    Column("dataset", _STR, "", "name of the image set"),
    Column("tradeoff", _STR, "", "trade-off rule, permanent or paper (Eq. 4-5)"),
    Column("tradeoff_rate", _FLOAT, _FRACTION, "R_r; null where a method has none", True),
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
        "image_dependent_ratio",
        _FLOATS,
        _FRACTION,
        "per layer: its channels that 1 to 99 % of the test images compute, so that which ones "
        "are computed depends on the image; null = not counted (cascade, older rows)",
        True,
        since=4,
    ),
    Column(
        "stored_ratio",
        _FLOATS,
        _FRACTION,
        "per layer: channels not permanently pruned (cascade: of the network with more)",
    ),
    Column("rl_updates", _INT, "updates", "updates of the method's agents so far"),
    Column(
        "rollouts", _INT, "episodes", "rollouts of the agents so far; of a search: candidates tried"
    ),
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
        "latency_seconds",
        _FLOAT,
        _SECONDS,
        "wall time of the shipped model, median of repeats; null = not measured (rlprune bench)",
        True,
        since=3,
    ),
    Column("latency_p25_seconds", _FLOAT, _SECONDS, "its first quartile", True, since=3),
    Column("latency_p75_seconds", _FLOAT, _SECONDS, "its third quartile", True, since=3),
    Column(
        "latency_dense_seconds",
        _FLOAT,
        _SECONDS,
        "median of the unpruned backbone, timed in turn with it; null = not timed",
        True,
        since=3,
    ),
    Column(
        "latency_ratio",
        _FLOAT,
        "ratio",
        "to the unpruned backbone, median over the turns: steadier than seconds on a busy "
        "machine; null = not timed",
        True,
        since=3,
    ),
    Column("latency_batch", _INT, "images", "images of a call when timed", True, since=3),
    Column("latency_threads", _INT, "threads", "threads of torch when timed", True, since=3),
    Column(
        "latency_machine",
        _STR,
        "",
        "processor, cores, system, versions of torch and numba when timed",
        True,
        since=3,
    ),
    Column("latency_measured_at", _TIME, "UTC", "when it was timed", True, since=3),
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
    Column(
        "versions",
        _STR,
        "",
        "JSON object: versions of python, torch, ray and rlprune (digest of its sources)",
    ),
    Column("created_at", _TIME, "UTC", "when the row was made"),
    Column("row_id", _INT, "", "hash of the columns that identify a row", since=2),
)
