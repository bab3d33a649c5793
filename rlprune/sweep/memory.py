"""Keeps Tune alive when Ray's memory monitor kills a trial."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def one_trial_pays_for_memory() -> Iterator[None]:
    """Makes a kill by the memory monitor fail one trial instead of the whole sweep.

    Tune 2.60's actor manager knows two kinds of failure, a dead actor and an exception in
    it. The monitor's ``OutOfMemoryError`` is neither and ends ``Tuner.fit()`` with a
    RuntimeError. Inside this context it counts as what it is, a dead actor, so that Tune's
    own ``max_failures`` decides whether the trial is tried again.
    """
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import OutOfMemoryError, RayActorError

    original = RayActorManager._actor_task_failed

    def actor_task_failed(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            reason = " ".join(str(exception).split())
            exception = RayActorError(
                error_msg=f"Ray's memory monitor killed the trial. Give it more memory, use a "
                f"smaller batch, or run fewer trials at once (max_concurrent). {reason}"
            )
        original(self, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = actor_task_failed
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = original
