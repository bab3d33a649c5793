"""Pictures of the comparison: accuracy against what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from rlprune.report.styles import STYLES

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COSTS = {
    "macs_mean_ratio": "MACs / dense",
    "storage_ratio": "bytes / dense",
    "latency_ratio": "latency / dense",
}
SHOWN = 20.0
"""Points of accuracy that a picture spans at most, so that its lines can be told apart."""
RATE_LINES = {"0.75": (0, (8, 2)), "0.5": "--", "0.25": "-.", "0": ":"}


def error(values: pd.Series) -> float:
    """Standard error of the mean; NaN for one value."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def _draw(axis: Any, part: pd.DataFrame, cost: str, by: str, **look: Any) -> None:
    """Means over seeds for each value of a column, with standard errors, joined by a line."""
    means = part.groupby(by)[[cost, "accuracy"]].mean()
    spread = part.groupby(by)["accuracy"].apply(error).fillna(0.0)
    axis.errorbar(means[cost], means["accuracy"], yerr=spread, capsize=2, **look)


def figure(rows: pd.DataFrame, title: str, path: Path) -> None:
    """Accuracy against MACs, bytes and (where it was timed) latency; dense as a line.

    The points of a method at several R_r are joined.
    """
    costs = [name for name in COSTS if name in rows and rows[name].notna().any()]
    drawn, grid = plt.subplots(
        1, len(costs), figsize=(4.6 * len(costs), 4.4), sharey=True, layout="constrained"
    )
    axes = list(np.atleast_1d(grid))
    for axis, cost in zip(axes, costs, strict=True):
        for method, style in STYLES.items():
            part = rows[rows["method"] == method]
            if method == "dense" and len(part):
                level = part["accuracy"].mean()
                axis.axhline(level, color=style.color, linestyle="--", label=style.label)
            elif len(part):
                look = {"color": style.color, "marker": style.point, "markersize": 7}
                _draw(axis, part, cost, "R_r", label=style.label, linewidth=1, **look)
        axis.set_xlabel(COSTS[cost])
    _finish(drawn, axes, rows, title, path)


def overview(rows: pd.DataFrame, title: str, path: Path) -> None:
    """Accuracy over the budgets of one network, a line for each method and R_r.

    What was measured at one budget alone is left out.
    """
    drawn, axes = plt.subplots(1, 2, figsize=(11, 5), sharey=True, layout="constrained")
    rows = rows[rows.groupby(["method", "R_r"])["s"].transform("nunique") > 1]
    for axis, cost in zip(axes, ("macs_mean_ratio", "storage_ratio"), strict=True):
        for method, style in STYLES.items():
            for rate, part in rows[rows["method"] == method].groupby("R_r"):
                label = style.label if rate == "-" else f"{style.label}, R_r = {rate}"
                look = {"color": style.color, "marker": style.point}
                line = RATE_LINES.get(str(rate), "-")
                _draw(axis, part, cost, "s", label=label, linestyle=line, **look)
        axis.set_xlabel(COSTS[cost])
    _finish(drawn, list(axes), rows, title, path)


def _finish(drawn: Any, axes: list[Any], rows: pd.DataFrame, title: str, path: Path) -> None:
    """Cuts off what lies far below (and says so), adds the legend, writes the file."""
    heights = rows.groupby(["method", "R_r", "s"])["accuracy"].mean()
    floor = heights.max() - SHOWN
    if heights.min() < floor:
        least, most = heights[heights >= floor].min(), heights.max()
        axes[0].set_ylim(least - 0.1 * (most - least) - 1.0, most + 1.0)
        below = sorted({STYLES[method].label for method, _, _ in heights[heights < floor].index})
        title += f" (points below the picture: {', '.join(below)})"
    axes[0].set_ylabel("test accuracy [%]")
    for axis in axes:
        axis.grid(alpha=0.3)
    handles = axes[0].get_legend_handles_labels()
    drawn.legend(*handles, loc="outside lower center", ncols=6, fontsize=9)
    drawn.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=120)
    plt.close(drawn)
