"""The terminal view of a sweep: texts by hand, lines where no terminal is, tables."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from result_rows import make_row
from rich.console import Console
from rich.table import Table

from rlprune.cli.watch import (
    SweepView,
    duration,
    failure_table,
    state_counts,
    status_table,
    trial_progress,
)
from rlprune.results import write_rows
from rlprune.sweep import status as states
from rlprune.sweep.status import SweepStatus, TrialState


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that both clocks give; change the entry to let time pass."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


@pytest.fixture
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")


def status_of(count: int, total: int | None = None) -> SweepStatus:
    """A sweep that has just begun, of trials "t0", "t1", ..."""
    status = SweepStatus()
    status.begin([f"t{index}" for index in range(count)], total or count)
    return status


def move(status: SweepStatus, name: str, state: str, unit: int = 0, reason: str = "") -> None:
    """A trial of ten units is where the driver says that it is."""
    trial = status.trial(name)
    trial.state, trial.unit, trial.units, trial.reason = state, unit, 10, reason


def rendered(table: Table, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def cells(table: Table, column: int) -> list[str]:
    return [str(cell) for cell in table.columns[column].cells]


# --- words ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3.0, "0 s"),
        (0.0, "0 s"),
        (42.4, "42 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (185, "3 min 5 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (2 * 3600 + 7 * 60 + 59, "2 h 7 min"),
        (86399, "23 h 59 min"),
        (86400, "1 d 0 h"),
        (3 * 86400 + 4 * 3600 + 3599, "3 d 4 h"),
        (400 * 86400, "400 d 0 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_only_states_that_occur_are_counted() -> None:
    status = status_of(3, total=5)
    move(status, "t0", states.RUNNING, 1)
    move(status, "t1", states.FAILED)
    assert str(state_counts(status)) == "1 running, 1 failed, 3 pending"
    assert str(state_counts(SweepStatus())) == ""


def test_progress_of_a_trial() -> None:
    trial = TrialState("a", phase="static_l1", unit=4, units=13)
    assert trial_progress(trial) == "unit 4/13, static_l1"
    assert trial_progress(TrialState("a", phase="")) == ""


# --- without a terminal ---------------------------------------------------------------------


def test_each_trial_that_ends_gets_one_line(
    clock: list[float], no_terminal: None, capsys: pytest.CaptureFixture[str]
) -> None:
    status = status_of(4)
    long = "t3_" + "storage_max=0.5_" * 10
    reason = "CUDA out of memory; [red] is no colour here. " * 5
    with SweepView("anywhere") as view:
        view(status)
        for name in ("t0", "t1", "t2", long):
            move(status, name, states.RUNNING, 1)
        view(status)
        move(status, "t0", states.FINISHED, 10)
        status.trial("t0").metrics = {"validation_accuracy": 0.8768, "storage_bytes": 100.0}
        for _ in range(3):
            view(status)
        move(status, "t1", states.STOPPED, 5)
        move(status, long, states.FAILED, 7, reason.strip())
        for _ in range(3):
            view(status)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line for line in lines if "t0" in line] == [" finished  t0, validation accuracy 87.7 %"]
    assert [line for line in lines if "t1" in line] == ["  stopped  t1"]
    assert [line for line in lines if "t3" in line] == [f"   failed  {long}: {reason.strip()}"]
    assert not any("t2" in line for line in lines)


def test_a_failure_that_is_tried_again_is_told_once_and_forgotten_at_the_end(
    clock: list[float], no_terminal: None, capsys: pytest.CaptureFixture[str]
) -> None:
    status = status_of(1)
    with SweepView("anywhere") as view:
        view(status)
        move(status, "t0", states.RUNNING, 1)
        view(status)
        move(status, "t0", states.PENDING, 1, "the disk was full")
        view(status)
        view(status)
        first = [line for line in capsys.readouterr().err.splitlines() if "t0" in line]
        assert first == ["failed, will be tried again  t0: the disk was full"]
        move(status, "t0", states.RUNNING, 2, "the disk was full")
        view(status)
        move(status, "t0", states.FINISHED, 10)
        view(status)
    last = [line for line in capsys.readouterr().err.splitlines() if "t0" in line]
    assert last == [" finished  t0"]


def test_trials_that_were_over_before_are_not_told_again(
    clock: list[float], no_terminal: None, capsys: pytest.CaptureFixture[str]
) -> None:
    status = status_of(2)
    move(status, "t0", states.FINISHED, 10)
    status.begin(["t0", "t1"], 2)  # the sweep is resumed
    with SweepView("anywhere") as view:
        view(status)
        move(status, "t1", states.RUNNING, 1)
        view(status)
        move(status, "t1", states.FINISHED, 10)
        view(status)
    lines = capsys.readouterr().err.splitlines()
    assert not any("t0" in line for line in lines)
    assert [line for line in lines if "t1" in line] == [" finished  t1"]


def test_counts_and_time_left_are_told_twice_a_minute(
    clock: list[float], no_terminal: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten trials of ten units: 100 units in all."""
    status = status_of(2, total=10)
    move(status, "t0", states.FINISHED, 10)
    view = SweepView("anywhere")
    view(status)
    move(status, "t1", states.RUNNING, 1)  # 1 % since this session's start: too little to tell
    clock[0] = 1029
    view(status)
    clock[0] = 1030
    view(status)
    move(status, "t1", states.RUNNING, 5)  # 15 % done, 5 % of it in 100 s: 85 % take 1700 s
    clock[0] = 1100
    view(status)
    move(status, "t1", states.FAILED, 5)  # counts whole: 10 % in 200 s, 80 % are left
    clock[0] = 1200
    view(status)
    lines = [line for line in capsys.readouterr().err.splitlines() if "after" in line]
    assert lines == [
        "1 finished, 9 pending after 0 s",
        "1 running, 1 finished, 8 pending after 30 s",
        "1 running, 1 finished, 8 pending after 1 min 40 s, about 28 min 20 s left",
        "1 finished, 1 failed, 8 pending after 3 min 20 s, about 26 min 40 s left",
    ]


