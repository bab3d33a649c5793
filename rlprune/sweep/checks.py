"""Rules that span several parts of a sweep's specification."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlprune.errors import Problem
from rlprune.sweep.domains import (
    Choice,
    Constant,
    Domain,
    Grid,
    RandInt,
    Same,
    Stepped,
    Times,
    Uniform,
    When,
    equal_values,
    parse_domains,
    references,
    walk,
)
from rlprune.sweep.fields import MUTABLE, get_field, unknown_field

if TYPE_CHECKING:
    from rlprune.sweep.spec import SweepSpec

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RESERVED = ("pretrained",)  # the folder beside the experiments that they share


def spec_problems(spec: SweepSpec) -> list[Problem]:
    """Everything that is wrong with a specification whose parts are valid by themselves."""
    domains, problems = parse_domains("space", spec.space)
    space = _space_problems(spec, domains)
    found = [*_name_problems(spec.name), *problems, *space]
    found += _searcher_problems(spec, domains)
    if not space:  # what fields can be is known
        found += _rate_problems(spec, domains)
    found += _scheduler_problems(spec, domains)
    if get_field(spec.trial, "resources.device") == "cuda" and spec.resources.gpus == 0:
        rule = "must be above zero where trial.resources.device is cuda"
        found.append(Problem("resources.gpus", rule, 0, "Set it to 1, or to a fraction."))
    return found


def _name_problems(name: str) -> list[Problem]:
    if _NAME.fullmatch(name) and name not in _RESERVED:
        return []
    rule = "must be letters, digits, '.', '_' and '-', a letter or digit first"
    if name in _RESERVED:
        rule = "is the folder of pretrained networks"
    return [Problem("name", rule, name, "Choose another name.")]


# --------------------------------------------------------------------------------- space


def _space_problems(spec: SweepSpec, domains: Mapping[str, Domain]) -> list[Problem]:
    if not spec.space:
        remedy = "Write for example space: {seed: {grid: [0, 1, 2]}}."
        return [Problem("space", "must name at least one setting", {}, remedy)]
    found = [p for name in spec.space if (p := unknown_field(f"space.{name}", name))]
    for name, domain in domains.items():
        for other in references(domain):
            problem = unknown_field(f"space.{name}", other)
            if problem is not None:
                found.append(problem)
    cycle = find_cycle(domains)
    if cycle:
        remedy = "Give one of them a domain of its own."
        found.append(
            Problem(
                "space",
                "fields must not depend on each other in a circle",
                " -> ".join(cycle),
                remedy,
            )
        )
    if not found:
        for name, domain in domains.items():
            found += _reference_problems(spec, domains, name, domain)
    return found


def find_cycle(domains: Mapping[str, Domain]) -> list[str]:
    """A circle of fields that depend on each other, its first one repeated; [] if none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done or name not in domains:
            return []
        for other in references(domains[name]):
            cycle = visit(other, [*path, name])
            if cycle:
                return cycle
        done.add(name)
        return []

    return next(filter(None, (visit(name, []) for name in domains)), [])


def possible_values(
    domains: Mapping[str, Domain], base: Mapping[str, Any], field: str
) -> list[Any] | None:
    """All values that a field can take in a space without circles; None: endlessly many."""
    if field not in domains:
        return [get_field(base, field)]
    return _values_of(domains, base, field, domains[field])


def _values_of(
    domains: Mapping[str, Domain], base: Mapping[str, Any], field: str, domain: Domain
) -> list[Any] | None:
    if isinstance(domain, Constant):
        return [domain.value]
    if isinstance(domain, Grid | Choice):
        return list(domain.values)
    if isinstance(domain, Same):
        return possible_values(domains, base, domain.field)
    if not isinstance(domain, When):
        return None
    inner = [_values_of(domains, base, field, case) for _, case in domain.cases]
    if domain.otherwise is None:
        inner.append([get_field(base, field)])
    else:
        inner.append(_values_of(domains, base, field, domain.otherwise))
    if any(values is None for values in inner):
        return None
    return [value for values in inner for value in values or ()]


def _reference_problems(
    spec: SweepSpec, domains: Mapping[str, Domain], name: str, domain: Domain
) -> list[Problem]:
    """Cases that never occur, and multiples of what is no number."""
    found = []
    for part in walk(domain):
        if not isinstance(part, When | Times):
            continue
        values = possible_values(domains, spec.trial, part.field)
        if values is None:
            continue
        if isinstance(part, Times):
            wrong = [v for v in values if isinstance(v, bool) or not isinstance(v, int | float)]
            if wrong:
                rule = f"times needs a number, and {part.field} can be something else"
                found.append(Problem(f"space.{name}", rule, wrong[0], "Use same, or cases."))
            continue
        for key, _ in part.cases:
            if not any(equal_values(key, value) for value in values):
                shown = ", ".join(str(value) for value in values[:8])
                remedy = f"{part.field} can be: {shown}."
                found.append(Problem(f"space.{name}", "has a case that never occurs", key, remedy))
    return found


# -------------------------------------------------------------------------------- search


