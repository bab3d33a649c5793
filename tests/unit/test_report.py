"""Figures and the terminal table: what they show, read back from the drawn objects."""

from __future__ import annotations

import dataclasses
import re
import threading
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from rlprune.errors import ResultsError
from rlprune.report import figures
from rlprune.report.figures import tradeoff_figure
from rlprune.report.styles import STYLES
from rlprune.report.terminal import rich_table
from rlprune.results import METHODS, SCHEMA, ResultRow
from rlprune.results.schema import LATENCY, PER_LAYER

DENSE_BYTES = 90_000


def make_points(
    rates: tuple[float, ...] = (0.0, 0.5, 1.0), seeds: int = 1, budget_s: float | None = None
) -> pd.DataFrame:
    """Made-up points of the shape that a trial has; seed k is k points better."""
    rows = []
    for seed in range(seeds):
        for method, offset in (("learned", 0.0), ("uniform", -0.02), ("random", -0.03)):
            for rate in rates:
                accuracy = 0.88 + 0.03 * rate + offset + 0.01 * seed
                size = int(45_000 + 55_000 * rate)
                rows.append(_point(method, seed, rate, budget_s, accuracy, size))
        rows.append(_point("static_l1", seed, None, budget_s, 0.84 + 0.01 * seed, 30_000))
        rows.append(_point("dense", seed, None, None, 0.92 + 0.01 * seed, DENSE_BYTES))
    frame: pd.DataFrame = pa.Table.from_pylist(rows, SCHEMA).to_pandas()
    return frame


