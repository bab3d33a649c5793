"""Specifications of sweeps: presets, bases, overrides, and every refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlprune.config import config_to_dict, load_config
from rlprune.errors import ConfigError, Problem
from rlprune.presets import preset_path, sweep_names
from rlprune.sweep.fields import MUTABLE, get_field, trial_fields
from rlprune.sweep.space import (
    TrialPoint,
    trial_config,
    trial_points,
)
from rlprune.sweep.spec import (
    Objective,
    SweepSpec,
    load_spec,
    spec_from_dict,
    spec_to_dict,
)

GRID = {"seed": {"grid": [0, 1]}}


def spec_of(**values: Any) -> SweepSpec:
    return spec_from_dict({"name": "test", "space": GRID, **values}, Path.cwd())


def problems(**values: Any) -> dict[str, Problem]:
    with pytest.raises(ConfigError) as caught:
        spec_of(**values)
    assert caught.value.exit_status == 2
    return {problem.field: problem for problem in caught.value.problems}


def only_problem(**values: Any) -> Problem:
    found = problems(**values)
    assert len(found) == 1, found
    return next(iter(found.values()))


def values_of(spec: SweepSpec) -> list[dict[str, Any]]:
    return [point.values for point in trial_points(spec)]


# --- presets and files ------------------------------------------------------------------------

TRIALS_OF_PRESET = {
    "sweep_digits": 6,  # 2 backbones x 3 budgets
    "sweep_fashion": 18,  # the same with 3 seeds
    "sweep_cifar10": 9,  # 3 backbones x 3 budgets
    "sweep_imagenet": 16,  # 2 backbones x 4 budgets x 2 draws
}


def test_the_presets_are_these() -> None:
    assert sweep_names() == sorted(TRIALS_OF_PRESET)


@pytest.mark.parametrize(("name", "count"), TRIALS_OF_PRESET.items())
def test_every_preset_gives_valid_trials(name: str, count: int) -> None:
    spec = load_spec(name)
    points = trial_points(spec)
    configs = [trial_config(spec, point.values, point.name) for point in points]
    assert len(points) == count
    for point, config in zip(points, configs, strict=True):
        assert config.name == point.name
        assert config.budgets.compute_max == config.budgets.storage_max
    assert yaml.safe_load(preset_path(name).read_text())["name"] == name
    assert f"rlprune sweep {name}" in preset_path(name).read_text().split("name:")[0]


@pytest.mark.parametrize("name", TRIALS_OF_PRESET)
def test_presets_survive_yaml_without_their_base(name: str, tmp_path: Path) -> None:
    spec = load_spec(name)
    text = yaml.safe_dump(spec_to_dict(spec), sort_keys=False)
    again = spec_from_dict(yaml.safe_load(text), tmp_path)
    assert "base" not in yaml.safe_load(text)
    assert again == spec
    assert trial_points(again) == trial_points(spec)


def test_the_digits_sweep_by_hand() -> None:
    spec = load_spec("sweep_digits")
    assert [point.name for point in trial_points(spec)] == [
        "0000_m_cifarnet_storage_max=0.3",
        "0001_resnet20_storage_max=0.3",
        "0002_m_cifarnet_storage_max=0.5",
        "0003_resnet20_storage_max=0.5",
        "0004_m_cifarnet_storage_max=0.7",
        "0005_resnet20_storage_max=0.7",
    ]
    assert trial_points(spec)[3] == TrialPoint(
        index=3,
        name="0003_resnet20_storage_max=0.5",
        values={
            "backbone.name": "resnet20",
            "backbone.width": 0.5,
            "budgets.storage_max": 0.5,
            "budgets.compute_max": 0.5,
        },
    )


def test_the_base_lies_under_the_trial(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("seed: 7\nagents: {hidden: 9, clip: 0.3}\n")
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("name: a\nbase: mine.yaml\ntrial: {agents: {hidden: 5}}\nspace: {seed: 1}\n")
    spec = load_spec(sweep)
    assert spec.base is None
    agents = spec.trial["agents"]
    assert (spec.trial["seed"], agents["hidden"], agents["clip"], agents["epochs"]) == (
        7,
        5,
        0.3,
        2,
    )


def test_a_preset_as_base_is_complete() -> None:
    quickstart = config_to_dict(load_config(preset_path("quickstart")))
    assert spec_of(base="quickstart").trial == quickstart
    assert spec_of(base="quickstart.yaml").trial == quickstart


def test_overrides(tmp_path: Path) -> None:
    spec = load_spec(
        "sweep_digits",
        [
            "name=mine",
            "trial.training.rounds=2",
            "search.algorithm=random",
            "search.num_samples=4",
            "space.budgets.storage_max={choice: [0.4, 0.6]}",
            "space.seed=3",
        ],
    )
    assert (spec.name, spec.trial["training"]["rounds"]) == ("mine", 2)
    assert spec.space["budgets.storage_max"] == {"choice": [0.4, 0.6]}
    assert len(trial_points(spec)) <= 8
    assert {values["seed"] for values in values_of(spec)} == {3}


def test_an_override_without_effect_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        load_spec("sweep_digits", ["trial.budgets.storage_max=0.9", "nothing"])
    first, second = caught.value.problems
    assert first.rule == "has no effect: the search space sets it"
    assert first.remedy == "Write --set space.budgets.storage_max=0.9."
    assert second.field == "--set"


def test_trials_and_sweeps_are_not_mixed_up(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use `rlprune train`"):
        load_spec("quickstart")
    with pytest.raises(ConfigError, match=r"must describe one trial, not a sweep.*`rlprune sweep"):
        load_config(preset_path("sweep_digits"))
    with pytest.raises(ConfigError, match="Use one of: sweep_digits"):
        load_spec("sweep_digit")
    with pytest.raises(ConfigError, match="must be a readable file"):
        load_spec(tmp_path / "absent.yaml")
    (tmp_path / "other.yaml").write_text("space: {}\n")
    with pytest.raises(ConfigError, match="base: must describe a trial, not a sweep"):
        spec_from_dict({"name": "a", "base": "other.yaml", "space": GRID}, tmp_path)


# --- refusals ---------------------------------------------------------------------------------


def test_defaults() -> None:
    spec = spec_of()
    assert spec.search.objectives == (
        Objective("validation_accuracy", "max"),
        Objective("storage_bytes", "min"),
    )
    assert (spec.scheduler.name, spec.resources.cpus, spec.resources.gpus) == ("none", 1.0, 0.0)
    assert (spec.stop.hours, spec.stop.max_failures, spec.stop.fail_fast) == (None, 2, False)
    assert (spec.checkpoints.keep, spec.storage_path, spec.loggers) == (2, "runs", ("tensorboard",))
    assert spec.search.tradeoff_rate is None  # the last of each trial's own rates
    assert spec_of(search={"tradeoff_rate": 0.5}).search.tradeoff_rate == 0.5
    assert spec_of(scheduler={"metric": "validation_loss"}).scheduler.mode == "min"


def test_all_problems_at_once() -> None:
    found = problems(
        name="a/b",
        serch={},
        trial={"agents": {"hidden": 0, "clop": 1}},
        space={"budgets.storage": {"grid": []}, "seed": {"choice": [1, 2]}},
        search={"objectives": [{"metric": "test_accuracy", "mode": "max"}]},
        scheduler={"name": "asha", "grace_rounds": 4},
        resources={"cpus": 0},
        max_concurrent=0,
        stop={"hours": -1},
        checkpoints={"keep": 0},
        loggers=["tensorboard", "excel"],
    )
    assert set(found) == {
        "name",
        "serch",
        "trial.agents.hidden",
        "trial.agents.clop",
        "space.budgets.storage",
        "space.seed",
        "search.objectives.0.metric",
        "scheduler.grace_rounds",
        "resources.cpus",
        "max_concurrent",
        "stop.hours",
        "checkpoints.keep",
        "loggers.1",
    }
    assert found["serch"].remedy == "Did you mean 'search'?"
    assert found["trial.agents.clop"].remedy == "Did you mean 'clip'?"


@pytest.mark.parametrize("name", ["", "a b", "../up", ".hidden", "x" * 65, "a/b", "pretrained"])
def test_names_must_be_folders_of_their_own(name: str) -> None:
    assert only_problem(name=name).field == "name"


def test_a_name_must_be_given() -> None:
    with pytest.raises(ConfigError, match=r"name: must be given"):
        spec_from_dict({"space": GRID}, Path.cwd())


@pytest.mark.parametrize(
    ("values", "field", "remedy"),
    [
        ({"search": {"num_sample": 3}}, "search.num_sample", "Did you mean 'num_samples'?"),
        (
            {"search": {"objectives": [{"metrc": "macs_max", "mode": "min"}]}},
            "search.objectives.0.metrc",
            "Did you mean 'metric'?",
        ),
        ({"stop": {"hour": 3}}, "stop.hour", "Did you mean 'hours'?"),
        ({"training": {}}, "training", "indented below trial: trial.training"),
    ],
)
def test_unknown_keys(values: dict[str, Any], field: str, remedy: str) -> None:
    found = problems(**values)
    assert found[field].rule == "unknown key"
    assert remedy in found[field].remedy


def test_test_metrics_are_refused_with_the_reason() -> None:
    for problem in (
        only_problem(search={"objectives": [{"metric": "test_accuracy", "mode": "max"}]}),
        only_problem(scheduler={"name": "asha", "metric": "test_loss"}),
    ):
        assert "would make the reported test accuracy too good" in problem.remedy


def space_problem(domain: Any, field: str = "agents.clip", **values: Any) -> Problem:
    problem = only_problem(space={field: domain, **GRID}, **values)
    assert problem.field.startswith(f"space.{field}")
    return problem


@pytest.mark.parametrize(
    ("domain", "text"),
    [
        ({"grid": []}, "must be a list with at least one value"),
        ({"choice": 3}, "must be a list with at least one value"),
        ({"gird": [1]}, "Did you mean 'grid'?"),
        ({"grid": [1], "choice": [2]}, "must be a mapping with one key"),
        ({}, "Write one of: grid, choice, uniform, loguniform, randint, quniform, same, times"),
        ({"grid": [{"uniform": [0, 1]}]}, "Domains nest only inside cases"),
        ({"uniform": [0.3, 0.1]}, "low must be below high"),
        ({"uniform": [0.3, 0.3]}, "low must be below high"),
        ({"uniform": [0.3]}, "must be [low, high], numbers"),
        ({"uniform": [False, True]}, "must be [low, high], numbers"),
        ({"uniform": [0.1, float("inf")]}, "must be a finite number"),
        ({"loguniform": [0, 1]}, "low must be above zero"),
        ({"loguniform": [-1, 1]}, "low must be above zero"),
        ({"randint": [1, 2.5]}, "must be whole numbers"),
        ({"quniform": [0, 1]}, "must be [low, high, step], numbers"),
        ({"quniform": [0, 1, 0]}, "step must be above zero"),
        ({"quniform": [0, 1, 2]}, "step must be above zero and at most high - low"),
        ({"same": 3}, "must name another field"),
        ({"same": "agents.clop"}, "Did you mean 'agents.clip'?"),
        ({"times": "agents.gamma"}, "must be [other.field, factor]"),
        ({"times": ["agents.gamma", "a"]}, "must be [other.field, factor]"),
        ({"times": ["backbone.name", 2]}, "times needs a number, and backbone.name can be"),
        ({"same": "agents.clip"}, "agents.clip -> agents.clip"),
        ({"when": "seed", "cases": {}}, "must have a field and at least one case"),
        ({"when": "seed", "case": {1: 2}}, "Did you mean 'cases'?"),
        ({"when": "sed", "cases": {0: 1}}, "Did you mean 'seed'?"),
        (
            {"when": "seed", "cases": {3: 0.1}},
            "has a case that never occurs (got 3). seed can be: 0, 1",
        ),
        ({"when": "seed", "cases": {True: 0.1}}, "has a case that never occurs (got True)"),
        ({"when": "seed", "cases": {0: {"grid": []}}}, "space.agents.clip.cases.0: must be a list"),
    ],
)
def test_unusable_domains(domain: Any, text: str) -> None:
    found = problems(space={"agents.clip": domain, **GRID}, search={"algorithm": "random"})
    assert len(found) == 1
    assert text in str(next(iter(found.values())))


@pytest.mark.parametrize(
    ("field", "remedy"),
    [
        ("budgets.storage", "Did you mean 'budgets.storage_max'?"),
        ("storage_max", "Did you mean 'budgets.storage_max'?"),
        ("backbone", "Did you mean"),
        ("xyzzy", "Write a setting such as backbone.width."),
        ("name", "every trial gets a name of its own"),
    ],
)
def test_unknown_fields(field: str, remedy: str) -> None:
    assert remedy in space_problem({"grid": [1, 2]}, field).remedy


def test_an_empty_space() -> None:
    assert only_problem(space={}).rule == "must name at least one setting"


def test_circles_are_shown() -> None:
    space = {
        "agents.clip": {"same": "agents.gamma"},
        "agents.gamma": {"when": "seed", "cases": {0: {"times": ["agents.gae_lambda", 2]}}},
        "agents.gae_lambda": {"same": "agents.clip"},
        **GRID,
    }
    problem = only_problem(space=space)
    assert problem.value == "agents.clip -> agents.gamma -> agents.gae_lambda -> agents.clip"


def test_what_each_searcher_cannot_do() -> None:
    problem = space_problem({"uniform": [0.1, 0.2]})
    assert problem.remedy == "Write grid, or search.algorithm: random."
    nested = {"when": "seed", "cases": {0: {"choice": [0.1, 0.2]}}}
    assert "draws nothing" in space_problem(nested).rule
    many = only_problem(search={"num_samples": 2})
    assert many.field == "search.num_samples" and "must be 1 for a grid" in many.rule
    optuna = {"algorithm": "optuna"}
    grid = only_problem(search=optuna, space={"agents.clip": {"choice": [0.1]}, **GRID})
    assert (grid.field, grid.remedy) == ("space.seed", "Write choice instead.")
    free = {"seed": {"randint": [0, 9]}, "agents.clip": {"when": "seed", "cases": {0: 0.1}}}
    assert spec_of(search=optuna, space=free).search.sampler == "tpe"
    refused = only_problem(search={**optuna, "sampler": "nsga2"}, space=free)
    assert "nsga2 cannot search conditional spaces" in refused.rule
    nothing = only_problem(search=optuna, space={"agents.clip": 0.1})
    assert nothing.rule == "leaves Optuna nothing to choose"


def test_the_tradeoff_rate_must_be_measured() -> None:
    problem = only_problem(search={"tradeoff_rate": 0.25})
    assert problem.field == "search.tradeoff_rate"
    assert "Measured are [1.0, 0.5, 0.0]" in problem.remedy
    rates = {"evaluation.tradeoff_rates": {"grid": [[0.25], [0.5]]}}
    assert "Measured are [0.5]" in only_problem(search={"tradeoff_rate": 0.25}, space=rates).remedy


def test_a_gpu_must_be_reserved_to_be_used() -> None:
    cuda = {"resources": {"device": "cuda"}}
    assert only_problem(trial=cuda).field == "resources.gpus"
    assert spec_of(trial=cuda, resources={"gpus": 0.5}).resources.gpus == 0.5


def test_asha_must_be_able_to_stop_something() -> None:
    problem = only_problem(
        trial={"training": {"rounds": 2}}, scheduler={"name": "asha", "grace_rounds": 2}
    )
    assert "must be below training.rounds = 2" in problem.rule
    assert only_problem(scheduler={"reduction_factor": 1}).field == "scheduler.reduction_factor"


def test_what_population_based_training_may_change() -> None:
    clips = {"agents.clip": {"grid": [0.1, 0.2]}}

    def pbt(mutations: dict[str, Any], **values: Any) -> Problem:
        values = {"space": clips, **values}
        return only_problem(scheduler={"name": "pbt", "mutations": mutations}, **values)

    for field in MUTABLE:
        assert field in trial_fields()
    good = {"agents.learning_rate": {"loguniform": [1e-4, 1e-2]}}
    accepted = spec_of(scheduler={"name": "pbt", "mutations": good}, space=clips)
    assert accepted.scheduler.mutations == good
    assert "must name at least one" in pbt({}).rule
    wrong = pbt({"agents.hidden": {"choice": [4, 8]}})
    assert wrong.field == "scheduler.mutations.agents.hidden"
    assert all(field in wrong.remedy for field in MUTABLE)
    assert "must be a domain to draw from" in pbt({"agents.clip": {"grid": [0.1]}}).rule
    assert "low must be below high" in pbt({"agents.clip": {"uniform": [0.3, 0.1]}}).rule
    depends = pbt(good, space={"agents.clip": {"times": ["agents.learning_rate", 2]}})
    assert "depends on a setting that changes" in depends.rule
    unused = only_problem(scheduler={"mutations": good})
    assert unused.remedy == "Leave it out, or set scheduler.name: pbt."
    drawn = {"agents.clip": {"uniform": [0.1, 0.3]}}
    search = {"algorithm": "optuna"}
    assert "replaces the settings" in pbt(good, space=drawn, search=search).rule
    copied = pbt(good, space={"seed": {"grid": [0, 1]}})
    assert copied.field == "space.seed" and "trials may not differ" in copied.rule


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"base": "quikstart"}, "base"),
        ({"base": 3}, "base"),
        ({"trial": [1]}, "trial"),
        ({"space": [1]}, "space"),
        ({"search": "optuna"}, "search"),
        ({"scheduler": {"mutations": 3}}, "scheduler.mutations"),
    ],
)
def test_parts_of_the_wrong_kind(values: dict[str, Any], field: str) -> None:
    assert only_problem(**values).field == field


def test_fields_are_read_from_the_configuration() -> None:
    trial = config_to_dict(load_config(preset_path("quickstart")))
    assert "name" not in trial_fields() and "data.max_train_images" in trial_fields()
    assert {field: get_field(trial, field) for field in trial_fields()}["agents.hidden"] == 16
