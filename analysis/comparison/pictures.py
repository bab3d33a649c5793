"""Pictures of the comparison: accuracy against what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from rlprune.report.styles import STYLES, Style

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COSTS = {
    "macs_mean_ratio": "MACs / dense",
    "storage_ratio": "bytes / dense",
    "latency_ratio": "latency / dense",
}
SHOWN = 20.0
"""Points of accuracy that an overview spans at most, so that its lines can be told apart."""
RATE_LINES = {"0.75": (0, (8, 2)), "0.5": "--", "0.25": "-.", "0": ":"}


def error(values: pd.Series) -> float:
    """Standard error of the mean; NaN for one value."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def _draw(axis: Any, part: pd.DataFrame, cost: str, style: Style) -> None:
    """One method's means over seeds, a mark for each R_r."""
    means = part.groupby("R_r")[[cost, "accuracy"]].mean()
    spread = part.groupby("R_r")["accuracy"].apply(error).fillna(0.0)
    axis.errorbar(
        means[cost],
        means["accuracy"],
        yerr=spread,
        fmt=style.point,
        color=style.color,
        label=style.label,
        capsize=2,
        markersize=7,
    )


def figure(rows: pd.DataFrame, title: str, path: Path) -> None:
    """Accuracy against MACs, bytes and (where it was timed) latency; dense as a line."""
    costs = [name for name in COSTS if name in rows and rows[name].notna().any()]
    drawn, axes = plt.subplots(
        1, len(costs), figsize=(4.6 * len(costs), 4.4), sharey=True, layout="constrained"
    )
    for axis, cost in zip(np.atleast_1d(axes), costs, strict=True):
        for method, style in STYLES.items():
            part = rows[rows["method"] == method]
            if method == "dense" and len(part):
                level = part["accuracy"].mean()
                axis.axhline(level, color=style.color, linestyle="--", label=style.label)
            elif len(part):
                _draw(axis, part, cost, style)
        axis.set_xlabel(COSTS[cost])
        axis.grid(alpha=0.3)
    np.atleast_1d(axes)[0].set_ylabel("test accuracy [%]")
    handles, labels = np.atleast_1d(axes)[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    drawn.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=120)
    plt.close(drawn)


def overview(rows: pd.DataFrame, title: str, path: Path) -> None:
    """Accuracy over all budgets of one network, a line for each method and R_r."""
    drawn, axes = plt.subplots(1, 2, figsize=(11, 5), sharey=True, layout="constrained")
    for axis, cost in zip(axes, ("macs_mean_ratio", "storage_ratio"), strict=True):
        for method, style in STYLES.items():
            for rate, part in rows[rows["method"] == method].groupby("R_r"):
                means = part.groupby("s")[[cost, "accuracy"]].mean()
                spread = part.groupby("s")["accuracy"].apply(error).fillna(0.0)
                axis.errorbar(
                    means[cost],
                    means["accuracy"],
                    yerr=spread,
                    color=style.color,
                    marker=style.point,
                    linestyle=RATE_LINES.get(str(rate), "-"),
                    label=style.label if rate == "-" else f"{style.label}, R_r = {rate}",
                    capsize=2,
                )
        axis.set_xlabel(COSTS[cost])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy [%]")
    heights = rows.groupby(["method", "R_r", "s"])["accuracy"].mean()
    floor = heights.max() - SHOWN
    if heights.min() < floor:
        axes[0].set_ylim(floor, heights.max() + 0.05 * SHOWN)
        below = sorted({STYLES[method].label for method, _, _ in heights[heights < floor].index})
        title += f" (points below the picture: {', '.join(below)})"
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    drawn.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=120)
    plt.close(drawn)
