"""Configurations: budgets as text, defaults, and every problem reported at once."""

import dataclasses
import pickle
from pathlib import Path

import pytest

from rlprune.amounts import BudgetAmount, parse_budget
from rlprune.config import (
    TrialConfig,
    config_from_dict,
    config_hash,
    config_to_dict,
    load_config,
)
from rlprune.errors import ConfigError


def refused(values: dict[str, object]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(values)
    return caught.value


def fields(error: ConfigError) -> set[str]:
    return {problem.field for problem in error.problems}


# --- budgets --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        (0.5, "ratio", 0.5),
        (1, "ratio", 1.0),
        ("0.25", "ratio", 0.25),
        ("40%", "fraction", 0.4),
        ("0.5 %", "fraction", 0.005),
        ("100%", "fraction", 1.0),
        (2, "absolute", 2.0),
        (4e7, "absolute", 4e7),
        ("4e7", "absolute", 4e7),
        ("300KB", "absolute", 3e5),
        ("300 kB", "absolute", 3e5),
        ("1.5MiB", "absolute", 1.5 * 1024 * 1024),
        ("2KiB", "absolute", 2048.0),
        ("40M", "absolute", 4e7),
        ("40 MMACs", "absolute", 4e7),
        ("1.2G", "absolute", 1.2e9),
        ("0.5KB", "absolute", 500.0),
        ("1B", "absolute", 1.0),  # a unit makes it an amount, however small
        ("1 MACs", "absolute", 1.0),
        ("0.5B", "absolute", 0.5),
        (".5", "ratio", 0.5),
        (1e16, "absolute", 1e16),  # Python writes 1e+16
    ],
)
def test_budgets_as_text(text: float | str, kind: str, value: float) -> None:
    amount = parse_budget(text)
    assert amount.kind == kind
    assert amount.value == pytest.approx(value)


@pytest.mark.parametrize(
    "text", [0, -0.5, "0%", "", "much", "1.2.3", "5 apples", "nan", "40%%", "."]
)
def test_what_is_no_budget(text: float | str) -> None:
    with pytest.raises(ValueError):
        parse_budget(text)


def test_amounts_are_compared_by_value() -> None:
    assert parse_budget("50%") == BudgetAmount("fraction", 0.5) != parse_budget(0.5)


# --- errors ---------------------------------------------------------------------------------


def test_all_problems_at_once() -> None:
    error = refused(
        {
            "sed": 3,
            "pruning": {"alpha": 1.5, "tradeof": "paper"},
            "budgets": {"storage_max": "much", "compute_max": -2},
            "agents": {"hidden": 0},
            "training": {"rounds": "many"},
            "evaluation": {"tradeoff_rates": [0.5, 1.5, -1]},
        }
    )
    assert fields(error) == {
        "sed",
        "pruning.alpha",
        "pruning.tradeof",
        "budgets.storage_max",
        "budgets.compute_max",
        "agents.hidden",
        "training.rounds",
        "evaluation.tradeoff_rates.1",
        "evaluation.tradeoff_rates.2",
    }
    assert str(error).startswith("9 problems found, nothing was started:")
    assert str(error).count("\n  - ") == 9
    assert error.exit_status == 2


def test_every_process_needs_images_of_each_batch() -> None:
    values = {"resources": {"cnn_workers": 9}, "training": {"batch_size": 8}}
    assert "resources.cnn_workers: must not exceed training.batch_size" in str(refused(values))
    values["resources"]["cnn_workers"] = 8
    assert config_from_dict(values).resources.cnn_workers == 8
    assert fields(refused({"resources": {"cnn_workers": 0}})) == {"resources.cnn_workers"}


@pytest.mark.parametrize(
    ("values", "field", "near"),
    [
        ({"sed": 1}, "sed", "seed"),
        ({"budget": {}}, "budget", "budgets"),
        ({"budgets": {"compute_maximum": 1}}, "budgets.compute_maximum", "compute_max"),
        ({"training": {"finetune_epoch": 1}}, "training.finetune_epoch", "finetune_epochs"),
    ],
)
def test_unknown_keys_name_the_nearest_valid_one(
    values: dict[str, object], field: str, near: str
) -> None:
    (problem,) = refused(values).problems
    assert problem.field == field
    assert problem.rule == "unknown key"
    assert problem.remedy == f"Did you mean {near!r}?"


def test_an_unknown_key_like_no_other_lists_the_known_ones() -> None:
    (problem,) = refused({"rollouts": {"xyzzy": 1}}).problems
    known = "num_env_runners, rollouts_per_update, threads_per_runner"
    assert problem.remedy == f"Known keys: {known}."


def test_a_bad_budget_says_how_to_write_one() -> None:
    (problem,) = refused({"budgets": {"storage_max": "300 apples"}}).problems
    text = str(problem)
    assert text.startswith("budgets.storage_max: must be a number s in (0, 1], a percentage or")
    assert "(got '300 apples')" in text
    assert '"40%"' in text and '"300KB"' in text


