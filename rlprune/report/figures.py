"""Figures as PNG (or SVG, PDF by suffix), drawn without pyplot's global state.

``tradeoff_figure`` is the paper's first picture: what accuracy and storage do as the
tradeoff rate R_r goes from 1 (runtime pruning only) to 0 (static pruning only).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlprune.errors import ResultsError
from rlprune.report.canvas import DPI, drawing
from rlprune.report.canvas import save_figure as _save
from rlprune.report.styles import STYLES, Style
from rlprune.results.table import latest_points

_METRICS = {"accuracy": "test accuracy [%]", "storage": "storage [KB]"}
_SETTING = ("compute_max_budget_macs", "compute_mean_budget_macs", "budget_s")


def tradeoff_figure(df: pd.DataFrame, path: str | Path) -> Path:
    """Draws test accuracy [%] and storage [KB = 1000 bytes] against the tradeoff rate R_r.

    Lines for methods with an R_r, horizontal lines for those without, the storage budget
    dotted. Several seeds become their mean with standard errors, n in the legend.
    Several compute budgets become one row of panels each. Earlier steps are left out.

    Args:
        df: rows of one data set, backbone and width (``rlprune.results.load_rows``).
        path: file to write, the suffix decides the format.

    Returns:
        The path written.

    Raises:
        ResultsError: no rows; rows of several data sets, backbones, widths or storage
            budgets, which must not be averaged; or a file that cannot be written.

    Source: paper Sec. 5, accuracy and storage against R_r.
    """
    points = _checked_points(df)
    panels = _panels(points)
    with drawing():
        size = (9.6, 1.2 + 3.4 * len(panels))
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        axes = figure.subplots(len(panels), len(_METRICS), squeeze=False, sharex=True)
        for row, chosen in zip(axes, panels, strict=True):
            for axis, metric in zip(row, _METRICS, strict=True):
                _draw_panel(axis, chosen, metric)
            if len(panels) > 1:
                row[0].set_title(_budget_text(chosen), loc="left", fontsize=9)
        for axis in axes[-1]:
            axis.set_xlabel("tradeoff rate $R_r$   (0: static only, 1: runtime only)")
        subtitle = "" if len(panels) > 1 else f"\n{_budget_text(points)}"
        figure.suptitle(_title(points) + subtitle, fontsize=11)
        _shared_legend(figure)
        return _save(figure, path)


def _checked_points(df: pd.DataFrame) -> pd.DataFrame:
    """The latest points with plot units added, or a refusal to average unlike things."""
    if df.empty:
        raise ResultsError("trade-off figure: there are no rows. Evaluate the trial first.")
    for column in ("dataset", "backbone", "width"):
        _refuse_several(column, df[column])
    points = latest_points(df)
    settings = points.groupby([*_SETTING, "method", "tradeoff_rate"], dropna=False)
    for _, rows in settings:
        _refuse_several("storage_budget_bytes", rows["storage_budget_bytes"])
    return points.assign(
        accuracy=100 * points["test_accuracy"],
        storage=points["storage_bytes"] / 1000,
        storage_budget=points["storage_budget_bytes"] / 1000,
    )


def _refuse_several(column: str, values: pd.Series[Any]) -> None:
    found = values.unique().tolist()
    if len(found) > 1:
        raise ResultsError(
            f"trade-off figure: rows of several {column} ({', '.join(map(str, found))}) cannot "
            f'share one picture. Choose one, as in df[df["{column}"] == {found[0]!r}].'
        )


def _panels(points: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each budget setting, largest first; each with its trials' dense."""
    dense = points[points["method"] == "dense"]
    pruned = points[points["method"] != "dense"].sort_values(list(_SETTING), ascending=False)
    groups = pruned.groupby(list(_SETTING), dropna=False, sort=False)
    panels = [rows for _, rows in groups]
    own_dense = [dense[dense["config_hash"].isin(rows["config_hash"])] for rows in panels]
    return [pd.concat(pair) for pair in zip(panels, own_dense, strict=True)] or [dense]


