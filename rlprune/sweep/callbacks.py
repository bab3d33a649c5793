"""What the driver of a sweep notes down and shows while Tune works."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from rlprune.errors import FileAccessError
from rlprune.sweep import status as states
from rlprune.sweep.status import SweepStatus

_WRITE_SECONDS = 5.0
_BUSY = 20.0  # at most a twentieth of the driver's time goes into writing the status
_METRICS = ("validation_accuracy", "validation_loss", "storage_bytes", "macs_mean", "macs_max")


class StatusKeeper(tune.Callback):
    """Keeps ``status.json`` up to date and tells whoever watches.

    Args:
        status: of the sweep; changed in place.
        uri: the experiment's folder.
        watch: called after every change and at every step of Tune, at most a few times a
            second.
        deadline: monotonic seconds at which Tune will stop everything; None: never.
        also_save: called before every write of the status.
    """

    def __init__(
        self,
        status: SweepStatus,
        uri: str,
        watch: Callable[[SweepStatus], None],
        deadline: float | None,
        also_save: Callable[[], None] | None,
    ) -> None:
        self.status = status
        self._also_save = also_save
        self._uri = uri
        self._watch = watch
        self._deadline = deadline
        self._next_write = self._last_write = self._write_seconds = 0.0
        self._unexplained: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles callbacks into its own files, which are never read again."""
        return {"uri": self._uri}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial runs."""
        self._set(trial, states.RUNNING)
        self._write_soon()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """The trial has finished a unit."""
        state = self._set(trial, states.RUNNING)
        state.phase, state.unit, state.units = result["phase"], result["unit"], result["units"]
        state.metrics = {name: float(result[name]) for name in _METRICS if name in result}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial is over: at its end, or because scheduler or time limit stopped it."""
        result = trial.last_result or {}
        if result.get("finished"):
            self._set(trial, states.FINISHED).reason = ""
        elif self._deadline is not None and time.monotonic() >= self._deadline:
            self._set(trial, states.INTERRUPTED)
        else:
            self._set(trial, states.STOPPED).reason = ""
        self._write_soon()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial has failed and will be tried again."""
        self._failed(trial, states.PENDING)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial has failed for good."""
        self._failed(trial, states.FAILED)
        self._write_soon()

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """The last word."""
        self._explain()
        self._write()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """A sign of life."""
        self._explain()
        if time.monotonic() > self._next_write:
            self._write()
        self._watch(self.status)

    def _failed(self, trial: Any, state: str) -> None:
        self._set(trial, state).failures += 1
        self._unexplained.append(trial)

    def _explain(self) -> None:
        """Notes why trials failed; Tune writes that down after it has called back."""
        while self._unexplained:
            trial = self._unexplained.pop()
            self.status.trial(str(trial)).reason = reason(trial)

    def _set(self, trial: Any, state: str) -> states.TrialState:
        entry = self.status.trial(str(trial))
        entry.state, entry.updated = state, time.time()
        return entry

    def _write_soon(self) -> None:
        """At the next step, but not so often that a large sweep would do nothing else."""
        self._next_write = min(self._next_write, self._last_write + _BUSY * self._write_seconds)

    def _write(self) -> None:
        """A full disk must not end trials that could still be saved: the next write tries again."""
        started = time.monotonic()
        self.status.updated = time.time()
        with contextlib.suppress(FileAccessError):
            if self._also_save is not None:
                self._also_save()
            self.status.write(self._uri)
        self._last_write = time.monotonic()
        self._write_seconds = self._last_write - started
        self._next_write = self._last_write + max(_WRITE_SECONDS, _BUSY * self._write_seconds)


def reason(trial: Any) -> str:
    """Why a trial failed last: the last line of the log that Tune has written."""
    try:
        text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
    except (OSError, TypeError):
        return "unknown; see Ray's logs"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^rlprune\.errors\.\w+: ", "", lines[-1]) if lines else "unknown"