# --- on a terminal --------------------------------------------------------------------------


def test_the_live_view_shows_running_trials_the_best_and_the_front(
    clock: list[float], terminal: None, capsys: pytest.CaptureFixture[str]
) -> None:
    status = status_of(12)
    with SweepView("anywhere") as view:
        view(status)
        assert "No policy measured yet." in capsys.readouterr().err
        for index in range(10):
            move(status, f"t{index}", states.RUNNING, 5)
        measured = {"t0": (0.8, 3000.0), "t1": (0.9, 2000.0), "t2": (0.7, 1000.0)}
        for name, (accuracy, size) in measured.items():
            metrics = {"validation_accuracy": accuracy, "storage_bytes": size}
            status.trial(name).metrics = metrics
        status.trial("t1").phase = "alternate"
        clock[0] += 60
        view(status)
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
        clock[0] += 0.4  # too soon to draw again
        view(status)
        assert "Sweep" not in capsys.readouterr().err
    # 10 trials are half done: 5 of 12
    assert "42 %" in shown and "after 1 min 0 s, about 1 min 24 s left" in shown
    assert "10 running, 2 pending" in shown
    assert "unit 5/10, alternate" in shown and "and 2 more" in shown
    assert "t7" in shown and "t8" not in shown
    assert "Best so far (validation): 90.0 % with 2,000 bytes, t1." in shown
    assert "Front of accuracy and storage: 2 of 3 trials." in shown


# --- tables ---------------------------------------------------------------------------------


def test_a_trial_of_a_silent_driver_was_interrupted(tmp_path: Path, clock: list[float]) -> None:
    status = status_of(3)
    move(status, "t0", states.RUNNING, 4)
    move(status, "t1", states.FINISHED, 10)
    status.trial("t0").phase, status.trial("t0").updated = "alternate", 900.0
    table = status_table(status, str(tmp_path))
    assert cells(table, 0) == ["t0", "t1", "t2"]
    assert cells(table, 1) == ["running", "finished", "pending"]
    assert cells(table, 2) == ["unit 4/10, alternate", "unit 10/10, ", ""]
    assert cells(table, 3) == ["-", "-", "-"]
    assert cells(table, 4) == ["1 min 40 s ago", "-", "-"]
    clock[0] += 121
    assert cells(status_table(status, str(tmp_path)), 1) == ["interrupted", "finished", "pending"]
    status.updated = clock[0]
    assert cells(status_table(status, str(tmp_path)), 1)[0] == "running"
    status.running = False  # the driver ended without a word about this trial
    assert cells(status_table(status, str(tmp_path)), 1)[0] == "interrupted"


def test_the_best_learned_row_of_each_trial(tmp_path: Path) -> None:
    status = status_of(2)
    rows = [
        make_row(trial="t0", tradeoff_rate=0.25, validation_accuracy=0.8, storage_bytes=1234567),
        make_row(trial="t0", tradeoff_rate=0.5, validation_accuracy=0.7),
        make_row(trial="t0", method="dense", validation_accuracy=0.99),
        make_row(trial="t1", method="dense", validation_accuracy=0.99),
    ]
    write_rows(tmp_path / "results", rows)
    best = cells(status_table(status, str(tmp_path)), 3)
    assert best == ["80.0 %, 1,234,567 bytes, R_r 0.25", "-"]


def test_the_status_table_shows_long_names_complete() -> None:
    name = "0003_" + "abcdefghij" * 7
    status = SweepStatus(trials={name: TrialState(name)})
    assert name in _column(rendered(status_table(status, "nowhere"), width=100), 0)


def test_failures_are_shown_complete() -> None:
    name = "0007_" + "abcdefghij" * 7
    reason = "budgets.storage_max: [bold]must be reachable[/] (got 100). " + "klmnopqrst" * 30
    failed = [TrialState(name, states.FAILED, reason=reason), TrialState("b", reason="x")]
    table = failure_table(failed, "/somewhere/first")
    assert cells(table, 2) == [f"{name}/error.txt", "b/error.txt"]
    for width in (60, 100, 300):
        text = rendered(table, width)
        assert "…" not in text
        assert name in _column(text, 0)
        assert reason.replace(" ", "") in _column(text, 1)
        assert f"{name}/error.txt" in _column(text, 2)
    assert "Logs lie below /somewhere/first" in rendered(table)


def test_logs_on_object_storage_are_named_from_the_experiment() -> None:
    failed = [TrialState("a_b=0.5", states.FAILED, reason="x")]
    for uri in ("s3://bucket/first", "s3://bucket/first?endpoint_override=localhost:9000"):
        assert cells(failure_table(failed, uri), 2) == ["a_b=0.5/error.txt"]


def _column(text: str, index: int) -> str:
    """A column's text without the folds and spaces that its width has made."""
    rows = [line.split("│") for line in text.splitlines() if line.startswith("│")]
    return "".join(row[1 + index].replace(" ", "") for row in rows)
