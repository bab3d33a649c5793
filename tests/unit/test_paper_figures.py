"""The report's pictures for papers: which files, and the numbers that they show."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from rlprune.errors import ResultsError
from rlprune.report import paper_figures
from rlprune.report.settings import add_settings, configurations
from rlprune.report.source import read_source
from rlprune.results import ResultRow
from tests.report_rows import BACKBONES, BUDGETS, EXAMPLE, RATES, write_sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("figures") / "sweep")


def with_settings(rows: list[ResultRow]) -> pd.DataFrame:
    points = pd.DataFrame([dataclasses.asdict(row) for row in rows])
    return add_settings(points, configurations(points))


@pytest.mark.parametrize(
    ("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_figures_for_papers(tmp_path: Path, suffix: str, magic: bytes) -> None:
    folder = write_sweep(tmp_path / "sweep", seeds=(1,), backbones=("resnet20",))
    paths = paper_figures.write_figures(read_source(folder), tmp_path / "new", suffix)
    assert [path.name for path in paths] == [
        f"front_digits.{suffix}",
        f"methods_digits.{suffix}",
        f"tradeoff_digits_resnet20.{suffix}",
        f"tradeoff_digits_resnet20_2.{suffix}",
        f"tradeoff_digits_resnet20_3.{suffix}",
        f"learning_curves.{suffix}",
    ]
    assert {path.read_bytes()[: len(magic)] for path in paths} == {magic}


def test_unknown_figure_format(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"format 'gif' is unknown\. Give one of png, svg, pdf"):
        paper_figures.write_figures(read_source(sweep), tmp_path, "gif")


def test_repetitions_are_means_with_standard_errors() -> None:
    rows = [
        dataclasses.replace(EXAMPLE, seed=seed, trial=f"t{seed}", test_accuracy=accuracy)
        for seed, accuracy in enumerate((0.8, 0.85, 0.9))
    ]
    (mean,) = paper_figures.repetitions(with_settings(rows)).to_dict("records")
    assert mean["n"] == 3
    assert mean["test_accuracy"] == pytest.approx(0.85)
    assert mean["test_accuracy_error"] == pytest.approx(0.05 / 3**0.5)


def test_front_and_methods_figures_show_the_numbers(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Figure] = {}
    monkeypatch.setattr(
        paper_figures, "_save", lambda figure, path: drawn.setdefault(Path(path).stem, figure)
    )
    points = read_source(sweep).points
    paper_figures.front_figure(points, tmp_path / "front.png")
    means = points.groupby(["setting", "method", "tradeoff_rate"], dropna=False)[
        ["validation_accuracy", "test_accuracy", "storage_bytes"]
    ].mean()
    means = means.round(12)  # equal numbers in another order must still tie
    beaten = [
        (
            (means["storage_bytes"] <= row.storage_bytes)
            & (means["validation_accuracy"] >= row.validation_accuracy)
            & (
                (means["storage_bytes"] < row.storage_bytes)
                | (means["validation_accuracy"] > row.validation_accuracy)
            )
        ).any()
        for row in means.itertuples()
    ]
    front = means[[not value for value in beaten]].sort_values("storage_bytes")
    line = next(x for x in drawn["front"].axes[0].lines if str(x.get_label()).startswith("front"))
    assert line.get_xdata() == pytest.approx(front["storage_bytes"].to_numpy() / 1000)
    assert line.get_ydata() == pytest.approx(100 * front["test_accuracy"].to_numpy())

    paper_figures.methods_figure(points, tmp_path / "methods.png")
    axis = drawn["methods"].axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()][:3] == [
        f"$R_r$ = {rate:g}" for rate in RATES
    ]
    assert len(axis.get_yticks()) == len(BACKBONES) * len(BUDGETS) * len(RATES)
    headings = [text.get_text() for text in axis.texts]
    assert headings[0].startswith("m_cifarnet, stores ≤ 97.9 to")
    assert headings[-1].startswith("resnet20, stores ≤ 763 to")
    lengths = {bars.get_label(): len(bars.lines[0].get_xdata()) for bars in axis.containers}
    assert set(lengths.values()) == {18}  # static L1 and dense stand in every line as well
