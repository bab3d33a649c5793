"""Domains: which values a field of the search space takes, as YAML writes them.

A domain is a mapping with one key; anything else is a constant::

    {grid: [0.3, 0.5]}           each of these, crossed with all other grids
    {choice: [a, b]}             one of these, drawn
    {uniform: [lo, hi]}          a number between
    {loguniform: [lo, hi]}       a number between, uniform in its logarithm; lo > 0
    {randint: [lo, hi]}          a whole number, both ends included
    {quniform: [lo, hi, step]}   one of lo, lo + step, ... up to hi
    {same: other.field}          what the other field has
    {times: [other.field, 64]}   what it has, multiplied
    {when: other.field, cases: {value: domain, ...}, otherwise: domain}

``otherwise`` may be absent: the field then keeps the value of the base trial.
"""

from __future__ import annotations

import difflib
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlprune.errors import Problem


@dataclass(frozen=True)
class Constant:
    """One value (a scalar or a list)."""

    value: Any


@dataclass(frozen=True)
class Grid:
    """Each of ``values``, crossed with all other grids."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Choice:
    """One of ``values``, drawn."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Uniform:
    """A number in [low, high]; ``log``: uniform in its logarithm."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class RandInt:
    """A whole number, both ends included."""

    low: int
    high: int


@dataclass(frozen=True)
class Stepped:
    """One of low, low + step, ..., high (``high`` lies on the grid)."""

    low: float
    high: float
    step: float


@dataclass(frozen=True)
class Same:
    """The value of another field."""

    field: str


@dataclass(frozen=True)
class Times:
    """The value of another field, a number, times ``factor``."""

    field: str
    factor: float


@dataclass(frozen=True)
class When:
    """The domain that the value of another field selects.

    Attributes:
        field: the other field.
        cases: (value, domain) pairs.
        otherwise: for all other values; None: the field is left as it is.
    """

    field: str
    cases: tuple[tuple[Any, Domain], ...]
    otherwise: Domain | None


Sampled = Choice | Uniform | RandInt | Stepped
Domain = Constant | Grid | Choice | Uniform | RandInt | Stepped | Same | Times | When


def walk(domain: Domain) -> Iterator[Domain]:
    """The domain and all that is nested in its cases."""
    yield domain
    if isinstance(domain, When):
        for _, inner in domain.cases:
            yield from walk(inner)
        if domain.otherwise is not None:
            yield from walk(domain.otherwise)


def references(domain: Domain) -> list[str]:
    """Fields whose values the domain needs."""
    return [part.field for part in walk(domain) if isinstance(part, Same | Times | When)]


def equal_values(first: Any, second: Any) -> bool:
    """Equality by which cases are chosen: 1 equals 1.0, but not true."""
    return isinstance(first, bool) == isinstance(second, bool) and bool(first == second)


def draw(domain: Sampled, rng: random.Random) -> Any:
    """One value at random."""
    if isinstance(domain, Choice):
        return rng.choice(domain.values)
    if isinstance(domain, RandInt):
        return rng.randint(domain.low, domain.high)
    if isinstance(domain, Stepped):
        count = round((domain.high - domain.low) / domain.step)
        return tidy(domain.low + rng.randint(0, count) * domain.step)
    if domain.log:
        value = math.exp(rng.uniform(math.log(domain.low), math.log(domain.high)))
        return min(max(value, domain.low), domain.high)
    return rng.uniform(domain.low, domain.high)


def tidy(value: float) -> float:
    """Without the last digits that arithmetic leaves: 0.3 instead of 0.30000000000000004."""
    return float(f"{value:.12g}")


# ------------------------------------------------------------------------------- parsing

_EXPONENT = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?e[+-]?[0-9]+", re.IGNORECASE)


class DomainError(Exception):
    """Carries the :class:`Problem` of one unusable domain."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def parse_domain(where: str, raw: Any) -> Domain:
    """Reads one domain.

    Args:
        where: how messages name it, for example ``space.backbone.width``.
        raw: what YAML gives.

    Raises:
        DomainError: it cannot be used.
    """
    if not isinstance(raw, Mapping):
        return Constant(_value(where, raw))
    if "when" in raw:
        return _when(where, raw)
    if len(raw) != 1 or next(iter(raw)) not in _PARSERS:
        near = [difflib.get_close_matches(str(key), [*_PARSERS, "when"], n=1) for key in raw]
        hint = f"Did you mean {near[0][0]!r}?" if len(raw) == 1 and near[0] else "Write one of: "
        hint += "" if hint.endswith("?") else ", ".join([*_PARSERS, "when (with cases)"]) + "."
        raise _refused(where, "must be a mapping with one key, the kind of domain", raw, hint)
    (kind, value), *_ = raw.items()
    return _PARSERS[kind](where, value)


def _refused(where: str, rule: str, value: object, remedy: str) -> DomainError:
    return DomainError(Problem(where, rule, value, remedy))


