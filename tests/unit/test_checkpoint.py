"""Checkpoint folders: whole or absent, the newest two, damaged ones refused by name."""

import dataclasses
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from rlprune.config import TrialConfig, config_from_dict, config_to_dict
from rlprune.errors import CheckpointError
from rlprune.training.checkpoint import (
    CONFIG_FILE,
    FORMAT_VERSION,
    STATE_FILE,
    latest_checkpoint,
    read_checkpoint,
    read_checkpoint_config,
    save_numbered,
    write_checkpoint,
)

CONFIG = config_from_dict({"name": "one", "seed": 3, "budgets": {"train_range": [0.3, 0.7]}})
STATE: dict[str, Any] = {
    "program": {"position": 4, "snapshots": {"learned": {"w": torch.arange(3.0)}}},
    "prices": [1.0, 0.5],
    "nothing": None,
}


def save(run: Path, number: int, config: TrialConfig = CONFIG, **state: Any) -> Path:
    def write(folder: str) -> None:
        write_checkpoint(folder, config, {**STATE, "number": number, **state})

    return save_numbered(run / "checkpoints", number, write)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


class Killed(BaseException):
    """As KeyboardInterrupt is: no ordinary exception."""


# --- numbered folders -----------------------------------------------------------------------


def test_what_was_written_is_read(tmp_path: Path) -> None:
    folder = save(tmp_path, 12)
    assert folder == tmp_path / "checkpoints" / "checkpoint_000012" == latest_checkpoint(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, STATE_FILE]
    assert read_checkpoint_config(folder) == CONFIG
    state = read_checkpoint(folder, CONFIG)
    assert torch.equal(state["program"]["snapshots"]["learned"]["w"], torch.arange(3.0))
    assert (state["prices"], state["nothing"], state["number"]) == ([1.0, 0.5], None, 12)
    assert state["program"]["position"] == 4
    assert set(state) == {*STATE, "number"}  # the format version is not part of it


def test_none_without_checkpoints(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "absent") is None
    (tmp_path / "checkpoints").mkdir()
    assert latest_checkpoint(tmp_path) is None


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for number in (1, 2, 9, 10, 100):
        folder = save(tmp_path, number)
        assert latest_checkpoint(tmp_path) == folder
        assert read_checkpoint(folder, CONFIG)["number"] == number
    assert names(tmp_path) == ["checkpoint_000010", "checkpoint_000100"]


def test_a_folder_of_the_same_number_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 1)
    first = save(tmp_path, 2, note="first")
    (first / "left over").write_text("of a killed predecessor")
    again = save(tmp_path, 2, note="again")
    assert again == first and names(tmp_path) == ["checkpoint_000001", "checkpoint_000002"]
    assert read_checkpoint(again, CONFIG)["note"] == "again"
    assert not (again / "left over").exists()


def test_other_names_are_neither_taken_nor_deleted(tmp_path: Path) -> None:
    others = ("checkpoint_final", "checkpoint_0000009", "checkpoint_999999.bak", "notes")
    for name in others:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    for number in (1, 2, 3):
        save(tmp_path, number)
    assert latest_checkpoint(tmp_path).name == "checkpoint_000003"
    assert names(tmp_path) == sorted([*others, "checkpoint_000002", "checkpoint_000003"])


# --- killed while writing -------------------------------------------------------------------


@pytest.mark.parametrize("error", [Killed, OSError])
def test_a_half_written_folder_is_ignored_and_cleaned_up(
    tmp_path: Path, error: type[BaseException]
) -> None:
    good = save(tmp_path, 1)

    def killed(folder: str) -> None:
        (Path(folder) / CONFIG_FILE).write_text("{")
        (Path(folder) / STATE_FILE).write_bytes(b"half")
        raise error("while writing")

    with pytest.raises(error):
        save_numbered(tmp_path / "checkpoints", 2, killed)
    assert latest_checkpoint(tmp_path) == good
    assert read_checkpoint(good, CONFIG)["number"] == 1
    assert not (tmp_path / "checkpoints" / "checkpoint_000002").exists()
    # the next one, of whatever number, cleans up
    save(tmp_path, 3)
    assert names(tmp_path) == ["checkpoint_000001", "checkpoint_000003"]


def test_leftovers_of_a_killed_process_are_cleaned_up(tmp_path: Path) -> None:
    """As SIGKILL leaves them: nobody caught anything."""
    leftover = tmp_path / "checkpoints" / ".writing-000007"
    leftover.mkdir(parents=True)
    (leftover / STATE_FILE).write_bytes(b"half")
    assert latest_checkpoint(tmp_path) is None
    folder = save(tmp_path, 7)  # the same number, with the same hidden name
    assert names(tmp_path) == ["checkpoint_000007"]
    assert read_checkpoint(folder, CONFIG)["number"] == 7


