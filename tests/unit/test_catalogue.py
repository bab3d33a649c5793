"""The catalogue agrees with everything that lists methods; phases, effort, resuming."""

from __future__ import annotations

import copy
import dataclasses
import io
from typing import Any, get_args

import pytest
import torch

from rlprune.agents.networks import RuntimeAgent, StaticAgent
from rlprune.config import BaselineName, TrialConfig, config_from_dict
from rlprune.data import ImageSet, load_image_set
from rlprune.results import METHODS, ResultRow
from rlprune.results.statistics import _NO_RATE
from rlprune.training.catalogue import CATALOGUE, facts_of
from rlprune.training.effort import training_images
from rlprune.training.gates import method_rates
from rlprune.training.phases import plan_units
from rlprune.training.program import TrialProgram
from rlprune.training.progress import Interrupted, Reporter
from rlprune.training.rivals import RIVALS
from rlprune.training.rows import result_row
from rlprune.training.setup import setup_trial

DIGITS: dict[str, Any] = {
    "data": {"name": "digits"},
    "backbone": {"name": "m_cifarnet", "width": 0.1},
    "agents": {"hidden": 4, "samples_per_image": 1},
    "rollouts": {"rollouts_per_update": 16},
    "training": {
        "pretrain_epochs": 2,
        "runtime_importance_epochs": 1,
        "static_importance_epochs": 1,
        "rounds": 2,
        "updates_per_round": 2,
        "finetune_epochs": 1,
        "batch_size": 32,
    },
    "evaluation": {
        "tradeoff_rates": [0.5],
        "batchnorm_images": 96,
        "baselines": ["dense", *RIVALS],
    },
    "methods": {"search_candidates": 5},
    "resources": {"cpus": 1},
}


# --- lists ----------------------------------------------------------------------------------


def test_all_lists_of_methods_agree() -> None:
    assert set(get_args(BaselineName)) == set(CATALOGUE)
    assert set(METHODS) == {"learned", *CATALOGUE}
    assert set(RIVALS) < set(CATALOGUE)
    assert {name: rival.name for name, rival in RIVALS.items()} == {name: name for name in RIVALS}
    rateless = {name for name, facts in CATALOGUE.items() if not facts.has_rate}
    assert set(_NO_RATE) == rateless - {"dense"}
    for name, rival in RIVALS.items():
        facts = CATALOGUE[name]
        assert facts.plain and (facts.preparation is None) == (rival.prepare is None)


def test_rates_follow_from_the_kind() -> None:
    config = config_from_dict({"evaluation": {"tradeoff_rates": [1.0, 0.5, 0.0]}})
    rates = {name: method_rates(config, name) for name in CATALOGUE}
    assert {rates[n] for n in ("static_l1", "fpgm", "slimming", "amc")} == {(0.0,)}
    assert rates["fbs"] == rates["rnp"] == (1.0,)
    assert rates["cascade"] == method_rates(config, "cascade_small") == (1.0, 0.5)
    assert rates["uniform"] == (1.0, 0.5, 0.0)
    assert method_rates(config, "rnp_random") == (1.0,)
    assert facts_of("pretrain") is None


# --- effort ---------------------------------------------------------------------------------


def test_every_plain_method_trains_on_equally_many_images() -> None:
    config = config_from_dict(DIGITS)
    images = training_images(config, 100)  # 3 steps of 32 an epoch
    assert images["dense"] == images["fbs"] == images["amc"] == 4 * 96
    assert images["slimming_sparse"] == images["slimming"] == 2 * 96
    assert images["rnp_random"] == images["rnp"] == 2 * 96
    units = [(unit.phase, unit.kind) for unit in plan_units(config)]
    assert units[-5:] == [
        ("rnp_random", "train"),
        ("rnp_random", "train"),
        ("rnp", "train"),
        ("rnp", "train"),
        ("rnp", "measure"),
    ]


# --- a whole trial --------------------------------------------------------------------------