def _searcher_problems(spec: SweepSpec, domains: Mapping[str, Domain]) -> list[Problem]:
    search, found = spec.search, []
    parts = [(name, part) for name, domain in domains.items() for part in walk(domain)]
    if search.algorithm == "grid":
        for name, part in parts:
            if isinstance(part, Choice | Uniform | RandInt | Stepped):
                rule = "the grid search tries grids only, it draws nothing"
                remedy = "Write grid, or search.algorithm: random."
                found.append(Problem(f"space.{name}", rule, spec.space[name], remedy))
        if search.num_samples != 1:
            remedy = "Leave it out, or use search.algorithm: random."
            rule = "must be 1 for a grid, whose points are given"
            found.append(Problem("search.num_samples", rule, search.num_samples, remedy))
    if search.algorithm == "optuna":
        for name, part in parts:
            if isinstance(part, Grid):
                rule = "Optuna chooses points itself and cannot cross grids"
                remedy = "Write choice instead."
                found.append(Problem(f"space.{name}", rule, spec.space[name], remedy))
            if isinstance(part, When) and search.sampler == "nsga2":
                rule = "the sampler nsga2 cannot search conditional spaces"
                remedy = "Use search.sampler: tpe, or leave out when."
                found.append(Problem(f"space.{name}", rule, spec.space[name], remedy))
        if all(isinstance(part, Constant | Same | Times | When) for _, part in parts):
            remedy = "Write for example {uniform: [0.2, 0.8]} for some field."
            found.append(Problem("space", "leaves Optuna nothing to choose", spec.space, remedy))
    return found


def _rate_problems(spec: SweepSpec, domains: Mapping[str, Domain]) -> list[Problem]:
    rate, field = spec.search.tradeoff_rate, "evaluation.tradeoff_rates"
    if rate is None:
        return []
    lists = possible_values(domains, spec.trial, field) or []
    missing = [rates for rates in lists if isinstance(rates, list) and rate not in rates]
    if not missing:
        return []
    remedy = f"Measured are {missing[0]}: choose one, or add it to {field}."
    return [Problem("search.tradeoff_rate", "must be measured by every trial", rate, remedy)]


# ----------------------------------------------------------------------------- scheduler


def _scheduler_problems(spec: SweepSpec, domains: Mapping[str, Domain]) -> list[Problem]:
    scheduler, found = spec.scheduler, []
    where = "scheduler.mutations"
    if scheduler.name == "pbt":
        found += _mutation_problems(spec, domains) + _population_problems(domains)
        if spec.search.algorithm == "optuna":
            remedy = "Use search.algorithm: random, or scheduler.name: asha."
            rule = "pbt replaces the settings that a searcher has proposed"
            found.append(Problem("scheduler.name", rule, "pbt", remedy))
    elif scheduler.mutations:
        remedy = "Leave it out, or set scheduler.name: pbt."
        rule = "only population-based training changes running trials"
        found.append(Problem(where, rule, scheduler.mutations, remedy))
    rounds = get_field(spec.trial, "training.rounds")
    if scheduler.name == "asha" and "training.rounds" not in domains:
        if scheduler.grace_rounds >= rounds:
            rule = f"must be below training.rounds = {rounds}: else no trial is ever stopped"
            remedy = "Lower it, or use scheduler.name: none."
            found.append(Problem("scheduler.grace_rounds", rule, scheduler.grace_rounds, remedy))
    return found


def _population_problems(domains: Mapping[str, Domain]) -> list[Problem]:
    """Population-based training copies all of a trial into another: they must be alike."""
    rule = "pbt lets a trial go on as a copy of another one, so trials may not differ in it"
    remedy = f"Run one sweep for each value; trials may differ in {', '.join(MUTABLE)}."
    return [Problem(f"space.{name}", rule, name, remedy) for name in domains if name not in MUTABLE]


def _mutation_problems(spec: SweepSpec, domains: Mapping[str, Domain]) -> list[Problem]:
    where = "scheduler.mutations"
    mutations, problems = parse_domains(where, spec.scheduler.mutations)
    found = list(problems)
    if not spec.scheduler.mutations:
        remedy = f"Name one of {', '.join(MUTABLE)}."
        found.append(Problem(where, "must name at least one setting", {}, remedy))
    for name in spec.scheduler.mutations:
        if name not in MUTABLE:
            remedy = f"These can: {', '.join(MUTABLE)}."
            rule = "cannot change in a running trial"
            found.append(Problem(f"{where}.{name}", rule, name, remedy))
    for name, domain in mutations.items():
        if not isinstance(domain, Choice | Uniform | RandInt | Stepped):
            remedy = "Write choice, uniform, loguniform, randint or quniform."
            rule, value = "must be a domain to draw from", spec.scheduler.mutations[name]
            found.append(Problem(f"{where}.{name}", rule, value, remedy))
    for name, domain in domains.items():
        for other in references(domain):
            if other in mutations:
                rule = "depends on a setting that changes in running trials"
                remedy = f"Take {other} out of scheduler.mutations."
                found.append(Problem(f"space.{name}", rule, other, remedy))
    return found