def test_the_folder_is_complete_before_it_has_its_name(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def write(folder: str) -> None:
        write_checkpoint(folder, CONFIG, STATE)
        seen.append(names(tmp_path))
        assert latest_checkpoint(tmp_path) is None

    save_numbered(tmp_path / "checkpoints", 1, write)
    assert seen == [[".writing-000001"]]


# --- damaged, foreign, malicious ------------------------------------------------------------


def damage_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_middle(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[:64] = bytes(64)
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "damage",
    [
        damage_half,
        damage_middle,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_text("no checkpoint at all"),
        lambda file: file.unlink(),
        lambda file: (file.unlink(), file.mkdir()),
    ],
    ids=["half", "overwritten", "empty", "text", "missing", "folder"],
)
def test_a_damaged_state_is_refused_by_name(tmp_path: Path, damage: Any) -> None:
    folder = save(tmp_path, 1)
    damage(folder / STATE_FILE)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder, CONFIG)
    text = str(caught.value)
    assert text.startswith(f"{folder / STATE_FILE}: not a readable checkpoint (")
    assert "Delete the folder to resume from the one before it." in text
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("version", [None, 0, FORMAT_VERSION + 1, "1"])
def test_another_format_is_refused(tmp_path: Path, version: object) -> None:
    folder = save(tmp_path, 1)
    torch.save({**STATE, "format_version": version}, folder / STATE_FILE)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder, CONFIG)
    assert str(caught.value).startswith(f"{folder / STATE_FILE}: written by another version")


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(2), None], ids=["list", "tensor", "none"])
def test_a_state_that_is_no_mapping_is_refused(tmp_path: Path, content: object) -> None:
    folder = save(tmp_path, 1)
    torch.save(content, folder / STATE_FILE)
    with pytest.raises(CheckpointError, match=STATE_FILE):
        read_checkpoint(folder, CONFIG)


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("plain", [False, True], ids=["torch.save", "pickle"])
def test_nothing_in_a_state_is_executed(tmp_path: Path, plain: bool) -> None:
    folder, made = save(tmp_path, 1), tmp_path / "executed"
    content = {**STATE, "format_version": FORMAT_VERSION, "payload": Malicious(made)}
    if plain:
        (folder / STATE_FILE).write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, folder / STATE_FILE)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder, CONFIG)
    assert str(folder / STATE_FILE) in str(caught.value)
    assert not made.exists()
    # the same file does execute where it is trusted: the test tests something
    if plain:
        pickle.loads((folder / STATE_FILE).read_bytes())
    else:
        torch.load(folder / STATE_FILE, weights_only=False)
    assert made.is_dir()


def test_another_configuration_is_refused_and_the_differences_are_named(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    other = config_from_dict({**config_to_dict(CONFIG), "seed": 4, "agents": {"hidden": 8}})
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder, other)
    text = str(caught.value)
    assert text.startswith(f"{folder} was written with another configuration")
    assert "seed (3 there, 4 here)" in text
    assert f"agents.hidden ({CONFIG.agents.hidden} there, 8 here)" in text
    assert "budgets" not in text and "name" not in text  # what is equal is not listed


def test_resources_may_differ(tmp_path: Path) -> None:
    """A run goes on with another number of cores, or on another device."""
    folder = save(tmp_path, 1)
    other = dataclasses.replace(
        CONFIG, resources=dataclasses.replace(CONFIG.resources, cpus=7, device="cpu")
    )
    assert read_checkpoint(folder, other)["number"] == 1


@pytest.mark.parametrize("content", [None, "", "{", "no JSON"])
def test_an_unreadable_configuration_is_refused_by_name(
    tmp_path: Path, content: str | None
) -> None:
    folder = save(tmp_path, 1)
    if content is None:
        (folder / CONFIG_FILE).unlink()
    else:
        (folder / CONFIG_FILE).write_text(content)
    for read in (read_checkpoint_config, lambda path: read_checkpoint(path, CONFIG)):
        with pytest.raises(CheckpointError) as caught:
            read(folder)
        assert str(caught.value).startswith(f"{folder / CONFIG_FILE}: ")


@pytest.mark.parametrize("content", [{"sed": 3}, {"seed": -1}, [], 3, None], ids=str)
def test_a_foreign_configuration_is_refused_by_name(tmp_path: Path, content: object) -> None:
    """As a newer version of rlprune, or another program, might write it."""
    folder = save(tmp_path, 1)
    (folder / CONFIG_FILE).write_text(json.dumps(content))
    for read in (read_checkpoint_config, lambda path: read_checkpoint(path, CONFIG)):
        with pytest.raises(CheckpointError) as caught:
            read(folder)
        assert str(caught.value).startswith(f"{folder / CONFIG_FILE}: ")
