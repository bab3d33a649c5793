"""What the page shows, as one lean JSON object: columns, not records.

Text columns are stored as a list of distinct values and one code per point, per-layer
lists once each, and numbers with six significant digits (per-layer ratios with four
decimals); whole numbers stay exact. Latencies are there only where some point has one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pandas as pd

from rlprune.report.command import reproduction
from rlprune.report.curves import METRICS, Curve
from rlprune.report.settings import varying
from rlprune.report.source import ReportSource
from rlprune.report.styles import STYLES
from rlprune.results.schema import PER_LAYER

_TEXTS = (
    "experiment",
    "trial",
    "method",
    "backbone",
    "dataset",
    "tradeoff",
    "budget_rule",
    "config_hash",
    "checkpoint_uri",
    "setting_label",
)
_NUMBERS = (
    "step",
    "seed",
    "width",
    "tradeoff_rate",
    "budget_s",
    "storage_budget_bytes",
    "compute_max_budget_macs",
    "compute_mean_budget_macs",
    "budgets_met",
    "validation_accuracy",
    "test_accuracy",
    "test_accuracy_top5",
    "validation_loss",
    "test_loss",
    "macs_mean",
    "macs_p5",
    "macs_p50",
    "macs_p95",
    "macs_max",
    "macs_dense",
    "macs_mean_ratio",
    "parameters",
    "storage_bytes",
    "storage_dense_bytes",
    "storage_ratio",
    "rl_updates",
    "rollouts",
    "training_images",
    "finetune_images",
    "seconds_pretrain",
    "seconds_importance",
    "seconds_agents",
    "seconds_finetune",
    "seconds_evaluate",
    "family",
    "setting",
)
_TIMED_TEXT = "latency_machine"
_TIMED_NUMBERS = (
    "latency_seconds",
    "latency_p25_seconds",
    "latency_p75_seconds",
    "latency_dense_seconds",
    "latency_ratio",
    "latency_batch",
    "latency_threads",
)
_LISTS = ("layer_names", *PER_LAYER)
_RATIO_DECIMALS = 4
_DIGITS = 6


def page_data(source: ReportSource, command: str) -> dict[str, Any]:
    """The object that the page's script reads.

    Args:
        source: what to show.
        command: the command line that makes this page.
    """
    points = source.points
    lists, codes = _encoded_lists(points)
    commands = [reproduction(row) for row in _records(points)]
    timed = bool(points["latency_seconds"].notna().any())
    texts = {
        name: _encoded(["" if v is None else str(v) for v in _plain(points[name])])
        for name in (*_TEXTS, *((_TIMED_TEXT,) if timed else ()))
    }
    names = (*_NUMBERS, *(_TIMED_NUMBERS if timed else ()))
    return {
        "header": _header(source),
        "methods": {name: asdict(style) for name, style in STYLES.items()},
        "count": len(points),
        "texts": texts,
        "numbers": {name: [rounded(value) for value in points[name]] for name in names},
        "lists": lists,
        "listCodes": codes,
        "commands": _encoded([reproduced.command for reproduced in commands]),
        "notes": _encoded([reproduced.note for reproduced in commands]),
        "configuration": _configuration(source.configuration),
        "versions": _versions(points),
        "metrics": METRICS,
        "curves": [_curve(curve) for curve in source.curves],
        "made": {"with": command, "again": source.again, "folder": source.folder},
    }


def rounded(value: Any, digits: int = _DIGITS) -> int | float | None:
    """A number for JSON: six significant digits, whole numbers exact, no number as None."""
    if isinstance(value, (bool, np.bool_)):
        return int(value)
    if value is None or pd.isna(value) or not np.isfinite(value):
        return None
    if isinstance(value, (int, np.integer)):
        return int(value)
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 2**53 else short


def _header(source: ReportSource) -> dict[str, Any]:
    points = source.points
    per_setting = points[points["method"] == "learned"].groupby(["setting", "tradeoff_rate"])
    repetitions = per_setting.size().tolist() or [1]
    return {
        "experiments": sorted(map(str, points["experiment"].unique())),
        "points": len(points),
        "trials": int(points.groupby(["experiment", "trial", "config_hash"]).ngroups),
        "seeds": int(points["seed"].nunique()),
        "repetitions": [min(repetitions), max(repetitions)],
        "first": points["created_at"].min().isoformat(),
        "last": points["created_at"].max().isoformat(),
        "written": datetime.now(timezone.utc).isoformat(),
    }


def _records(points: pd.DataFrame) -> Iterable[dict[str, Any]]:
    names = ["method", "checkpoint_uri", "tradeoff_rate", "budget_s"]
    columns = [_plain(points[name]) for name in names]
    return (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))


def _plain(values: pd.Series[Any]) -> list[Any]:
    """Python values, missing ones as None."""
    return [None if pd.isna(value) else value for value in values]


def _encoded(values: Sequence[str]) -> dict[str, Any]:
    distinct = {value: code for code, value in enumerate(dict.fromkeys(values))}
    return {"values": list(distinct), "codes": [distinct[value] for value in values]}


def _encoded_lists(points: pd.DataFrame) -> tuple[list[list[Any]], dict[str, list[int]]]:
    """All distinct lists once, and which of them each point has."""
    distinct: dict[tuple[Any, ...], int] = {}
    codes: dict[str, list[int]] = {}
    for name in _LISTS:
        short = (_short(values) for values in points[name])
        codes[name] = [distinct.setdefault(values, len(distinct)) for values in short]
    return [list(values) for values in distinct], codes


def _short(values: Iterable[Any] | None) -> tuple[Any, ...]:
    """Rounded; a list that is missing is empty on the page."""
    return tuple(
        value if isinstance(value, str) else rounded(round(float(value), _RATIO_DECIMALS))
        for value in (() if values is None else values)
    )


def _configuration(by_hash: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What all trials share, and for each trial the fields that differ between trials."""
    differing = varying(by_hash.values())
    first: Mapping[str, Any] = next(iter(by_hash.values()), {})
    return {
        "common": {name: first[name] for name in first if name not in differing},
        "varying": differing,
        "trials": {
            digest: [values.get(name) for name in differing] for digest, values in by_hash.items()
        },
    }


def _versions(points: pd.DataFrame) -> list[dict[str, Any]]:
    """Each distinct set of versions, and how many points were measured with it."""
    counts = points["versions"].astype(str).value_counts()
    found = []
    for text, count in counts.items():
        try:
            versions = json.loads(str(text))
        except ValueError:
            versions = {"versions": str(text)}
        if not isinstance(versions, dict):
            versions = {"versions": str(text)}
        found.append({"points": int(count), "versions": versions})
    return found


def _curve(curve: Curve) -> dict[str, Any]:
    values = {
        str(name): [rounded(value) for value in curve.frame[name]] for name in curve.frame.columns
    }
    return {"trial": curve.trial, "size": curve.updates_per_point, "values": values}
