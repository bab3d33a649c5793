"""Keeping a sweep going: its process is started again after failures that are not its own.

Each attempt is a process of its own. It may therefore die in any way: an exception that escapes
Tune, an abort inside Ray when the head is lost, a SIGKILL.
"""

from __future__ import annotations

import enum
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

FINISHED, TRIAL_FAILED, REFUSED, BROKEN_OFF, INTERRUPTED = 0, 1, 2, 75, 130
"""Exit statuses of ``rlprune sweep``."""


def tell(text: str) -> None:
    """Says something in the job's log."""
    print(f"rlprune: {text}", file=sys.stderr, flush=True)


class Verdict(enum.Enum):
    """What follows from the end of an attempt."""

    DONE = "done"
    AGAIN = "again"


@dataclass(frozen=True)
class Patience:
    """How often and how long.

    Attributes:
        restarts: attempts after the first one; those before a long calm are forgotten.
        first_pause, longest_pause: seconds before an attempt; doubled each time.
        calm: seconds that an attempt must last for the count to start anew.
    """

    restarts: int = 5
    first_pause: float = 5.0
    longest_pause: float = 60.0
    calm: float = 900.0

    def pause(self, restart: int) -> float:
        """Seconds before the restart with this number (from 1)."""
        return min(self.longest_pause, self.first_pause * 2.0 ** (restart - 1))


def judge(status: int, first: bool, only_failed_left: Callable[[], bool]) -> Verdict:
    """Whether an attempt was the last one.

    Args:
        status: its exit status; negative: the signal that killed it.
        first: whether it was the job's first attempt. What is refused later was accepted
            before: nodes are missing for the moment, or the storage is.
        only_failed_left: whether every trial has ended, and some failed, by the storage.
    """
    if status in (FINISHED, INTERRUPTED) or (status == REFUSED and first):
        return Verdict.DONE
    if status == TRIAL_FAILED and only_failed_left():
        return Verdict.DONE
    return Verdict.AGAIN


def keep_going(
    attempt: Callable[[], int],
    only_failed_left: Callable[[], bool],
    report: Callable[[str], None],
    wait: Callable[[float], bool],
    patience: Patience = Patience(),
) -> int:
    """Runs attempts until one has the last word.

    Args:
        attempt: runs the sweep, from its storage if it lies there; gives an exit status.
        only_failed_left: see :func:`judge`.
        report: told about restarts.
        wait: waits some seconds; True if the job was stopped meanwhile.
        patience: limits.

    Returns:
        The exit status of the last attempt; :data:`BROKEN_OFF` where a signal killed it.
    """
    restarts, first = 0, True
    while True:
        started = time.monotonic()
        status = attempt()
        if judge(status, first, only_failed_left) is Verdict.DONE:
            return status
        if time.monotonic() - started > patience.calm:
            restarts = 0
        restarts, first = restarts + 1, False
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        if restarts > patience.restarts:
            report(f"The sweep's process {how}, after {patience.restarts} restarts: giving up.")
            return status if status > 0 else BROKEN_OFF
        pause = patience.pause(restarts)
        report(
            f"The sweep's process {how}. Restart {restarts} of {patience.restarts} from its "
            f"storage in {pause:g} s."
        )
        if wait(pause):
            return INTERRUPTED
