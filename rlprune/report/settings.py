"""Which points may share a mean or a line: those of one setting, whatever their seed.

A *family* is a configuration without its seed and names; its members are repetitions. A
*setting* is a family at one swept budget s. Rows without a configuration (schema version
1) are told apart by the backbone, the rules and the budgets that they record.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

# What repetitions may differ in. Resources decide how long a trial takes, not what it finds.
_REPETITION = ("name", "seed", "resources.")
# Shown by the columns of every row already.
_IN_COLUMNS = ("backbone.name", "backbone.width", "backbone.factory", "data.name", "budgets.")
_COLUMNS = (
    "dataset",
    "backbone",
    "width",
    "tradeoff",
    "budget_rule",
)
_BUDGETS = ("storage_budget_bytes", "compute_max_budget_macs", "compute_mean_budget_macs")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``{"budgets.storage_max": 0.5, ...}``; lists stay whole."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def configurations(points: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The flat configuration of every ``config_hash`` that has one.

    Text that is not a JSON object is treated as absent: a page can be made without it.
    """
    found: dict[str, dict[str, Any]] = {}
    if "configuration" not in points:
        return found
    known = points.loc[points["configuration"].notna(), ["config_hash", "configuration"]]
    for digest, text in known.drop_duplicates("config_hash").itertuples(index=False):
        try:
            values = json.loads(text)
        except ValueError:
            continue
        if isinstance(values, dict):
            found[str(digest)] = flatten(values)
    return found


def varying(flat: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the fields whose values differ (or are missing somewhere), sorted."""
    seen: dict[str, set[str]] = {}
    rows = list(flat)
    for name in {name for row in rows for name in row}:
        seen[name] = {json.dumps(row.get(name), sort_keys=True, default=str) for row in rows}
    return sorted(name for name, values in seen.items() if len(values) > 1)


def add_settings(
    points: pd.DataFrame, configuration: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """Adds ``family`` and ``setting`` (numbers from 0) and ``setting_label``.

    Args:
        points: rows with the columns of the schema.
        configuration: ``config_hash`` to its flat configuration, where known.

    Returns:
        A copy. Dense rows have no budget: they carry the setting of their family without
        a swept s, so that each family has its own reference.
    """
    points = points.copy()
    keys = _family_keys(points, configuration)
    points["family"] = pd.factorize(points["config_hash"].map(keys))[0]
    swept = points["budget_s"].astype(float).fillna(-1.0).round(12)
    pairs = pd.Series(list(zip(points["family"], swept, strict=True)), index=points.index)
    points["setting"] = pd.factorize(pairs)[0]
    labels = _labels(points, configuration)
    points["setting_label"] = points["setting"].map(labels)
    return points


def _family_keys(
    points: pd.DataFrame, configuration: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    keys: dict[str, str] = {}
    for digest, rows in points.groupby("config_hash", sort=False, observed=True):
        digest = str(digest)
        if digest in configuration:
            kept = {
                name: value
                for name, value in configuration[digest].items()
                if not name.startswith(_REPETITION)
            }
        else:
            kept = {"columns": [str(rows[name].iloc[0]) for name in _COLUMNS]}
            fixed = rows[rows["budget_s"].isna() & (rows["method"] != "dense")]
            budgets = fixed.drop_duplicates(["tradeoff_rate", *_BUDGETS])
            budgets = budgets.sort_values("tradeoff_rate")[["tradeoff_rate", *_BUDGETS]]
            kept["budgets"] = budgets.astype(float).round(6).astype(str).to_numpy().tolist()
        keys[digest] = json.dumps(kept, sort_keys=True, default=str)
    return keys


def _labels(points: pd.DataFrame, configuration: Mapping[str, Mapping[str, Any]]) -> dict[int, str]:
    """One label per setting, no two alike."""
    one_per_family = {
        digest: values
        for digest, values in configuration.items()
        if digest in set(points.drop_duplicates("family")["config_hash"].astype(str))
    }
    telling = [
        name
        for name in varying(one_per_family.values())
        if not name.startswith((*_REPETITION, *_IN_COLUMNS))
    ]
    labels: dict[int, str] = {}
    taken: dict[str, int] = {}
    for setting, rows in points.groupby("setting"):
        first = rows.iloc[0]
        flat = configuration.get(str(first["config_hash"]), {})
        parts = [backbone_text(first), budget_text(rows)]
        parts += [f"{name} {flat[name]}" for name in telling if name in flat]
        label = ", ".join(parts)
        taken[label] = taken.get(label, 0) + 1
        number = taken[label]
        labels[int(str(setting))] = label if number == 1 else f"{label} ({number})"
    return labels


def backbone_text(row: pd.Series[Any]) -> str:
    """Backbone and, where it is not 1, width: ``resnet20 x0.25``."""
    width = float(row["width"])
    return str(row["backbone"]) + ("" if width == 1 else f" x{width:g}")


def budget_text(rows: pd.DataFrame) -> str:
    """The budgets of a setting in words, with MACs as part of the dense network's."""
    pruned = rows[rows["method"] != "dense"]
    if pruned.empty:
        return "no budgets"
    parts = []
    swept = pruned["budget_s"].dropna()
    if len(swept):
        parts.append(f"s = {swept.iloc[0]:g}")
    storage = pruned["storage_budget_bytes"].dropna() / 1000
    if len(storage):
        low, high = _kilobytes(storage.min()), _kilobytes(storage.max())
        parts.append(f"stores ≤ {low} KB" if low == high else f"stores ≤ {low} to {high} KB")
    for column, words in (
        ("compute_max_budget_macs", "any image"),
        ("compute_mean_budget_macs", "mean"),
    ):
        share = (pruned[column] / pruned["macs_dense"]).dropna()
        if len(share):
            parts.append(f"{words} ≤ {100 * share.iloc[0]:.3g} % MACs")
    return ", ".join(parts) or "no budgets"


def _kilobytes(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
