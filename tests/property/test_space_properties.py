"""What must hold for every search space.

Whether a value is right is decided by a second, direct reading of the YAML: ``allowed``.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlprune.config import TrialConfig, config_to_dict
from rlprune.sweep.fields import get_field
from rlprune.sweep.space import sample_points, suggest, trial_points
from rlprune.sweep.spec import SweepSpec, spec_from_dict, spec_to_dict

checked = settings(deadline=None, max_examples=150)
searched = settings(deadline=None, max_examples=50)

# Whole numbers all of them, so that each can be the multiple of another.
FIELDS = (
    "seed",
    "agents.hidden",
    "agents.epochs",
    "training.rounds",
    "training.updates_per_round",
    "evaluation.random_candidates",
)
OUTSIDE = "evaluation.batch_size"  # in no space: cases may depend on it all the same
BASE = config_to_dict(TrialConfig())
numbers = st.integers(1, 4)


@dataclass(frozen=True)
class Drawn:
    """A raw domain, and the values that it can give (None: not known in advance)."""

    raw: Any
    values: frozenset[float] | None


# --- spaces -----------------------------------------------------------------------------------


def grids(kind: str) -> st.SearchStrategy[Drawn]:
    listed = st.lists(numbers, min_size=1, max_size=3)
    return listed.map(lambda values: Drawn({kind: values}, frozenset(values)))


def ranges() -> st.SearchStrategy[Drawn]:
    bounds = st.tuples(st.integers(1, 5), st.integers(1, 5)).map(lambda b: [b[0], b[0] + b[1]])
    steps = bounds.map(lambda b: {"quniform": [*b, 0.5]})
    kinds = st.sampled_from(["uniform", "loguniform", "randint"])
    plain = st.tuples(kinds, bounds).map(lambda pair: {pair[0]: pair[1]})
    return st.one_of(plain, steps).map(lambda raw: Drawn(raw, None))


def constants() -> st.SearchStrategy[Drawn]:
    return numbers.map(lambda value: Drawn(value, frozenset([value])))


def dependents(known: Mapping[str, Drawn]) -> st.SearchStrategy[Drawn]:
    def same(field: str) -> Drawn:
        return Drawn({"same": field}, known[field].values)

    def times(pair: tuple[str, int]) -> Drawn:
        values = known[pair[0]].values
        scaled = None if values is None else frozenset(pair[1] * value for value in values)
        return Drawn({"times": list(pair)}, scaled)

    names = st.sampled_from(sorted(known))
    return st.one_of(names.map(same), st.tuples(names, numbers).map(times))


@st.composite
def conditionals(
    draw: st.DrawFn, field: str, known: Mapping[str, Drawn], inner: st.SearchStrategy[Drawn]
) -> Drawn:
    finite = sorted(name for name, drawn in known.items() if drawn.values is not None)
    other = draw(st.sampled_from(finite))
    keys = draw(st.sets(st.sampled_from(sorted(known[other].values or ())), min_size=1))
    cases = {key: draw(inner) for key in sorted(keys)}
    raw: dict[str, Any] = {"when": other, "cases": {key: d.raw for key, d in cases.items()}}
    rest = draw(st.one_of(st.none(), inner))
    if rest is None:
        rest = Drawn(None, frozenset([get_field(BASE, field)]))
    else:
        raw["otherwise"] = rest.raw
    values: set[float] = set()
    for drawn in (*cases.values(), rest):
        if drawn.values is None:
            return Drawn(raw, None)
        values |= drawn.values
    return Drawn(raw, frozenset(values))


@st.composite
def spaces(draw: st.DrawFn, free: st.SearchStrategy[Drawn]) -> dict[str, Any]:
    """Fields depend on earlier ones, and are then declared in any order."""
    known = {OUTSIDE: Drawn(None, frozenset([get_field(BASE, OUTSIDE)]))}
    fields = draw(st.permutations(FIELDS))[: draw(st.integers(1, 5))]
    for position, field in enumerate(fields):
        plain = st.one_of(free, constants(), dependents(known))
        one = free if position == 0 else st.one_of(plain, conditionals(field, known, plain))
        known[field] = draw(one)
    del known[OUTSIDE]
    return {field: known[field].raw for field in draw(st.permutations(list(known)))}


def spec_of(space: dict[str, Any], **search: Any) -> SweepSpec:
    return spec_from_dict({"name": "test", "space": space, "search": search}, Path.cwd())


# --- the second reading -----------------------------------------------------------------------


def allowed(raw: Any, field: str, point: Mapping[str, Any]) -> bool:
    """Whether a point's value of a field (the base's if it has none) is one of the domain's."""

    def whole(name: str) -> Any:
        return point[name] if name in point else get_field(BASE, name)

    value = whole(field)
    if not isinstance(raw, dict):
        return bool(value == raw)
    if "when" in raw:
        chosen = [case for key, case in raw["cases"].items() if key == whole(raw["when"])]
        if chosen:
            return allowed(chosen[0], field, point)
        if "otherwise" in raw:
            return allowed(raw["otherwise"], field, point)
        return field not in point
    ((kind, given_values),) = raw.items()
    if kind in ("grid", "choice"):
        return value in given_values
    if kind == "same":
        return bool(value == whole(given_values))
    if kind == "times":
        other, factor = given_values
        return math.isclose(value, whole(other) * factor, rel_tol=1e-9)
    low, high = given_values[:2]
    if kind == "randint":
        return isinstance(value, int) and low <= value <= high
    if kind == "quniform":
        steps = (value - low) / given_values[2]
        return low <= value <= high and math.isclose(steps, round(steps), abs_tol=1e-6)
    return bool(low <= value <= high)


