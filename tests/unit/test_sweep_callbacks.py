"""What the driver of a sweep notes down, told by Tune's callbacks; no Ray is started."""

from __future__ import annotations

import dataclasses
import pickle
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from rlprune.errors import DataError
from rlprune.sweep.callbacks import StatusKeeper, reason
from rlprune.sweep.status import SweepStatus, read_status


@dataclasses.dataclass
class Trial:
    """As much of Tune's trial as the callbacks look at."""

    name: str = "0000_a"
    last_result: dict[str, Any] | None = None
    error_file: str | None = None

    def __str__(self) -> str:
        return self.name


class Driver:
    """A keeper of a one-trial sweep, called as Tune calls it."""

    def __init__(
        self,
        uri: str,
        deadline: float | None = None,
        also_save: Callable[[], None] | None = None,
    ) -> None:
        self.uri = uri
        self.trial = Trial()
        self.status = SweepStatus()
        self.status.begin([self.trial.name], 1)
        self.watched: list[str] = []
        self.keeper = StatusKeeper(
            self.status, uri, lambda s: self.watched.append(self.state), deadline, also_save
        )

    @property
    def state(self) -> str:
        return self.status.trial(self.trial.name).state

    def calls(self, event: str, **info: Any) -> None:
        getattr(self.keeper, event)(iteration=1, trials=[self.trial], trial=self.trial, **info)

    def step_ends(self) -> None:
        self.keeper.on_step_end(iteration=1, trials=[self.trial])


def test_a_trial_from_start_to_finish(tmp_path: Path) -> None:
    saved: list[int] = []
    driver = Driver(str(tmp_path), also_save=lambda: saved.append(1))
    driver.calls("on_trial_start")
    driver.step_ends()
    assert driver.state == "running" and len(saved) == 1
    assert read_status(str(tmp_path)).trial("0000_a").state == "running"
    result = {
        "phase": "alternate",
        "unit": 3,
        "units": 9,
        "finished": False,
        "validation_accuracy": 0.5,
        "storage_bytes": 1000,
        "round": 2.0,
    }
    before = time.time()
    driver.calls("on_trial_result", result=result)
    driver.step_ends()
    entry = driver.status.trial("0000_a")
    assert (entry.phase, entry.unit, entry.units) == ("alternate", 3, 9)
    assert entry.metrics == {"validation_accuracy": 0.5, "storage_bytes": 1000.0}
    assert before <= entry.updated <= time.time()
    driver.trial.last_result = {**result, "finished": True}
    driver.calls("on_trial_complete")
    driver.keeper.on_experiment_end([driver.trial])
    assert driver.state == "finished"
    assert read_status(str(tmp_path)) == driver.status
    assert driver.watched == ["running", "running"]


@pytest.mark.parametrize(
    ("last_result", "seconds_left", "state"),
    [
        ({"finished": True}, None, "finished"),
        ({"finished": True}, -1.0, "finished"),  # done just in time
        ({"finished": False}, None, "stopped"),
        ({"finished": False}, 100.0, "stopped"),
        ({"finished": False}, -1.0, "interrupted"),
        (None, -1.0, "interrupted"),
        (None, None, "stopped"),
    ],
)
def test_stopped_by_the_scheduler_or_by_the_time_limit(
    tmp_path: Path, last_result: dict[str, Any] | None, seconds_left: float | None, state: str
) -> None:
    deadline = None if seconds_left is None else time.monotonic() + seconds_left
    driver = Driver(str(tmp_path), deadline)
    driver.trial.last_result = last_result
    driver.calls("on_trial_complete")
    driver.step_ends()
    assert driver.state == state
    assert read_status(str(tmp_path)).trial("0000_a").state == state


def error_text(error: Exception) -> str:
    """What Tune writes when a trial's process raised an error."""
    try:
        raise error
    except Exception as raised:
        text = traceback.format_exc()
        failure = RayTaskError("step", text, raised, "ray::TrialTrainable", 1, "127.0.0.1")
    return f"Failure # 1 (occurred at 2026-01-02_03-04-05)\n{failure}\n"


