"""The state of a sweep in one file, readable while it runs and after it was killed.

No Ray here: ``rlprune status`` reads the file from wherever it lies.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlprune import files
from rlprune.errors import ResultsError
from rlprune.sweep import layout

PENDING, RUNNING, FINISHED = "pending", "running", "finished"
STOPPED, FAILED, INTERRUPTED = "stopped", "failed", "interrupted"
STATES = (RUNNING, FINISHED, STOPPED, FAILED, INTERRUPTED, PENDING)
OVER = (FINISHED, STOPPED)
"""Trials in these states are not run again: done, or given up by the scheduler."""
FORMAT_VERSION = 1
_SILENT_SECONDS = 120.0


@dataclass
class TrialState:
    """One trial.

    Attributes:
        name: of the trial, and of its folder.
        state: one of :data:`STATES`.
        phase: what it did last ("pretrain", "alternate", a method's name, ...).
        unit, units: progress; 0 of 0 before it started.
        metrics: validation accuracy and costs so far, as schedulers and searchers see them.
        failures: how often it failed.
        reason: of the last failure, one line.
        updated: seconds since the epoch when it was last heard of.
    """

    name: str
    state: str = PENDING
    phase: str = ""
    unit: int = 0
    units: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    failures: int = 0
    reason: str = ""
    updated: float = 0.0


@dataclass
class SweepStatus:
    """All trials of a sweep.

    Attributes:
        trials: by name, in the order of the plan.
        started: seconds since the epoch when this session began.
        updated: seconds since the epoch of the last sign of life of the sweep's driver.
        total: how many trials there will be; more than are known with a searcher.
        running: whether a driver was at work when the file was written.
        host, pid, born: of the driver's process (born: its start time as the kernel counts,
            "" where that is not known).
    """

    trials: dict[str, TrialState] = field(default_factory=dict)
    started: float = 0.0
    updated: float = 0.0
    total: int = 0
    running: bool = False
    host: str = ""
    pid: int = 0
    born: str = ""

    def trial(self, name: str) -> TrialState:
        """The trial's state, made if new."""
        return self.trials.setdefault(name, TrialState(name))

    def counts(self) -> dict[str, int]:
        """How many trials are in each state; those not made yet are pending."""
        counts = dict.fromkeys(STATES, 0)
        for trial in self.trials.values():
            counts[trial.state] += 1
        counts[PENDING] += max(0, self.total - len(self.trials))
        return counts

    def in_state(self, *states: str) -> list[TrialState]:
        """Trials in any of the states, in order."""
        return [trial for trial in self.trials.values() if trial.state in states]

    def begin(self, names: Iterable[str], total: int) -> None:
        """A session starts: nothing runs yet, what failed or was cut off will run again."""
        for name in names:
            self.trial(name)
        for trial in self.trials.values():
            if trial.state not in OVER:
                trial.state, trial.reason = PENDING, ""
        self.total = max(total, len(self.trials))
        self.started = self.updated = time.time()
        self.running = True
        self.host, self.pid = platform.node(), os.getpid()
        self.born = _birth(self.pid) or ""

    def end(self) -> None:
        """A session ends: what still ran was interrupted."""
        for trial in self.in_state(RUNNING):
            trial.state = INTERRUPTED
        self.running = False
        self.updated = time.time()

    @property
    def silent(self) -> bool:
        """Whether the driver should be alive, but has not been heard of for two minutes."""
        return self.running and time.time() - self.updated > _SILENT_SECONDS

    def driver_lives(self) -> bool:
        """Whether the driver is at work, as far as can be seen from here."""
        if not self.running:
            return False
        if self.host != platform.node():
            return not self.silent
        if self.pid == os.getpid():
            return False
        return _birth(self.pid) == self.born if self.born else not self.silent

    def write(self, uri: str) -> None:
        """Writes ``status.json`` of the experiment, whole or not at all."""
        values = {"format_version": FORMAT_VERSION, **asdict(self)}
        values["trials"] = list(values["trials"].values())
        files.write_whole(layout.status(uri), json.dumps(values).encode())


def _birth(pid: int) -> str | None:
    """When a process of this machine started, in clock ticks; None: none, or not known."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]  # Z: dead, nobody has noticed yet


def read_status(uri: str) -> SweepStatus:
    """Reads the state of the sweep in an experiment's folder.

    Raises:
        ResultsError: no sweep there, or a damaged file.
    """
    path = layout.status(uri)
    if not files.exists(path):
        raise ResultsError(
            f"{uri}: no sweep there (no status.json). Give the folder that `rlprune sweep` named."
        )
    try:
        values: dict[str, Any] = json.loads(files.read_whole(path))
        if values.pop("format_version") != FORMAT_VERSION:
            raise ValueError("written by another version of rlprune")
        trials = [TrialState(**trial) for trial in values.pop("trials")]
        unknown = sorted({str(trial.state) for trial in trials}.difference(STATES))
        if unknown:
            raise ValueError(f"unknown state {unknown[0]!r}")
        return SweepStatus(trials={trial.name: trial for trial in trials}, **values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ResultsError(
            f"{path}: not a readable status file ({error}). Delete it and resume the sweep: "
            "it is made anew from the trials' checkpoints."
        ) from None
