"""Reading settings, of a trial or a sweep alike: kinds of fields, files, overrides, problems."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import yaml
from pydantic import ConfigDict, Field, ValidationError

from rlprune.errors import ConfigError, Problem

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
"""Of every section: refuses unknown keys, infinity and NaN."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]


def _dataclass_in(annotation: Any) -> Any:
    """The dataclass that an annotation names, alone or inside a tuple or union; or None."""
    if dataclasses.is_dataclass(annotation):
        return annotation
    return next(filter(None, map(_dataclass_in, get_args(annotation))), None)


def _known_keys(kind: Any, path: Sequence[str | int]) -> list[str]:
    for part in path:
        if isinstance(part, str):
            kind = _dataclass_in(get_type_hints(kind).get(part))
        if kind is None:
            return []
    return [field.name for field in dataclasses.fields(kind)]


def _problem_from(error: Mapping[str, Any], kind: Any, remedy: str) -> Problem:
    location = [part for part in error["loc"] if not str(part).startswith("function-")]
    name = ".".join(map(str, location))
    if error["type"] == "unexpected_keyword_argument":
        known = _known_keys(kind, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        remedy = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(known)}."
        return Problem(name, "unknown key", error["input"], remedy)
    if error["type"] == "missing":
        return Problem(name, "must be given", None, remedy)
    rule = str(error["msg"]).removeprefix("Input ").replace("should", "must")
    return Problem(name, rule, error["input"], remedy)


def problems_of(error: ValidationError, kind: Any, remedy: str) -> list[Problem]:
    """What pydantic found, as problems: one per field, the innermost where fields nest.

    Args:
        error: from validating ``kind``.
        kind: the dataclass; an unknown key is answered with the nearest of its keys.
        remedy: where to look for what a field means.
    """
    seen: dict[str, Problem] = {}
    for item in error.errors():
        problem = _problem_from(item, kind, remedy)
        seen.setdefault(problem.field, problem)
    return [p for p in seen.values() if not any(q.startswith(p.field + ".") for q in seen)]


def apply_override(values: dict[str, Any], override: str) -> Problem | None:
    """Applies one ``a.b=value`` to nested ``values`` in place; returns what is wrong with it."""
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        return Problem("--set", "must read a.b=value", override, "Write --set data.name=digits.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return Problem(path, "value must be YAML", text, "Quote it, for example --set 'a.b=\"x\"'.")
    node = values
    for key in keys[:-1]:
        if not isinstance(node.get(key), dict):
            node[key] = {}
        node = node[key]
    node[keys[-1]] = value
    return None


def read_mapping(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping (an empty file: an empty one).

    Raises:
        ConfigError: the file is missing, or no YAML mapping.
    """
    file = Path(path)
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        problem = Problem("CONFIG", "must be a readable file", str(file), f"{error}.")
        raise ConfigError([problem]) from None
    except yaml.YAMLError as error:
        problem = Problem("CONFIG", "must be YAML", str(file), " ".join(str(error).split()))
        raise ConfigError([problem]) from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise ConfigError([Problem("CONFIG", "must hold a mapping", kind, "Write key: value.")])
    return values
