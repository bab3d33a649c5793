"""Validation against the KubeRay operator's CRDs, where no Kubernetes API server runs."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from rlprune.errors import FileAccessError, Problem

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where PyYAML was built with it
_FILES = {"RayCluster": "rayclusters.yaml", "RayJob": "rayjobs.yaml"}
_METADATA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "generateName": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


@functools.cache  # a CRD has 25,000 lines
def load_schema(folder: Path, kind: str, version: str = "v1") -> dict[str, Any]:
    """The schema of one kind, which refuses unknown keys at every depth.

    Args:
        folder: with the CRDs' files, as the operator's repository names them.
        kind: ``RayCluster`` or ``RayJob``.
        version: of the API.

    Raises:
        FileAccessError: the folder has no such file or version.
    """
    path = folder / _FILES[kind]
    try:
        definition = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
        versions = {item["name"]: item for item in definition["spec"]["versions"]}
        schema = versions[version]["schema"]["openAPIV3Schema"]
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise FileAccessError(
            f"{path}: no CRD of {kind} {version} ({type(error).__name__}: {error}). Take the file "
            "config/crd/bases/ray.io_... of the KubeRay operator that you run."
        ) from None
    _close(schema)
    schema["properties"]["metadata"] = _METADATA  # the API server's own; CRDs leave it open
    return dict(schema)


def schema_problems(document: dict[str, Any], schema: dict[str, Any]) -> list[Problem]:
    """Everything in a document that the schema refuses."""
    errors = jsonschema.Draft7Validator(schema).iter_errors(document)
    problems = []
    for error in sorted(errors, key=lambda error: [str(part) for part in error.absolute_path]):
        where = ".".join(map(str, error.absolute_path)) or "the document"
        rule = f"must fit the CRD: {error.message[:200]}"
        remedy = "See `kubectl explain` or KubeRay's API reference."
        problems.append(Problem(where, rule, type(error.instance).__name__, remedy))
    return problems


def _close(schema: Any) -> None:
    """Forbids unknown keys wherever a schema lists the known ones, as the API server does."""
    if isinstance(schema, list):
        for item in schema:
            _close(item)
    if not isinstance(schema, dict):
        return
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not open_ended:
        schema.setdefault("additionalProperties", False)
    for value in schema.values():
        _close(value)
