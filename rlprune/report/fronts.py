"""A picture of any front of two objectives: all points faint, the front as a staircase."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlprune.errors import ResultsError
from rlprune.report.canvas import DPI, drawing, save_figure
from rlprune.report.styles import STYLES
from rlprune.report.units import unit_of
from rlprune.results.frames import group_codes
from rlprune.results.query import FrontAnswer, FrontQuery

_FORMATS = ("png", "svg", "pdf")
_MOST_POINTS = 20_000
_MOST_GROUPS = 14
_MOST_BARS = 200
# Okabe and Ito's colours, which colour-blind readers tell apart; shapes repeat the message.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a5c00", "#333333", "#56b4e9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_PREFIXES = {
    "bytes": ("bytes", "KB", "MB", "GB"),
    "per image": ("MACs", "thousand MACs", "million MACs", "billion MACs"),
}

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Axis:
    """One objective as it is drawn.

    Attributes:
        name: column.
        maximize: whether larger is better.
        label: with unit.
        scale: what values are multiplied by.
    """

    name: str
    maximize: bool
    label: str
    scale: float

    def values(self, df: pd.DataFrame) -> Floats:
        """Scaled values."""
        return np.asarray(df[self.name], dtype=np.float64) * self.scale

    def errors(self, df: pd.DataFrame) -> Floats | None:
        """Scaled standard errors, where there are any."""
        if f"{self.name}_se" not in df:
            return None
        return np.asarray(df[f"{self.name}_se"], dtype=np.float64) * self.scale


def check_plot(query: FrontQuery, path: str | Path) -> None:
    """Refuses what cannot be drawn, before anything is read.

    Raises:
        ResultsError: not two objectives, or a format other than png, svg and pdf.
    """
    if len(set(query.objectives)) != 2:
        raise ResultsError(
            f"plot: a picture needs two objectives (there are {', '.join(query.objectives)}). "
            "Leave out --plot, or an objective."
        )
    if Path(path).suffix.removeprefix(".").lower() not in _FORMATS:
        raise ResultsError(f"plot {path}: unknown format. Use one of {', '.join(_FORMATS)}.")


def pareto_figure(answer: FrontAnswer, path: str | Path) -> Path:
    """Draws a front of two objectives, what is minimised to the right.

    Means over seeds have their standard errors as bars. At most 20,000 of the other points
    are drawn, evenly picked.

    Args:
        answer: what ``rlprune.results.query.find_front`` found.
        path: file to write; its suffix decides the format (png, svg, pdf).

    Returns:
        The path written.

    Raises:
        ResultsError: as in :func:`check_plot`; too many groups; the file cannot be written.
    """
    check_plot(answer.query, path)
    across, up = _axes(answer)
    groups = _groups(answer)
    with drawing():
        figure = Figure(figsize=(7.2, 5.0), dpi=DPI, layout="constrained")
        axis = figure.subplots()
        for number, (label, points, front) in enumerate(groups):
            style = _style(answer.query, label, number)
            _draw_points(axis, points, across, up, style, len(answer.points))
            _draw_front(axis, points, front, across, up, style, _label(label, front))
        axis.set_xlabel(across.label)
        axis.set_ylabel(up.label)
        axis.margins(0.04)
        if answer.query.group_by:
            axis.legend(loc="best", title=", ".join(map(_word, answer.query.group_by)))
        axis.set_title(_title(answer), loc="left", fontsize=9)
        figure.suptitle(_headline(answer), fontsize=11)
        return save_figure(figure, path)


def _word(name: str) -> str:
    return unit_of(name).label


def _axes(answer: FrontAnswer) -> tuple[_Axis, _Axis]:
    """Across and up: costs across, what is gained up."""
    query = answer.query
    names = list(dict.fromkeys((*query.minimize, *query.maximize)))
    across, up = (_axis(name, name in query.maximize, answer.points) for name in names)
    return across, up


def _axis(name: str, maximize: bool, points: pd.DataFrame) -> _Axis:
    """Accuracies in percent; bytes and MACs in the thousands that fit."""
    unit = unit_of(name)
    prefixes = _PREFIXES.get(unit.unit)
    if prefixes is None:
        return _Axis(name, maximize, unit.heading, unit.scale)
    values = points[name].to_numpy(dtype=np.float64)
    most = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
    power = min(int(np.log10(max(most, 1.0)) // 3), len(prefixes) - 1)
    return _Axis(name, maximize, f"{unit.label} [{prefixes[power]}]", 1000.0**-power)


def _groups(answer: FrontAnswer) -> list[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """(name, points, front) of each group, sorted by name."""
    names = list(answer.query.group_by)
    if not names:
        return [("", answer.points, answer.front)]
    both = pd.concat([answer.points[names], answer.front[names]], ignore_index=True)
    codes = group_codes(both, names)
    count = int(codes.max(initial=-1)) + 1
    if count > _MOST_GROUPS:
        raise ResultsError(
            f"plot: {count} groups by {', '.join(names)} are too many for one picture (at most "
            f"{_MOST_GROUPS}). Choose fewer with --where, or another --group-by."
        )
    of_points, of_front = codes[: len(answer.points)], codes[len(answer.points) :]
    groups = []
    for code in range(count):
        first = both[codes == code].iloc[0]
        label = ", ".join(unit_of(name).text(first[name]) for name in names)
        groups.append((label, answer.points[of_points == code], answer.front[of_front == code]))
    return sorted(groups, key=lambda group: group[0])


def _style(query: FrontQuery, label: str, number: int) -> dict[str, Any]:
    if query.group_by == ("method",) and label in STYLES:
        return {"color": STYLES[label].color, "marker": STYLES[label].point}
    color = _COLORS[number % len(_COLORS)]
    shift = number // len(_COLORS)  # the second round of colours has other shapes
    return {"color": color, "marker": _MARKERS[(number + shift) % len(_MARKERS)]}


def _draw_points(
    axis: Axes, points: pd.DataFrame, across: _Axis, up: _Axis, style: dict[str, Any], total: int
) -> None:
    """Faint; as pixels where vectors would make a huge file."""
    step = -(-total // _MOST_POINTS)
    shown = points.iloc[::step]
    x, y = across.values(shown), up.values(shown)
    known = np.isfinite(x) & np.isfinite(y)
    alpha = 0.45 if total <= 200 else 0.25 if total <= 2000 else 0.12
    axis.scatter(
        x[known], y[known], s=16 if total <= 2000 else 7, alpha=alpha, linewidths=0,
        rasterized=total > 2000, zorder=2, **style,
    )  # fmt: skip


def _draw_front(
    axis: Axes,
    points: pd.DataFrame,
    front: pd.DataFrame,
    across: _Axis,
    up: _Axis,
    style: dict[str, Any],
    label: str,
) -> None:
    """The staircase, to the edge of what was measured, and its points with error bars."""
    x, y = across.values(front), up.values(front)
    known = np.isfinite(x) & np.isfinite(y)
    front = front[known]
    order = np.lexsort((y[known], x[known]))
    x, y = x[known][order], y[known][order]
    if len(x) == 0:
        return
    # a staircase goes on to the worst that was measured
    reach = across.values(points)
    reach = reach[np.isfinite(reach)]
    where: Literal["pre", "post"] = "pre" if across.maximize else "post"
    if across.maximize:
        line_x, line_y = np.insert(x, 0, reach.min()), np.insert(y, 0, y[0])
    else:
        line_x, line_y = np.append(x, reach.max()), np.append(y, y[-1])
    axis.step(line_x, line_y, where=where, color=style["color"], linewidth=1.8, zorder=4)
    few = len(x) <= _MOST_BARS
    x_error, y_error = (
        _sorted_errors(side, front, order) if few else None for side in (across, up)
    )
    if x_error is not None or y_error is not None:
        axis.errorbar(
            x, y, xerr=x_error, yerr=y_error, fmt="none", ecolor=style["color"],
            elinewidth=1.2, capsize=2.5, zorder=5,
        )  # fmt: skip
    size = (6.0 if few else 3.0) * (1.7 if style["marker"] == "*" else 1.0)  # stars look small
    axis.plot(
        x, y, label=label, linestyle="none", markersize=size, markeredgecolor="white",
        markeredgewidth=0.6, zorder=6, **style,
    )  # fmt: skip


def _sorted_errors(axis: _Axis, front: pd.DataFrame, order: npt.NDArray[np.intp]) -> Floats | None:
    errors = axis.errors(front)
    return None if errors is None else errors[order]


def _label(group: str, front: pd.DataFrame) -> str:
    size = f"{len(front):,} on the front"
    return f"{group} ({size})" if group else size


def _headline(answer: FrontAnswer) -> str:
    """Data set and backbone where the front has only one."""
    front = answer.front
    names = [n for n in ("dataset", "backbone") if n in front and n not in answer.query.group_by]
    single = [str(front[n].iloc[0]) for n in names if front[n].nunique() == 1]
    return ", ".join([*single, "Pareto front"])


def _title(answer: FrontAnswer) -> str:
    """What the points are, and a warning where the front is one of luck."""
    what = "points"
    if answer.query.seeds == "mean":
        what = "settings, mean and standard error over seeds"
    text = f"{len(answer.front):,} of {len(answer.points):,} {what}"
    if len(answer.points) > _MOST_POINTS:
        text += f" (at most {_MOST_POINTS:,} drawn)"
    if any(name.startswith("test_") for name in answer.query.objectives):
        text += "; chosen on the test images: optimistic"
    return text
