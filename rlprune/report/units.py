"""How columns are shown: heading, unit, scale and number of digits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from rlprune.results.columns import COLUMNS, Column


@dataclass(frozen=True)
class Unit:
    """How one column is shown.

    Attributes:
        label: name in words.
        unit: after the scale, "" for none.
        scale: what values are multiplied by.
        form: format of a scaled value.
        number: whether it is one (aligned to the right).
    """

    label: str
    unit: str = ""
    scale: float = 1.0
    form: str = "{}"
    number: bool = False

    @property
    def heading(self) -> str:
        """Label and unit, as above a column or beside an axis."""
        return f"{self.label} [{self.unit}]" if self.unit else self.label

    def text(self, value: Any) -> str:
        """A value of the column, "-" if it is missing."""
        if pd.isna(value):
            return "-"
        if isinstance(value, bool) or self.form == "truth":
            return "yes" if value else "no"
        return self.form.format(value if self.scale == 1.0 else value * self.scale)


_COLUMNS = {column.name: column for column in COLUMNS}
_BY_UNIT = {
    "multiply-accumulates per image": ("per image", 1.0, "{:,.0f}"),
    "bytes": ("bytes", 1.0, "{:,.0f}"),
    "seconds per image": ("ms per image", 1e3, "{:.3f}"),
    "ratio": ("", 1.0, "{:.3f}"),
}
_LABELS = {
    "tradeoff_rate": "R_r",
    "budget_s": "s",
    "n": "seeds",
    "storage_bytes": "storage",
    "storage_dense_bytes": "dense storage",
    "budgets_met": "budgets met",
    "macs_max": "MACs max",
    "macs_mean": "MACs mean",
    "storage_budget_bytes": "storage budget",
    "compute_max_budget_macs": "MACs budget, any image",
    "compute_mean_budget_macs": "MACs budget, mean",
    "latency_seconds": "latency",
    "latency_p25_seconds": "latency, first quartile",
    "latency_p75_seconds": "latency, third quartile",
    "latency_dense_seconds": "latency of dense",
    "latency_ratio": "latency / dense",
}


def unit_of(name: str) -> Unit:
    """How a column of the results is shown; an unknown one as it is."""
    label = _LABELS.get(name, name.replace("_", " "))
    column = _COLUMNS.get(name)
    if column is None:
        return Unit(label, form="{:.0f}", number=True) if name == "n" else Unit(label)
    if pa.types.is_boolean(column.type):
        return Unit(label, form="truth")
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return Unit(label)
    return _numeric(column, label)


def _numeric(column: Column, label: str) -> Unit:
    if "accuracy" in column.name:
        return Unit(label, "%", 100.0, "{:.2f}", True)
    if column.unit in _BY_UNIT:
        unit, scale, form = _BY_UNIT[column.unit]
        return Unit(label, unit, scale, form, True)
    unit = "" if column.unit.startswith("fraction") else column.unit
    form = "{:g}" if pa.types.is_floating(column.type) else "{}"
    return Unit(label, unit, 1.0, form, True)
