"""Checks of plain values out of a file: each says which field is wrong, and how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlprune.errors import ArtifactError

MOST = 1 << 20
"""No count in a file may be larger: sizes are checked before memory is taken."""
_LARGEST = 2.0**53
"""No amount may be larger: up to here float64 holds every whole number."""


class Checks:
    """Checks of one kind of file; each gives the value back, or raises ``ArtifactError``.

    Args:
        remedy: what its user does about a wrong file.
    """

    def __init__(self, remedy: str) -> None:
        self.remedy = remedy

    def require(self, holds: bool, field: str, rule: str) -> None:
        """``field`` must be ``rule``."""
        if not holds:
            raise ArtifactError(
                f"{field}: must be {rule}. The file is damaged or was edited; {self.remedy}."
            )

    def mapping(self, value: Any, field: str, names: set[str] | None = None) -> dict[str, Any]:
        """An object, with exactly these names."""
        self.require(isinstance(value, dict), field, "an object")
        exact = names is None or set(value) == names
        self.require(exact, field, f"an object with {sorted(names or ())}")
        checked: dict[str, Any] = value
        return checked

    def items(self, value: Any, field: str, length: int | None = None) -> list[Any]:
        """A list, of this length."""
        self.require(isinstance(value, list) and len(value) <= MOST, field, "a list")
        self.require(length is None or len(value) == length, field, f"a list of {length}")
        checked: list[Any] = value
        return checked

    def text(self, value: Any, field: str) -> str:
        """A string."""
        self.require(isinstance(value, str), field, "text")
        return str(value)

    def one_of(self, value: Any, field: str, allowed: Sequence[str]) -> str:
        """One of some strings."""
        known = isinstance(value, str) and value in allowed
        self.require(known, field, f"one of {', '.join(allowed)}")
        return str(value)

    def number(self, value: Any, field: str) -> float:
        """A number, neither NaN nor infinite nor too large to count with."""
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        self.require(plain and abs(value) <= _LARGEST, field, "a finite number")
        return float(value)

    def between(self, value: Any, field: str, least: float, most: float) -> float:
        """A number in a range, ends included."""
        number = self.number(value, field)
        self.require(least <= number <= most, field, f"from {least:g} to {most:g}")
        return number

    def numbers(self, value: Any, field: str, length: int | None = None) -> tuple[float, ...]:
        """A list of numbers."""
        return tuple(self.number(item, field) for item in self.items(value, field, length))

    def count(self, value: Any, field: str, least: int = 0) -> int:
        """A whole number from ``least`` to :data:`MOST`."""
        plain = isinstance(value, int) and not isinstance(value, bool)
        rule = f"a whole number from {least} to {MOST}"
        self.require(plain and least <= value <= MOST, field, rule)
        return int(value)

    def counts(self, value: Any, field: str, length: int, least: int = 1) -> Any:
        """A tuple of so many whole numbers."""
        return tuple(self.count(item, field, least) for item in self.items(value, field, length))

    def boolean(self, value: Any, field: str) -> bool:
        """True or false."""
        self.require(isinstance(value, bool), field, "true or false")
        return bool(value)

    def optional(self, value: Any, field: str) -> float | None:
        """A number or null."""
        return None if value is None else self.number(value, field)
