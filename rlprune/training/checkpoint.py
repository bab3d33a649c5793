"""Checkpoints of trials: tensors and plain values, read without running code (no Ray here).

A run's folder holds ``checkpoints/checkpoint_000012/{state.pt, config.json}``; folders
appear whole or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from rlprune.config import TrialConfig, config_from_dict, config_hash, config_to_dict
from rlprune.errors import CheckpointError, ConfigError, ForeignCheckpointError

STATE_FILE = "state.pt"
CONFIG_FILE = "config.json"
FORMAT_VERSION = 2
_KEPT = 2
_NAME = re.compile(r"checkpoint_(\d{6})")


def write_checkpoint(folder: str | Path, config: TrialConfig, state: dict[str, Any]) -> None:
    """Writes ``config.json`` and ``state.pt`` into an existing folder and syncs them."""
    target = Path(folder)
    with (target / CONFIG_FILE).open("w", encoding="utf-8") as text:
        json.dump(config_to_dict(config), text, indent=1)
        text.flush()
        os.fsync(text.fileno())
    with (target / STATE_FILE).open("wb") as binary:
        torch.save({"format_version": FORMAT_VERSION, **state}, binary)
        binary.flush()
        os.fsync(binary.fileno())


def save_numbered(root: Path, number: int, write: Callable[[str], object]) -> Path:
    """Makes ``root/checkpoint_NUMBER`` through a hidden folder; keeps the last two.

    Args:
        root: the run's ``checkpoints`` folder.
        number: replaces a folder of the same number.
        write: fills the folder whose path it is given.
    """
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(".writing-*"):
        shutil.rmtree(leftover)
    hidden = root / f".writing-{number:06d}"
    hidden.mkdir()
    write(str(hidden))
    final = root / f"checkpoint_{number:06d}"
    if final.exists():  # a killed predecessor's; os.replace needs an empty target
        shutil.rmtree(final)
    os.replace(hidden, final)
    directory = os.open(root, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    for old in _numbered(root)[:-_KEPT]:
        if old != final:
            shutil.rmtree(old)
    return final


def _numbered(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("checkpoint_*") if _NAME.fullmatch(path.name))


def latest_checkpoint(run: str | Path) -> Path | None:
    """The newest checkpoint folder of a run or of a sweep's trial, None where there is none."""
    found = _numbered(Path(run) / "checkpoints") or _numbered(Path(run))
    return found[-1] if found else None


def read_checkpoint_config(folder: str | Path) -> TrialConfig:
    """The configuration that a checkpoint was written with.

    Raises:
        CheckpointError: no readable ``config.json`` there.
    """
    file = Path(folder) / CONFIG_FILE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("no mapping")
        return config_from_dict(values)
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{file}: no checkpoint's configuration ({error}).") from None


def read_checkpoint(
    folder: str | Path, config: TrialConfig, may_differ: Collection[str] = ()
) -> dict[str, Any]:
    """The state in a checkpoint folder; nothing in it is executed.

    Args:
        folder: written by :func:`write_checkpoint`.
        config: the configuration that will go on from it.
        may_differ: fields (dotted) besides ``resources`` that may have changed since.

    Raises:
        ForeignCheckpointError: written with another configuration or version of rlprune.
        CheckpointError: missing or damaged.
    """
    stored = read_checkpoint_config(folder)
    comparable = dataclasses.replace(stored, resources=config.resources)
    for name in may_differ:
        comparable = _copy_field(config, comparable, name)
    if config_hash(comparable) != config_hash(config):
        changed = _differences(config_to_dict(comparable), config_to_dict(config))
        raise ForeignCheckpointError(
            f"{folder} was written with another configuration; different: "
            f"{', '.join(changed)}. Resume with the stored configuration, or choose a new --out."
        )
    file = Path(folder) / STATE_FILE
    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{file}: not a readable checkpoint ({first}). Delete the folder to resume from "
            "the one before it."
        ) from None
    if not isinstance(state, dict) or state.pop("format_version", None) != FORMAT_VERSION:
        raise ForeignCheckpointError(
            f"{file}: written by another version of rlprune (format "
            f"{FORMAT_VERSION} is read here). Use the version named in the run's results."
        )
    return dict(state)


def _copy_field(source: Any, target: Any, name: str) -> Any:
    """``target`` with the (dotted) field as in ``source``."""
    first, _, rest = name.partition(".")
    value = getattr(source, first)
    if rest:
        value = _copy_field(value, getattr(target, first), rest)
    return dataclasses.replace(target, **{first: value})


def _differences(left: dict[str, Any], right: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in left:
        if isinstance(left[key], dict):
            found += _differences(left[key], right[key], f"{prefix}{key}.")
        elif left[key] != right[key]:
            found.append(f"{prefix}{key} ({left[key]!r} there, {right[key]!r} here)")
    return found
