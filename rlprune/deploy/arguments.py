"""What the calls of a model's program are given: read from the file, and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rlprune.deploy.checks import MOST
from rlprune.deploy.layer import Geometry
from rlprune.deploy.spec import ModelSpec, Node, Run
from rlprune.errors import ArtifactError

if TYPE_CHECKING:
    from rlprune.deploy.program import Pass


def references(value: Any) -> list[int]:
    """Nodes that an argument refers to, at any depth."""
    if isinstance(value, Mapping):
        if set(value) == {"r"}:
            return [value["r"]] if isinstance(value["r"], int) else [-1]
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [reference for item in value for reference in references(item)]
    return []


def value_of(value: Any) -> Callable[[Pass], Any]:
    """How an argument is found during a pass."""
    if isinstance(value, Mapping) and set(value) == {"s"}:
        cut = _slice(value["s"])
        return lambda now: cut
    if isinstance(value, Mapping):
        position = value.get("r")
        if not isinstance(position, int):
            raise ArtifactError("program: a damaged argument. Export the model again.")
        return lambda now: now.values[position]
    if isinstance(value, list):
        parts = [value_of(item) for item in value]
        return lambda now: [part(now) for part in parts]
    return lambda now: value


def _slice(ends: Any) -> slice:
    plain = isinstance(ends, list) and len(ends) == 3
    if not plain or not all(end is None or isinstance(end, int) for end in ends):
        raise ArtifactError("program: a damaged slice. Export the model again.")
    return slice(*ends)


def misshapen(node: Node, weight: Tensor) -> ArtifactError:
    """The error for a tensor of another shape than a call needs."""
    return ArtifactError(
        f"{node.target}.weight: the shape {tuple(weight.shape)} does not fit the program. "
        "The file is damaged or was edited; export it again."
    )


def geometry_of(node: Node) -> Geometry:
    """How a call's convolution moves."""
    try:
        pairs = (node.kwargs[name] for name in Geometry._fields)
        return Geometry(*((int(pair[0]), int(pair[1])) for pair in pairs))
    except (KeyError, TypeError, ValueError, IndexError):
        raise ArtifactError("program: a damaged convolution. Export the model again.") from None


def layer_of(node: Node, spec: ModelSpec) -> int:
    """The layer that a call names."""
    layer = node.kwargs.get("layer")
    if not isinstance(layer, int) or not 0 <= layer < len(spec.layers):
        raise ArtifactError(f"program: there is no layer {layer!r}. Export the model again.")
    return layer


def runs_of(node: Node, spec: ModelSpec) -> tuple[Run, ...]:
    """Who provides a consumer's channels; runs of layers count what is stored of them."""
    given = node.kwargs.get("runs")
    runs = []
    for pair in given if isinstance(given, list) else []:
        layer, channels = pair if isinstance(pair, list) and len(pair) == 2 else (-1, 0)
        known = layer is None or (isinstance(layer, int) and 0 <= layer < len(spec.layers))
        if not known or not isinstance(channels, int) or not 1 <= channels <= MOST:
            raise ArtifactError("program: damaged channel runs. Export the model again.")
        runs.append(Run(layer, channels))
    each = node.kwargs.get("each", 1)
    total = sum(run.channels for run in runs)
    if not isinstance(each, int) or each < 1 or not 1 <= total * each <= MOST:
        raise ArtifactError("program: damaged channel runs. Export the model again.")
    return tuple(
        run
        if node.kind == "expand" or run.layer is None
        else Run(run.layer, spec.layers[run.layer].stored)
        for run in runs
    )
