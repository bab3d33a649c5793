"""From a search space to points, and from a point to a trial's configuration.

Optuna is not imported here: :func:`suggest` takes any object with its trials' methods.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlprune.config import TrialConfig, config_from_dict
from rlprune.errors import ConfigError, Problem
from rlprune.sweep.domains import (
    Choice,
    Grid,
    RandInt,
    Sampled,
    Stepped,
    draw,
    tidy,
    walk,
)
from rlprune.sweep.fields import get_field, pretraining_values, set_field
from rlprune.sweep.resolve import Draw, Space
from rlprune.sweep.spec import SweepSpec

MAX_POINTS = 100_000
_NAME_LENGTH = 80
_VALUE_LENGTH = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialPoint:
    """One point of the space.

    Attributes:
        index: position in the sweep, from 0.
        name: of the trial: unique, a folder's name, at most 80 signs.
        values: dotted name -> value, for every field that the space sets at this point.
    """

    index: int
    name: str
    values: dict[str, Any]


class SuggestingTrial(Protocol):
    """What is needed of an ``optuna.Trial``."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number in [low, high]."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """A whole number, both ends included."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""


# ------------------------------------------------------------------------------- points


def trial_points(spec: SweepSpec) -> list[TrialPoint]:
    """All points of a grid or random search, in the order in which they should start.

    Random draws follow from ``search.seed``, the field's name, the grid's cell and the
    number of the draw, so that adding a field does not change what others draw. Points
    that come to the same trial are dropped. Neighbours in the list need different
    pretrained networks where possible, so that trials that run at the same time do not
    wait for the same one.

    Raises:
        ConfigError: more than :data:`MAX_POINTS` points, or a search by Optuna, whose
            points are not known in advance.
    """
    if spec.search.algorithm == "optuna":
        rule = "must be grid or random to list the points in advance"
        raise ConfigError([Problem("search.algorithm", rule, "optuna", "Use sample_points.")])
    points = _distinct(spec, _raw_points(spec, spec.search.num_samples))
    return _named(spec, _spread(spec, points))


def sample_points(spec: SweepSpec, count: int) -> list[TrialPoint]:
    """Points of any space for looking at: its two corners, then ``count`` seeded draws.

    The corners take every domain's lowest or first value, and every highest or last one.
    """
    space = Space(spec)
    corners = [next(space.resolve(_end(last))) for last in (False, True)]
    return _named(spec, _distinct(spec, [*corners, *_raw_points(spec, count)], quiet=True))


def _raw_points(spec: SweepSpec, samples: int) -> list[dict[str, Any]]:
    space, found = Space(spec), []
    for sample in range(samples):
        for values in space.resolve(_seeded(spec.search.seed, sample)):
            found.append(values)
            if len(found) > MAX_POINTS:
                rule = f"has more than {MAX_POINTS:,} points"
                remedy = "Use search.algorithm: random with choice instead of grid."
                raise ConfigError([Problem("space", rule, f"{len(found):,}", remedy)])
    return found


def _seeded(seed: int, sample: int) -> Draw:
    def choose(label: str, domain: Sampled, cell: tuple[str, ...]) -> Any:
        # random.Random hashes texts with SHA-512: equal on every machine and version.
        return draw(domain, random.Random(f"{seed}/{sample}/{label}/{'/'.join(cell)}"))

    return choose


def _end(last: bool) -> Draw:
    def choose(_label: str, domain: Sampled, _cell: tuple[str, ...]) -> Any:
        if isinstance(domain, Choice):
            return domain.values[-1 if last else 0]
        return domain.high if last else domain.low

    return choose


def _canonical(value: Any) -> Any:
    """Equal for values that mean the same: 1 and 1.0, a list and a tuple."""
    if isinstance(value, Mapping):
        return {str(key): _canonical(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(inner) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _distinct(
    spec: SweepSpec, points: list[dict[str, Any]], quiet: bool = False
) -> list[dict[str, Any]]:
    seen: dict[str, dict[str, Any]] = {}
    for values in points:
        whole = {field: values.get(field, get_field(spec.trial, field)) for field in spec.space}
        seen.setdefault(json.dumps(_canonical(whole), sort_keys=True), values)
    dropped = len(points) - len(seen)
    if dropped and not quiet:
        logger.warning(
            "%s: %d of %d points repeat others and were dropped; %d remain",
            spec.name,
            dropped,
            len(points),
            len(seen),
        )
    return list(seen.values())


def _spread(spec: SweepSpec, points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Takes one point of each pretrained network in turn."""
    groups: dict[tuple[tuple[str, str], ...], list[dict[str, Any]]] = {}
    for values in points:
        groups.setdefault(pretraining_values(_trial_values(spec, values)), []).append(values)
    longest = max((len(group) for group in groups.values()), default=0)
    return [
        group[turn] for turn in range(longest) for group in groups.values() if turn < len(group)
    ]


