"""Budgets as users write them: a number s, a percentage, or an amount with a unit."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal


@dataclasses.dataclass(frozen=True)
class BudgetAmount:
    """A parsed budget.

    Attributes:
        kind: "ratio" (a number s), "fraction" (of the dense network's
            cost) or "absolute" (bytes or multiply-accumulates).
        value: s, the fraction, or the amount.
    """

    kind: Literal["ratio", "fraction", "absolute"]
    value: float


_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30}
_AMOUNT = re.compile(r"([0-9]*\.?[0-9]+(?:e\+?[0-9]+)?)\s*(%|[kmg]i?)?\s*(b|macs)?", re.IGNORECASE)


def parse_budget(value: float | str) -> BudgetAmount:
    """Reads one budget as :class:`~rlprune.config.BudgetConfig` describes it.

    Raises:
        ValueError: if the value is none of a number, a percentage, an amount with a unit,
            or is not above zero.
    """
    match = _AMOUNT.fullmatch(str(value).strip())
    if match is None:
        raise ValueError(f"{value!r} is no budget")
    number, unit = float(match[1]), (match[2] or "").lower()
    if number <= 0.0:
        raise ValueError("a budget must be above zero")
    if unit == "%":
        return BudgetAmount("fraction", number / 100.0)
    if number <= 1.0 and not unit and not match[3]:
        return BudgetAmount("ratio", number)
    return BudgetAmount("absolute", number * _UNITS[unit])
