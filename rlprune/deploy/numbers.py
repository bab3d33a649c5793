"""How weights are stored: as they are, in 16 bits, or as 8-bit integers with a scale per row.

Only filters and matrices are stored smaller; what there is one of per channel stays float32.
Everything is computed in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlprune.deploy.spec import ModelSpec
from rlprune.errors import ArtifactError

_HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_SCALE = ".scale"
_PLACES = ".index"  # whole numbers; all others are real


def _is_matrix(name: str, tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dim() >= 2 and not name.endswith(".channel")


def stored_as(dtype: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The numbers as the file holds them.

    Args:
        dtype: "float32", "float16", "bfloat16" or "int8" (symmetric, one scale per row).
        tensors: float32.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if dtype == "float32" or not _is_matrix(name, tensor):
            found[name] = tensor
        elif dtype in _HALVES:
            found[name] = tensor.to(_HALVES[dtype])
        else:
            rows = tensor.flatten(1)
            scale = rows.abs().amax(1).clamp(min=1e-12) / 127.0
            whole = (rows / scale.unsqueeze(1)).round().clamp(-127, 127)
            found[name] = whole.to(torch.int8).reshape(tensor.shape)
            found[name + _SCALE] = scale
    return found


def restored(spec: ModelSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The numbers as they are computed with: float32, and int32 for positions.

    Raises:
        ArtifactError: an 8-bit tensor without its scales, another type, or no finite number.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dtype == torch.int8:
            scale = tensors.get(name + _SCALE)
            if scale is None or tensor.dim() < 2 or tuple(scale.shape) != (len(tensor),):
                raise ArtifactError(f"{name}{_SCALE}: missing or damaged. Export it again.")
            rows = tensor.float().flatten(1) * scale.float().unsqueeze(1)
            found[name] = rows.reshape(tensor.shape)
        elif tensor.is_floating_point() != name.endswith(_PLACES):
            found[name] = tensor.float() if tensor.is_floating_point() else tensor
        else:
            raise ArtifactError(f"{name}: {tensor.dtype} is no type for it. Export it again.")
    for name, tensor in found.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ArtifactError(f"{name}: holds numbers that are not finite. Export it again.")
    return found
