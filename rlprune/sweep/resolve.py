"""Resolving a search space: conditions, dependent values, and every cell of its grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rlprune.errors import ConfigError, Problem
from rlprune.sweep.domains import (
    Constant,
    Domain,
    Grid,
    Same,
    Sampled,
    Times,
    When,
    equal_values,
    parse_domain,
    references,
    tidy,
    walk,
)
from rlprune.sweep.fields import get_field
from rlprune.sweep.spec import SweepSpec

Draw = Callable[[str, Sampled, tuple[str, ...]], Any]
"""(label, domain, grid cell) -> value. The label is the field's name, with the case if it
is in one; the cell lists the grid's values that have been chosen so far."""


class Space:
    """The parsed space of a specification, with its fields in an order of resolution."""

    def __init__(self, spec: SweepSpec) -> None:
        self.base = spec.trial
        self.domains = {
            field: parse_domain(f"space.{field}", raw) for field, raw in spec.space.items()
        }
        # What grids need comes first: each cell of the grid then has draws of its own.
        early = [f for f, d in self.domains.items() if any(isinstance(p, Grid) for p in walk(d))]
        self.order: list[str] = []
        for field in [*early, *self.domains]:
            self._append(field)

    def _append(self, field: str) -> None:
        if field in self.domains and field not in self.order:
            for other in references(self.domains[field]):
                self._append(other)
            self.order.append(field)

    def _lookup(self, field: str, values: Mapping[str, Any]) -> Any:
        return values[field] if field in values else get_field(self.base, field)

    def _active(self, field: str, values: Mapping[str, Any]) -> tuple[str, Domain | None]:
        """The label and the domain that the conditions leave; None keeps the base's value."""
        label, domain = field, self.domains[field]
        while isinstance(domain, When):
            value, chosen, case = self._lookup(domain.field, values), domain.otherwise, "otherwise"
            for key, inner in domain.cases:
                if equal_values(key, value):
                    chosen, case = inner, str(key).replace("/", "|")
                    break
            if chosen is None:
                return label, None
            label, domain = f"{label}[{case}]", chosen
        return label, domain

    def resolve(self, choose: Draw) -> Iterator[dict[str, Any]]:
        """Every cell of the grid, with the rest drawn by ``choose``."""
        yield from self._resolve(0, {}, (), choose)

    def _resolve(
        self, position: int, values: dict[str, Any], cell: tuple[str, ...], choose: Draw
    ) -> Iterator[dict[str, Any]]:
        if position == len(self.order):
            yield {field: values[field] for field in self.domains if field in values}
            return
        field = self.order[position]
        label, domain = self._active(field, values)
        if domain is None:
            yield from self._resolve(position + 1, values, cell, choose)
        elif isinstance(domain, Grid):
            for value in domain.values:
                step = (*cell, f"{label}={value!r}")
                yield from self._resolve(position + 1, {**values, field: value}, step, choose)
        else:
            value = self._value(field, label, domain, values, cell, choose)
            yield from self._resolve(position + 1, {**values, field: value}, cell, choose)

    def _value(
        self,
        field: str,
        label: str,
        domain: Domain,
        values: Mapping[str, Any],
        cell: tuple[str, ...],
        choose: Draw,
    ) -> Any:
        if isinstance(domain, Constant):
            return domain.value
        if isinstance(domain, Same):
            return self._lookup(domain.field, values)
        if isinstance(domain, Times):
            return _multiplied(field, self._lookup(domain.field, values), domain)
        if isinstance(domain, Grid | When):
            raise TypeError(f"{label} is resolved before its value is asked for")
        return choose(label, domain, cell)


def _multiplied(field: str, value: Any, domain: Times) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        rule = f"times needs a number for {domain.field}"
        raise ConfigError([Problem(f"space.{field}", rule, value, "Use same, or cases.")])
    product = value * domain.factor
    return product if isinstance(product, int) else tidy(product)
