"""Four spots of Tune 2.60 that sweeps need otherwise; each is undone when a sweep ends.

Ray is pinned to 2.60 in pyproject.toml: read these again before raising it.
"""

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
    own ``max_failures`` decides whether the trial is tried again. Tune survives a kill while
    the trial starts, but would not say whose fault it was.
    """
    from ray.air.execution._internal.actor_manager import RayActorManager

    start_failed = RayActorManager._actor_start_failed
    task_failed = RayActorManager._actor_task_failed

    def actor_start_failed(self: Any, tracked_actor: Any, exception: Exception) -> None:
        start_failed(self, tracked_actor, _as_dead_actor(exception))

    def actor_task_failed(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        task_failed(self, tracked_actor_task, _as_dead_actor(exception))

    RayActorManager._actor_start_failed = actor_start_failed
    RayActorManager._actor_task_failed = actor_task_failed
    try:
        yield
    finally:
        RayActorManager._actor_start_failed = start_failed
        RayActorManager._actor_task_failed = task_failed


def _as_dead_actor(exception: Exception) -> Exception:
    """A kill by the memory monitor as a dead actor; anything else as it is."""
    from ray.exceptions import OutOfMemoryError, RayActorError

    if not isinstance(exception, OutOfMemoryError):
        return exception
    reason = " ".join(str(exception).split())
    dead: Exception = RayActorError(
        error_msg=f"Ray's memory monitor killed the trial. Give it more memory, use a "
        f"smaller batch, or run fewer trials at once (max_concurrent). {reason}"
    )
    return dead


@contextlib.contextmanager
def trials_survive_a_lost_process_between_two() -> Iterator[None]:
    """Tries a trial again whose process dies while it passes from one trial to the next.

    Trials reuse the processes of those that have ended. When such a process (or its node) dies
    before the next trial runs in it, Tune 2.60 handles that one failure twice: it queues the
    trial anew, then finds it waiting and fails it for good, whatever ``max_failures`` says. And
    it would never start it again, as it still counts as passing from one to the next.
    """
    from ray.exceptions import RayActorError
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

    actor_failed = TuneController._actor_failed
    task_failed = TuneController._trial_task_failure

    def forget_reset(self: Any, tracked_actor: Any, exception: Exception) -> None:
        self._resetting_trials.discard(self._actor_to_trial.get(tracked_actor))
        actor_failed(self, tracked_actor, exception)

    def once(self: Any, trial: Any, exception: Exception) -> None:
        queued_anew = trial.status == Trial.PENDING and isinstance(exception, RayActorError)
        if not queued_anew:
            task_failed(self, trial, exception)

    TuneController._actor_failed = forget_reset
    TuneController._trial_task_failure = once
    try:
        yield
    finally:
        TuneController._actor_failed = actor_failed
        TuneController._trial_task_failure = task_failed


@contextlib.contextmanager
def no_forced_snapshots() -> Iterator[None]:
    """Spares Tune's snapshots of the whole experiment after every few checkpoints.

    With ``num_to_keep`` Tune writes (and uploads) the state of all trials whenever any trial
    has saved that often, so that its own restore never meets a checkpoint that is gone.
    Sweeps never restore from that state: trials find their checkpoints themselves. With
    thousands of trials the snapshots would take most of the driver's time.
    """
    from ray.tune.execution.experiment_state import _ExperimentCheckpointManager

    original = _ExperimentCheckpointManager.on_trial_checkpoint
    _ExperimentCheckpointManager.on_trial_checkpoint = lambda self, trial: None
    try:
        yield
    finally:
        _ExperimentCheckpointManager.on_trial_checkpoint = original


@contextlib.contextmanager
def no_keys_in_runtime_env() -> Iterator[None]:
    """Keeps AWS keys out of the logs and off the command lines of the trials' processes.

    Tune 2.60 copies ``AWS_SECRET_ACCESS_KEY`` and its like from the driver's environment into
    each trial's ``runtime_env.env_vars``, which Ray logs in clear text on every node and passes
    on a command line that all users of the machine can see (both measured). Processes on the
    driver's machine have these variables anyway; to others ``rlprune submit --env`` brings them.
    """
    from ray.tune.execution import class_cache

    original = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {n for n in original if not n.startswith("AWS_")}
    try:
        yield
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE = original
