"""How functions are compiled, and kept from one process to the next.

numba keeps a compiled function, with all that it calls, until the function's *own* file
changes. Ours call functions of other files: so a digest of all of them is a part of what
numba finds a kept function by.
"""

from __future__ import annotations

import hashlib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

_numba: Any = numba
carray: Any = _numba.carray
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _digest() -> str:
    """Of all source files of this package."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def compiled(function: _Function) -> _Function:
    """Compiles a function that compiled functions call."""
    helper: _Function = _numba.njit(error_model="numpy")(function)
    return helper


def entry(function: _Function) -> _Function:
    """Compiles a function that Python calls, and keeps it: beside its file or in a cache folder."""
    known = _with_digest(function)
    try:
        kept: _Function = _numba.njit(cache=True, error_model="numpy")(known)
    except RuntimeError:  # nowhere to keep what was compiled: compile in every process
        kept = _numba.njit(error_model="numpy")(known)
    return kept


def _with_digest(function: Any) -> Any:
    """The same function with the digest in its closure, which numba looks at."""
    code = function.__code__
    assert not code.co_freevars, "an entry must be a function of a module"
    code = code.replace(co_freevars=("digest_of_the_package",))
    same = types.FunctionType(
        code, function.__globals__, function.__name__, None, (types.CellType(_DIGEST),)
    )
    same.__doc__, same.__module__ = function.__doc__, function.__module__
    same.__annotations__, same.__qualname__ = function.__annotations__, function.__qualname__
    return same


_DIGEST = _digest()
