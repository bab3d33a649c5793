"""Sweeps as jobs on a Ray cluster: submitting, watching, preflight checks, the job itself.

On the submitter's machine: ``access`` (address and token), ``places`` (what a specification may
name), ``package`` (code that is shipped), ``attempts`` (ids), ``submit``, ``watch``. On the
cluster: ``entry`` (the job), ``environment`` (its secrets), ``preflight``, ``facts``, ``verdicts``.

Example:
    >>> from rlprune.jobs import submit
    >>> job = submit("sweep.yaml", "http://127.0.0.1:8265", storage_path="s3://bucket/sweeps")
    >>> job.follow()  # the job's output as it comes; returns its exit status
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlprune.jobs.access import connect
    from rlprune.jobs.submit import submit, submit_preflight
    from rlprune.jobs.watch import Job, list_jobs

WAIT_SECONDS = 600
"""How long a job waits for nodes on which a trial fits, if nothing else is said."""

_HOMES = {
    "Job": "rlprune.jobs.watch",
    "connect": "rlprune.jobs.access",
    "list_jobs": "rlprune.jobs.watch",
    "submit": "rlprune.jobs.submit",
    "submit_preflight": "rlprune.jobs.submit",
}

__all__ = ["WAIT_SECONDS", "Job", "connect", "list_jobs", "submit", "submit_preflight"]


def __getattr__(name: str) -> Any:
    """Imports on first use: every worker process of a job imports this package."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rlprune.jobs' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
