"""What a job runs on the cluster: checks the nodes, then starts the sweep or goes on with it.

``python -m rlprune.jobs.entry SPEC --storage-path URI``: the same command is right for the first
start, for every retry, and for a new cluster after the old one's head is gone.

Exit status: 0 all trials finished, 1 a trial failed, 2 refused, 75 broken off too often,
130 stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from rlprune.errors import FileAccessError, ResultsError, RlpruneError
from rlprune.jobs import WAIT_SECONDS, environment
from rlprune.jobs.places import check_places
from rlprune.jobs.supervise import INTERRUPTED, Patience, keep_going, tell
from rlprune.sweep import layout
from rlprune.sweep import status as states
from rlprune.sweep.spec import load_spec
from rlprune.sweep.status import read_status


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m rlprune.jobs.entry", description=__doc__)
    parser.add_argument("spec", help="YAML file of a sweep, or the name of a preset")
    parser.add_argument("--storage-path", help="URI or shared folder; replaces the spec's")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="A.B=C")
    parser.add_argument("--no-preflight", action="store_true", help="do not check the nodes")
    parser.add_argument("--preflight-only", action="store_true", help="only check the nodes")
    parser.add_argument("--allow-unauthenticated", action="store_true")
    parser.add_argument(
        "--wait-for-nodes", type=int, default=WAIT_SECONDS, metavar="SECONDS",
        help="how long the check waits until a trial fits",
    )  # fmt: skip
    parser.add_argument(
        "--restarts", type=int, default=Patience.restarts,
        help="how often the sweep is started again after Ray or the storage failed",
    )  # fmt: skip
    return parser.parse_args(arguments)


class _Processes:
    """Runs one process after another; Ray Jobs sends SIGINT to all of them, and to this one."""

    def __init__(self) -> None:
        self._stops = 0
        signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._stops += 1

    def stopped(self) -> bool:
        """Whether the job was asked to end."""
        return self._stops > 0

    def run(self, *command: str) -> int:
        """Exit status of ``python -m COMMAND``; 130 if the job was stopped meanwhile."""
        if self.stopped():
            return INTERRUPTED
        status = subprocess.run([sys.executable, "-m", *command], check=False).returncode
        return INTERRUPTED if self.stopped() and status != 0 else status

    def wait(self, seconds: float) -> bool:
        """Waits, unless the job is stopped; whether it was."""
        deadline = time.monotonic() + seconds
        while not self.stopped() and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.stopped()


def only_failed_left(uri: str) -> bool:
    """Whether every trial of the sweep in a folder has ended, and at least one has failed."""
    try:
        counts = read_status(uri).counts()
    except (ResultsError, FileAccessError):
        return False
    ended = sum(counts[state] for state in (*states.OVER, states.FAILED))
    return counts[states.FAILED] > 0 and ended == sum(counts.values())


def run(options: argparse.Namespace) -> int:
    """Does the job; returns its exit status.

    Raises:
        ConfigError: the specification cannot be run on several machines.
        ClusterError: the environment variables that were passed on are gone.
    """
    processes = _Processes()
    environment.install()
    try:
        return _run(options, processes)
    finally:
        with contextlib.suppress(Exception):  # where the head is gone, so are they
            environment.forget()


def _run(options: argparse.Namespace, processes: _Processes) -> int:
    given = list(options.overrides)
    if options.storage_path is not None:
        given.append(f"storage_path={options.storage_path}")
    spec = load_spec(options.spec, given)
    check_places(spec, own_code=True)
    sweep = [options.spec, *(f"--set={item}" for item in given)]
    if not options.no_preflight:
        flags = ["--allow-unauthenticated"] if options.allow_unauthenticated else []
        flags.append(f"--wait-for-nodes={options.wait_for_nodes}")
        status = processes.run("rlprune.jobs.preflight", *sweep, *flags)
        if status != 0 or options.preflight_only:
            return status
    uri = layout.experiment(spec.storage_path, spec.name)
    return keep_going(
        lambda: processes.run("rlprune.cli.main", "sweep", *sweep, "--restore"),
        lambda: only_failed_left(uri),
        tell,
        processes.wait,
        Patience(restarts=options.restarts),
    )


def main() -> None:
    """Runs the job and exits with its status."""
    try:
        status = run(parse())
    except RlpruneError as error:
        tell(str(error))
        status = error.exit_status
    sys.exit(status)


if __name__ == "__main__":
    main()
