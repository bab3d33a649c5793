"""The picture of one trial's training: what the agents earn, spend and decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlprune.errors import ResultsError
from rlprune.report.canvas import DPI, drawing
from rlprune.report.canvas import save_figure as _save

_RUNTIME, _STATIC = "#0b6fb8", "#e07b00"
_GREEN, _PURPLE, _GREY = "#2a9d5c", "#8a5fb0", "#333333"
_RATES = ("#0b6fb8", "#e07b00", "#2a9d5c", "#8a5fb0", "#333333")
_KEEP, _SPREAD = "keep_ratio_", "keep_ratio_std_"
_VALIDATION = "validation_accuracy_"
_WIDTH, _ROW, _TITLES, _LABELS, _TOP, _BOTTOM = 12.4, 3.2, 0.5, 0.5, 0.45, 0.4  # inches
_WINDOW, _SHORT = 10, 20
_MOST_COLUMNS = 800  # of a map: more cannot be told apart
_MOST_MARKS = 16  # more would hide what they mark
_AGENTS = (("runtime", _RUNTIME, "runtime agent"), ("static", _STATIC, "static agent"))


@dataclass(frozen=True)
class _Line:
    """A column as it is drawn.

    Attributes:
        column: of the history.
        color: of the line.
        label: in the legend.
        style: matplotlib line style.
        noisy: whether a moving mean is drawn, too.
        sparse: whether most updates have no value: marks, joined by lines.
    """

    column: str
    color: str
    label: str
    style: str = "-"
    noisy: bool = True
    sparse: bool = False


@dataclass(frozen=True)
class _Panel:
    """One picture of the grid.

    Attributes:
        title: in plain words.
        draw: draws into the axes.
    """

    title: str
    draw: Callable[[Axes], None]


def training_figure(
    history: pd.DataFrame, difficulty: pd.DataFrame | None, path: str | Path
) -> Path:
    """Draws what there is to see of a training, two panels in a row.

    Args:
        history: one row per PPO update (``updates.parquet``): ``update`` and any of the
            columns that training records; a panel without data is left out.
        difficulty: columns ``tradeoff_rate``, ``decile``, ``dense_loss``, ``macs_ratio``,
            ``accuracy``, ``images`` (``difficulty.parquet``); None before the policy has been
            measured.
        path: file to write, the suffix decides the format.

    Returns:
        The path written.

    Raises:
        ResultsError: there is nothing to draw, or the file cannot be written.
    """
    panels = [*_history_panels(history), *_difficulty_panels(difficulty)]
    if not panels:
        raise ResultsError(
            "training figure: there are no updates. Train the agents for at least one update."
        )
    rows = -(-len(panels) // 2)
    with drawing():
        # Margins by hand: "constrained" would take longer than all of the drawing.
        height = _TOP + rows * _ROW + _BOTTOM
        figure = Figure(figsize=(_WIDTH, height), dpi=DPI)
        grid = figure.subplots(rows, 2, squeeze=False).flatten()
        figure.subplots_adjust(
            left=0.085,
            right=0.92,
            bottom=(_BOTTOM + _LABELS) / height,
            top=1 - (_TOP + _TITLES) / height,
            wspace=0.42,
            hspace=(_TITLES + _LABELS) / (_ROW - _TITLES - _LABELS),
        )
        for axis, panel in zip(grid, panels, strict=False):
            axis.set_title(panel.title, loc="left", fontweight="bold")
            panel.draw(axis)
        for axis in grid[len(panels) :]:
            axis.remove()
        figure.suptitle(_suptitle(history), fontsize=11, y=1 - 0.5 * _TOP / height)
        return _save(figure, path)


def _suptitle(history: pd.DataFrame) -> str:
    window = _window(len(history))
    means = f"faint: each update, bold: mean over {window}; " if window > 1 else ""
    return f"Training of the agents ({means}dotted: the network was fine-tuned)"


# ------------------------------------------------------------------------------- panels


def _history_panels(history: pd.DataFrame) -> list[_Panel]:
    """The panels that the updates have data for."""
    if history.empty:
        return []
    df = history.sort_values("update", ignore_index=True)
    spread = "std of computed / all"
    return [
        *_line_panel(df, "Rewards", _both("reward", swapped=True), "reward per episode"),
        *_line_panel(
            df,
            "Answers during rollouts",
            [_Line("accuracy", _GREEN, "accuracy")],
            "accuracy (fraction right)",
            right=[_Line("loss", _GREY, "loss", "--")],
            right_label="cross-entropy loss [nats]",
        ),
        *_validation_panel(df),
        *_cost_panel(df),
        *_line_panel(
            df,
            "Do harder images get more compute?",
            [_Line("macs_difficulty", _RUNTIME, "")],
            "correlation of loss and MACs",
            level=0.0,
        ),
        *_map_panel(df, "Channels computed, by layer", _KEEP, "computed / all channels", 1.0),
        *_map_panel(df, "Differences between images, by layer", _SPREAD, spread, None),
        *_learner_panels(df),
    ]


def _learner_panels(df: pd.DataFrame) -> list[_Panel]:
    """How PPO fares."""
    return [
        *_line_panel(
            df,
            "How well the agents foresee their reward",
            _both("vf_explained_var"),
            "explained variance",
            level=0.0,
        ),
        *_line_panel(
            df,
            "Size of the policy steps",
            _both("sampled_kl"),
            "KL divergence [nats] (solid)",
            right=_both("clip_fraction", style="--"),
            right_label="clipped actions, fraction (dashed)",
        ),
        *_line_panel(
            df, "Exploration", _both("entropy", noisy=False), "entropy per decision [nats]"
        ),
    ]


def _cost_panel(df: pd.DataFrame) -> list[_Panel]:
    """Budgets used, where there are budgets; costs as they are, where there are none."""
    used = [
        _Line("compute_used", _RUNTIME, "compute"),
        _Line("storage_used", _STATIC, "storage"),
    ]
    price = [_Line("price", _PURPLE, "price of compute", "--", noisy=False)]
    if _present(df, used):
        label = "cost / budget (1: all of it)"
        more: dict[str, Any] = {"right": price, "right_label": "price", "level": 1.0}
        return _line_panel(df, "Budgets used", used, label, **more)
    costs = [
        _Line("macs_ratio", _RUNTIME, "MACs"),
        _Line("storage_ratio", _STATIC, "stored bytes"),
    ]
    return _line_panel(df, "Cost", costs, "cost / dense network's")


def _line_panel(
    df: pd.DataFrame,
    title: str,
    left: Sequence[_Line],
    left_label: str,
    right: Sequence[_Line] = (),
    **more: Any,
) -> list[_Panel]:
    """The panel, see :func:`_lines`, or none without data."""
    left, right = _present(df, left), _present(df, right)
    if not left and not right:
        return []
    return [_Panel(title, lambda axis: _lines(axis, df, left, left_label, right, **more))]


def _validation_panel(df: pd.DataFrame) -> list[_Panel]:
    """The policy on the validation images, where it is measured after every round."""
    columns = [name for name in map(str, df.columns) if name.startswith(_VALIDATION)]
    rates = sorted((name.removeprefix(_VALIDATION) for name in columns), key=float, reverse=True)
    lines = [
        _Line(f"{_VALIDATION}{rate}", color, f"$R_r$ = {rate}", noisy=False, sparse=True)
        for rate, color in zip(rates, _RATES, strict=False)
    ]
    title = "On the validation images, after every round"
    return _line_panel(df, title, lines, "accuracy (fraction right)")


def _map_panel(
    df: pd.DataFrame, title: str, prefix: str, label: str, top: float | None
) -> list[_Panel]:
    """The panel, see :func:`_map`, or none without data."""
    columns = _layers(df, prefix)
    if not columns:
        return []
    return [_Panel(title, lambda axis: _map(axis, df, columns, label, top))]


def _both(key: str, style: str = "-", noisy: bool = True, swapped: bool = False) -> list[_Line]:
    """A line for each agent, from ``role_key`` (swapped: ``key_role``)."""
    return [
        _Line(f"{key}_{role}" if swapped else f"{role}_{key}", color, name, style, noisy)
        for role, color, name in _AGENTS
    ]


def _difficulty_panels(difficulty: pd.DataFrame | None) -> list[_Panel]:
    if difficulty is None or difficulty.empty:
        return []
    table = difficulty.sort_values(["tradeoff_rate", "decile"], ascending=[False, True])
    title = "Final policy on easy and hard test images"
    return [_Panel(title, lambda axis: _deciles(axis, table))]


def _present(df: pd.DataFrame, lines: Sequence[_Line]) -> list[_Line]:
    """The lines whose columns hold numbers."""
    return [line for line in lines if line.column in df and df[line.column].notna().any()]


def _layers(df: pd.DataFrame, prefix: str) -> list[str]:
    """Columns of a prefix and a layer's number, in the order of the layers."""
    numbers = [
        name.removeprefix(prefix) for name in map(str, df.columns) if name.startswith(prefix)
    ]
    return [f"{prefix}{number}" for number in sorted(int(n) for n in numbers if n.isdigit())]


