"""Whole trials, in this process, against real Ray workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import ray
import torch

from rlprune.config import TrialConfig
from rlprune.errors import CheckpointError, RolloutError, TrainingDivergedError
from rlprune.results import ResultRow
from rlprune.training.algorithm import PruningAlgorithm
from rlprune.training.algorithm_config import PruningAlgorithmConfig
from rlprune.training.progress import Interrupted, Reporter
from rlprune.training.rows import result_row

pytestmark = pytest.mark.usefixtures("ray_instance")
Tiny = Callable[..., TrialConfig]
TIMES = ("seconds_pretrain", "seconds_importance", "seconds_agents", "seconds_finetune")
UNEQUAL = {*TIMES, "seconds_evaluate", "created_at", "checkpoint_uri"}


def build(config: TrialConfig) -> PruningAlgorithm:
    algorithm: PruningAlgorithm = PruningAlgorithmConfig.of(config).build_algo()
    return algorithm


def rows_of(algorithm: PruningAlgorithm) -> list[ResultRow]:
    rows = []
    while not algorithm.program.finished:
        algorithm.train()
        rows += [result_row(algorithm.program, m, "test", None) for m in algorithm.measurements]
    return rows


def comparable(rows: list[ResultRow]) -> list[dict[str, Any]]:
    return [{k: v for k, v in vars(row).items() if k not in UNEQUAL} for row in rows]


def run(config: TrialConfig) -> tuple[list[ResultRow], PruningAlgorithm]:
    algorithm = build(config)
    try:
        return rows_of(algorithm), algorithm
    finally:
        algorithm.stop()


@pytest.fixture(scope="module")
def undisturbed() -> tuple[list[ResultRow], PruningAlgorithm]:
    from conftest import tiny_config

    return run(tiny_config())


def test_all_methods_at_all_rates_within_their_budgets(
    undisturbed: tuple[list[ResultRow], PruningAlgorithm],
) -> None:
    rows, algorithm = undisturbed
    points = [(row.method, row.tradeoff_rate) for row in rows]
    rates = (1.0, 0.5, 0.0)
    assert points == [
        *[("learned", rate) for rate in rates],
        ("dense", None),
        *[("uniform", rate) for rate in rates],
        ("static_l1", None),
        *[("random", rate) for rate in rates],
    ]
    for row in rows:
        if row.method == "dense":
            assert row.macs_mean_ratio == 1.0 and row.storage_ratio == 1.0
            continue
        assert row.budgets_met
        assert row.compute_max_budget_macs is not None and row.storage_budget_bytes is not None
        assert row.macs_max <= row.compute_max_budget_macs
        assert row.storage_bytes <= row.storage_budget_bytes
    learned = rows[:3]
    assert learned[0].storage_bytes > learned[1].storage_bytes > learned[2].storage_bytes
    assert learned[2].keep_ratio_std == (0.0,) * 8  # R_r = 0: the same for every image
    assert learned[2].image_dependent_ratio == (0.0,) * 8
    assert learned[0].rl_updates == 6 and learned[0].rollouts == 6 * 32
    assert len(algorithm.program.history) == 6


def test_fine_tuning_is_equal_for_all_pruning_methods(
    undisturbed: tuple[list[ResultRow], PruningAlgorithm],
) -> None:
    rows, _ = undisturbed
    by_method = {row.method: row for row in rows}
    images = {by_method[name].training_images for name in by_method}
    assert len(images) == 1  # plain methods train the importance phases' images as well
    assert by_method["uniform"].finetune_images == by_method["learned"].finetune_images
    assert by_method["random"].finetune_images == by_method["learned"].finetune_images


def test_same_seed_same_rows_other_seed_other_rows(
    tiny: Tiny, undisturbed: tuple[list[ResultRow], PruningAlgorithm]
) -> None:
    again, _ = run(tiny())
    assert comparable(again) == comparable(undisturbed[0])
    other, _ = run(tiny(seed=1, evaluation__baselines=()))
    assert [row.test_loss for row in other] != [row.test_loss for row in again[:3]]


class _InterruptEvery(Reporter):
    """Stops the trial after every ``period``-th step of anything."""

    def __init__(self, period: int) -> None:
        self.period, self.count = period, 0

    def advance(self, name: str, done: int, total: int, values: dict[str, float]) -> None:
        self.count += 1
        if self.count % self.period == 0:
            raise Interrupted


def run_interrupted(
    config: TrialConfig, period: int, tmp_path: Any
) -> tuple[list[ResultRow], PruningAlgorithm, int]:
    """Interrupted between steps, saved, and restored into a new algorithm each time."""
    rows: list[ResultRow] = []
    restarts = 0
    folder: Any = None
    while True:
        algorithm = build(config)
        try:
            if folder is not None:
                algorithm.load_checkpoint(str(folder))
            algorithm.program.reporter = _InterruptEvery(period)
            while not (algorithm.program.finished or algorithm.interrupted):
                algorithm.train()
                rows += [
                    result_row(algorithm.program, m, "test", None) for m in algorithm.measurements
                ]
            folder = tmp_path / f"stop{restarts}"
            folder.mkdir()
            algorithm.save_checkpoint(str(folder))
            if algorithm.program.finished:
                return rows, algorithm, restarts
            restarts += 1
        finally:
            algorithm.stop()


def test_stop_and_resume_equals_never_having_stopped(
    tiny: Tiny, undisturbed: tuple[list[ResultRow], PruningAlgorithm], tmp_path: Any
) -> None:
    rows, algorithm, restarts = run_interrupted(tiny(), 17, tmp_path)
    assert restarts >= 4
    assert comparable(rows) == comparable(undisturbed[0])
    assert algorithm.program.history == undisturbed[1].program.history  # every PPO update


def test_a_cascade_beside_the_learned_policy_stopped_and_resumed(tiny: Tiny, tmp_path: Any) -> None:
    config = tiny(
        budgets__compute_max=None,
        budgets__compute_mean=0.6,
        evaluation__tradeoff_rates=[1.0, 0.0],
        evaluation__baselines=("cascade",),
        training__rounds=1,
        training__updates_per_round=1,
        training__finetune_first=True,
        training__keep_better=True,
    )
    calm, _ = run(config)
    assert [(row.method, row.tradeoff_rate) for row in calm] == [
        ("learned", 1.0),
        ("learned", 0.0),
        ("cascade", 1.0),
    ]
    learned, _, pair = calm
    assert pair.finetune_images == 2 * learned.finetune_images
    assert pair.compute_mean_budget_macs == learned.compute_mean_budget_macs
    assert pair.macs_mean < pair.macs_max  # some images, not all, went through both networks
    assert pair.storage_budget_bytes is not None and not pair.budgets_met
    assert pair.storage_bytes > pair.storage_budget_bytes
    rows, _, restarts = run_interrupted(config, 12, tmp_path)
    assert restarts >= 3
    assert comparable(rows) == comparable(calm)


def test_remote_workers_and_a_killed_one(tiny: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    """Two remote workers; one dies by SIGKILL; the rows are those of an undisturbed run."""
    config = tiny(rollouts__num_env_runners=2, evaluation__baselines=())
    calm, _ = run(config)
    algorithm = build(config)

    class Killer(Reporter):
        killed: int | None = None

        def advance(self, name: str, done: int, total: int, values: dict[str, float]) -> None:
            if name == "agents" and done == 2 and self.killed is None:
                pids = algorithm.env_runner_group.foreach_env_runner(
                    lambda worker: os.getpid(), local_env_runner=False
                )
                assert os.getpid() not in pids and len(set(pids)) == 2
                self.killed = pids[0]
                os.kill(pids[0], signal.SIGKILL)

    killer = Killer()
    algorithm.program.reporter = killer
    try:
        rows = rows_of(algorithm)
        pids = algorithm.env_runner_group.foreach_env_runner(
            lambda worker: os.getpid(), local_env_runner=False
        )
    finally:
        algorithm.stop()
    assert killer.killed is not None and killer.killed not in pids
    assert len(set(pids)) == 2  # it was replaced
    assert comparable(rows) == comparable(calm)
    assert "constructor arguments" not in capfd.readouterr().err  # a warning of Ray's


def test_an_error_in_a_worker_is_raised_and_not_swallowed(tiny: Tiny) -> None:
    algorithm = build(tiny(rollouts__num_env_runners=1, evaluation__baselines=()))

    def spoil(worker: Any) -> None:
        worker.setup = None

    algorithm.env_runner_group.foreach_env_runner(spoil, local_env_runner=False)
    try:
        with pytest.raises(RolloutError, match=r"'NoneType' object has no attribute"):
            rows_of(algorithm)
    finally:
        algorithm.stop()


@pytest.mark.parametrize("boosted", [False, True])
def test_agents_learn_on_the_gates_that_ship(tiny: Tiny, boosted: bool) -> None:
    """A rollout worker's network has the kind of gates of the trial's own."""
    config = tiny(rollouts__num_env_runners=1, evaluation__baselines=(), pruning__boosted=boosted)
    algorithm = build(config)

    def kinds_of(worker: Any) -> list[bool]:
        return [part.boosted for part in worker.network.layers]

    try:
        for _ in range(5):  # up to the first round of rollouts
            algorithm.train()
        (kinds,) = algorithm.env_runner_group.foreach_env_runner(kinds_of, local_env_runner=False)
        assert set(kinds) == {boosted}
        rows = rows_of(algorithm)
    finally:
        algorithm.stop()
    assert [part.boosted for part in algorithm.program.network.layers] == kinds
    assert all(row.budgets_met for row in rows if row.method == "learned")


def test_workers_read_the_images_without_copying(tiny: Tiny) -> None:
    algorithm = build(tiny(rollouts__num_env_runners=1, evaluation__baselines=()))
    for _ in range(5):  # up to the first round of rollouts
        algorithm.train()
    try:
        owns = algorithm.env_runner_group.foreach_env_runner(
            lambda worker: (
                worker.images.train.images.flags.owndata,
                worker.images.train.images.flags.writeable,
            ),
            local_env_runner=False,
        )
    finally:
        algorithm.stop()
    assert owns == [(False, False)]  # a read-only view into Ray's object store


def test_a_nan_loss_stops_the_phase_and_says_where(tiny: Tiny) -> None:
    algorithm = build(tiny(training__pretrain_learning_rate=1e30))
    try:
        with pytest.raises(TrainingDivergedError, match=r"step \d+ of .* learning rate"):
            rows_of(algorithm)
    finally:
        algorithm.stop()


def test_a_checkpoint_of_another_configuration_is_refused(tiny: Tiny, tmp_path: Any) -> None:
    algorithm = build(tiny())
    try:
        algorithm.save_checkpoint(str(tmp_path))
    finally:
        algorithm.stop()
    other = build(tiny(seed=3))
    try:
        with pytest.raises(CheckpointError, match=r"seed \(0 there, 3 here\)"):
            other.load_checkpoint(str(tmp_path))
    finally:
        other.stop()


def test_checkpoints_hold_no_pickled_code(tiny: Tiny, tmp_path: Any) -> None:
    algorithm = build(tiny())
    try:
        algorithm.train()
        algorithm.save_checkpoint(str(tmp_path))
    finally:
        algorithm.stop()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["program"]["position"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "state.pt"]


def test_mean_budget_is_met_within_a_percent_on_validation(tiny: Tiny) -> None:
    config = tiny(
        backbone__width=0.5,  # of fewer channels, one more in each image is above a percent
        budgets__compute_max=None,
        budgets__compute_mean=0.5,
        budgets__storage_max=None,
        evaluation__tradeoff_rates=[1.0],
        evaluation__baselines=(),
    )
    algorithm = build(config)
    try:
        while not algorithm.program.finished:
            algorithm.train()
        measured = algorithm.measurements[0]
    finally:
        algorithm.stop()
    target = measured.point.compute_mean
    assert target is not None
    assert 0.99 * target <= float(measured.validation.macs.mean()) <= 1.01 * target
    assert measured.budgets_met


def test_residual_network_trained_over_a_range_of_budgets(tiny: Tiny) -> None:
    """One training, several budgets: every point is within its own."""
    config = tiny(
        backbone__name="resnet20",
        backbone__width=0.25,
        budgets__train_range=[0.4, 0.8],
        evaluation__budgets=[0.4, 0.8],
        evaluation__tradeoff_rates=[1.0, 0.0],
        evaluation__baselines=("uniform",),
        training__updates_per_round=2,
    )
    rows, _ = run(config)
    assert [(r.method, r.budget_s) for r in rows] == [
        (method, s) for method in ("learned", "uniform") for s in (None, None, 0.4, 0.4, 0.8, 0.8)
    ]
    assert all(row.budgets_met for row in rows)
    by_point = {(r.method, r.budget_s, r.tradeoff_rate): r for r in rows}
    for method in ("learned", "uniform"):
        tight, loose = by_point[method, 0.4, 0.0], by_point[method, 0.8, 0.0]
        assert tight.storage_bytes < loose.storage_bytes and tight.macs_max < loose.macs_max
    assert len(rows[0].layer_names) == 19


def test_soft_rule_and_paper_tradeoff_are_reported_as_they_are(tiny: Tiny) -> None:
    """Penalised budgets may be missed: the row says whether they were."""
    config = tiny(
        budgets__rule="soft",
        budgets__storage_max=None,
        pruning__tradeoff="paper",
        evaluation__tradeoff_rates=[0.5],
        evaluation__baselines=(),
    )
    rows, _ = run(config)
    (row,) = rows
    assert row.budget_rule == "soft" and row.tradeoff == "paper"
    assert row.stored_ratio == (1.0,) * 8  # the paper's rule deletes nothing at R_r = 0.5
    assert row.compute_max_budget_macs is not None
    assert row.budgets_met == (row.macs_max <= row.compute_max_budget_macs)


def test_every_phase_can_be_left_out(tiny: Tiny) -> None:
    config = tiny(
        training__pretrain_epochs=0,
        training__runtime_importance_epochs=0,
        training__static_importance_epochs=0,
        training__rounds=0,
        evaluation__baselines=("dense", "uniform"),
    )
    rows, algorithm = run(config)
    assert len(rows) == 7 and all(row.budgets_met for row in rows)
    assert {row.training_images for row in rows} == {0}
    assert algorithm.program.history == []


def test_no_worker_is_left_behind() -> None:
    """Runs last: stopped algorithms leave no rollout worker of this process's Ray."""
    assert ray.is_initialized()

    def workers() -> list[str]:
        family = psutil.Process().children(recursive=True)
        return [name for name in map(_command, family) if "RolloutWorker" in name]

    deadline = time.monotonic() + 20
    while workers() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not workers()


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
