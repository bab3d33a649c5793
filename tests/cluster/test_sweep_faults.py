"""A sweep goes on whatever breaks, and ends with the rows of an undisturbed one."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from fault_sweeps import (
    PATIENT,
    Sweep,
    ended,
    leave_nothing,
    mended,
    no_route,
    note,
    undisturbed,
    wait_until,
)
from local_cluster import RunningCluster, local_cluster

from cluster.local import service
from cluster.local.state import HEAD, STORAGE

pytestmark = pytest.mark.slow

ENVIRONMENT = {
    **PATIENT,
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
OUTAGE_SECONDS = 20.0
TRIAL = ("ray::SweepTrial", "ray::_Inner")
"""A trial's process, between two of its tasks and in one."""
ROLLOUTS, DRIVER = ("RolloutWorker",), ("rlprune.cli.main sweep",)


@pytest.fixture(scope="module")
def running() -> Iterator[RunningCluster]:
    with local_cluster("testsweeps", storage=True, cpus=4, **ENVIRONMENT) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def calm(running: RunningCluster, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    rows = undisturbed(Sweep(running, "calm", tmp_path_factory.mktemp("calm")))
    assert len(rows) == 4 and rows["trial"].nunique() == 2
    return rows


@pytest.fixture
def sweep(
    running: RunningCluster, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Sweep]:
    place = "".join(letter for letter in request.node.name if letter.isalnum() or letter in "-_")
    found = Sweep(mended(running), place, tmp_path)
    yield found
    leave_nothing(found)


def test_a_worker_node_is_killed(sweep: Sweep, calm: pd.DataFrame) -> None:
    with ended(sweep.submit("--no-preflight")) as job:
        trials = sweep.until_two_have_saved(job)
        victim = next(iter(sweep.workers_with(*TRIAL)))
        began = time.monotonic()
        service.kill_one(sweep.cluster.folder, victim)
        note("worker node killed", sweep.recovery(trials, began, job))
        sweep.check(job, calm)


@pytest.mark.parametrize(("who", "words"), [("rollout worker", ROLLOUTS), ("trial", TRIAL)])
def test_one_process_is_killed(
    sweep: Sweep, calm: pd.DataFrame, who: str, words: tuple[str, ...]
) -> None:
    with ended(sweep.submit("--no-preflight")) as job:
        trials = sweep.until_two_have_saved(job)
        (victim, *_), *_ = sweep.workers_with(*words).values()
        began = time.monotonic()
        victim.send_signal(signal.SIGKILL)
        note(f"{who} killed", sweep.recovery(trials, began, job))
        sweep.check(job, calm)


def test_the_driver_is_killed(sweep: Sweep, calm: pd.DataFrame) -> None:
    with ended(sweep.submit("--no-preflight")) as job:
        trials = sweep.until_two_have_saved(job)
        (driver,) = sweep.processes(HEAD, *DRIVER)
        began = time.monotonic()
        driver.send_signal(signal.SIGKILL)
        note("driver killed", sweep.recovery(trials, began, job))
        assert "killed by signal 9. Restart 1 of 5" in sweep.check(job, calm)


def test_the_head_is_killed_and_a_new_cluster_goes_on(sweep: Sweep, calm: pd.DataFrame) -> None:
    with ended(sweep.submit("--no-preflight")) as job:
        trials = sweep.until_two_have_saved(job)
        began = time.monotonic()
        service.kill_one(sweep.cluster.folder, HEAD)
        output, _ = job.communicate(timeout=300)
        assert job.returncode == 2 and "does not answer" in output, output
    service.up(sweep.cluster.folder, sweep.cluster.shape, lambda _: None)
    sweep.on(HEAD, "hostname", "another")  # a new machine: its process numbers mean nothing
    up = time.monotonic() - began
    with ended(sweep.submit("--no-preflight")) as again:
        seconds = sweep.recovery(trials, began, again)
        note("head killed, new cluster", seconds)
        note("  of that from submitting again on", seconds - up)
        sweep.check(again, calm)


@pytest.mark.parametrize("reaches_storage", [False, True])
def test_a_partition(sweep: Sweep, calm: pd.DataFrame, reaches_storage: bool) -> None:
    """A worker node that hears nothing; or all but the head, so that it could go on writing."""
    folder = sweep.cluster.folder
    with ended(sweep.submit("--no-preflight")) as job:
        trials = sweep.until_two_have_saved(job)
        victim = next(iter(sweep.workers_with(*TRIAL)))
        began = time.monotonic()
        if reaches_storage:
            with no_route(sweep, [victim], HEAD), no_route(sweep, [HEAD], victim):
                # Its trial may save once more; what counts is what follows when it is given up.
                wait_until(lambda: sweep.failures() > 0, job)
                note("partition, node reaches the storage", sweep.recovery(trials, began, job))
        else:
            service.cut(folder, victim)
            note("partition", sweep.recovery(trials, began, job))
            service.join(folder, victim)
        sweep.check(job, calm)
    lost = folder.read_machine(victim)
    assert lost is not None
    wait_until(lambda: not lost.lives())  # it was told that it is dead, and ended


@pytest.mark.parametrize("kind", ["silent", "refusing"])
def test_the_storage_fails_for_20_seconds(sweep: Sweep, calm: pd.DataFrame, kind: str) -> None:
    folder, nodes = sweep.cluster.folder, sweep.cluster.shape.names()
    with ended(sweep.submit("--no-preflight")) as job:
        trials = sweep.until_two_have_saved(job)
        began = time.monotonic()
        if kind == "silent":
            service.cut(folder, STORAGE)
            time.sleep(OUTAGE_SECONDS)
            service.join(folder, STORAGE)
        else:
            with no_route(sweep, nodes, STORAGE):
                time.sleep(OUTAGE_SECONDS)
        note(f"storage {kind} for 20 s", sweep.recovery(trials, began, job))
        sweep.check(job, calm)
    assert sweep.failures() <= len(trials)  # an outage is one failure of a trial, or none