class Untrained:
    """Agents as they are built: no published method depends on them."""

    def __init__(self, program: TrialProgram) -> None:
        torch.manual_seed(0)
        graph, config = program.setup.graph, program.config.agents
        self._agents = (RuntimeAgent(graph, config), StaticAgent(config))

    def train_agents(self, updates: int) -> None:
        return None

    def agents(self) -> tuple[RuntimeAgent, StaticAgent]:
        return self._agents


class StopsEvery(Reporter):
    """Interrupts after every ``period``-th step of anything."""

    def __init__(self, period: int) -> None:
        self.period, self.count = period, 0
        self.stopped: set[str] = set()

    def advance(self, name: str, done: int, total: int, values: dict[str, float]) -> None:
        self.count += 1
        if self.period and self.count % self.period == 0:
            self.stopped.add(name)
            raise Interrupted


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    images = load_image_set(config_from_dict(DIGITS).data, 0)
    counts = {"train": 96, "validation": 75, "test": 75}
    few = {name: getattr(images, name).take(range(count)) for name, count in counts.items()}
    return dataclasses.replace(images, **few)


def rows_of(digits: ImageSet, reporter: StopsEvery) -> tuple[list[ResultRow], TrialProgram]:
    """Runs a trial; each interruption goes through a saved file and a new program."""

    def new() -> TrialProgram:
        config: TrialConfig = config_from_dict(copy.deepcopy(DIGITS))
        return TrialProgram(setup_trial(config, digits), digits, "cpu", reporter)

    program, rows = new(), []
    agents = Untrained(program)
    while not program.finished:
        try:
            found = program.advance(agents)
            rows += [result_row(program, m, "test", None) for m in found]
        except Interrupted:
            file = io.BytesIO()
            torch.save(program.state_dict(), file)
            program = new()
            file.seek(0)
            program.load_state_dict(torch.load(file, weights_only=True))
    return rows, program


@pytest.fixture(scope="module")
def calm(digits: ImageSet) -> tuple[list[ResultRow], TrialProgram]:
    return rows_of(digits, StopsEvery(0))


def test_rows_state_budgets_and_effort(calm: tuple[list[ResultRow], TrialProgram]) -> None:
    rows, program = calm
    found = {row.method: row for row in rows}
    assert set(found) == {"learned", "dense", *RIVALS}
    for name in RIVALS:
        row = found[name]
        assert row.budgets_met and row.tradeoff_rate is None
        assert row.macs_max <= row.compute_max_budget_macs
        assert row.storage_bytes <= row.storage_budget_bytes
        assert row.training_images == found["dense"].training_images
        assert row.finetune_images == 4 * 96
        assert (row.rollouts, row.rl_updates) == {
            "legr": (5, 0),
            "amc": (5, 4 * 8),  # a warm-up of one episode, then as many as there are layers
            "rnp": (2 * 2 * 16, 2 * 2),
        }.get(name, (0, 0))
        assert 0 < row.seconds_agents and 0 < row.seconds_finetune
        deletes = CATALOGUE[name].kind == "static"
        assert (row.storage_ratio < 1.0) == deletes == (min(row.stored_ratio) < 1.0)
        assert (max(row.keep_ratio_std) > 0) <= (not deletes)
        assert row.image_dependent_ratio is not None
        assert (max(row.image_dependent_ratio) > 0) <= (not deletes)
    assert program.counters.cnn_images == training_images(program.config, 96)


def test_interrupted_anywhere_it_ends_the_same(
    calm: tuple[list[ResultRow], TrialProgram], digits: ImageSet
) -> None:
    reporter = StopsEvery(3)
    rows, _ = rows_of(digits, reporter)
    assert {"fit legr", "fit amc", "fit rnp", "slimming_sparse", "slimming"} <= reporter.stopped
    times = {"created_at", "seconds_evaluate"} | {
        f"seconds_{name}" for name in ("pretrain", "importance", "agents", "finetune")
    }
    for one, other in zip(rows, calm[0], strict=True):
        same = {k: v for k, v in vars(one).items() if k not in times}
        assert same == {k: v for k, v in vars(other).items() if k not in times}
