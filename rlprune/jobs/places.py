"""What a specification may name when its trials run on other machines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from rlprune.errors import ConfigError, Problem
from rlprune.sweep.checks import possible_values
from rlprune.sweep.domains import parse_domains
from rlprune.sweep.spec import SweepSpec

_SECRET = re.compile(r"key|secret|token|password|signature|\bsig\b", re.IGNORECASE)


def check_places(spec: SweepSpec, own_code: bool) -> None:
    """Refuses paths that mean nothing on a cluster, and keys in them.

    Args:
        spec: the sweep.
        own_code: whether a folder of the user's is shipped, to which paths can be relative.

    Raises:
        ConfigError: listing every problem; keys are not shown.
    """
    problems = storage_problems(spec.storage_path)
    for root in _values(spec, "data.root"):
        if _is_relative(root):
            rule = "must be an absolute path that every node has"
            remedy = "Images are not shipped: put them where all nodes see them."
            problems.append(Problem("trial.data.root", rule, root, remedy))
    for weights in _values(spec, "backbone.weights"):
        if _is_relative(weights) and not own_code:
            rule = "must be an absolute path that every node has"
            remedy = "Or ship a small file with --code FOLDER, and name it relative to that."
            problems.append(Problem("trial.backbone.weights", rule, weights, remedy))
    if problems:
        raise ConfigError(problems)


def storage_problems(path: str) -> list[Problem]:
    """What is wrong with a storage path for several machines."""
    if "://" not in path:
        if Path(path).is_absolute():
            return []
        rule = "must be a URI, or an absolute folder that all nodes share"
        remedy = "Write --storage-path s3://bucket/experiments."
        return [Problem("storage_path", rule, path, remedy)]
    parts = urlsplit(path)
    secret = parts.password is not None
    secret |= any(_SECRET.search(key) for key, _ in parse_qsl(parts.query, keep_blank_values=True))
    if not secret:
        return []
    rule = "must not hold keys: job lists, logs and results show it"
    shown = f"{parts.scheme}://..."
    remedy = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on the cluster's nodes, or use --env."
    return [Problem("storage_path", rule, shown, remedy)]


def _is_relative(path: Any) -> bool:
    return isinstance(path, str) and not path.startswith(("/", "~")) and "://" not in path


def _values(spec: SweepSpec, field: str) -> list[Any]:
    domains, _ = parse_domains("space", spec.space)
    return possible_values(domains, spec.trial, field) or []
