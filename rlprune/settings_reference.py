"""Every setting of a trial with values, default and meaning, from the configuration itself.

Meanings are the ``Attributes`` of the sections' docstrings, so that they stand in one place.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import TypeAdapter

from rlprune.config import TrialConfig

_ENTRY = re.compile(r"^(\w+(?:, \w+)*):\s")
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
_PLAIN = {"boolean": "true | false", "string": "text", "null": "null", "number": "number"}


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: dotted, as ``--set`` takes it.
        values: what it may be.
        default: in YAML.
        meaning: one paragraph.
    """

    name: str
    values: str
    default: str
    meaning: str


def settings() -> list[Setting]:
    """All settings of a trial, in the order of the configuration."""
    schema = TypeAdapter(TrialConfig).json_schema()
    return _section(TrialConfig, "", schema, schema["$defs"])


def _section(
    kind: type, prefix: str, schema: Mapping[str, Any], parts: Mapping[str, Any]
) -> list[Setting]:
    meanings, found = attribute_meanings(inspect.getdoc(kind) or ""), []
    for field in dataclasses.fields(kind):
        name, default = f"{prefix}{field.name}", field.default
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            own = parts[type(default).__name__]
            found += _section(type(default), f"{name}.", own, parts)
            continue
        values = _values(schema["properties"][field.name])
        found.append(Setting(name, values, _yaml(default), meanings.get(field.name, "")))
    return found


def _yaml(value: Any) -> str:
    plain = json.loads(json.dumps(value))  # tuples as lists
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


def attribute_meanings(docstring: str) -> dict[str, str]:
    """What a docstring's ``Attributes`` say, by name; entries may name several.

    Args:
        docstring: Google style, without indentation of its own.
    """
    _, _, text = docstring.partition("\nAttributes:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(text.partition("\n\n")[0]).splitlines():
        entry = _ENTRY.match(line)
        if entry:
            names = entry.group(1).split(", ")
            line = line[entry.end() :]
        for name in names:
            found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return {name: _without_roles(meaning) for name, meaning in found.items()}


def _without_roles(text: str) -> str:
    """``x`` and :func:`a.b.x` as x."""
    text = re.sub(r":\w+:`~?[\w.]*?(\w+)`", r"\1", text)
    return text.replace("``", "")


def _values(node: Mapping[str, Any]) -> str:
    """What a value may be, from its JSON schema."""
    if "anyOf" in node:
        return " | ".join(_values(part) for part in node["anyOf"])
    if "enum" in node:
        return " | ".join(map(str, node["enum"]))
    if "const" in node:
        return str(node["const"])
    if "prefixItems" in node:
        return f"list of {len(node['prefixItems'])}: {_values(node['prefixItems'][0])}"
    if node["type"] == "array":
        return f"list of: {_values(node['items'])}"
    text = _PLAIN.get(node["type"], node["type"])
    if "minimum" in node and "maximum" in node:
        return f"{text} from {node['minimum']:g} to {node['maximum']:g}"
    bounds = [f"{sign} {node[key]:g}" for key, sign in _BOUNDS.items() if key in node]
    return f"{text} {', '.join(bounds)}".strip()
