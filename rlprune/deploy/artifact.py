"""The file: safetensors, whose metadata hold the model's description as JSON. No pickle.

``safetensors`` reads the header, checks every size against the file's and maps the numbers;
nothing in the file is executed. What the header says about the model is checked here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlprune.deploy.spec import SCHEMA, ModelSpec
from rlprune.errors import ArtifactError

_KEY = "rlprune"
_FLOATS = {torch.float32, torch.float16, torch.bfloat16}
_DTYPES = _FLOATS | {torch.int8, torch.uint8, torch.int16, torch.int32}


def write_artifact(path: str | Path, spec: ModelSpec, tensors: Mapping[str, Tensor]) -> int:
    """Writes a model; returns the file's bytes. A file that is there is replaced at once.

    Raises:
        ArtifactError: the file cannot be written.
    """
    file = Path(path)
    described = {"schema": SCHEMA, "model": spec.to_json()}
    text = json.dumps(described, separators=(",", ":"), allow_nan=False)
    partial = file.with_name(f".{file.name}.partial")
    try:
        save_file({k: t.contiguous() for k, t in tensors.items()}, partial, {_KEY: text})
        os.replace(partial, file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ArtifactError(f"{file}: cannot be written: {error}. Choose another -o.") from error
    return file.stat().st_size


def read_artifact(path: str | Path) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Reads a model's description and numbers.

    Raises:
        ArtifactError: no such file, not one of ours, damaged, or of a later version.
    """
    file = Path(path)
    try:
        with safe_open(file, framework="pt") as opened:
            spec = _description(file, opened.metadata())
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ArtifactError(f"{file}: there is no such file.") from None
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(
            f"{file}: no model of rlprune: {reason}. Export it again, or copy it again."
        ) from None
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise ArtifactError(f"{file}: {name} has numbers of an unknown kind {tensor.dtype}.")
    return spec, tensors


def _description(file: Path, metadata: Mapping[str, str] | None) -> ModelSpec:
    text = (metadata or {}).get(_KEY)
    if text is None:
        raise ArtifactError(
            f"{file}: a safetensors file, but not one of rlprune's. "
            "Make one with `rlprune export`."
        )
    try:
        described: Any = json.loads(text)
    except (ValueError, RecursionError):
        described = None
    if not isinstance(described, dict) or set(described) != {"schema", "model"}:
        raise ArtifactError(f"{file}: its description is damaged. Export it again.")
    if described["schema"] != SCHEMA:
        raise ArtifactError(
            f"{file}: of format {described['schema']!r}, this rlprune reads format {SCHEMA}. "
            "Update rlprune, or export it again with this version."
        )
    try:
        return ModelSpec.from_json(described["model"])
    except ArtifactError as error:
        raise ArtifactError(f"{file}: {error}") from None
