"""The CNN trained by two real processes, RLlib's learners, inside whole trials."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from processes import comparable as rows_in
from processes import finish, start
from ray import cloudpickle
from test_trial import build, comparable, rows_of, run, run_interrupted

from rlprune.config import TrialConfig
from rlprune.errors import ReplicaError, TrainingDivergedError
from rlprune.results import ResultRow
from rlprune.training.algorithm import PruningAlgorithm
from rlprune.training.progress import Reporter

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import tests
Tiny = Callable[..., TrialConfig]
TEST_IMAGES = 360
SHORT: dict[str, Any] = {
    "evaluation__baselines": ("dense", "static_l1"),
    "evaluation__tradeoff_rates": [0.5],
    "training__rounds": 1,
    "training__updates_per_round": 1,
}


def learners(algorithm: PruningAlgorithm) -> list[psutil.Process]:
    workers = algorithm._cnn_workers
    assert workers is not None and workers._group is not None
    return [psutil.Process(result.get()) for result in workers._group.foreach_learner(_pid)]


def _pid(_: Any) -> int:
    return os.getpid()


@pytest.fixture(scope="module")
def of_two(ray_instance: None) -> list[ResultRow]:
    from conftest import tiny_config

    rows, _ = run(tiny_config(resources__cnn_workers=2, **SHORT))
    return rows


pytestmark = pytest.mark.usefixtures("ray_instance")


def test_a_trial_of_two_processes_measures_what_that_of_one_does(
    tiny: Tiny, of_two: list[ResultRow]
) -> None:
    """Dense and static_l1 see no agents: the same training but for rounding."""
    alone, _ = run(tiny(**SHORT))
    assert [(row.method, row.step) for row in of_two] == [(row.method, row.step) for row in alone]
    for one, two in zip(alone, of_two, strict=True):
        assert two.training_images == one.training_images
        assert two.storage_bytes == one.storage_bytes or one.method == "learned"
        if one.method != "learned":
            assert abs(two.test_accuracy - one.test_accuracy) * TEST_IMAGES < 2.5, one.method
            assert two.test_loss == pytest.approx(one.test_loss, rel=0.01)
            assert two.macs_mean == one.macs_mean


def test_stop_and_resume_equals_never_having_stopped(
    tiny: Tiny, of_two: list[ResultRow], tmp_path: Path
) -> None:
    rows, _, restarts = run_interrupted(tiny(resources__cnn_workers=2, **SHORT), 15, tmp_path)
    assert restarts >= 2
    assert comparable(rows) == comparable(of_two)


def test_one_process_goes_on_where_two_stopped(tiny: Tiny, tmp_path: Path) -> None:
    both = build(tiny(resources__cnn_workers=2, **SHORT))
    try:
        both.train()
        both.save_checkpoint(str(tmp_path))
        trained = both.program.state_dict()
    finally:
        both.stop()
    alone = build(tiny(**SHORT))
    try:
        alone.load_checkpoint(str(tmp_path))
        restored = alone.program.state_dict()
        for name, value in trained["network"].items():
            assert torch.equal(value, restored["network"][name])
        optimizer = restored["trainer"]["optimizer"]["state"]
        assert optimizer[0]["exp_avg"].abs().max() > 0
        alone.train()
        assert alone.program.position == 2
    finally:
        alone.stop()


class _Kill(Reporter):
    """SIGKILL for the second learner after a step of pretraining."""

    def __init__(self, algorithm: PruningAlgorithm) -> None:
        self.algorithm = algorithm
        self.killed = 0.0

    def advance(self, name: str, done: int, total: int, values: dict[str, float]) -> None:
        if not self.killed and name == "pretrain" and done == 8:
            learners(self.algorithm)[1].send_signal(signal.SIGKILL)
            self.killed = time.monotonic()


def test_a_killed_process_ends_the_trial_and_the_checkpoint_goes_on(
    tiny: Tiny, of_two: list[ResultRow], tmp_path: Path
) -> None:
    config = tiny(resources__cnn_workers=2, **SHORT)
    algorithm = build(config)
    try:
        algorithm.train()
        algorithm.save_checkpoint(str(tmp_path))
        first, second = learners(algorithm)
        algorithm.program.reporter = killer = _Kill(algorithm)
        with pytest.raises(ReplicaError, match=r"has died .*last checkpoint"):
            algorithm.train()
        assert killer.killed and time.monotonic() - killer.killed < 60
        psutil.wait_procs([first, second], timeout=30)
        assert not first.is_running() and not second.is_running()  # nobody is left waiting
    finally:
        algorithm.stop()
    again = build(config)
    try:
        again.load_checkpoint(str(tmp_path))
        assert comparable(rows_of(again)) == comparable(of_two)
    finally:
        again.stop()


def test_a_nan_loss_is_told_as_by_one_process(tiny: Tiny) -> None:
    config = tiny(training__pretrain_learning_rate=1e30, resources__cnn_workers=2)
    algorithm = build(config)
    try:
        with pytest.raises(TrainingDivergedError, match=r"step \d+ of .* learning rate"):
            rows_of(algorithm)
    finally:
        algorithm.stop()


def test_nobody_outside_the_machine_can_reach_the_processes_group(tiny: Tiny) -> None:
    """Beside Ray's own port, which wants a token, they listen on the loopback interface."""
    algorithm = build(tiny(resources__cnn_workers=2))
    try:
        algorithm.train()
        for process in learners(algorithm):
            listening = [
                connection.laddr.ip
                for connection in process.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
            ]
            outside = [address for address in listening if not address.startswith("127.")]
            assert len(outside) == 1  # Ray's
            assert len(listening) > 1  # gloo's
    finally:
        algorithm.stop()