def test_a_value_out_of_range_names_rule_and_value() -> None:
    (problem,) = refused({"evaluation": {"tradeoff_rates": [1.25]}}).problems
    assert "less than or equal to 1" in problem.rule
    assert problem.value == 1.25


def test_rollouts_must_split_evenly() -> None:
    error = refused(
        {
            "rollouts": {"rollouts_per_update": 100, "num_env_runners": 2},
            "agents": {"samples_per_image": 3},
        }
    )
    (problem,) = error.problems
    assert problem.field == "rollouts.rollouts_per_update"
    assert "= 6" in problem.rule and problem.remedy == "Use 96."  # 100 // 6 * 6


@pytest.mark.parametrize("span", [[0.7, 0.3], [0.0, 0.5]])
def test_train_range_must_be_a_range(span: list[float]) -> None:
    (problem,) = refused({"budgets": {"train_range": span}}).problems
    assert problem.field == "budgets.train_range"


@pytest.mark.parametrize(
    ("mean", "rates", "rules"),
    [
        (None, [1.0], ["cascade needs a budget for the mean compute"]),
        (0.5, [0.0], ["cascade needs a tradeoff rate R_r above 0"]),
        (
            None,
            [0],
            [
                "cascade needs a budget for the mean compute",
                "cascade needs a tradeoff rate R_r above 0",
            ],
        ),
    ],
)
def test_a_cascade_needs_a_mean_budget_and_a_rate(
    mean: float | None, rates: list[float], rules: list[str]
) -> None:
    values = {
        "budgets": {"compute_mean": mean},
        "evaluation": {"tradeoff_rates": rates, "baselines": ["dense", "cascade"]},
    }
    problems = refused(values).problems
    assert [problem.rule for problem in problems] == rules
    for problem in problems:
        assert problem.field == "evaluation.baselines"
        assert problem.value == ["dense", "cascade"]
        assert problem.remedy.endswith("or take cascade out of evaluation.baselines.")


def test_a_cascade_is_no_default_and_is_allowed_at_a_mean_budget() -> None:
    assert "cascade" not in TrialConfig().evaluation.baselines
    error = refused({"evaluation": {"baselines": ["cascade"]}})  # no mean budget by default
    assert fields(error) == {"evaluation.baselines"}
    values = {
        "budgets": {"compute_mean": "40%"},
        "evaluation": {"tradeoff_rates": [0.0, 0.5], "baselines": ["cascade"]},
    }
    assert config_from_dict(values).evaluation.baselines == ("cascade",)
    config_from_dict({**values, "evaluation": {"baselines": ["cascade"]}})  # default rates


def test_problems_between_parts_are_reported_with_all_others() -> None:
    error = refused(
        {
            "sed": 1,
            "rollouts": {"rollouts_per_update": 7},
            "budgets": {"train_range": [0.7, 0.3]},
        }
    )
    assert fields(error) == {"sed", "rollouts.rollouts_per_update", "budgets.train_range"}


def test_errors_survive_pickling() -> None:
    """They travel from Ray's workers to the driver."""
    error = refused({"sed": 1})
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and fields(again) == {"sed"}


# --- values ---------------------------------------------------------------------------------


def test_empty_means_defaults() -> None:
    assert config_from_dict({}) == TrialConfig()


def test_dictionary_and_back() -> None:
    values = {"seed": 3, "budgets": {"storage_max": "300KB", "train_range": [0.3, 0.7]}}
    config = config_from_dict(values)
    assert config.seed == 3
    assert config.budgets.storage_max == "300KB"
    assert config.budgets.train_range == (0.3, 0.7)
    assert config.budgets.compute_max == 0.5  # not given: the default
    again = config_from_dict(config_to_dict(config))
    assert again == config
    assert config_hash(again) == config_hash(config) != config_hash(TrialConfig())


def test_configurations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrialConfig().seed = 1  # type: ignore[misc]


def test_file_and_overrides(tmp_path: Path) -> None:
    file = tmp_path / "trial.yaml"
    file.write_text("seed: 4\nbudgets:\n  compute_max: 40%\n")
    config = load_config(file, ["seed=5", "agents.hidden=8", "evaluation.tradeoff_rates=[0, 1]"])
    assert (config.seed, config.agents.hidden) == (5, 8)
    assert config.evaluation.tradeoff_rates == (0.0, 1.0)
    assert config.budgets.compute_max == "40%"


def test_problems_of_overrides_and_file_together(tmp_path: Path) -> None:
    file = tmp_path / "trial.yaml"
    file.write_text("sed: 4\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file, ["no value", "agents.hidden=0"])
    assert fields(caught.value) == {"--set", "sed", "agents.hidden"}


@pytest.mark.parametrize(
    ("text", "rule"), [("- 1\n", "must hold a mapping"), ("a: [1\n", "must be YAML")]
)
def test_unusable_files(tmp_path: Path, text: str, rule: str) -> None:
    file = tmp_path / "trial.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rule):
        load_config(file)
    with pytest.raises(ConfigError, match="must be a readable file"):
        load_config(tmp_path / "absent.yaml")
