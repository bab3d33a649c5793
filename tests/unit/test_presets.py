"""Presets are found in a checkout and in an installed package."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlprune import presets
from rlprune.backbones import build_backbone, trace_backbone
from rlprune.config import load_config
from rlprune.errors import ConfigError
from rlprune.pruning import CostModel
from rlprune.training.setup import TrialSetup


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    places = (tmp_path / "rlprune" / "tune_configs", tmp_path / "tune_configs")
    monkeypatch.setattr(presets, "_FOLDERS", places)
    return places


@pytest.mark.parametrize("place", [0, 1], ids=["installed", "checkout"])
def test_found_in_both_places(folders: tuple[Path, Path], place: int) -> None:
    folder = folders[place]
    folder.mkdir(parents=True)
    (folder / "quickstart.yaml").write_text("name: quickstart\n")
    assert presets.preset_path("quickstart") == folder / "quickstart.yaml"
    assert presets.preset_path("quickstart.yaml") == folder / "quickstart.yaml"
    assert presets.preset_names() == ["quickstart"]


def test_sweeps_are_listed_apart_from_trials(folders: tuple[Path, Path]) -> None:
    folders[1].mkdir()
    for name in ("sweep_digits", "quickstart", "sweep_b", "sweeping"):
        (folders[1] / f"{name}.yaml").touch()
    assert presets.preset_names() == ["quickstart", "sweeping"]
    assert presets.sweep_names() == ["sweep_b", "sweep_digits"]
    assert presets.preset_path("sweep_b") == folders[1] / "sweep_b.yaml"
    with pytest.raises(ConfigError, match=r"'sweep_digit'\)\. Use one of: sweep_digits"):
        presets.preset_path("sweep_digit")


def test_unknown_name_lists_the_nearest(folders: tuple[Path, Path]) -> None:
    folders[1].mkdir()
    for name in ("quickstart", "cifar10_resnet20"):
        (folders[1] / f"{name}.yaml").touch()
    with pytest.raises(ConfigError, match=r"'quikstart'\)\. Use one of: quickstart\."):
        presets.preset_path("quikstart")
    with pytest.raises(ConfigError, match=r"Use one of: cifar10_resnet20, quickstart\."):
        presets.preset_path("../secrets")


def test_broken_installation_says_so(folders: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="Install rlprune again"):
        presets.preset_path("quickstart")


def test_this_checkout_has_the_quickstart() -> None:
    path = presets.preset_path("quickstart")
    assert path.is_file()
    assert path.parent == Path(presets.__file__).resolve().parents[1] / "tune_configs"


def test_predictors_and_agent_of_the_mean_compute_preset_are_small() -> None:
    """At full width they add less than 5 % to what the plain network stores (paper: 31 %)."""
    path = presets.preset_path("fashion_mean_compute")
    config = load_config(path, ["backbone.width=1.0", "data.name=cifar10"])
    backbone = build_backbone(config.backbone, num_classes=10, input_shape=(3, 32, 32))
    graph = trace_backbone(backbone, (3, 32, 32), 10).channels
    dense = CostModel(graph, predictors=False).dense_bytes()
    costs = TrialSetup.of(config, graph).costs
    assert dense > 5_000_000
    assert 1.0 < costs.dense_bytes() / dense < 1.05
