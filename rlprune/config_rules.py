"""What a configuration must fulfil beyond the types and ranges of its fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlprune.amounts import parse_budget
from rlprune.errors import Problem


def budget_problems(budgets: Mapping[str, Any]) -> list[Problem]:
    """Budgets that cannot be read."""
    problems = []
    for field in ("storage_max", "compute_max", "compute_mean"):
        value = budgets.get(field)
        if not isinstance(value, (int, float, str)):
            continue
        try:
            parse_budget(value)
        except ValueError:
            problems.append(
                Problem(
                    f"budgets.{field}",
                    "must be a number s in (0, 1], a percentage or an amount",
                    value,
                    'Write for example 0.5, "40%", "300KB" or "40M".',
                )
            )
    return problems


def cross_problems(values: Mapping[str, Any], defaults: Any) -> list[Problem]:
    """Rules that span several settings.

    Args:
        values: nested mapping as the user wrote it; nothing in it has been checked.
        defaults: the configuration that holds where a value is absent.
    """

    def number(part: str, key: str) -> int | None:
        section = values.get(part, {})
        default = getattr(getattr(defaults, part), key)
        value = section.get(key, default) if isinstance(section, Mapping) else default
        return value if isinstance(value, int) and value >= 0 else None

    problems = []
    group, rollouts = (
        number("agents", "samples_per_image"),
        number("rollouts", "rollouts_per_update"),
    )
    runners = number("rollouts", "num_env_runners")
    if group and rollouts and runners is not None and rollouts % (group * max(1, runners)):
        step = group * max(1, runners)
        rule = f"must be a multiple of agents.samples_per_image x workers = {step}"
        remedy = f"Use {step * max(1, rollouts // step)}."
        problems.append(Problem("rollouts.rollouts_per_update", rule, rollouts, remedy))
    workers, batch = number("resources", "cnn_workers"), number("training", "batch_size")
    if workers and batch and batch < workers:
        rule = "must not exceed training.batch_size: every process needs images of each batch"
        problems.append(Problem("resources.cnn_workers", rule, workers, f"Use {batch} at most."))
    budgets = values.get("budgets", {})
    span = budgets.get("train_range") if isinstance(budgets, Mapping) else None
    if isinstance(span, (list, tuple)) and len(span) == 2:
        low, high = span
        if all(isinstance(end, (int, float)) for end in span) and not 0.0 < low <= high:
            rule = "must be (low, high) with 0 < low <= high"
            problems.append(Problem("budgets.train_range", rule, span, "Write it as [0.3, 0.7]."))
    data = values.get("data", {})
    if isinstance(data, Mapping) and data.get("streaming") is True:
        name = data.get("name", defaults.data.name)
        if name not in ("imagefolder", "parquet"):
            rule, remedy = "only imagefolder and parquet can be streamed", "Set it to false."
            problems.append(Problem("data.streaming", rule, name, remedy))
    return problems + _cascade_problems(values, defaults)


def _cascade_problems(values: Mapping[str, Any], defaults: Any) -> list[Problem]:
    """A cascade spends a mean budget, and decides at run time (R_r > 0)."""
    budgets, evaluation = values.get("budgets", {}), values.get("evaluation", {})
    if not isinstance(evaluation, Mapping) or not isinstance(budgets, Mapping):
        return []
    baselines = evaluation.get("baselines", ())
    if not isinstance(baselines, (list, tuple)) or "cascade" not in baselines:
        return []
    field, drop = "evaluation.baselines", "or take cascade out of evaluation.baselines."
    problems = []
    if budgets.get("compute_mean", defaults.budgets.compute_mean) is None:
        rule = "cascade needs a budget for the mean compute"
        remedy = f"Set budgets.compute_mean, {drop}"
        problems.append(Problem(field, rule, list(baselines), remedy))
    rates = evaluation.get("tradeoff_rates", defaults.evaluation.tradeoff_rates)
    if isinstance(rates, (list, tuple)) and all(rate == 0 for rate in rates):
        rule = "cascade needs a tradeoff rate R_r above 0"
        remedy = f"Add one such as 0.5 to evaluation.tradeoff_rates, {drop}"
        problems.append(Problem(field, rule, list(baselines), remedy))
    return problems
