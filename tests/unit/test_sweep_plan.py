"""Plans of sweeps: images and costs worked out by hand, refusals, and real digits."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from rlprune.agents.networks import RuntimeAgent, StaticAgent
from rlprune.config import DataConfig, config_from_dict
from rlprune.data import ImageArrays, ImageSet, load_image_set
from rlprune.errors import BudgetError, ConfigError, DataError
from rlprune.pruning import Gate
from rlprune.sweep.estimate import ImageFacts, NetworkFacts, SweepPlan
from rlprune.sweep.plan import (
    bundles,
    check_schedulable,
    plan_sweep,
    plan_table,
    print_plan,
)
from rlprune.sweep.plan_table import totals_line
from rlprune.sweep.spec import SweepSpec, load_spec, spec_from_dict
from rlprune.training.effort import rollout_images, training_images
from rlprune.training.phases import phase_steps
from rlprune.training.program import TrialProgram
from rlprune.training.progress import Reporter
from rlprune.training.setup import build_network, setup_trial

SMALL = {
    "data": {"name": "digits"},
    "backbone": {"name": "m_cifarnet", "width": 0.1},
    "agents": {"hidden": 4},
}
CLASSES = 3
IMAGES = 60
NODE = {"CPU": 4.0, "GPU": 0.0, "memory": 8e9}


class FakeImages:
    """Loads grey 8 x 8 noise and notes what was asked for."""

    def __init__(self, refuse: str | None = None) -> None:
        self.asked: list[DataConfig] = []
        self.refuse = refuse

    def __call__(self, config: DataConfig, seed: int) -> ImageSet:
        self.asked.append(config)
        if config.name == self.refuse:
            raise DataError(f"{config.name}: no such folder. Give data.root.")

        def arrays(count: int) -> ImageArrays:
            labels = np.arange(count, dtype=np.int64) % CLASSES
            return ImageArrays(np.zeros((count, 1, 8, 8), dtype=np.uint8), labels)

        names = tuple(str(label) for label in range(CLASSES))
        return ImageSet(
            config.name, arrays(IMAGES), arrays(10), arrays(20), names, (0.5,), (0.5,), "none"
        )


def spec_of(space: dict[str, Any], trial: dict[str, Any] | None = None, **rest: Any) -> SweepSpec:
    values = {"name": "test", "trial": {**SMALL, **(trial or {})}, "space": space, **rest}
    return spec_from_dict(values, Path.cwd())


def plan_of(space: dict[str, Any], trial: dict[str, Any] | None = None, **rest: Any) -> SweepPlan:
    return plan_sweep(spec_of(space, trial, **rest), FakeImages())


# --- effort ---------------------------------------------------------------------------------


def test_images_of_every_phase_by_hand() -> None:
    config = config_from_dict(
        {
            "training": {
                "pretrain_epochs": 3,
                "runtime_importance_epochs": 2,
                "static_importance_epochs": 0,
                "rounds": 4,
                "updates_per_round": 5,
                "finetune_epochs": 0.5,
                "batch_size": 30,
            },
            "rollouts": {"rollouts_per_update": 64},
            "evaluation": {"baselines": ["dense", "uniform", "static_l1"]},
        }
    )
    # 100 images are 3 steps of 30 images an epoch
    assert training_images(config, 100) == {
        "pretrain": 3 * 90,
        "runtime_importance": 2 * 90,
        "alternate": 4 * 45,
        "dense": (2 + 4 * 0.5) * 90,
        "uniform": 4 * 45,
        "static_l1": 4 * 90,
    }
    assert rollout_images(config) == 4 * 5 * 64
    # fewer images than a batch: one step an epoch with all of them
    assert training_images(config, 7)["pretrain"] == 3 * 7
    steps = phase_steps(config.training, "pretrain", 7)
    assert (steps.count, steps.batch_size) == (3, 7)


class _Untrained:
    """Agents as they are built: PPO does not change how many images the CNN sees."""

    def __init__(self, program: TrialProgram) -> None:
        graph, config = program.setup.graph, program.config.agents
        self._agents = (RuntimeAgent(graph, config), StaticAgent(config))

    def train_agents(self, updates: int) -> None:
        return None

    def agents(self) -> tuple[RuntimeAgent, StaticAgent]:
        return self._agents


def test_a_run_sees_as_many_images_as_were_planned() -> None:
    config = config_from_dict(
        {
            **SMALL,
            "training": {
                "pretrain_epochs": 1,
                "runtime_importance_epochs": 1,
                "static_importance_epochs": 1,
                "rounds": 2,
                "updates_per_round": 0,
                "finetune_epochs": 0.7,
                "batch_size": 16,
            },
            "evaluation": {"random_candidates": 1, "tradeoff_rates": [0.5]},
        }
    )
    images = FakeImages()(config.data, 0)
    program = TrialProgram(setup_trial(config, images), images, "cpu", Reporter())
    agents = _Untrained(program)
    while not program.finished:
        program.advance(agents)
    assert program.counters.cnn_images == training_images(config, len(images.train))


# --- plans ----------------------------------------------------------------------------------


def test_the_digits_sweep_on_real_digits() -> None:
    plan = plan_sweep(load_spec("sweep_digits"))
    assert [trial.backbone for trial in plan.trials] == ["m_cifarnet", "resnet20"] * 3
    assert not plan.sampled and plan.count == 6 and plan.pretrainings == 2
    assert [trial.shares_pretraining for trial in plan.trials] == [False, False, *[True] * 4]
    images = load_image_set(DataConfig(), 0)
    for trial in plan.trials:
        setup = setup_trial(trial.config, images)
        assert trial.dense_macs == setup.book.dense_macs
        assert trial.dense_bytes == setup.book.dense_bytes
        assert trial.images == training_images(trial.config, len(images.train))
        skipped = trial.images["pretrain"] if trial.shares_pretraining else 0
        assert trial.training_images == sum(trial.images.values()) - skipped
        assert trial.bundles == ({"CPU": 1.0},)
    # 1797 digits of 64 bytes with 8 bytes of label, held once for all trials
    assert plan.shared_image_bytes == 1797 * (64 + 8)
    assert plan.training_images == sum(trial.training_images for trial in plan.trials)
    assert plan.forward_macs == sum(
        trial.dense_macs * (trial.training_images + trial.rollouts) for trial in plan.trials
    )
    check_schedulable(plan, [{"CPU": 2.0, "GPU": 0.0, "memory": 4e9}])


def test_each_image_set_and_backbone_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []
    original = NetworkFacts.of

    def counting(config: Any, images: ImageFacts) -> NetworkFacts:
        traced.append(config.width)
        return original(config, images)

    monkeypatch.setattr(NetworkFacts, "of", counting)
    load = FakeImages()
    space = {
        "data.max_train_images": {"grid": [None, 50]},
        "backbone.width": {"grid": [0.1, 0.2]},
        "seed": {"grid": [0, 1, 2]},
        "budgets.storage_max": {"grid": [0.5, 0.7]},
    }
    plan = plan_sweep(spec_of(space), load)
    assert len(plan.trials) == 24
    assert [config.max_train_images for config in load.asked] == [None, 50]
    assert sorted(traced) == [0.1, 0.2]
    assert plan.pretrainings == 12  # all but the budgets decide on it
    bytes_of_one = (IMAGES + 10 + 20) * (64 + 8)
    assert plan.shared_image_bytes == 6 * bytes_of_one  # a seed decides on what is held out


def test_without_pretraining_nothing_is_shared() -> None:
    plan = plan_of(
        {"budgets.storage_max": {"grid": [0.5, 0.7]}}, {"training": {"pretrain_epochs": 0}}
    )
    assert plan.pretrainings == 0
    assert "pretrain" not in plan.trials[1].images


def test_what_a_trial_reserves() -> None:
    rollouts = {"rollouts": {"num_env_runners": 2}}
    plan = plan_of({"seed": {"grid": [0]}}, rollouts, resources={"cpus": 1.5, "gpus": 0.5})
    trial = plan.trials[0]
    assert trial.bundles == ({"CPU": 1.5, "GPU": 0.5}, {"CPU": 1.0}, {"CPU": 1.0})
    assert (trial.cpus, trial.gpus) == (3.5, 0.5)
    assert bundles(plan.spec, trial.config) == list(trial.bundles)
    memory = trial.memory
    assert memory.on_gpu and memory.processes == 3 * 700 * 2**20
    assert memory.host == memory.images + memory.weights + memory.processes
    on_cpu = plan_of({"seed": {"grid": [0]}}, rollouts).trials[0].memory
    assert on_cpu.host == memory.host + on_cpu.activations


class _Half(Gate):
    def decide(self, layer: int, pooled: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
        return importance >= importance.median(1, keepdim=True).values


@pytest.mark.parametrize("name", ["m_cifarnet", "resnet20", "mobilenet_v2"])
def test_activations_are_about_what_autograd_keeps(name: str) -> None:
    config = config_from_dict({"backbone": {"name": name}}).backbone
    facts = NetworkFacts.of(config, ImageFacts(100, 10, (3, 32, 32), 1))
    network = build_network(config, 10, (3, 32, 32), seed=0).train()
    network.set_predictors(True)
    weights = {parameter.data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # The result keeps the tensors alive, so that no address is used twice.
        result = network(torch.randn(8, 3, 32, 32), _Half())
    assert result.shape == (8, 10)
    assert 0.7 < 8 * 4 * facts.activations / sum(kept.values()) < 1.3


def test_optunas_points_are_only_examples() -> None:
    space = {"budgets.storage_max": {"uniform": [0.4, 0.8]}, "seed": {"choice": [0, 1]}}
    plan = plan_of(space, search={"algorithm": "optuna", "num_samples": 17})
    assert plan.sampled and plan.count == 17
    assert len(plan.trials) == 34
    ratios = [trial.config.budgets.storage_max for trial in plan.trials]
    assert ratios[:2] == [0.4, 0.8]
    assert not any(trial.shares_pretraining for trial in plan.trials)
    each = plan.trials[0].training_images
    assert plan.training_images == 17 * each
    assert "34 sample points; Optuna will choose 17" in str(plan_table(plan).title)


def test_population_based_training_needs_a_population() -> None:
    scheduler = {"name": "pbt", "mutations": {"agents.clip": {"uniform": [0.1, 0.3]}}}
    with pytest.raises(ConfigError, match="must have at least two trials for pbt"):
        plan_of({"agents.clip": {"grid": [0.2]}}, scheduler=scheduler)
    assert plan_of({"agents.clip": {"grid": [0.1, 0.2]}}, scheduler=scheduler).count == 2


# --- refusals -------------------------------------------------------------------------------


def test_unreachable_budgets_of_all_trials_at_once() -> None:
    rates = {"evaluation": {"tradeoff_rates": [0.0]}}
    with pytest.raises(BudgetError) as caught:
        plan_of(
            {
                "budgets.storage_max": {"grid": ["100B", 0.5, "200B"]},
                "budgets.compute_max": None,
                "seed": {"grid": [0, 1, 2]},
            },
            rates,
        )
    assert caught.value.exit_status == 2
    first, second = caught.value.problems
    assert first.value == "100 bytes" and second.value == "200 bytes"
    assert first.field.startswith(
        "budgets.storage_max at R_r = 0 (trial 0000_storage_max=100B_seed=0"
    )
    assert first.field.endswith("and 1 more)")
    assert "can reach" in first.rule


def test_problems_of_every_kind_together() -> None:
    load = FakeImages(refuse="cifar10")
    spec = spec_of(
        {
            "data.name": {"grid": ["digits", "cifar10"]},
            "backbone.name": {"grid": ["m_cifarnet", "resnet18"]},
            "agents.hidden": {"grid": [4, 0]},
            "budgets.storage_max": {"grid": [0.5, "100B"]},
        }
    )
    with pytest.raises(ConfigError) as caught:
        plan_sweep(spec, load)
    found = {problem.field.split(" (")[0]: str(problem) for problem in caught.value.problems}
    assert set(found) == {
        "agents.hidden",
        "data",
        "backbone",
        "budgets.storage_max at R_r = 1",
        "budgets.storage_max at R_r = 0.5",
        "budgets.storage_max at R_r = 0",
    }
    assert "greater than or equal to 1" in found["agents.hidden"]
    assert "and 6 more" in found["agents.hidden"]
    assert "cifar10: no such folder. Give data.root." in found["data"]
    assert "resnet18 has one width only" in found["backbone"]
    assert [config.name for config in load.asked] == ["digits", "cifar10"]  # refused once


def test_corners_of_optunas_space_are_checked() -> None:
    space = {"budgets.storage_max": {"uniform": [0.5, 300.0]}}  # above 1: so many bytes
    with pytest.raises(BudgetError, match=r"budgets\.storage_max at R_r = 1"):
        plan_of(space, search={"algorithm": "optuna", "num_samples": 3})


# --- the cluster ----------------------------------------------------------------------------


def test_what_fits() -> None:
    runners = {"rollouts": {"num_env_runners": 3, "rollouts_per_update": 240}}
    plan = plan_of({"seed": {"grid": [0]}}, runners)
    check_schedulable(plan, [NODE])
    # the workers may be elsewhere
    check_schedulable(plan, [{"CPU": 1.0}, {"CPU": 1.0}, {"CPU": 2.0}])
    # but half CPUs of two nodes make no whole one
    with pytest.raises(ConfigError):
        check_schedulable(plan, [{"CPU": 2.5}, {"CPU": 1.5}])


WORKERS = {"resources": {"cnn_workers": 2}, "rollouts": {"num_env_runners": 1}}


def test_what_processes_that_train_the_cnn_reserve() -> None:
    (alone,) = plan_of({"seed": {"grid": [0]}}, {"rollouts": WORKERS["rollouts"]}).trials
    (trial,) = plan_of({"seed": {"grid": [0]}}, WORKERS, resources={"cpus": 0.5}).trials
    assert trial.bundles == ({"CPU": 0.5}, {"CPU": 0.5}, {"CPU": 0.5}, {"CPU": 1.0})
    assert trial.cpus == 2.5 and trial.gpus == 0
    more = trial.memory.processes - alone.memory.processes
    assert more == 2 * 700 * 2**20
    # each has weights, gradient, its sum over the processes, and Adam's two averages
    assert trial.memory.weights - alone.memory.weights == 2 * 5 * alone.memory.weights / 8


def test_each_process_that_trains_on_a_gpu_has_a_whole_one() -> None:
    plan = plan_of({"seed": {"grid": [0]}}, WORKERS, resources={"cpus": 2, "gpus": 0.5})
    (trial,) = plan.trials
    worker = {"CPU": 2.0, "GPU": 1.0}
    assert trial.bundles == ({"CPU": 2.0, "GPU": 0.5}, worker, worker, {"CPU": 1.0})
    check_schedulable(plan, [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 5.0, "GPU": 2.0}])
    check_schedulable(plan, [{"CPU": 3.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}] * 2)
    needed = r"2 CPU, 1 GPU for each of 2 processes that train the CNN, and 1 CPU for each of 1 "
    with pytest.raises(ConfigError, match=needed):  # enough in all, but not where it is needed
        check_schedulable(plan, [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 2.0}])


def test_networks_that_other_processes_pretrain_are_not_shared() -> None:
    space = {"resources.cnn_workers": {"grid": [1, 2]}, "agents.hidden": {"grid": [2, 4]}}
    trials = plan_of(space).trials
    seen = [(trial.config.resources.cnn_workers, trial.shares_pretraining) for trial in trials]
    assert sorted(seen) == [(1, False), (1, True), (2, False), (2, True)]


@pytest.mark.parametrize(
    ("resources", "nodes", "has"),
    [
        ({"cpus": 8}, [NODE], "1 nodes with 4 CPUs in all; the largest has 4 CPU, 0 GPU, 7.5 GiB"),
        ({"gpus": 1}, [NODE], "the largest has 4 CPU, 0 GPU"),
        (
            {"cpus": 5},
            [NODE, {"CPU": 2.0, "GPU": 1.0}],
            "6 CPUs in all; the largest has 2 CPU, 1 GPU",
        ),
        ({}, [{**NODE, "memory": 5e8}], "the largest has 4 CPU, 0 GPU, 0.5 GiB"),
        ({}, [], "0 nodes with 0 CPUs in all"),
    ],
)
def test_what_can_never_be_scheduled(
    resources: dict[str, float], nodes: list[dict[str, float]], has: str
) -> None:
    plan = plan_of({"seed": {"grid": [0, 1, 2]}}, resources=resources)
    with pytest.raises(ConfigError) as caught:
        check_schedulable(plan, nodes)
    (problem,) = caught.value.problems
    assert caught.value.exit_status == 2
    assert problem.field == "resources (trial 0000_seed=0, 0001_seed=1 and 1 more)"
    needed = f"a trial needs {resources.get('cpus', 1):g} CPU"
    needed += f", {resources['gpus']:g} GPU" if "gpus" in resources else ""
    assert problem.rule == f"{needed} and 0.7 GiB of memory (estimated) on one node"
    assert has in str(problem.value)


# --- tables ---------------------------------------------------------------------------------


def shown(plan: SweepPlan) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_plan(plan, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_names_every_trial_and_the_totals() -> None:
    plan = plan_of({"seed": {"grid": [0, 1]}, "backbone.width": {"grid": [0.1, 0.2]}})
    text = shown(plan)
    for trial in plan.trials:
        assert trial.name in text
    assert plan_table(plan).row_count == 4
    assert "m_cifarnet x 0.1" in text and "m_cifarnet x 0.2" in text
    assert "4 trials train on" in text and "4 networks are pretrained" in text
    assert "Images: 13 kB of shared memory per node" in totals_line(plan)  # 2 x 90 x 72 bytes


def test_many_trials_are_grouped() -> None:
    seeds = list(range(21))
    plan = plan_of({"backbone.width": {"grid": [0.1, 0.2]}, "seed": {"grid": seeds}})
    table = plan_table(plan)
    assert len(plan.trials) == 42 and table.row_count == 2
    assert list(table.columns[0].cells) == ["21", "21"]
    assert "42 trials" in shown(plan)