def _draw_panel(axis: Axes, points: pd.DataFrame, metric: str) -> None:
    """One metric against R_r, every method."""
    for method, style in STYLES.items():
        rows = points[points["method"] == method]
        if rows.empty:
            continue
        if rows["tradeoff_rate"].isna().all():
            _draw_reference(axis, rows[metric], style)
        else:
            _draw_line(axis, rows, metric, style)
    if metric == "storage":
        _draw_storage_budget(axis, points[points["method"] == "learned"])
        axis.set_ylim(bottom=0)
    axis.set_ylabel(_METRICS[metric])
    axis.set_xlim(-0.05, 1.05)
    axis.set_xticks(np.linspace(0, 1, 6))
    axis.margins(y=0.12)


def _draw_line(axis: Axes, rows: pd.DataFrame, metric: str, style: Style) -> None:
    """Mean over seeds at each R_r; standard errors where there are several seeds."""
    groups = rows.groupby("tradeoff_rate")[metric]
    mean, count = groups.mean(), groups.count()
    error: pd.Series[float] = groups.std(ddof=1) / count**0.5
    several = count.max() > 1
    axis.errorbar(
        mean.index.to_numpy(dtype=float) + (style.dodge if several else 0.0),
        mean.to_numpy(dtype=float),
        error.to_numpy(dtype=float) if several else None,
        color=style.color,
        marker=style.marker,
        markersize=style.size,
        markerfacecolor=style.face,
        linestyle=style.line,
        linewidth=style.width,
        elinewidth=1.2,
        capsize=3,
        zorder=style.layer,
        label=_counted(style.label, count.tolist()),
    )


def _draw_reference(axis: Axes, values: pd.Series[float], style: Style) -> None:
    mean, count = float(values.mean()), len(values)
    axis.axhline(
        mean,
        color=style.color,
        linestyle=style.line,
        linewidth=style.width,
        zorder=style.layer,
        label=_counted(style.label, [count]),
    )
    if count > 1:
        error = float(values.std(ddof=1)) / count**0.5
        axis.axhspan(mean - error, mean + error, color=style.color, alpha=0.12, linewidth=0)


def _draw_storage_budget(axis: Axes, learned: pd.DataFrame) -> None:
    """The budget may depend on R_r: a number s only binds the static agent's share."""
    budget = learned.groupby("tradeoff_rate")["storage_budget"].first().dropna()
    if budget.empty:
        return
    style: dict[str, Any] = {"color": "#c02b2b", "linestyle": ":", "linewidth": 1.8, "zorder": 3}
    if budget.nunique() == 1:
        axis.axhline(float(budget.iloc[0]), label="storage budget", **style)
    else:
        axis.plot(budget.index.to_numpy(), budget.to_numpy(), label="storage budget", **style)


def _counted(label: str, counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    if high == 1:
        return label
    return f"{label} (n = {low} seeds)" if low == high else f"{label} (n = {low}-{high} seeds)"


def _title(points: pd.DataFrame) -> str:
    first = points.iloc[0]
    width = "" if first["width"] == 1 else f", width {first['width']:g}"
    return f"{first['dataset']}, {first['backbone']}{width}"


def _budget_text(points: pd.DataFrame) -> str:
    """The budgets of one panel row in words."""
    pruned = points[points["method"] != "dense"]
    if pruned.empty:
        return "no budgets"
    first = pruned.iloc[0]
    parts = []
    if not pd.isna(first["budget_s"]):
        parts.append(f"s = {first['budget_s']:g}")
    for column, words in (
        ("compute_max_budget_macs", "any image"),
        ("compute_mean_budget_macs", "mean image"),
    ):
        if not pd.isna(first[column]):
            parts.append(f"{words} at most {first[column] / first['macs_dense']:.1%} of dense MACs")
    storage = pruned["storage_budget"].dropna().unique()
    if len(storage) == 1:
        parts.append(f"at most {storage[0]:.3g} KB stored")
    elif len(storage) > 1:
        parts.append("storage as dotted")
    return "budget: " + ", ".join(parts) if parts else "no budgets"


def _shared_legend(figure: Figure) -> None:
    """One legend below all panels, each method once, in the order of the styles."""
    entries: dict[str, Artist] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(str(label), handle)
    order = [style.label for style in STYLES.values()]
    labels = sorted(entries, key=lambda label: [not label.startswith(name) for name in order])
    handles = [entries[label] for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