def test_why_a_trial_failed_is_read_from_its_log(tmp_path: Path) -> None:
    driver = Driver(str(tmp_path))
    driver.trial.error_file = str(tmp_path / "error.txt")
    driver.calls("on_trial_start")
    driver.calls("on_trial_recover")
    assert driver.state == "pending"
    # Tune writes the log after it has called back
    log = error_text(DataError("digits: no such file. Give data.root."))
    (tmp_path / "error.txt").write_text(log)
    driver.step_ends()
    entry = driver.status.trial("0000_a")
    assert (entry.failures, entry.reason) == (1, "digits: no such file. Give data.root.")
    driver.calls("on_trial_start")
    driver.calls("on_trial_error")
    (tmp_path / "error.txt").write_text(log + error_text(ValueError("no luck")) + "\n\n")
    driver.keeper.on_experiment_end([driver.trial])
    assert (driver.state, entry.failures, entry.reason) == ("failed", 2, "ValueError: no luck")
    assert read_status(str(tmp_path)) == driver.status


@pytest.mark.parametrize("finished", [True, False])
def test_a_failure_is_forgotten_once_the_trial_is_over(tmp_path: Path, finished: bool) -> None:
    driver = Driver(str(tmp_path))
    driver.trial.error_file = str(tmp_path / "error.txt")
    (tmp_path / "error.txt").write_text(error_text(ValueError("no luck")))
    driver.calls("on_trial_start")
    driver.calls("on_trial_recover")
    driver.step_ends()
    driver.trial.last_result = {"finished": finished}
    driver.calls("on_trial_start")
    assert driver.status.trial("0000_a").reason == "ValueError: no luck"
    driver.calls("on_trial_complete")
    entry = driver.status.trial("0000_a")
    assert (entry.state, entry.failures, entry.reason) == (
        "finished" if finished else "stopped",
        1,
        "",
    )


def test_a_reason_without_a_log(tmp_path: Path) -> None:
    assert reason(Trial()) == "unknown; see Ray's logs"
    assert reason(Trial(error_file=str(tmp_path / "none"))) == "unknown; see Ray's logs"
    (tmp_path / "empty").write_text("\n \n")
    assert reason(Trial(error_file=str(tmp_path / "empty"))) == "unknown"
    (tmp_path / "bytes").write_bytes(b"first\nno \xff UTF-8\n")
    assert reason(Trial(error_file=str(tmp_path / "bytes"))) == "no \ufffd UTF-8"


def test_a_place_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file is in the way")
    saved: list[int] = []
    driver = Driver(str(tmp_path / "folder"), also_save=lambda: saved.append(1))
    driver.calls("on_trial_start")
    driver.calls("on_trial_error")
    driver.step_ends()
    driver.keeper.on_experiment_end([driver.trial])
    assert driver.state == "failed" and driver.watched == ["failed"]
    assert len(saved) == 2  # what else is to be saved was tried
    (tmp_path / "folder").unlink()
    driver.keeper.on_experiment_end([driver.trial])  # the next write succeeds again
    assert read_status(driver.uri) == driver.status


def test_signs_of_life_are_written_every_five_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    saved: list[float] = []
    driver = Driver(str(tmp_path), also_save=lambda: saved.append(now[0]))
    for now[0] in (100.0, 101.0, 105.0, 105.1, 110.0, 110.2):
        driver.step_ends()
    assert saved == [100.0, 105.1, 110.2]
    assert len(driver.watched) == 6
    now[0] = 110.3
    driver.calls("on_trial_start")  # news are written at the next step
    assert saved[3:] == []
    driver.step_ends()
    driver.step_ends()
    assert saved[3:] == [110.3]


def test_slow_storage_takes_a_small_part_of_the_drivers_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    saved: list[float] = []

    def save() -> None:
        saved.append(now[0])
        now[0] += 1.0  # a write takes a second

    driver = Driver(str(tmp_path), also_save=save)
    for _ in range(120):
        driver.calls("on_trial_start")
        driver.step_ends()
        now[0] += 0.5
    assert saved[:3] == [100.0, 121.5, 143.0]  # twenty seconds after the end of the one before


def test_tune_can_pickle_the_keeper_but_gets_nothing_of_the_sweep(tmp_path: Path) -> None:
    driver = Driver("somewhere", also_save=lambda: None)
    again = pickle.loads(pickle.dumps(driver.keeper))
    assert vars(again) == {"uri": "somewhere"}