SWEEP = """
name: pair
base: quickstart
trial:
  data: {max_train_images: 400}
  backbone: {width: 0.1}
  agents: {hidden: 8}
  rollouts: {rollouts_per_update: 32}
  training: {pretrain_epochs: 3, runtime_importance_epochs: 0, static_importance_epochs: 0,
             rounds: 1, updates_per_round: 1, finetune_epochs: 1}
  evaluation: {tradeoff_rates: [0.5], baselines: [dense], batchnorm_images: 128}
  resources: {cnn_workers: 2}
space: {seed: {grid: [0]}}
resources: {cpus: 0.5}
stop: {max_failures: 1}
"""


@pytest.mark.slow
@pytest.mark.fault
def test_a_sweeps_trial_whose_process_is_killed_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "pair.yaml").write_text(SWEEP)
    calm = start("sweep", "pair.yaml", "--set", "storage_path=calm", cwd=tmp_path)
    status, out, err = finish(calm, timeout=600)
    assert status == 0, out + err
    process = start("sweep", "pair.yaml", "--set", "storage_path=hurt", cwd=tmp_path)
    victim = _learner_of(process.pid)
    victim.send_signal(signal.SIGKILL)
    status, out, err = finish(process, timeout=600)
    assert status == 0, out + err
    rows = rows_in(tmp_path / "hurt/pair/results")
    assert rows.equals(rows_in(tmp_path / "calm/pair/results"))
    log = "\n".join(path.read_text() for path in tmp_path.glob("hurt/pair/**/error.txt"))
    assert "has died" in log


def _learner_of(pid: int) -> psutil.Process:
    """A learner that trains, among the descendants of a command."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for member in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # others come and go meanwhile
                words = [member.name(), *member.cmdline()]
                if any("_WrappedExecutable" in word for word in words) and _talks(member):
                    return member
        time.sleep(0.2)
    raise AssertionError("no learner appeared")


def _talks(process: psutil.Process) -> bool:
    """Whether it has joined the others: gloo listens on the loopback interface."""
    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr.ip.startswith("127.")
        for connection in process.net_connections("inet")
    )
