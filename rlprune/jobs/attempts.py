"""Ids of jobs: NAME-r1, NAME-r2, ... Ray refuses an id that exists, and a deleted one may fail."""

from __future__ import annotations

import re
from collections.abc import Iterable

SWEEP, PREFLIGHT = "sweep", "preflight"
"""What a job does."""

_SIGNS = {SWEEP: "r", PREFLIGHT: "preflight"}


def next_id(name: str, kind: str, known: Iterable[str]) -> str:
    """The id after all those of the same sweep and kind.

    Args:
        name: of the sweep.
        kind: :data:`SWEEP` or :data:`PREFLIGHT`.
        known: ids of all jobs that the cluster knows.
    """
    stem = f"{name}-{_SIGNS[kind]}"
    pattern = re.compile(rf"{re.escape(stem)}([0-9]+)")
    numbers = [int(match[1]) for job in known if (match := pattern.fullmatch(job))]
    return f"{stem}{max(numbers, default=0) + 1}"
