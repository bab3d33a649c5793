"""Loading a state dict into a network, without ever running code from the file."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from rlprune.errors import BackboneError

_SHOWN = 5
_PARALLEL_PREFIX = "module."


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Copy the tensors of a state-dict file into ``module``.

    The file may hold the state dict itself or ``{"state_dict": ...}``, and its keys may all
    start with ``module.`` (as ``DataParallel`` writes them). Files without BatchNorm's
    ``num_batches_tracked`` are accepted.

    Args:
        module: the network; changed in place, and only if everything fits.
        path: a file written by ``torch.save(module.state_dict(), path)``.

    Raises:
        BackboneError: the file is missing, damaged, or holds anything but tensors (pickled
            code is refused, never run); names or shapes that do not fit, up to five each.
    """
    state = _without_prefix(_read(Path(path)), module.state_dict())
    _check_fit(state, module, path)
    try:
        module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise BackboneError(
            f"backbone.weights: {str(path)!r} does not fit {type(module).__name__}: {error}"
        ) from error


def _read(path: Path) -> dict[str, torch.Tensor]:
    where = f"backbone.weights: {str(path)!r}"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise BackboneError(f"{where} does not exist. Correct the path.") from error
    except OSError as error:
        raise BackboneError(f"{where} cannot be read ({error.strerror or error}).") from error
    except pickle.UnpicklingError as error:
        raise BackboneError(
            f"{where} is damaged, or holds something other than tensors (pickled code is "
            "never run). Write it with torch.save(module.state_dict(), path)."
        ) from error
    except Exception as error:  # a damaged file fails in many ways: zip, struct, EOF, ...
        raise BackboneError(
            f"{where} is damaged or no state-dict file ({type(error).__name__}: {error}). "
            "Write it with torch.save(module.state_dict(), path)."
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()
    ):
        raise BackboneError(
            f"{where} holds no state dict (a mapping from names to tensors). "
            "Write it with torch.save(module.state_dict(), path)."
        )
    return dict(content)


def _without_prefix(
    state: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    if not state or not all(key.startswith(_PARALLEL_PREFIX) for key in state):
        return state
    if any(key.startswith(_PARALLEL_PREFIX) for key in own):
        return state
    return {key.removeprefix(_PARALLEL_PREFIX): value for key, value in state.items()}


def _check_fit(state: Mapping[str, torch.Tensor], module: nn.Module, path: str | Path) -> None:
    own = module.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    misshaped = [
        f"{key} (file {tuple(value.shape)}, network {tuple(own[key].shape)})"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    parts = [f"{len(keys)} {kind}: {_listed(keys)}" for kind, keys in found.items() if keys]
    if parts:
        raise BackboneError(
            f"backbone.weights: {str(path)!r} does not fit {type(module).__name__}; "
            f"{'; '.join(parts)}. Use the file of a network with the same name, width, "
            "classes and image channels."
        )


def _listed(keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
