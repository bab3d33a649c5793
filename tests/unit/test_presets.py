"""Presets are found in a checkout and in an installed package."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlprune import presets
from rlprune.errors import ConfigError


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
