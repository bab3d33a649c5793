"""The operations that a shipped model may call: by name, and nothing else.

A file names operations; what a name does is decided here. Most are torch's own functions.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_SAME_NAME = (
    *("relu", "relu6", "leaky_relu", "gelu", "silu", "mish", "hardswish", "hardsigmoid"),
    *("hardtanh", "tanh", "sigmoid", "elu", "celu", "selu", "max_pool2d", "avg_pool2d"),
    *("adaptive_avg_pool2d", "adaptive_max_pool2d", "pad", "softmax", "log_softmax"),
    *("flatten", "squeeze", "unsqueeze", "reshape", "permute", "transpose", "mean", "sum"),
    *("chunk", "split", "amax", "add", "sub", "mul", "div", "neg", "abs", "cat"),
)
_OTHER_NAMES = {
    "view": "reshape",
    "concat": "cat",
    "concatenate": "cat",
    "iadd": "add",
    "isub": "sub",
    "imul": "mul",
    "truediv": "div",
    "itruediv": "div",
}


def _unflatten(x: Tensor, trailing: list[int]) -> Tensor:
    """[B, C, ...] -> [B, C, *trailing]; an empty list merges all dimensions behind the first.

    Unlike ``reshape`` it does not name the number of channels, which depends on the image.
    """
    return x.reshape(len(x), x.shape[1], *trailing) if trailing else x.reshape(len(x), -1)


def _size(x: Tensor, dim: int | None = None) -> Any:
    return tuple(x.shape) if dim is None else x.shape[dim]


def _item(x: Any, index: Any) -> Any:
    """x[index]; a list, which is what JSON makes of a tuple, counts as one."""
    return x[tuple(index) if isinstance(index, list) else index]


def _function(name: str) -> Callable[..., Any]:
    for space in (F, torch):
        if hasattr(space, name):
            found: Callable[..., Any] = getattr(space, name)
            return found
    raise LookupError(name)


OPERATIONS: Mapping[str, Callable[..., Any]] = {
    **{name: _function(name) for name in _SAME_NAME},
    "per_channel": _unflatten,
    "size": _size,
    "getitem": _item,
    "floordiv": operator.floordiv,
}
"""Name -> function."""


def name_of(target: Callable[..., Any] | str) -> str | None:
    """The name under which a function or a tensor's method is known here, None if it is not."""
    name = target if isinstance(target, str) else str(getattr(target, "__name__", ""))
    name = name.rstrip("_") if not name.startswith("_") else name
    name = _OTHER_NAMES.get(name, name)
    if name not in OPERATIONS:
        return None
    if isinstance(target, str):
        return name
    spaces = (torch, F, torch._C._nn, operator)
    raw = str(target.__name__)
    return name if any(getattr(space, raw, None) is target for space in spaces) else None