# ------------------------------------------------------------------------------ drawing


def _lines(
    axis: Axes,
    df: pd.DataFrame,
    left: Sequence[_Line],
    left_label: str,
    right: Sequence[_Line] = (),
    right_label: str = "",
    level: float | None = None,
) -> None:
    """Lines over the updates; those on the right have a scale of their own."""
    if level is not None and left:
        axis.axhline(level, color=_GREY, linewidth=1.0, linestyle=(0, (1, 1)))
    handles = [_draw_line(axis, df, line) for line in left]
    axis.set_ylabel(left_label)
    _updates_axis(axis, df)
    if right:
        other = _second_axis(axis, right_label)
        handles += [_draw_line(other, df, line) for line in right]
    _mark_rounds(axis, df, "#888888")
    labelled = {handle.get_label(): handle for handle in reversed(handles)}
    if len(labelled) > 1:
        _legend(axis, list(labelled.values())[::-1])


def _updates_axis(axis: Axes, df: pd.DataFrame) -> None:
    axis.set_xlabel("PPO update")
    axis.set_xlim(float(df["update"].iloc[0]) - 0.5, float(df["update"].iloc[-1]) + 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _second_axis(axis: Axes, label: str) -> Axes:
    other = axis.twinx()
    other.grid(visible=False)
    other.spines["right"].set_visible(True)
    other.set_ylabel(label)
    return other


def _legend(axis: Axes, handles: Sequence[Any]) -> None:
    """Between title and panel, where it covers nothing."""
    axis.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-0.01, 0.985),
        ncols=len(handles),
        fontsize=9,
        borderaxespad=0.0,
        columnspacing=1.2,
        handlelength=1.8,
    )
    axis.set_title(axis.get_title(loc="left"), loc="left", fontweight="bold", pad=20)


