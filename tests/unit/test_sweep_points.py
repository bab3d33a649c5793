"""Points of search spaces, their names and trials, and what Optuna is asked: by hand."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from rlprune.errors import ConfigError
from rlprune.sweep.space import (
    sample_points,
    suggest,
    trial_config,
    trial_name,
    trial_points,
)
from rlprune.sweep.spec import SweepSpec, spec_from_dict

GRID = {"seed": {"grid": [0, 1]}}


def spec_of(**values: Any) -> SweepSpec:
    return spec_from_dict({"name": "test", "space": GRID, **values}, Path.cwd())


def values_of(spec: SweepSpec) -> list[dict[str, Any]]:
    return [point.values for point in trial_points(spec)]


def test_grids_are_crossed_the_first_one_slowest() -> None:
    spec = spec_of(
        space={"agents.clip": {"grid": [0.1, 0.2]}, "agents.epochs": {"grid": [1, 2, 3]}}
    )
    pairs = [(v["agents.clip"], v["agents.epochs"]) for v in values_of(spec)]
    assert pairs == [(0.1, 1), (0.1, 2), (0.1, 3), (0.2, 1), (0.2, 2), (0.2, 3)]


def test_neighbours_need_different_pretrained_networks() -> None:
    spec = spec_of(
        space={
            "seed": {"grid": [0, 1]},
            "training.pretrain_epochs": {"grid": [1, 2]},
            "budgets.storage_max": {"grid": [0.3, 0.5]},
        }
    )
    order = [tuple(values.values()) for values in values_of(spec)]
    networks = [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert order == [(*network, s) for s in (0.3, 0.5) for network in networks]


def test_dependent_and_conditional_values() -> None:
    spec = spec_of(
        trial={"agents": {"hidden": 11}},
        space={
            "rollouts.rollouts_per_update": {"times": ["agents.samples_per_image", 32]},
            "agents.hidden": {
                "when": "backbone.name",
                "cases": {
                    "resnet20": {"same": "seed"},
                    "vgg16_bn": {"when": "seed", "cases": {5: {"grid": [64, 128]}}, "otherwise": 1},
                },
            },
            "agents.samples_per_image": {"grid": [2]},
            "backbone.name": {"grid": ["m_cifarnet", "resnet20", "vgg16_bn"]},
            "seed": {"grid": [5, 6]},
        },
    )
    keys = ("backbone.name", "seed", "agents.hidden", "rollouts.rollouts_per_update")
    found = {tuple(values.get(key) for key in keys) for values in values_of(spec)}
    assert found == {
        ("m_cifarnet", 5, None, 64),  # None: not set, the base's 11 stays
        ("m_cifarnet", 6, None, 64),
        ("resnet20", 5, 5, 64),
        ("resnet20", 6, 6, 64),
        ("vgg16_bn", 5, 64, 64),
        ("vgg16_bn", 5, 128, 64),
        ("vgg16_bn", 6, 1, 64),
    }
    hidden = {
        trial_config(spec, point.values, point.name).agents.hidden
        for point in trial_points(spec)
        if point.values["backbone.name"] == "m_cifarnet"
    }
    assert hidden == {11}


def test_every_kind_of_field_can_vary() -> None:
    spec = spec_of(
        space={
            "evaluation.tradeoff_rates": {"grid": [[1.0, 0.0], [0.5]]},
            "budgets.compute_mean": {"grid": [None, "40%"]},
            "evaluation.budgets": [0.3, 0.4],
        }
    )
    points = trial_points(spec)
    configs = [trial_config(spec, point.values, point.name) for point in points]
    assert [config.evaluation.tradeoff_rates for config in configs] == [(1.0, 0.0)] * 2 + [
        (0.5,)
    ] * 2
    assert [config.budgets.compute_mean for config in configs] == [None, "40%"] * 2
    assert {config.evaluation.budgets for config in configs} == {(0.3, 0.4)}
    assert [point.name for point in points] == [
        "0000_tradeoff_rates=1-0_compute_mean=none",
        "0001_tradeoff_rates=1-0_compute_mean=40pct",
        "0002_tradeoff_rates=0.5_compute_mean=none",
        "0003_tradeoff_rates=0.5_compute_mean=40pct",
    ]


def test_random_draws_for_every_cell_of_the_grid() -> None:
    spec = spec_of(
        space={"agents.learning_rate": {"loguniform": [1e-4, 1e-2]}, **GRID},
        search={"algorithm": "random", "num_samples": 3},
    )
    found = values_of(spec)
    assert sorted(values["seed"] for values in found) == [0, 0, 0, 1, 1, 1]
    assert len({values["agents.learning_rate"] for values in found}) == 6
    other = spec_of(space=spec.space, search={"algorithm": "random", "num_samples": 3, "seed": 1})
    assert values_of(other) != found


def test_another_field_changes_nothing_about_the_draws() -> None:
    def rates(space: dict[str, Any]) -> set[float]:
        spec = spec_of(space=space, search={"algorithm": "random", "num_samples": 5})
        return {values["agents.learning_rate"] for values in values_of(spec)}

    rate = {"agents.learning_rate": {"uniform": [0.1, 0.2]}}
    assert rates(rate) == rates({"agents.clip": {"uniform": [0.1, 0.2]}, **rate})


def test_repeated_points_are_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = values_of(spec_of(space={"agents.clip": {"grid": [0.1, 0.1, 0.2]}}))
    assert [values["agents.clip"] for values in found] == [0.1, 0.2]
    assert "1 of 3 points repeat others" in caplog.text
    caplog.clear()
    twice = {"agents.hidden": {"grid": [4, 4.0]}, **GRID}  # 4 = 4.0, but the seeds differ
    assert len(values_of(spec_of(space=twice))) == 2
    assert "2 of 4 points repeat others" in caplog.text


def test_a_case_that_keeps_the_base_shares_the_bases_network() -> None:
    spec = spec_of(
        trial={"backbone": {"width": 0.5}},
        space={
            "agents.epochs": {"grid": [1, 2]},
            "backbone.width": {"when": "agents.epochs", "cases": {1: {"grid": [0.5, 1.0]}}},
        },
    )
    assert values_of(spec) == [
        {"agents.epochs": 1, "backbone.width": 0.5},
        {"agents.epochs": 1, "backbone.width": 1.0},
        {"agents.epochs": 2},  # width 0.5: the first one's network, so not beside it
    ]


def test_names_are_short_and_safe() -> None:
    spec = spec_of(
        space={
            "backbone.factory": {"grid": ["my_package.networks:small_one", None]},
            "training.batch_size": {"grid": [64]},
            "evaluation.batch_size": {"grid": [1, 2]},
            "agents.clip": {"grid": [1 / 3, 0.2]},
        }
    )
    names = [point.name for point in trial_points(spec)]
    assert names[0].startswith("0000_factory=my_package.-")
    assert names[0].endswith("_batch_size=1_clip=0.333")
    both = {"training.batch_size": {"grid": [64, 32]}, "evaluation.batch_size": {"grid": [1, 2]}}
    first = trial_points(spec_of(space=both))[0].name
    assert first == "0000_training.batch_size=64_evaluation.batch_size=1"
    many = {f"agents.{key}": {"grid": [0.1, 0.2]} for key in ("clip", "gamma", "gae_lambda")}
    many["agents.value_coefficient"] = {"grid": [0.12345, 0.2]}
    many["agents.entropy_coefficient"] = {"grid": [0.12345, 0.2]}
    names = [point.name for point in trial_points(spec_of(space=many))]
    # whole parts are left out at the end, the number keeps the name unique
    assert names[0] == "0000_clip=0.1_gamma=0.1_gae_lambda=0.1_value_coefficient=0.123"
    assert len(set(names)) == 32


def test_names_of_trials_whose_points_are_not_known_before() -> None:
    spec = spec_of(
        space={
            "agents.clip": {"uniform": [0.1, 0.3]},
            "agents.gamma": 0.9,
            "agents.gae_lambda": {"same": "agents.gamma"},
        },
        search={"algorithm": "optuna", "num_samples": 3},
    )
    values = {"agents.clip": 0.123456, "agents.gamma": 0.9, "agents.gae_lambda": 0.9}
    assert trial_name(spec, 12, values) == "0012_clip=0.123"
    with pytest.raises(ConfigError, match="must be grid or random to list the points"):
        trial_points(spec)


def test_the_trials_configuration() -> None:
    spec = spec_of(resources={"cpus": 2.5})
    config = trial_config(spec, {"seed": 4}, "0000_a")
    assert (config.name, config.seed, config.resources.cpus) == ("0000_a", 4, 2)
    assert not config.evaluation.every_round
    assert trial_config(spec_of(resources={"cpus": 0.5}), {}, "a").resources.cpus == 1
    assert trial_config(spec_of(trial={"resources": {"cpus": 3}}), {}, "a").resources.cpus == 3
    assert trial_config(spec_of(scheduler={"name": "asha"}), {}, "a").evaluation.every_round
    with pytest.raises(ConfigError, match=r"agents\.hidden: .*greater than or equal to 1"):
        trial_config(spec, {"agents.hidden": 0}, "a")


def test_a_space_without_end_is_refused() -> None:
    huge = {
        field: {"grid": list(range(1, 60))} for field in ("seed", "agents.hidden", "agents.epochs")
    }
    with pytest.raises(ConfigError, match="has more than 100,000 points"):
        trial_points(spec_of(space=huge))


def test_sample_points_begin_with_the_corners() -> None:
    spec = spec_of(
        space={
            "agents.clip": {"uniform": [0.1, 0.3]},
            "agents.hidden": {"randint": [4, 8]},
            "backbone.name": {"choice": ["resnet20", "m_cifarnet", "vgg16_bn"]},
            "agents.gamma": {"quniform": [0.5, 0.98, 0.1]},
        },
        search={"algorithm": "optuna"},
    )
    points = sample_points(spec, 5)
    assert len(points) == 7
    low, high = (tuple(point.values.values()) for point in points[:2])
    assert low == (0.1, 4, "resnet20", 0.5)
    assert high == (0.3, 8, "vgg16_bn", 0.9)  # 0.9 is the last step below 0.98
    assert sample_points(spec, 5) == points


class LowestTrial:
    """Answers as Optuna would if it always chose the first value, and notes the questions."""

    def __init__(self) -> None:
        self.asked: dict[str, object] = {}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        self.asked[name] = ("float", low, high, step, log)
        return low

    def suggest_int(self, name: str, low: int, high: int) -> int:
        self.asked[name] = ("int", low, high)
        return low

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.asked[name] = ("categorical", tuple(choices))
        return choices[0]


def test_what_optuna_is_asked() -> None:
    spec = spec_of(
        space={
            "backbone.width": {
                "when": "backbone.name",
                "cases": {"resnet20": {"quniform": [0.25, 0.8, 0.25]}},
                "otherwise": {"uniform": [0.1, 0.2]},
            },
            "backbone.name": {"choice": ["resnet20", "m_cifarnet"]},
            "agents.learning_rate": {"loguniform": ["1e-4", 1e-2]},  # YAML: 1e-4 is a text
            "seed": {"randint": [3, 9]},
            "evaluation.tradeoff_rates": {"choice": [[1.0, 0.0], [0.0]]},
            "budgets.compute_max": {"same": "budgets.storage_max"},
        },
        search={"algorithm": "optuna"},
    )
    trial = LowestTrial()
    assert suggest(spec, trial) == {
        "backbone.width": 0.25,
        "backbone.name": "resnet20",
        "agents.learning_rate": 1e-4,
        "seed": 3,
        "evaluation.tradeoff_rates": [1.0, 0.0],
        "budgets.compute_max": 0.5,
    }
    assert trial.asked == {
        "backbone.name": ("categorical", ("resnet20", "m_cifarnet")),
        "backbone.width[resnet20]": ("float", 0.25, 0.75, 0.25, False),
        "agents.learning_rate": ("float", 1e-4, 1e-2, None, True),
        "seed": ("int", 3, 9),
        "evaluation.tradeoff_rates": ("categorical", ("[1.0, 0.0]", "[0.0]")),
    }
