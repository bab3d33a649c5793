"""The picture of a training: which panels there are, read back from the drawn objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from rlprune.errors import ResultsError
from rlprune.report import training_figure as module
from rlprune.report.source import read_source
from rlprune.report.training_figure import training_figure
from tests.report_rows import write_sweep

EVERY_PANEL = [
    "Rewards",
    "Answers during rollouts",
    "On the validation images, after every round",
    "Budgets used",
    "Do harder images get more compute?",
    "Channels computed, by layer",
    "Differences between images, by layer",
    "How well the agents foresee their reward",
    "Size of the policy steps",
    "Exploration",
    "Final policy on easy and hard test images",
]


def make_history(updates: int = 100, layers: int = 8) -> pd.DataFrame:
    noise = np.random.default_rng(0)
    update = np.arange(1, updates + 1)
    done = update / updates
    columns = {
        "update": update,
        "phase_round": (update - 1) * 4 // updates,
        "reward_runtime": -2 + done + noise.normal(0, 0.2, updates),
        "reward_static": -1.5 + 0.5 * done + noise.normal(0, 0.2, updates),
        "loss": 0.9 - 0.5 * done + noise.normal(0, 0.05, updates),
        "accuracy": 0.7 + 0.2 * done,
        "macs_ratio": 0.25 - 0.02 * done,
        "storage_ratio": 0.5 + 0 * done,
        "macs_difficulty": 0.3 * done,
        "compute_used": 0.9 + 0.1 * done,
        "storage_used": 1 - 0.05 * done,
        "price": 1 + done,
        "validation_accuracy_1": np.where(update % 25 == 0, 0.7 + 0.2 * done, np.nan),
        "validation_accuracy_0.5": np.where(update % 25 == 0, 0.6 + 0.2 * done, np.nan),
    }
    for role in ("runtime", "static"):
        columns[f"{role}_vf_explained_var"] = 0.5 * done
        columns[f"{role}_sampled_kl"] = 0.01 + 0.002 * done
        columns[f"{role}_clip_fraction"] = 0.1 * done
        columns[f"{role}_entropy"] = -1 - done
    for layer in range(layers):
        end = 0.25 + 0.6 * layer / max(1, layers - 1)
        columns[f"keep_ratio_{layer}"] = 0.5 + (end - 0.5) * done
        columns[f"keep_ratio_std_{layer}"] = 0.01 * (layer + 1) * done
    return pd.DataFrame(columns)


def make_difficulty() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "tradeoff_rate": [1.0] * 10 + [0.0] * 10,
            "decile": [*range(1, 11)] * 2,
            "dense_loss": np.tile(np.geomspace(0.001, 3.0, 10), 2),
            "macs_ratio": [*np.linspace(0.2, 0.4, 10), *[0.25] * 10],
            "accuracy": np.tile(np.linspace(1.0, 0.4, 10), 2),
            "images": 36,
        }
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, for reading what they show."""
    saved: list[Figure] = []
    save = module._save

    def keep(figure: Figure, path: str | Path) -> Path:
        saved.append(figure)
        return save(figure, path)

    monkeypatch.setattr(module, "_save", keep)
    return saved


def panels(figure: Figure) -> dict[str, Axes]:
    """Panels by title, in reading order; second axes have none."""
    titled = [axis for axis in figure.axes if axis.get_title(loc="left")]
    return {axis.get_title(loc="left"): axis for axis in titled}


def legend(axis: Axes) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_every_panel(tmp_path: Path, drawn: list[Figure]) -> None:
    path = training_figure(make_history(), make_difficulty(), tmp_path / "new" / "training.png")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width == 1860 and image.height > 2400
    found = panels(drawn[0])
    assert list(found) == EVERY_PANEL
    assert legend(found["Rewards"]) == ["runtime agent", "static agent"]
    rounds = [line.get_xdata()[0] for line in found["Rewards"].lines if line.get_linestyle() == ":"]
    assert rounds == [25.5, 50.5, 75.5]
    assert legend(found["Budgets used"]) == ["compute", "storage", "price of compute"]
    assert found["Budgets used"].lines[0].get_ydata() == [1.0, 1.0]
    assert "mean over 10" in drawn[0].get_suptitle()
    accuracy = found["Answers during rollouts"].lines
    raw, smooth = accuracy[0].get_ydata(), accuracy[1].get_ydata()
    assert raw[-1] == pytest.approx(0.9)
    assert smooth[50] == pytest.approx(0.7 + 0.2 * 0.505)  # of updates 46 to 55
    price = next(axis for axis in drawn[0].axes if axis.get_ylabel() == "price")
    assert len(price.lines) == 1  # nothing to be smoothed