def _point(
    method: str, seed: int, rate: float | None, s: float | None, accuracy: float, size: int
) -> dict[str, Any]:
    words = dict.fromkeys(("backbone", "dataset", "tradeoff", "budget_rule", "versions"), "x")
    fields = [field.name for field in dataclasses.fields(ResultRow)]
    numbers = dict.fromkeys(fields, 0) | {"schema_version": 1, "macs_dense": 174e6}
    lists: dict[str, Any] = {name: [] for name in ("layer_names", *PER_LAYER)}
    lists |= dict.fromkeys(("image_dependent_ratio", *LATENCY))
    return {
        **numbers,
        **lists,
        **words,
        "experiment": "made-up",
        "trial": f"t{seed}",
        "config_hash": f"h{seed}",
        "checkpoint_uri": None,
        "configuration": None,
        "backbone": "m_cifarnet",
        "dataset": "fashion_mnist",
        "width": 0.25,
        "method": method,
        "seed": seed,
        "tradeoff_rate": rate,
        "budget_s": s,
        "storage_budget_bytes": None if rate is None else 50_000 + 50_000 * rate,
        "compute_max_budget_macs": 44e6 if s is None else s * s * 174e6,
        "compute_mean_budget_macs": None,
        "budgets_met": method != "random",
        "test_accuracy": accuracy,
        "test_accuracy_top5": None,
        "macs_max": 43e6,
        "macs_mean_ratio": 0.24,
        "storage_bytes": size,
        "storage_ratio": size / DENSE_BYTES,
        "created_at": pd.Timestamp("2026-01-02", tz="UTC"),
    }


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, for reading what they show."""
    saved: list[Figure] = []
    save = figures._save

    def keep(figure: Figure, path: str | Path) -> Path:
        saved.append(figure)
        return save(figure, path)

    monkeypatch.setattr(figures, "_save", keep)
    return saved


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_tradeoff_figure_shows_every_method(tmp_path: Path, drawn: list[Figure]) -> None:
    path = tradeoff_figure(make_points(), tmp_path / "new" / "tradeoff.png")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > 1000
    assert [file.name for file in path.parent.iterdir()] == ["tradeoff.png"]
    (figure,) = drawn
    accuracy, storage = figure.axes
    learned = accuracy.containers[0]
    assert learned.lines[0].get_xydata().round(6).tolist() == [[0, 88], [0.5, 89.5], [1, 91]]
    assert storage.containers[0].lines[0].get_ydata().tolist() == [45, 72.5, 100]
    reference = {line.get_label(): line.get_ydata()[0] for line in accuracy.lines}
    assert reference["dense, nothing pruned"] == pytest.approx(92)
    assert reference["static L1"] == pytest.approx(84)
    budget = {line.get_label(): line for line in storage.lines}["storage budget"]
    assert budget.get_ydata().tolist() == [50, 75, 100]
    title = figure.get_suptitle()
    assert title.startswith(
        "fashion_mnist, m_cifarnet, width 0.25\nbudget: any image at most 25.3%"
    )
    methods = ["learned", "uniform", "random", "static L1", "dense, nothing pruned"]
    assert legend_of(figure) == [*methods, "storage budget"]


def test_every_method_has_a_style_and_a_mark_of_its_own() -> None:
    assert set(STYLES) == set(METHODS)
    for name in ("label", "color", "dark", "symbol", "point"):
        assert len({getattr(style, name) for style in STYLES.values()}) == len(METHODS)
    script = files("rlprune.report").joinpath("web", "dom.js").read_text(encoding="utf-8")
    shapes = script.partition("const SHAPES = {")[2].partition("};")[0]
    drawn = set(re.findall(r"^  '?([a-z-]+)'?: 'M", shapes, re.MULTILINE))
    assert {style.symbol for style in STYLES.values()} <= drawn


def test_a_cascade_is_a_line_over_its_own_rates(tmp_path: Path, drawn: list[Figure]) -> None:
    points = make_points()
    pair = points[(points["method"] == "uniform") & (points["tradeoff_rate"] > 0)]
    pair = pair.assign(method="cascade", test_accuracy=0.9, budgets_met=False)
    tradeoff_figure(pd.concat([points, pair]), tmp_path / "tradeoff.png")
    accuracy = drawn[0].axes[0]
    (line,) = (c for c in accuracy.containers if c.get_label() == "confidence cascade")
    assert line.lines[0].get_xydata().round(6).tolist() == [[0.5, 90], [1, 90]]
    assert "confidence cascade" in legend_of(drawn[0])


def test_several_seeds_become_mean_and_standard_error(tmp_path: Path, drawn: list[Figure]) -> None:
    tradeoff_figure(make_points(seeds=3), tmp_path / "tradeoff.png")
    learned = drawn[0].axes[0].containers[0]
    assert learned.lines[0].get_ydata().round(6).tolist() == [89, 90.5, 92]
    (bars,) = learned.lines[2]
    low, high = bars.get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(1 / 3**0.5)  # std of 88, 89, 90 is 1
    assert "learned (n = 3 seeds)" in legend_of(drawn[0])


def test_earlier_steps_are_left_out(tmp_path: Path, drawn: list[Figure]) -> None:
    early = make_points().assign(step=-1, test_accuracy=0.1)
    tradeoff_figure(pd.concat([early, make_points()]), tmp_path / "tradeoff.png")
    assert drawn[0].axes[0].containers[0].lines[0].get_ydata().min() > 80


def test_single_rate_and_dense_alone_can_be_drawn(tmp_path: Path, drawn: list[Figure]) -> None:
    tradeoff_figure(make_points(rates=(0.5,)), tmp_path / "one.png")
    points = make_points()
    tradeoff_figure(points[points["method"] == "dense"], tmp_path / "dense.png")
    budget = [line for line in drawn[0].axes[1].lines if line.get_label() == "storage budget"]
    assert budget[0].get_ydata() == [75, 75]  # a line across, a point would not be seen
    assert drawn[1].get_suptitle().endswith("no budgets")


def test_swept_budgets_get_panels_of_their_own(tmp_path: Path, drawn: list[Figure]) -> None:
    points = pd.concat([make_points(budget_s=0.3), make_points(), make_points(budget_s=0.7)])
    tradeoff_figure(points, tmp_path / "tradeoff.png")
    titles = [axis.get_title(loc="left") for axis in drawn[0].axes[::2]]
    assert [title.partition(" at most")[0] for title in titles] == [
        "budget: s = 0.7, any image",
        "budget: any image",
        "budget: s = 0.3, any image",
    ]
    assert len(drawn[0].axes) == 6
    assert len(legend_of(drawn[0])) == 6


@pytest.mark.parametrize("column", ["dataset", "backbone"])
def test_unlike_rows_are_not_averaged(tmp_path: Path, column: str) -> None:
    points = pd.concat([make_points(), make_points().assign(**{column: "other"})])
    with pytest.raises(ResultsError, match=rf'several {column} .*df\[df\["{column}"\] == '):
        tradeoff_figure(points, tmp_path / "tradeoff.png")


def test_other_storage_budgets_are_not_averaged(tmp_path: Path) -> None:
    other = make_points().assign(trial="other", storage_budget_bytes=1.0)
    with pytest.raises(ResultsError, match="several storage_budget_bytes"):
        tradeoff_figure(pd.concat([make_points(), other]), tmp_path / "tradeoff.png")


def test_figures_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="there are no rows"):
        tradeoff_figure(make_points().iloc[:0], tmp_path / "a.png")
    with pytest.raises(ResultsError, match=r"figure .*a\.nonsense: cannot be written"):
        tradeoff_figure(make_points(), tmp_path / "a.nonsense")
    assert list(tmp_path.iterdir()) == []


def test_figures_from_several_threads(tmp_path: Path) -> None:
    """No global pyplot state: trials of a sweep may draw at once."""
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    threads = [threading.Thread(target=tradeoff_figure, args=(make_points(), p)) for p in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({path.read_bytes() for path in paths}) == 1


def test_rich_table() -> None:
    console = Console(width=140)
    with console.capture() as capture:
        console.print(rich_table(make_points(), title="digits"))
    lines = [line for line in capture.get().splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in lines]
    assert cells[0] == ["learned", "1", "91.0", "0.240", "0.977", "100,000", "1.111", "yes"]
    assert cells[3] == ["dense", "-", "92.0", "0.240", "0.977", "90,000", "1.000", "-"]
    assert [row[-1] for row in cells if row[0] == "random"] == ["no"] * 3
