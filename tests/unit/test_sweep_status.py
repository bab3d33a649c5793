"""A sweep's status file: transitions and counts by hand, round trips, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlprune.errors import FileAccessError, ResultsError
from rlprune.sweep import status as states
from rlprune.sweep.status import STATES, SweepStatus, TrialState, _birth, read_status

NOW = 1_700_000_000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that ``time.time`` gives; change the entry to let time pass."""
    now = [NOW]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def one_of_each() -> SweepStatus:
    """A trial in every state, named after it; all have failed before."""
    trials = {
        state: TrialState(state, state=state, failures=2, reason="disk full") for state in STATES
    }
    return SweepStatus(trials=trials, total=len(STATES), running=True)


def states_of(status: SweepStatus) -> dict[str, str]:
    return {name: trial.state for name, trial in status.trials.items()}


# --- transitions ----------------------------------------------------------------------------


def test_a_session_begins_with_everything_but_what_is_over(clock: list[float]) -> None:
    status = one_of_each()
    status.running = False
    status.begin(["finished", "new", "failed"], 7)
    assert states_of(status) == {
        "running": "pending",
        "finished": "finished",
        "stopped": "stopped",
        "failed": "pending",
        "interrupted": "pending",
        "pending": "pending",
        "new": "pending",
    }
    reasons = {name for name, trial in status.trials.items() if trial.reason}
    assert reasons == {"finished", "stopped"}  # the others are tried anew
    assert status.trials["failed"].failures == 2
    assert (status.started, status.updated, status.running) == (NOW, NOW, True)
    assert status.total == 7


def test_there_are_never_fewer_trials_than_are_known() -> None:
    status = one_of_each()
    status.begin([], 4)  # a searcher that was told to try fewer
    assert status.total == 6
    assert sum(status.counts().values()) == 6


def test_a_session_ends_and_what_still_ran_was_interrupted(clock: list[float]) -> None:
    status = one_of_each()
    clock[0] += 5
    status.end()
    assert states_of(status) == {
        **{state: state for state in STATES},
        "running": "interrupted",
    }
    assert (status.running, status.updated) == (False, NOW + 5)


# --- counts ---------------------------------------------------------------------------------


def test_trials_that_a_searcher_has_not_made_yet_are_pending() -> None:
    status = SweepStatus()
    status.begin([], 10)
    assert status.counts() == {**dict.fromkeys(STATES, 0), "pending": 10}
    for name, state in (("a", states.RUNNING), ("b", states.FINISHED), ("c", states.PENDING)):
        status.trial(name).state = state
    counts = status.counts()
    assert list(counts) == list(STATES)
    assert counts == {
        "running": 1,
        "finished": 1,
        "stopped": 0,
        "failed": 0,
        "interrupted": 0,
        "pending": 1 + 7,
    }


def test_trials_in_some_states_come_in_the_order_of_the_plan() -> None:
    status = SweepStatus()
    status.begin(["c", "a", "b"], 3)
    status.trial("a").state = states.FAILED
    found = status.in_state(states.FAILED, states.PENDING)
    assert [trial.name for trial in found] == ["c", "a", "b"]
    assert [trial.name for trial in status.in_state(states.PENDING)] == ["c", "b"]
    assert status.trial("a") is status.trials["a"]


def test_a_driver_is_silent_after_two_minutes_without_news(clock: list[float]) -> None:
    status = SweepStatus(updated=NOW, running=True)
    clock[0] = NOW + 120
    assert not status.silent
    clock[0] = NOW + 121
    assert status.silent
    status.running = False  # it has ended as it should
    assert not status.silent


def test_who_drives_the_sweep_is_known_by_machine_process_and_birth(clock: list[float]) -> None:
    status = SweepStatus()
    assert not status.driver_lives()
    status.begin([], 1)
    assert not status.driver_lives()  # nobody but this process
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        status.pid, status.born = child.pid, _birth(child.pid) or ""
        assert status.driver_lives()
        if status.born:
            clock[0] += 1000
            assert status.silent and status.driver_lives()  # busy, but there
            status.born = str(int(status.born) - 1)
            assert not status.driver_lives()  # its number was given to another process
            status.born = _birth(child.pid) or ""
    finally:
        child.communicate(b"\n")
    if status.born:
        assert not status.driver_lives()
    status.updated, status.running = clock[0], False
    assert not status.driver_lives()


@pytest.mark.parametrize("pid", [1, os.getpid()], ids=["other", "same number"])
def test_a_driver_on_another_machine_lives_while_it_is_heard_of(
    clock: list[float], pid: int
) -> None:
    status = SweepStatus(updated=NOW, running=True, host="elsewhere", pid=pid, born="5")
    assert status.driver_lives()
    clock[0] += 121
    assert not status.driver_lives()


# --- the file -------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_what_is_written_is_read_back(tmp_path: Path, scheme: str) -> None:
    uri = f"{scheme}{tmp_path}/not/made/yet"
    status = one_of_each()
    status.trials["running"] = TrialState(
        "running", "running", "alternate", 3, 17, {"validation_accuracy": 0.875}, 1, "ä: [/]", NOW
    )
    status.started, status.updated, status.total = NOW, NOW + 1.5, 40
    status.write(uri)
    status.write(uri)  # over the first one
    again = read_status(uri)
    assert again == status
    assert list(again.trials) == list(status.trials)
    folder = tmp_path / "not" / "made" / "yet"
    assert [path.name for path in folder.iterdir()] == ["status.json"]


def test_the_file_says_its_version_and_lists_the_trials(tmp_path: Path) -> None:
    status = SweepStatus()
    status.trial("b").state = states.RUNNING
    status.trial("a")
    status.write(str(tmp_path))
    values = json.loads((tmp_path / "status.json").read_text())
    assert values["format_version"] == 1
    assert [(trial["name"], trial["state"]) for trial in values["trials"]] == [
        ("b", "running"),
        ("a", "pending"),
    ]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FileAccessError, match=r"file/status\.json: cannot be written"):
        SweepStatus().write(str(tmp_path / "file"))


def test_no_sweep_there(tmp_path: Path) -> None:
    with pytest.raises(ResultsError) as caught:
        read_status(str(tmp_path / "elsewhere"))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/elsewhere: no sweep there (no status.json).")
    assert "Give the folder that `rlprune sweep` named." in message
    assert caught.value.exit_status == 2


def _file(**values: object) -> bytes:
    return json.dumps({"format_version": 1, "trials": [], **values}).encode()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Expecting value"),
        (_file()[:-5], "delimiter"),  # torn
        (b"\xff\xfe\x00", "codec can't decode"),
        (b"[1, 2]", ""),
        (b'{"trials": []}', "format_version"),
        (b'{"format_version": 1}', "trials"),
        (_file(format_version=2), "written by another version of rlprune"),
        (_file(colour="red"), "colour"),
        (_file(trials=[{"name": "a", "colour": "red"}]), "colour"),
        (_file(trials=[{"state": "failed"}]), "name"),
        (_file(trials=["a"]), ""),
        (_file(trials=[{"name": "a", "state": "asleep"}]), "asleep"),
    ],
)
def test_damaged_foreign_and_newer_files_are_refused(
    tmp_path: Path, content: bytes, why: str
) -> None:
    path = tmp_path / "status.json"
    path.write_bytes(content)
    with pytest.raises(ResultsError) as caught:
        read_status(str(tmp_path))
    message = str(caught.value)
    assert message.startswith(f"{path}: not a readable status file (")
    assert why in message
    assert message.endswith(
        "Delete it and resume the sweep: it is made anew from the trials' checkpoints."
    )
    assert path.read_bytes() == content