def test_maps_show_layers_downwards(tmp_path: Path, drawn: list[Figure]) -> None:
    training_figure(make_history(), None, tmp_path / "training.png")
    found = panels(drawn[0])
    assert list(found) == EVERY_PANEL[:-1]
    mesh = found["Channels computed, by layer"].collections[0]
    assert mesh.get_array().shape == (8, 100) and mesh.get_clim() == (0, 1)
    assert mesh.get_array()[0, -1] == pytest.approx(0.25)
    assert mesh.get_array()[7, -1] == pytest.approx(0.85)
    spread = found["Differences between images, by layer"].collections[0]
    assert spread.get_array()[7, -1] == pytest.approx(0.08)
    assert spread.get_clim() == pytest.approx((0, 0.08))


def test_long_trainings_are_thinned_in_maps(tmp_path: Path, drawn: list[Figure]) -> None:
    training_figure(make_history(2000, 2), None, tmp_path / "training.png")
    mesh = panels(drawn[0])["Channels computed, by layer"].collections[0]
    assert mesh.get_array().shape == (2, 667)  # three updates each
    first = make_history(2000, 2)["keep_ratio_1"].iloc[:3].mean()
    assert mesh.get_array()[1, 0] == pytest.approx(first)
    assert mesh.get_coordinates()[0, [0, 1, -1], 0].tolist() == [0.5, 3.5, 2000.5]


def test_panels_without_data_are_left_out(tmp_path: Path, drawn: list[Figure]) -> None:
    old = make_history()[["update", "phase_round", "reward_runtime", "loss", "macs_ratio"]]
    old = old.assign(price=np.nan)
    training_figure(old, make_difficulty().iloc[:0], tmp_path / "old.png")
    assert list(panels(drawn[0])) == ["Rewards", "Answers during rollouts", "Cost"]
    assert panels(drawn[0])["Rewards"].get_legend() is None
    training_figure(make_history().iloc[:0], make_difficulty(), tmp_path / "final.png")
    assert list(panels(drawn[1])) == EVERY_PANEL[-1:]
    with pytest.raises(ResultsError, match="there are no updates"):
        training_figure(make_history().iloc[:0], None, tmp_path / "none.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["final.png", "old.png"]


def test_difficulty_is_relative_to_each_policy(tmp_path: Path, drawn: list[Figure]) -> None:
    training_figure(make_history(), make_difficulty(), tmp_path / "training.png")
    axis = panels(drawn[0])[EVERY_PANEL[-1]]
    runtime, static = axis.lines
    assert runtime.get_ydata()[[0, -1]].tolist() == pytest.approx([0.2 / 0.3, 0.4 / 0.3])
    assert static.get_ydata().tolist() == pytest.approx([1.0] * 10)
    assert legend(axis) == ["$R_r$ = 1 (mean 0.300)", "$R_r$ = 0 (mean 0.250)"]
    assert [label.get_text() for label in axis.get_xticklabels()][::9] == ["1\n.001", "10\n3"]
    rates = [make_difficulty().iloc[:10].assign(tradeoff_rate=k / 10) for k in range(11)]
    training_figure(make_history(), pd.concat(rates), tmp_path / "many.png")
    many = panels(drawn[1])[EVERY_PANEL[-1]]
    assert len({str(line.get_color()) for line in many.lines}) == 11
    assert [label[:9] for label in legend(many)] == ["$R_r$ = 1", "$R_r$ = 0", "$R_r$ = 0"]


@pytest.mark.parametrize(("updates", "layers"), [(1, 1), (3, 0), (40, 53)])
def test_trainings_of_any_size(tmp_path: Path, updates: int, layers: int) -> None:
    path = training_figure(make_history(updates, layers), None, tmp_path / "training.png")
    assert path.stat().st_size > 10_000


def test_the_report_takes_neither_picture_nor_difficulty_for_a_curve(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep")
    before = [curve.trial for curve in read_source(folder).curves]
    (folder / "difficulty").mkdir()
    make_difficulty().to_parquet(folder / "difficulty" / f"{before[0]}.parquet")
    training_figure(make_history(), None, folder / "updates" / f"{before[0]}.png")
    assert [curve.trial for curve in read_source(folder).curves] == before
