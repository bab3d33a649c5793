"""Finds the configurations that rlprune ships with (``tune_configs/``)."""

from __future__ import annotations

import difflib
from pathlib import Path

from rlprune.errors import ConfigError, Problem

_PACKAGE = Path(__file__).resolve().parent
_FOLDERS = (
    _PACKAGE / "tune_configs",  # in a wheel: inside the package
    _PACKAGE.parent / "tune_configs",  # in a checkout: beside it
)
_SWEEP = "sweep_"


def preset_folder() -> Path:
    """The folder with the presets, in an installed package or in a checkout.

    Raises:
        ConfigError: neither place has one (a broken installation).
    """
    for folder in _FOLDERS:
        if folder.is_dir():
            return folder
    places = " or ".join(str(folder) for folder in _FOLDERS)
    problem = Problem("presets", "must lie in the package", places, "Install rlprune again.")
    raise ConfigError([problem])


def preset_names() -> list[str]:
    """Names of all presets of single trials without ``.yaml``, sorted."""
    return [name for name in _all_names() if not name.startswith(_SWEEP)]


def sweep_names() -> list[str]:
    """Names of all presets of sweeps (``sweep_...``) without ``.yaml``, sorted."""
    return [name for name in _all_names() if name.startswith(_SWEEP)]


def _all_names() -> list[str]:
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))


def preset_path(name: str) -> Path:
    """Path of the preset ``name`` (with or without ``.yaml``), for example ``quickstart``.

    Trials and sweeps alike: what reads the file says which of the two it must be.

    Raises:
        ConfigError: there is no such preset; the message has the nearest names.
    """
    stem = name.removesuffix(".yaml")
    names = _all_names()
    if stem not in names:
        near = difflib.get_close_matches(stem, names, n=3) or names
        remedy = f"Use one of: {', '.join(near)}."
        raise ConfigError([Problem("preset", "must be a preset of rlprune", name, remedy)])
    return preset_folder() / f"{stem}.yaml"