def right(space: dict[str, Any], point: Mapping[str, Any]) -> bool:
    return set(point) <= set(space) and all(
        allowed(raw, field, point) for field, raw in space.items()
    )


def listed_values(raw: Any) -> set[Any]:
    """Every number that a domain of grids mentions."""
    if not isinstance(raw, dict):
        return {raw}
    if "when" in raw:
        inner = [*raw["cases"].values(), *([raw["otherwise"]] if "otherwise" in raw else [])]
        return set().union(*(listed_values(domain) for domain in inner))
    return set(raw.get("grid", ()))


def candidates(space: dict[str, Any]) -> dict[str, set[Any]]:
    """More than all values that each field can have, found without resolving anything."""
    found = {field: listed_values(raw) for field, raw in space.items()}
    for _ in space:  # values travel along chains of dependent fields
        for field, raw in space.items():
            text = json.dumps(raw)
            names = [name for name in (*space, OUTSIDE) if f'"{name}"' in text]
            factors = {int(factor) for factor in re.findall(r'\[".*?", (\d+)\]', text)}
            for name in names:
                sources = found.get(name, set()) | {get_field(BASE, name)}
                found[field] |= {value * factor for value in sources for factor in {1, *factors}}
    return found


# --- properties -------------------------------------------------------------------------------


@checked
@given(spaces(grids("grid")))
def test_a_grid_has_exactly_the_points_that_are_right(space: dict[str, Any]) -> None:
    found = [point.values for point in trial_points(spec_of(space))]
    assert all(right(space, values) for values in found)
    absent = object()
    choices = {field: sorted(values) for field, values in candidates(space).items()}
    for field, raw in space.items():
        if isinstance(raw, dict) and "when" in raw and "otherwise" not in raw:
            choices[field] = [*choices[field], absent]
    if math.prod(len(values) for values in choices.values()) > 20_000:
        return  # too many to try; the values above have been checked
    expected = set()
    for combination in itertools.product(*choices.values()):
        pairs = zip(choices, combination, strict=True)
        point = {field: value for field, value in pairs if value is not absent}
        if right(space, point):
            whole = {field: point.get(field, get_field(BASE, field)) for field in space}
            expected.add(tuple(sorted(whole.items())))
    got = [tuple(sorted((f, values.get(f, get_field(BASE, f))) for f in space)) for values in found]
    assert len(got) == len(set(got))
    assert set(got) == expected


@checked
@given(
    spaces(st.one_of(grids("grid"), grids("choice"), ranges())),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_random_points_are_right_and_repeatable(
    space: dict[str, Any], samples: int, seed: int
) -> None:
    spec = spec_of(space, algorithm="random", num_samples=samples, seed=seed)
    points = trial_points(spec)
    assert points and points == trial_points(spec_from_dict(spec_to_dict(spec), Path.cwd()))
    assert all(right(space, point.values) for point in points)
    assert [point.index for point in points] == list(range(len(points)))
    names = [point.name for point in points]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[0-9]{4}[A-Za-z0-9_=.+-]{0,76}", name) for name in names)


@checked
@given(spaces(st.one_of(grids("choice"), ranges())))
def test_samples_of_any_space_are_right(space: dict[str, Any]) -> None:
    spec = spec_of(space, algorithm="random")
    assert all(right(space, point.values) for point in sample_points(spec, 4))


@searched
@given(spaces(st.one_of(grids("choice"), ranges())))
def test_what_optuna_suggests_is_right_and_replayable(space: dict[str, Any]) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    spec = spec_of({**space, "agents.clip": {"uniform": [0.1, 0.2]}}, algorithm="optuna")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(5):
        trial = study.ask()
        values = suggest(spec, trial)
        assert right(spec.space, values)
        assert suggest(spec, optuna.trial.FixedTrial(trial.params)) == values
        study.tell(trial, values["agents.clip"])


@checked
@given(spaces(grids("grid")), st.sampled_from(["seed", "training.rounds"]))
def test_a_circle_is_always_found(space: dict[str, Any], field: str) -> None:
    from rlprune.errors import ConfigError

    looped = {**space, field: {"same": "agents.gamma"}, "agents.gamma": {"same": field}}
    with pytest.raises(ConfigError, match="must not depend on each other in a circle"):
        spec_of(looped)
