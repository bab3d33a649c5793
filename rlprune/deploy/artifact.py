"""The file: safetensors with one block of numbers per type and a description. No pickle.

A model for a small device is small itself, and a header that names hundreds of tensors would
be a tenth of it. So all numbers of one type lie behind one another; names, shapes and
everything else are in "description": JSON, compressed, as bytes. ``safetensors`` checks the
header against the file's size and maps the numbers; what the description says is checked
here, before memory is taken for it. Nothing in the file is executed.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlprune.deploy.spec import SCHEMA, ModelSpec
from rlprune.errors import ArtifactError

_TEXT, _VERSION = "description", "rlprune_schema"
_TYPES = {
    str(kind).removeprefix("torch."): kind
    for kind in (
        *(torch.float32, torch.float16, torch.bfloat16),
        *(torch.int8, torch.uint8, torch.int16, torch.int32),
    )
}

_DAMAGED = (
    *(SafetensorError, OSError, ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, RuntimeError),
)
"""What safetensors and torch raise over bytes that are no file of ours."""
_SLACK = 1 << 20


def write_artifact(path: str | Path, spec: ModelSpec, tensors: Mapping[str, Tensor]) -> int:
    """Writes a model; returns the file's bytes. A file that is there is replaced at once.

    Raises:
        ArtifactError: the file cannot be written.
    """
    file = Path(path)
    names = sorted(tensors)
    blocks = {
        kind: torch.cat([tensors[n].reshape(-1) for n in names if tensors[n].dtype == dtype])
        for kind, dtype in _TYPES.items()
        if any(tensors[n].dtype == dtype for n in names)
    }
    layout = [
        [n, str(tensors[n].dtype).removeprefix("torch."), list(tensors[n].shape)] for n in names
    ]
    plain = {"model": spec.to_json(), "layout": layout}
    text = json.dumps(plain, separators=(",", ":"), allow_nan=False)
    packed = bytearray(zlib.compress(text.encode(), 9))
    blocks[_TEXT] = torch.frombuffer(packed, dtype=torch.uint8)
    partial = file.with_name(f".{file.name}.partial")
    try:
        save_file(blocks, partial, {_VERSION: str(SCHEMA)})
        os.replace(partial, file)
    except (OSError, SafetensorError) as error:
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
        size = file.stat().st_size
        with safe_open(file, framework="pt") as opened:
            _check_version(opened.metadata() or {})
            blocks = {name: opened.get_tensor(name) for name in opened.keys()}
        described = _described(blocks.pop(_TEXT, None), size)
        return ModelSpec.from_json(described["model"]), _split(described["layout"], blocks)
    except FileNotFoundError:
        raise ArtifactError(f"{file}: there is no such file.") from None
    except ArtifactError as error:
        raise ArtifactError(f"{file}: {error}") from None
    except _DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(
            f"{file}: no model of rlprune: {reason}. Export it again, or copy it again."
        ) from None


def _check_version(metadata: Mapping[str, str]) -> None:
    if _VERSION not in metadata:
        raise ArtifactError(
            "a safetensors file, but not one of rlprune's. Make one with `rlprune export`."
        )
    if metadata[_VERSION] != str(SCHEMA):
        raise ArtifactError(
            f"of format {metadata[_VERSION]!r}, this rlprune reads format {SCHEMA}. "
            "Update rlprune, or export it again with this version."
        )


def _described(packed: Tensor | None, size: int) -> dict[str, Any]:
    """The description of a file of ``size`` bytes."""
    plain = None
    if packed is not None and packed.dtype == torch.uint8 and packed.dim() == 1:
        unpacker = zlib.decompressobj()
        try:
            most = 2 * size + _SLACK  # whatever it claims
            text = unpacker.decompress(packed.numpy().tobytes(), most)
            plain = json.loads(text) if unpacker.eof else None
        except (zlib.error, ValueError, RecursionError):
            plain = None
    if not isinstance(plain, dict) or set(plain) != {"model", "layout"}:
        raise ArtifactError("its description is damaged. Export it again.")
    return plain


def _split(layout: Any, blocks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name: views into the blocks."""
    used = dict.fromkeys(blocks, 0)
    found: dict[str, Tensor] = {}
    for entry in layout if isinstance(layout, list) else [[]]:
        if not isinstance(entry, list) or list(map(type, entry)) != [str, str, list]:
            raise ArtifactError("its layout is damaged. Export it again.")
        name, kind, shape = entry
        sizes = len(shape) <= 4 and all(type(n) is int and 1 <= n < 1 << 31 for n in shape)
        count = math.prod(shape) if sizes else -1
        block = blocks.get(kind)
        right = block is not None and block.dim() == 1 and block.dtype == _TYPES.get(kind)
        if not right or count < 0 or block is None or used[kind] + count > len(block):
            raise ArtifactError(f"{name}: does not lie in the file. Export it again.")
        if name in found:
            raise ArtifactError(f"{name}: is described twice. Export it again.")
        found[name] = block[used[kind] : used[kind] + count].reshape(shape)
        used[kind] += count
    if any(used[kind] != len(block) for kind, block in blocks.items()):
        raise ArtifactError("holds numbers that nothing describes. Export it again.")
    return found
