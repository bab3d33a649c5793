"""The page's pictures as PNG, SVG or PDF files, for papers."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlprune.errors import ResultsError
from rlprune.report.canvas import DPI, drawing
from rlprune.report.canvas import save_figure as _save
from rlprune.report.curves import METRICS, Curve
from rlprune.report.figures import tradeoff_figure
from rlprune.report.settings import backbone_text
from rlprune.report.source import ReportSource
from rlprune.report.styles import STYLES
from rlprune.results.pareto import pareto_front

logger = logging.getLogger(__name__)

FORMATS = ("png", "svg", "pdf")
_COSTS = {"storage_bytes": ("storage [KB]", 1e-3), "macs_mean": ("mean MACs per image [M]", 1e-6)}
_CHOSEN = "validation_accuracy"
_ACCURACY = "test_accuracy"
_CURVES = ("reward_runtime", "reward_static", "loss", "macs_ratio")
_MOST_LINES = 60
_CYCLE = 10  # matplotlib's colours C0 to C9


def write_figures(source: ReportSource, folder: str | Path, suffix: str = "png") -> list[Path]:
    """Writes every picture; several data sets, backbones or budgets give several files.

    Args:
        source: what to draw.
        folder: made if absent; files of the same names are replaced.
        suffix: one of :data:`FORMATS`.

    Returns:
        The paths written: ``front_*``, ``methods_*`` (one per data set), ``tradeoff_*`` (one
        per backbone and kind of budget) and, where recorded, ``learning_curves``.

    Raises:
        ResultsError: an unknown format, or a file that cannot be written.
    """
    if suffix not in FORMATS:
        raise ResultsError(
            f"figures: format {suffix!r} is unknown. Give one of {', '.join(FORMATS)}."
        )
    target = Path(folder)
    written = []
    for dataset, points in source.points.groupby("dataset", observed=True):
        name = _file_part(str(dataset))
        written.append(front_figure(points, target / f"front_{name}.{suffix}"))
        if (points["method"] == "learned").any():
            written.append(methods_figure(points, target / f"methods_{name}.{suffix}"))
        written += _tradeoff_figures(points, target, name, suffix)
    if source.curves:
        path = target / f"learning_curves.{suffix}"
        written.append(curves_figure(source.curves, source.points, path))
    return written


def repetitions(points: pd.DataFrame) -> pd.DataFrame:
    """Means over repetitions: points that differ in nothing but the seed.

    Args:
        points: with the columns of :func:`rlprune.report.settings.add_settings`.

    Returns:
        One row per setting, method and R_r: ``setting``, ``method``, ``tradeoff_rate``, the
        mean of accuracies and costs, their standard errors as ``NAME_error`` (NaN for one
        repetition) and their number ``n``.
    """
    names = [_ACCURACY, _CHOSEN, *_COSTS]
    groups = points.groupby(["setting", "method", "tradeoff_rate"], dropna=False, observed=True)
    means = groups[names].mean().round(12)  # equal numbers in another order must still tie
    errors = groups[names].sem().add_suffix("_error")
    counts = groups.size().rename("n")
    return pd.concat([means, errors, counts], axis=1).reset_index()


def front_figure(points: pd.DataFrame, path: str | Path) -> Path:
    """Draws test accuracy against storage and mean MACs, with the front of each.

    Validation accuracy decides who is on the front, test accuracy is drawn.

    Args:
        points: of one data set, with the columns of ``add_settings``.
        path: file to write.

    Returns:
        The path written.

    Raises:
        ResultsError: the file cannot be written.
    """
    means = repetitions(points)
    with drawing():
        figure = Figure(figsize=(9.6, 4.6), dpi=DPI, layout="constrained")
        axes = figure.subplots(1, len(_COSTS), sharey=True)
        for axis, (cost, (label, scale)) in zip(axes, _COSTS.items(), strict=True):
            for method in reversed(STYLES):
                _scatter(axis, means[means["method"] == method], method, cost, scale)
            front = pareto_front(means, maximize=_CHOSEN, minimize=cost).sort_values(cost)
            axis.plot(
                front[cost] * scale,
                100 * front[_ACCURACY],
                color="#222222",
                linewidth=1.3,
                alpha=0.7,
                label="front, chosen on validation",
            )
            axis.set_xlabel(label)
        axes[0].set_ylabel("test accuracy [%]")
        title = f"{points['dataset'].iloc[0]}{_count_text(means['n'])}"
        figure.suptitle(_escape(title), fontsize=11)
        _legend(figure, axes[0])
        return _save(figure, path)


def _scatter(axis: Axes, rows: pd.DataFrame, method: str, cost: str, scale: float) -> None:
    if rows.empty:
        return
    style = STYLES[method]
    axis.errorbar(
        rows[cost] * scale,
        100 * rows[_ACCURACY],
        xerr=_bars(rows[f"{cost}_error"] * scale),
        yerr=_bars(100 * rows[f"{_ACCURACY}_error"]),
        color=style.color,
        marker=style.point,
        markersize=6,
        markerfacecolor=style.face,
        linestyle="none",
        elinewidth=1.0,
        capsize=2,
        zorder=style.layer,
        label=style.label,
    )


def methods_figure(points: pd.DataFrame, path: str | Path) -> Path:
    """Draws every method's test accuracy on one line per setting and R_r.

    Static L1 (which has no R_r) stands in every line of its setting, dense in every line of
    its family of settings.

    Args:
        points: of one data set, with the columns of ``add_settings``; some are learned.
        path: file to write.

    Returns:
        The path written.

    Raises:
        ResultsError: the file cannot be written.
    """
    means = repetitions(points)
    about = points.drop_duplicates("setting").set_index("setting")
    lines = _lines(means, about, path)
    with drawing():
        height = 1.6 + 0.3 * (len(lines) + lines["label"].nunique())
        figure = Figure(figsize=(9.6, height), dpi=DPI, layout="constrained")
        axis = figure.subplots()
        present = [name for name in STYLES if (means["method"] == name).any()]
        for number, method in enumerate(present):
            rows = _rows_of_lines(means, lines, about, method)
            shift = (number - (len(present) - 1) / 2) * 0.12
            _draw_methods(axis, rows, method, shift)
        _write_headings(axis, lines)
        rates = [f"$R_r$ = {rate:g}" for rate in lines["tradeoff_rate"]]
        axis.set_yticks(lines["line"].tolist(), rates, fontsize=8)
        axis.set_ylim(lines["line"].max() + 0.6, -0.6)
        axis.set_xlabel("test accuracy [%]")
        title = f"{points['dataset'].iloc[0]}: methods at equal budgets{_count_text(means['n'])}"
        figure.suptitle(_escape(title), fontsize=11)
        _legend(figure, axis)
        return _save(figure, path)


def _write_headings(axis: Axes, lines: pd.DataFrame) -> None:
    """Each setting's label on the free line above its first."""
    first = lines.drop_duplicates("label")
    for line, label in zip(first["line"] - 1, first["label"], strict=True):
        axis.text(
            0.005,
            line,
            _escape(label),
            transform=axis.get_yaxis_transform(),
            fontsize=8.5,
            fontweight="bold",
            color="#555555",
            va="center",
        )