def _value(where: str, raw: Any) -> Any:
    """A scalar or a list of scalars; YAML reads 1e-3 as text, we as a number."""
    if isinstance(raw, list | tuple):
        return [_value(where, item) for item in raw]
    if isinstance(raw, str) and _EXPONENT.fullmatch(raw):
        return float(raw)
    if raw is None or isinstance(raw, bool | int | str):
        return raw
    if isinstance(raw, float) and math.isfinite(raw):
        return raw
    raise _refused(
        where,
        "must be a finite number, text, true, false, null or a list",
        raw,
        "Domains nest only inside cases.",
    )


def _values(where: str, raw: Any) -> tuple[Any, ...]:
    if not isinstance(raw, list | tuple) or not raw:
        rule = "must be a list with at least one value"
        raise _refused(where, rule, raw, "Write for example [0.3, 0.5].")
    return tuple(_value(where, item) for item in raw)


def _numbers(where: str, raw: Any, names: str) -> list[float]:
    values = _value(where, raw) if isinstance(raw, list | tuple) else raw
    count = names.count(",") + 1
    good = isinstance(values, list) and len(values) == count
    if not good or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        raise _refused(where, f"must be [{names}], numbers", raw, "Give them in that order.")
    low, high, *_ = values
    if low >= high:
        raise _refused(
            where, "low must be below high", raw, "Swap the bounds, or write a constant."
        )
    return list(values)


def _uniform(where: str, raw: Any) -> Domain:
    low, high = _numbers(where, raw, "low, high")
    return Uniform(float(low), float(high))


def _loguniform(where: str, raw: Any) -> Domain:
    low, high = _numbers(where, raw, "low, high")
    if low <= 0:
        raise _refused(where, "low must be above zero", raw, "Use uniform, or raise low.")
    return Uniform(float(low), float(high), log=True)


def _randint(where: str, raw: Any) -> Domain:
    low, high = _numbers(where, raw, "low, high")
    if low != int(low) or high != int(high):
        raise _refused(where, "must be whole numbers", raw, "Use quniform for steps.")
    return RandInt(int(low), int(high))


def _quniform(where: str, raw: Any) -> Domain:
    low, high, step = _numbers(where, raw, "low, high, step")
    if not 0 < step <= high - low:
        rule = "step must be above zero and at most high - low"
        raise _refused(where, rule, raw, "Use a smaller step.")
    steps = math.floor((high - low) / step + 1e-9)
    return Stepped(float(low), tidy(low + steps * step), float(step))


def _same(where: str, raw: Any) -> Domain:
    if not isinstance(raw, str):
        rule = "must name another field"
        raise _refused(where, rule, raw, "Write {same: budgets.storage_max}.")
    return Same(raw)


def _times(where: str, raw: Any) -> Domain:
    good = isinstance(raw, list | tuple) and len(raw) == 2 and isinstance(raw[0], str)
    factor = _value(where, raw[1]) if good else None
    if isinstance(factor, bool) or not isinstance(factor, int | float):
        remedy = "Write {times: [agents.samples_per_image, 64]}."
        raise _refused(where, "must be [other.field, factor]", raw, remedy)
    return Times(raw[0], factor)


_PARSERS: dict[Any, Callable[[str, Any], Domain]] = {
    "grid": lambda where, raw: Grid(_values(where, raw)),
    "choice": lambda where, raw: Choice(_values(where, raw)),
    "uniform": _uniform,
    "loguniform": _loguniform,
    "randint": _randint,
    "quniform": _quniform,
    "same": _same,
    "times": _times,
}


def _when(where: str, raw: Mapping[Any, Any]) -> Domain:
    extra = sorted(str(key) for key in set(raw) - {"when", "cases", "otherwise"})
    if extra:
        near = difflib.get_close_matches(extra[0], ["when", "cases", "otherwise"], n=1)
        remedy = f"Did you mean {near[0]!r}?" if near else "Use when, cases and otherwise only."
        raise _refused(where, "unknown key beside when", extra[0], remedy)
    field, cases = raw["when"], raw.get("cases")
    if not isinstance(field, str) or not isinstance(cases, Mapping) or not cases:
        remedy = "Write {when: backbone.name, cases: {resnet20: 0.5}}."
        raise _refused(where, "must have a field and at least one case", dict(raw), remedy)
    found = tuple(
        (_value(where, key), parse_domain(f"{where}.cases.{key}", inner))
        for key, inner in cases.items()
    )
    otherwise = None
    if "otherwise" in raw:
        otherwise = parse_domain(f"{where}.otherwise", raw["otherwise"])
    return When(field, found, otherwise)


def parse_domains(
    prefix: str, raw: Mapping[str, Any]
) -> tuple[dict[str, Domain], Sequence[Problem]]:
    """Reads several domains; the unusable ones are left out and their problems returned."""
    domains: dict[str, Domain] = {}
    problems: list[Problem] = []
    for field, value in raw.items():
        try:
            domains[field] = parse_domain(f"{prefix}.{field}", value)
        except DomainError as error:
            problems.append(error.problem)
    return domains, problems
