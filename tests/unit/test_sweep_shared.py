"""Leases of the shared actor, and what is patched in Tune; no Ray is started."""

from __future__ import annotations

import time
from typing import Any

import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.tune.execution.experiment_state import _ExperimentCheckpointManager

from rlprune.sweep import shared
from rlprune.sweep.patches import no_forced_snapshots, one_trial_pays_for_memory
from rlprune.sweep.shared import SharedData

# --- leases ---------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that ``time.monotonic`` gives; change the entry to let time pass."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(shared, "LEASE_SECONDS", 60.0)
    return now


def test_one_trial_at_a_time_has_the_lease_of_a_network(clock: list[float]) -> None:
    data = SharedData()
    assert data.claim("key", "first")
    assert not data.claim("key", "second")
    assert data.claim("key", "first")
    assert data.claim("another key", "second")
    assert not data.claim("another key", "first")


def test_a_lease_ends_when_its_holder_stops_renewing_it(clock: list[float]) -> None:
    data = SharedData()
    assert data.claim("key", "first")
    clock[0] = 59.9
    assert not data.claim("key", "second")
    assert data.claim("key", "first")  # renewed until 119.9
    clock[0] = 119.8
    assert not data.claim("key", "second")
    clock[0] = 120.0
    assert data.claim("key", "second")  # until 180
    assert not data.claim("key", "first")  # it comes back too late
    clock[0] = 179.9
    assert not data.claim("key", "first")


def test_a_late_holder_renews_what_nobody_has_taken(clock: list[float]) -> None:
    data = SharedData()
    assert data.claim("key", "first")
    clock[0] = 1000.0
    assert data.claim("key", "first")
    assert not data.claim("key", "second")


def test_only_the_holder_releases_a_lease(clock: list[float]) -> None:
    data = SharedData()
    data.release("key", "first")  # nobody has it
    assert data.claim("key", "first")
    data.release("key", "second")
    data.release("another key", "first")
    assert not data.claim("key", "second")
    data.release("key", "first")
    assert data.claim("key", "second")
    data.release("key", "first")  # once more, too late
    assert not data.claim("key", "first")


# --- the memory monitor ---------------------------------------------------------------------


class Resources:
    """Notes what an actor manager gives back; nothing else is asked of it here."""

    def __init__(self) -> None:
        self.freed: list[object] = []

    def free_resources(self, acquired_resource: object) -> None:
        self.freed.append(acquired_resource)


class Failure:
    """Ray's own actor manager with one live actor, whose task fails."""

    def __init__(self) -> None:
        self.resources = Resources()
        self.manager = RayActorManager(self.resources)
        self.told: list[tuple[str, Exception]] = []
        self.actor = TrackedActor(7, on_error=self._callback("actor"))
        self.task = TrackedActorTask(self.actor, on_error=self._callback("task"))
        self.manager._live_actors_to_ray_actors_resources[self.actor] = (None, "one CPU")

    def _callback(self, of: str) -> Any:
        return lambda _, exception: self.told.append((of, exception))

    def happens(self, exception: Exception) -> None:
        self.manager._actor_task_failed(self.task, exception)

    def happens_at_start(self, exception: Exception) -> None:
        self.manager._actor_start_failed(self.actor, exception)


KILLED = OutOfMemoryError("Task was killed.\n  Memory: 7.1 GB / 7.5 GB\n")


def test_a_kill_by_the_memory_monitor_is_a_dead_actor() -> None:
    failure = Failure()
    with one_trial_pays_for_memory():
        failure.happens(KILLED)
    assert [of for of, _ in failure.told] == ["actor", "task"]
    for _, exception in failure.told:
        assert type(exception) is RayActorError
        assert str(exception) == (
            "Ray's memory monitor killed the trial. Give it more memory, use a smaller batch, "
            "or run fewer trials at once (max_concurrent). Task was killed. Memory: 7.1 GB / 7.5 GB"
        )
    assert failure.resources.freed == ["one CPU"]
    assert failure.manager.live_actors == []


def test_a_kill_while_the_trial_starts_says_so() -> None:
    failure = Failure()
    with one_trial_pays_for_memory():
        failure.happens_at_start(KILLED)
    ((of, exception),) = failure.told
    assert of == "actor" and type(exception) is RayActorError
    assert "memory monitor killed the trial" in str(exception)
    assert failure.resources.freed == ["one CPU"]


def test_without_it_the_kill_would_end_the_whole_sweep() -> None:
    """Fails when Tune learns to handle the kill itself: then the patch can go."""
    failure = Failure()
    with pytest.raises(RuntimeError, match="unexpected exception"):
        failure.happens(KILLED)
    assert failure.told == [] and failure.resources.freed == []


def test_other_failures_stay_what_they_are() -> None:
    crashed = RayTaskError("step", "Traceback: no luck", ValueError("no luck"), "p", 1, "::1")
    died = RayActorError(error_msg="the node is gone")
    with one_trial_pays_for_memory():
        failure = Failure()
        failure.happens(crashed)
        assert failure.told == [("task", crashed)]
        assert failure.manager.live_actors == [failure.actor]
        failure = Failure()
        failure.happens(died)
        assert failure.told == [("actor", died), ("task", died)]
        with pytest.raises(RuntimeError, match="no failure of Ray"):
            Failure().happens(OSError("no failure of Ray"))


# --- both patches ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patch", "owner", "name"),
    [
        (one_trial_pays_for_memory, RayActorManager, "_actor_task_failed"),
        (one_trial_pays_for_memory, RayActorManager, "_actor_start_failed"),
        (no_forced_snapshots, _ExperimentCheckpointManager, "on_trial_checkpoint"),
    ],
)
def test_a_patch_is_undone_also_after_an_error(patch: Any, owner: type, name: str) -> None:
    original = getattr(owner, name)
    with patch():
        assert getattr(owner, name) is not original
    assert getattr(owner, name) is original
    with pytest.raises(KeyboardInterrupt), patch():
        raise KeyboardInterrupt
    assert getattr(owner, name) is original


def test_trials_checkpoints_force_no_snapshot_of_the_experiment() -> None:
    """Fails when Tune counts checkpoints otherwise: then the patch must be read again."""

    def snapshot_is_due() -> bool:
        manager = _ExperimentCheckpointManager(
            storage=None, checkpoint_period=3600.0, sync_every_n_trial_checkpoints=1
        )
        manager.on_trial_checkpoint("a trial")
        return bool(manager._should_force_sync_up)

    assert snapshot_is_due()
    with no_forced_snapshots():
        assert not snapshot_is_due()
