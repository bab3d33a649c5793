"""Jobs that have been submitted: listing, following, stopping."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rlprune.errors import ClusterError
from rlprune.jobs.access import Cluster

SUCCEEDED, FAILED, STOPPED = "SUCCEEDED", "FAILED", "STOPPED"
OVER = (SUCCEEDED, FAILED, STOPPED)
SWEEP_KEY, STORAGE_KEY, KIND_KEY = "rlprune_sweep", "rlprune_experiment", "rlprune_kind"
"""Metadata of our jobs: the sweep's name, its folder or URI, what the job does."""

STOP_SECONDS = 60
_MARGIN_SECONDS = 30.0
_PAUSE = 1.0
_INTERRUPTED = 130


@dataclass(frozen=True)
class JobState:
    """A job as the cluster describes it.

    Attributes:
        id: NAME-r1, ...
        sweep: its name.
        experiment: its folder or URI.
        kind: see :mod:`rlprune.jobs.attempts`.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        started, ended: seconds since 1970; None where that has not happened.
        exit_status: of the job's process, if it has ended by itself.
        message: Ray's last line about it.
    """

    id: str
    sweep: str
    experiment: str
    kind: str
    status: str
    started: float | None
    ended: float | None
    exit_status: int | None
    message: str

    @classmethod
    def of(cls, details: Any) -> JobState:
        """From Ray's JobDetails."""
        metadata = details.metadata or {}
        lines = (details.message or "").strip().splitlines()
        return cls(
            id=str(details.submission_id),
            sweep=metadata.get(SWEEP_KEY, ""),
            experiment=metadata.get(STORAGE_KEY, ""),
            kind=metadata.get(KIND_KEY, ""),
            status=str(getattr(details.status, "value", details.status)),
            started=None if details.start_time is None else details.start_time / 1000,
            ended=None if details.end_time is None else details.end_time / 1000,
            exit_status=details.driver_exit_code,
            message=lines[-1] if lines else "",
        )

    @property
    def over(self) -> bool:
        """Whether it has ended, one way or another."""
        return self.status in OVER

    @property
    def command_status(self) -> int:
        """Exit status of a command that has waited for the job's end."""
        if self.status == SUCCEEDED:
            return 0
        return _INTERRUPTED if self.status == STOPPED else self.exit_status or 1


def list_jobs(cluster: Cluster) -> list[JobState]:
    """All jobs that rlprune has submitted there, the oldest first.

    Raises:
        ClusterError: the job server does not answer.
    """
    found = [JobState.of(job) for job in asked(cluster, lambda: cluster.client().list_jobs())]
    return sorted((job for job in found if job.sweep), key=lambda job: job.started or 0.0)


class Job:
    """A job on a cluster.

    Args:
        cluster: see :func:`rlprune.jobs.connect`.
        id: NAME-r1, ...
    """

    def __init__(self, cluster: Cluster, id: str) -> None:
        self.cluster = cluster
        self.id = id

    def state(self) -> JobState:
        """What the cluster says of it now.

        Raises:
            ClusterError: there is no such job, or the job server does not answer.
        """
        return JobState.of(asked(self.cluster, lambda: self._client.get_job_info(self.id)))

    def logs(self) -> str:
        """All that it has printed so far.

        Raises:
            ClusterError: see :meth:`state`.
        """
        return str(asked(self.cluster, lambda: self._client.get_job_logs(self.id)))

    def follow(self, write: Callable[[str], object] | None = None) -> int:
        """Passes on what the job prints until it has ended; survives lost connections.

        Args:
            write: gets the text; None: standard output.

        Returns:
            The job's exit status: 0 where all trials finished, 130 where it was stopped.

        Raises:
            ClusterError: the job server has not answered for half a minute.
        """
        write = write or sys.stdout.write
        shown = 0
        while True:
            shown = asyncio.run(self._tail(shown, write))
            state: JobState = self._patiently(self.state)
            if state.over:
                write(self._patiently(self.logs)[shown:])
                return state.command_status
            time.sleep(_PAUSE)

    def stop(self) -> None:
        """Asks the job to save its state and end; returns at once.

        Raises:
            ClusterError: there is no such job, or it has ended already.
        """
        before = self.state()
        if before.over:
            raise ClusterError(f"{self.id} has ended already ({before.status}).")
        asked(self.cluster, lambda: self._client.stop_job(self.id))

    def wait_for_end(self, seconds: float = STOP_SECONDS + _MARGIN_SECONDS) -> JobState:
        """Waits until it has ended; the default is as long as a stopped job may take.

        Raises:
            ClusterError: it has not.
        """
        deadline = time.monotonic() + seconds
        while not (state := self.state()).over:
            if time.monotonic() > deadline:
                raise ClusterError(f"{self.id} is still {state.status} after {seconds:g} s.")
            time.sleep(_PAUSE)
        return state

    @cached_property
    def _client(self) -> Any:
        return self.cluster.client()

    async def _tail(self, shown: int, write: Callable[[str], object]) -> int:
        """Follows the log from its start, skips what was shown; returns what is shown now."""
        seen = 0
        try:
            async for text in self._client.tail_job_logs(self.id):
                new = text[max(0, shown - seen) :] if seen < shown else text
                seen += len(text)
                if new:
                    write(new)
        except Exception:  # a lost connection, in any of aiohttp's and Ray's words
            return max(seen, shown)
        return max(seen, shown)

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + _MARGIN_SECONDS
        while True:
            try:
                return ask()
            except ClusterError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE)


def asked(cluster: Cluster, ask: Callable[[], Any]) -> Any:
    """The job server's answer.

    Raises:
        ClusterError: it has none, or refuses.
    """
    from ray.exceptions import AuthenticationError

    try:
        return ask()
    except OSError as error:  # requests' errors are such
        raise ClusterError(
            f"{cluster.address}: the job server does not answer ({_reason(error)}). Where only the "
            "connection is lost, the job goes on: `rlprune jobs logs JOB --follow`. Where the head "
            "is lost, submit again to a new cluster: the sweep goes on from its storage."
        ) from None
    except (AuthenticationError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise ClusterError(f"{cluster.address}: {text[:500]}") from None


def _reason(error: BaseException) -> str:
    """The last words of an error: what the operating system said."""
    text = " ".join(str(error).split())
    return text.rpartition(": ")[2].strip("'\")>") or type(error).__name__