def _lines(means: pd.DataFrame, about: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    """One line per setting and R_r of the learned network; a free line above each setting."""
    lines = means[means["method"] == "learned"]
    lines = lines.assign(
        label=lines["setting"].map(about["setting_label"]),
        family=lines["setting"].map(about["family"]),
    )
    order = lines["label"].map(_natural)
    lines = lines.assign(order=order).sort_values(
        ["order", "tradeoff_rate"], ascending=[True, False]
    )
    if len(lines) > _MOST_LINES:
        logger.warning(
            "%s: only the first %d of %d budgets are drawn", path, _MOST_LINES, len(lines)
        )
        lines = lines.head(_MOST_LINES)
    heading = (lines["setting"] != lines["setting"].shift()).cumsum()
    return lines.assign(line=np.arange(len(lines)) + heading.to_numpy())


def _natural(text: str) -> tuple[tuple[float, str], ...]:
    """Sorts 97.9 before 163."""
    parts = re.split(r"(\d[\d.,]*)", text)
    numbers = [part.replace(",", "").rstrip(".") for part in parts]
    return tuple(
        (float(number), "") if number.replace(".", "", 1).isdigit() else (math.inf, part)
        for number, part in zip(numbers, parts, strict=True)
    )


def _rows_of_lines(
    means: pd.DataFrame, lines: pd.DataFrame, about: pd.DataFrame, method: str
) -> pd.DataFrame:
    """The method's mean on each line, with the line's number; lines without are left out."""
    rows = means[means["method"] == method].assign(
        family=lambda df: df["setting"].map(about["family"])
    )
    numbered = lines[["setting", "tradeoff_rate", "family", "line"]]
    by = ["setting", "tradeoff_rate"]
    if rows["tradeoff_rate"].isna().all():
        by = ["family"] if method == "dense" else ["setting"]
    return numbered.merge(rows, on=by, suffixes=("", "_of_method"))


def _draw_methods(axis: Axes, rows: pd.DataFrame, method: str, shift: float) -> None:
    style = STYLES[method]
    axis.errorbar(
        100 * rows[_ACCURACY],
        rows["line"] + shift,
        xerr=_bars(100 * rows[f"{_ACCURACY}_error"]),
        color=style.color,
        marker=style.point,
        markersize=6,
        markerfacecolor=style.face,
        linestyle="none",
        elinewidth=1.0,
        capsize=2,
        zorder=style.layer,
        label=style.label,
    )


def curves_figure(curves: list[Curve], points: pd.DataFrame, path: str | Path) -> Path:
    """Draws the agents' rewards, the loss and the MACs against PPO updates, per trial.

    Args:
        curves: of the trials.
        points: tell which setting (a colour each) a trial belongs to.
        path: file to write.

    Returns:
        The path written.

    Raises:
        ResultsError: the file cannot be written.
    """
    labels = points[points["method"] == "learned"].drop_duplicates("trial")
    label_of = dict(zip(labels["trial"], labels["setting_label"], strict=True))
    names = sorted({str(label_of.get(curve.trial, curve.trial)) for curve in curves})
    with drawing():
        figure = Figure(figsize=(9.6, 6.4), dpi=DPI, layout="constrained")
        axes = figure.subplots(2, 2, sharex=True).ravel()
        for axis, metric in zip(axes, _CURVES, strict=True):
            axis.set_title(METRICS[metric], loc="left")
            for curve in curves:
                name = str(label_of.get(curve.trial, curve.trial))
                _draw_curve(axis, curve, metric, f"C{names.index(name) % _CYCLE}", name)
        for axis in axes[2:]:
            axis.set_xlabel("PPO update")
        figure.suptitle("Training of the agents (moving means)", fontsize=11)
        if 1 < len(names) <= _CYCLE:
            _legend(figure, axes[0], columns=1)
        return _save(figure, path)


def _draw_curve(axis: Axes, curve: Curve, metric: str, color: str, label: str) -> None:
    if metric not in curve.frame:
        return
    window = max(1, len(curve.frame) // 20)
    smooth = curve.frame[metric].rolling(window, min_periods=1).mean()
    axis.plot(curve.frame["update"], smooth, color=color, linewidth=1.3, label=_escape(label))


def _tradeoff_figures(points: pd.DataFrame, folder: Path, dataset: str, suffix: str) -> list[Path]:
    """One file per backbone, width and storage budget; compute budgets are its panels."""
    written = []
    groups: dict[tuple[Any, ...], list[int]] = {}
    for family, rows in points.groupby("family"):
        fixed = rows[rows["method"] != "dense"]
        storage = fixed.groupby("tradeoff_rate", dropna=False)["storage_budget_bytes"].first()
        key = (backbone_text(rows.iloc[0]), tuple(storage.round(3).fillna(-1).items()))
        groups.setdefault(key, []).append(int(str(family)))
    numbers: dict[str, int] = {}
    for key, families in groups.items():
        name = f"tradeoff_{dataset}_{_file_part(str(key[0]))}"
        numbers[name] = numbers.get(name, 0) + 1
        ending = "" if numbers[name] == 1 else f"_{numbers[name]}"
        rows = points[points["family"].isin(families)]
        written.append(tradeoff_figure(rows, folder / f"{name}{ending}.{suffix}"))
    return written


def _bars(errors: pd.Series[float]) -> np.ndarray[Any, Any] | None:
    """Error bars, or none where every mean is of one repetition."""
    return None if errors.isna().all() else errors.fillna(0.0).to_numpy()


def _count_text(counts: pd.Series[int]) -> str:
    low, high = int(counts.min()), int(counts.max())
    if high == 1:
        return " (one seed)"
    return f" (mean ± standard error, n = {low if low == high else f'{low}-{high}'})"


def _legend(figure: Figure, axis: Axes, columns: int = 3) -> None:
    """Below all axes, every label once."""
    handles, labels = axis.get_legend_handles_labels()
    order = [style.label for style in STYLES.values()]
    pairs = sorted(
        zip(labels, handles, strict=True),
        key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order),
    )
    entries = dict(pairs)
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=columns, fontsize=9
    )


def _file_part(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.") or "unnamed"


def _escape(text: str) -> str:
    r"""Dollar signs in names must not start a formula; ``$R_r$`` of ours stays."""
    return "$R_r$".join(part.replace("$", r"\$") for part in text.split("$R_r$"))
