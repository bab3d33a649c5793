"""Conditions on result rows in Python's notation, as expressions that Parquet readers take.

``backbone == 'resnet20' and seed < 3`` is parsed, never run: only comparisons, ``in``,
``and``/``or``/``not``, parentheses, literals and the names of columns are known.

As in SQL, a comparison with a missing value is neither true nor false, and a row is chosen
only if the whole condition is true; ``x == None`` and ``x != None`` ask whether it is missing.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from rlprune.errors import ResultsError
from rlprune.results.schema import SCHEMA

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_EQUAL, _UNEQUAL = (ast.Eq, ast.Is), (ast.NotEq, ast.IsNot)
_KNOWN = (
    "Known are column names, numbers, 'texts', True, False, None, == != < <= > >=, in, and, or, "
    "not and parentheses."
)


@dataclass(frozen=True)
class _Operand:
    """One side of a comparison.

    Attributes:
        text: as written.
        kind: "number", "text", "truth", "time", "none" or "list".
        value: what is compared: a field's expression, or a literal (a list of operands).
        column: its name, None for a literal.
    """

    text: str
    kind: str
    value: Any
    column: str | None = None


def parse_where(text: str) -> pc.Expression:
    """A condition as an Arrow expression, checked against the columns of result rows.

    Args:
        text: for example ``backbone in ('resnet20', 'resnet56') and 0 <= seed < 3``. Columns
            may be compared with each other; times are written as ISO texts (UTC).

    Returns:
        What ``rlprune.results.load(filters=...)`` and ``pyarrow.dataset`` take.

    Raises:
        ResultsError: not a condition, something other than the above in it, an unknown
            column (names the nearest), or values of different kinds compared.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or "too deep"
        raise _problem(text, f"cannot be read ({reason})", _KNOWN) from error
    try:
        return _condition(tree.body, text)
    except RecursionError as error:
        raise _problem(text, "is too deep", "Write it shorter, with in (...).") from error


def _problem(text: str, what: str, remedy: str) -> ResultsError:
    shown = text if len(text) <= 200 else f"{text[:200]}..."
    return ResultsError(f"condition {shown!r}: {what}. {remedy}")


def _condition(node: ast.expr, text: str) -> pc.Expression:
    """A node that is true or false."""
    if isinstance(node, ast.BoolOp):
        parts = [_condition(value, text) for value in node.values]
        return _joined(parts, operator.and_ if isinstance(node.op, ast.And) else operator.or_)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~_condition(node.operand, text)
    if isinstance(node, ast.Compare):
        sides = [_operand(side, text) for side in (node.left, *node.comparators)]
        pairs = zip(sides[:-1], node.ops, sides[1:], strict=True)
        return _joined([_comparison(*pair, text) for pair in pairs], operator.and_)
    if isinstance(node, ast.Name):
        operand = _operand(node, text)
        if operand.kind == "truth":
            return operand.value
    raise _problem(text, f"{ast.unparse(node)!r} is not a condition", _KNOWN)


def _joined(
    parts: list[pc.Expression], join: Callable[[pc.Expression, pc.Expression], pc.Expression]
) -> pc.Expression:
    """All parts joined as a balanced tree: long lists must not nest deeply."""
    while len(parts) > 1:
        pairs = [join(*parts[i : i + 2]) for i in range(0, len(parts) - 1, 2)]
        parts = pairs + parts[len(parts) - len(parts) % 2 :]
    return parts[0]


def _operand(node: ast.expr, text: str) -> _Operand:
    shown = ast.unparse(node)
    if isinstance(node, ast.Name):
        return _column(node.id, text)
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return _Operand(shown, "list", [_operand(item, text) for item in node.elts])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        inner = _operand(node.operand, text)
        if inner.kind == "number" and inner.column is None:
            sign = -1 if isinstance(node.op, ast.USub) else 1
            return _Operand(shown, "number", sign * inner.value)
    if isinstance(node, ast.Constant):
        kind = _literal_kind(node.value)
        if kind is not None:
            return _Operand(shown, kind, node.value)
    raise _problem(text, f"{shown!r} cannot be compared", _KNOWN)


def _literal_kind(value: object) -> str | None:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, float) or (isinstance(value, int) and -(2**63) <= value < 2**63):
        return "number"
    return "text" if isinstance(value, str) else None


def _column(name: str, text: str) -> _Operand:
    if name not in SCHEMA.names:
        near = difflib.get_close_matches(name, SCHEMA.names, n=1)
        hint = f"Did you mean {near[0]}?" if near else "`rlprune schema` lists the columns."
        raise _problem(text, f"there is no column {name}", f"{hint} Texts need quotes.")
    type_ = SCHEMA.field(name).type
    if types.is_boolean(type_):
        kind = "truth"
    elif types.is_string(type_):
        kind = "text"
    elif types.is_timestamp(type_):
        kind = "time"
    elif types.is_integer(type_) or types.is_floating(type_):
        kind = "number"
    else:
        raise _problem(text, f"column {name} holds lists", "Choose a column of single values.")
    return _Operand(name, kind, pc.field(name), name)


def _comparison(left: _Operand, op: ast.cmpop, right: _Operand, text: str) -> pc.Expression:
    if isinstance(op, (ast.In, ast.NotIn)):
        return _membership(left, isinstance(op, ast.NotIn), right, text)
    if "none" in (left.kind, right.kind):
        side = left if right.kind == "none" else right
        if side.column is None or not isinstance(op, (*_EQUAL, *_UNEQUAL)):
            raise _problem(text, "None can only be compared with a column", "Use == or != None.")
        missing = side.value.is_null()
        return missing if isinstance(op, _EQUAL) else ~missing
    if type(op) not in _COMPARE:
        raise _problem(text, "'is' is for None", "Use ==.")
    if left.column is None and right.column is None:
        raise _problem(text, f"{left.text} and {right.text} hold no column", _KNOWN)
    left, right = _alike(left, right, text), _alike(right, left, text)
    # a literal on the left would be asked to compare itself
    sides = [side.value if side.column else pc.scalar(side.value) for side in (left, right)]
    return _COMPARE[type(op)](*sides)


def _membership(left: _Operand, negated: bool, right: _Operand, text: str) -> pc.Expression:
    """``in`` as equalities: unlike Arrow's isin it is not false for a missing value."""
    if left.column is None or right.kind != "list" or not right.value:
        raise _problem(text, f"{left.text!r} in {right.text!r}", "Write: column in (value, value).")
    parts = [_comparison(left, ast.Eq(), item, text) for item in right.value]
    found = _joined(parts, operator.or_)
    return ~found if negated else found


def _alike(side: _Operand, other: _Operand, text: str) -> _Operand:
    """The side, made comparable with the other one."""
    if side.kind == "text" and side.column is None and other.kind == "time":
        try:
            moment = datetime.fromisoformat(side.value)
        except ValueError as error:
            raise _problem(
                text, f"{side.text} is no time", "Write 'YYYY-MM-DD' or 'YYYY-MM-DD HH:MM:SS'."
            ) from error
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        return _Operand(side.text, "time", pa.scalar(moment, pa.timestamp("us", tz="UTC")))
    expected = "text" if side.kind == "time" and other.column is None else side.kind
    if other.kind != expected:
        raise _problem(
            text,
            f"{side.text} is a {side.kind} and {other.text} a {other.kind}",
            "Compare numbers with numbers, and texts with texts in quotes.",
        )
    return side