def _draw_line(axis: Axes, df: pd.DataFrame, line: _Line) -> Any:
    """Each update faint, the moving mean bold; returns the bold line."""
    window = _window(len(df)) if line.noisy else 1
    updates, values = df["update"].to_numpy(dtype=float), df[line.column].astype(float)
    if window > 1:
        axis.plot(updates, values.to_numpy(), color=line.color, alpha=0.25, linewidth=0.8)
    smooth = values.rolling(window, min_periods=1, center=True).mean().to_numpy()
    drawn = np.isfinite(smooth) if line.sparse else slice(None)
    (bold,) = axis.plot(
        updates[drawn],
        smooth[drawn],
        color=line.color,
        linestyle=line.style,
        linewidth=2,
        marker="o" if line.sparse or len(df) < _SHORT else "",
        markersize=4,
        label=line.label,
    )
    return bold


def _window(updates: int) -> int:
    """Updates of a moving mean; a short training is drawn as it is."""
    return 1 if updates < _SHORT else max(_WINDOW, updates // 50)


def _map(
    axis: Axes, df: pd.DataFrame, columns: Sequence[str], label: str, top: float | None
) -> None:
    """Layers downwards in order of execution, updates to the right, numbers as colour."""
    size = -(-len(df) // _MOST_COLUMNS)
    blocks = df[["update", *columns]].astype(float).groupby(np.arange(len(df)) // size)
    starts = blocks["update"].min().to_numpy()
    edges = np.append(starts, df["update"].iloc[-1] + 1) - 0.5
    values = blocks[list(columns)].mean().to_numpy().T
    highest = np.nanmax(values) if top is None else top
    rows = np.arange(len(columns) + 1) - 0.5
    mesh = axis.pcolormesh(edges, rows, values, cmap="viridis", vmin=0, vmax=highest or 1.0)
    axis.grid(visible=False)
    axis.set_ylim(len(columns) - 0.5, -0.5)
    axis.set_ylabel("layer (0: first)")
    _updates_axis(axis, df)
    axis.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    _mark_rounds(axis, df, "white")
    bar = axis.inset_axes((1.02, 0.0, 0.03, 1.0))
    axis.get_figure().colorbar(mesh, cax=bar, label=label)  # type: ignore[union-attr]


def _mark_rounds(axis: Axes, df: pd.DataFrame, color: str) -> None:
    """Where the network was fine-tuned between two updates."""
    if "phase_round" not in df:
        return
    starts = df.loc[df["phase_round"].diff().fillna(0) != 0, "update"]
    for start in starts if len(starts) <= _MOST_MARKS else ():
        axis.axvline(float(start) - 0.5, color=color, linestyle=":", linewidth=1.1)


def _deciles(axis: Axes, table: pd.DataFrame) -> None:
    """MACs and accuracy of the learned policy against the dense network's loss.

    MACs are relative to the policy's own mean: policies of several R_r differ more from each
    other than easy images differ from hard ones.
    """
    accuracy = _second_axis(axis, "accuracy [%] (dashed)")
    handles: list[Any] = []
    policies = list(table.groupby("tradeoff_rate", sort=False))
    for (rate, rows), color in zip(policies, _rate_colors(len(policies)), strict=True):
        decile = rows["decile"].to_numpy()
        style: dict[str, Any] = {"color": color, "marker": "o", "markersize": 4, "linewidth": 2}
        mean = np.average(rows["macs_ratio"], weights=rows["images"])
        relative = (rows["macs_ratio"] / mean).to_numpy()
        label = f"$R_r$ = {rate:g} (mean {mean:.3f})"
        handles += axis.plot(decile, relative, label=label, **style)
        style |= {"linestyle": "--", "linewidth": 1.2, "markerfacecolor": "white"}
        accuracy.plot(decile, 100 * rows["accuracy"].to_numpy(), **style)
    losses = table.groupby("decile")["dense_loss"].first()
    axis.set_xticks(losses.index.to_list(), [f"{d}\n{_short(loss)}" for d, loss in losses.items()])
    axis.set_xlabel(
        "tenths of the images, easiest to hardest\n(below: dense network's loss [nats])"
    )
    axis.set_ylabel("MACs / the policy's mean (solid)")
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, 0.98), max(high, 1.02))  # no mountains out of rounding
    most = 3  # that fit beside each other
    _legend(axis, handles if len(handles) <= most else handles[:: (len(handles) - 1) // 2][:most])


def _short(loss: float) -> str:
    """At most four characters, as ten of them stand side by side."""
    return f"{loss:.2g}" if loss >= 0.01 else f"{loss:.3f}"[1:]


def _rate_colors(count: int) -> Sequence[Any]:
    """One colour per R_r: told apart if they are few, else in order."""
    if count <= len(_RATES):
        return _RATES[:count]
    return list(mpl.colormaps["viridis"](np.linspace(0.0, 0.9, count)))