# -------------------------------------------------------------------------------- names


def _named(spec: SweepSpec, points: list[dict[str, Any]]) -> list[TrialPoint]:
    def differs(field: str) -> bool:
        base = get_field(spec.trial, field)
        shown = {json.dumps(_canonical(values.get(field, base))) for values in points}
        return len(shown) > 1

    fields = [field for field in naming_fields(spec) if differs(field)]
    return [
        TrialPoint(index, trial_name(spec, index, values, fields), values)
        for index, values in enumerate(points)
    ]


def naming_fields(spec: SweepSpec) -> list[str]:
    """Fields that tell trials apart: those that do not follow from other fields."""
    return [
        field
        for field, domain in Space(spec).domains.items()
        if any(isinstance(part, Grid | Sampled) for part in walk(domain))
    ]


def trial_name(
    spec: SweepSpec,
    index: int,
    values: Mapping[str, Any],
    fields: Sequence[str] | None = None,
) -> str:
    """A trial's name, for example ``0003_m_cifarnet_storage_max=0.5_seed=1``.

    Args:
        spec: the sweep.
        index: of the trial; makes the name unique.
        values: of its point.
        fields: which of them to name; None: :func:`naming_fields`.
    """
    fields = naming_fields(spec) if fields is None else fields
    lasts = [field.split(".")[-1] for field in fields]
    parts = [f"{index:04d}"]
    for field, last in zip(fields, lasts, strict=True):
        shown = _shown(values.get(field, get_field(spec.trial, field)))
        if last == "name":  # of the backbone, of the data: says what it is
            parts.append(shown)
        else:
            key = last if lasts.count(last) == 1 else field
            parts.append(f"{key}={shown}")
    while len("_".join(parts)) > _NAME_LENGTH:
        parts.pop()
    return "_".join(parts)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        text = str(value).lower()
    elif isinstance(value, float):
        text = f"{value:.3g}"
    elif isinstance(value, list | tuple):
        text = "-".join(_shown(item) for item in value)
    else:
        text = str(value).replace("%", "pct")
    safe = re.sub(r"[^A-Za-z0-9._+-]", "-", text)
    if len(safe) <= _VALUE_LENGTH:
        return safe
    return f"{safe[: _VALUE_LENGTH - 5]}-{hashlib.sha256(text.encode()).hexdigest()[:4]}"


# --------------------------------------------------------------------------------- trials


def _trial_values(spec: SweepSpec, values: Mapping[str, Any]) -> dict[str, Any]:
    trial = copy.deepcopy(spec.trial)
    for field, value in values.items():
        set_field(trial, field, value)
    return trial


def trial_config(spec: SweepSpec, values: Mapping[str, Any], name: str) -> TrialConfig:
    """The configuration of the trial at a point.

    Unset ``resources.cpus`` become those that the sweep reserves. Under a scheduler the
    trial is measured after every round.

    Raises:
        ConfigError: listing every setting that the point makes invalid.
    """
    trial = _trial_values(spec, values)
    trial["name"] = name
    if get_field(trial, "resources.cpus") is None:
        set_field(trial, "resources.cpus", max(1, int(spec.resources.cpus)))
    if spec.scheduler.name != "none":
        set_field(trial, "evaluation.every_round", True)
    return config_from_dict(trial)


def suggest(spec: SweepSpec, trial: SuggestingTrial) -> dict[str, Any]:
    """Asks an Optuna trial for a point, field after field (define by run).

    Parameters are called like their fields; in a case the case follows in brackets, such
    as ``backbone.width[resnet20]``, since Optuna wants one domain per name.

    Returns:
        Dotted name -> value, with constants and dependent fields.
    """

    def choose(label: str, domain: Sampled, _cell: tuple[str, ...]) -> Any:
        if isinstance(domain, Choice):
            return _suggest_choice(trial, label, domain)
        if isinstance(domain, RandInt):
            return trial.suggest_int(label, domain.low, domain.high)
        if isinstance(domain, Stepped):
            value = trial.suggest_float(label, domain.low, domain.high, step=domain.step)
            return tidy(value)
        return trial.suggest_float(label, domain.low, domain.high, log=domain.log)

    return next(Space(spec).resolve(choose))


def _suggest_choice(trial: SuggestingTrial, label: str, domain: Choice) -> Any:
    """Optuna stores scalars only; lists go as JSON."""
    if not any(isinstance(value, list) for value in domain.values):
        return trial.suggest_categorical(label, domain.values)
    texts = [json.dumps(value) for value in domain.values]
    return json.loads(trial.suggest_categorical(label, texts))
