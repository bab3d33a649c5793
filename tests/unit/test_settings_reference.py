"""``rlprune settings``: what it says is complete and what the configuration says."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from rlprune.cli.main import app
from rlprune.config import TrialConfig, config_from_dict, config_to_dict
from rlprune.errors import ConfigError
from rlprune.settings_reference import attribute_meanings, settings


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        part = (
            flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
        found |= part
    return found


def test_every_setting_is_there_with_its_default_and_a_meaning() -> None:
    found = {setting.name: setting for setting in settings()}
    defaults = flat(config_to_dict(TrialConfig()))
    assert list(found) == list(defaults)
    assert {name: yaml.safe_load(s.default) for name, s in found.items()} == defaults
    assert [name for name, setting in found.items() if not setting.meaning] == []
    assert [name for name, s in found.items() if re.search(r"``|:\w+:`", s.meaning)] == []


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("budgets.rule", "projected | soft"),
        ("budgets.compute_max", "number | text | null"),
        ("budgets.train_range", "list of 2: number from 0 to 1 | null"),
        ("seed", "integer >= 0"),
        ("training.keep_better", "true | false"),
        ("data.validation_fraction", "number > 0, < 1"),
        ("evaluation.tradeoff_rates", "list of: number from 0 to 1"),
    ],
)
def test_what_a_setting_may_be(name: str, values: str) -> None:
    assert {setting.name: setting.values for setting in settings()}[name] == values


def test_meanings_by_hand() -> None:
    text = (
        "First line.\n\nAttributes:\n    one: of ``a``, which\n        goes on.\n"
        "    two, three: see :func:`some.where.name`.\n\nDeviation: none."
    )
    both = "see name."
    assert attribute_meanings(text) == {"one": "of a, which goes on.", "two": both, "three": both}
    assert attribute_meanings("No attributes.") == {}


def test_the_command() -> None:
    every = CliRunner().invoke(app, ["settings"])
    assert every.exit_code == 0 and "training.importance_penalty" in every.output
    some = CliRunner().invoke(app, ["settings", "Predictor_Rank", "finetune_first"])
    assert "pruning.predictor_rank" in some.output and "training.finetune_first" in some.output
    assert "agents.gamma" not in some.output
    assert "evaluation.baselines" in CliRunner().invoke(app, ["settings", "fpgm"]).output
    none = CliRunner().invoke(app, ["settings", "no-such-word"])
    assert none.exit_code == 2 and "no setting has any" in none.output


def test_a_mistake_leads_there() -> None:
    with pytest.raises(ConfigError, match="rlprune settings"):
        config_from_dict({"budgets": {"rule": "hard"}})
