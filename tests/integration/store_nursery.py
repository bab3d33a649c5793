"""Starts writers and compactors of result rows for the torture test, and lets them be killed.

Reads commands from standard input: ``write TRIAL FIRST_STEP`` and ``compact`` fork a process
that works for ever and answer ``pid PID``; ``reap`` waits until all were killed. Forking
after the imports makes a round take a second, not ten.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from datetime import datetime, timezone

from result_rows import make_row

from rlprune.results import compact, write_rows

RATES = (1.0, 0.5, 0.0)


def say(text: str) -> None:
    """One line, in one piece, from any of the processes."""
    os.write(1, f"{text}\n".encode())


def write_for_ever(uri: str, trial: str, step: int) -> None:
    """Every step is written twice; the seed tells the first time (0) from the second (1)."""
    while True:
        for version in (0, 1):
            now = datetime.now(timezone.utc)
            write_rows(
                uri,
                [
                    make_row(trial=trial, step=step, tradeoff_rate=r, seed=version, created_at=now)
                    for r in RATES
                ],
            )
        say(f"committed {trial} {step}")
        step += 1


def compact_for_ever(uri: str) -> None:
    while True:
        report = compact(uri)
        say(f"compacted {report.files_before} {report.files_after}")
        time.sleep(0.05)


def start(uri: str, words: list[str]) -> None:
    pid = os.fork()
    if pid:
        say(f"pid {pid}")
        return
    try:
        if words[0] == "write":
            write_for_ever(uri, words[1], int(words[2]))
        compact_for_ever(uri)
    except BaseException:
        say("failed " + traceback.format_exc().replace("\n", " | "))
        os._exit(1)


def main() -> None:
    assert "torch" not in sys.modules and "ray" not in sys.modules
    say("ready")
    for line in sys.stdin:
        words = line.split()
        if words == ["reap"]:
            try:
                while True:
                    os.wait()
            except ChildProcessError:
                say("reaped")
        else:
            start(sys.argv[1], words)


if __name__ == "__main__":
    main()
