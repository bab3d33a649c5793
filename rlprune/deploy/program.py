"""A model's program made runnable: checked once, then a list of closures.

Tensors carry only the channels that exist: those computed for the image (one image at a time)
or all stored ones with zeros (batches). Which layer provides which channels is known from the
file, so that consumers pick their columns and residual streams put them in their places.

Legend: B images, S stored channels of a layer, I stored input channels, n computed ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rlprune.deploy.decide import Decisions, Positions
from rlprune.deploy.layer import GatedLayer, Geometry, column_positions, stored_places
from rlprune.deploy.operations import OPERATIONS
from rlprune.deploy.spec import ModelSpec, Node, Run
from rlprune.errors import ArtifactError

MASKED, GATHERED = "masked", "gathered"
"""Ways to run: all stored channels with zeros in place; computed channels alone."""


@dataclass
class Pass:
    """One run of the program.

    Attributes:
        decisions: of each image; one image where channels are gathered.
        mode: MASKED or GATHERED.
        values: of the nodes so far.
    """

    decisions: Sequence[Decisions]
    mode: str
    values: list[Any] = field(default_factory=list)

    def kept(self, layer: int) -> Positions | None:
        """Positions present of a layer; None where all stored channels are."""
        return self.decisions[0].kept[layer] if self.mode == GATHERED else None


class Program:
    """Runs a model's program.

    Args:
        spec: of the model.
        tensors: its numbers, float32.
        layers: the gated layers.

    Raises:
        ArtifactError: a call of an unknown operation, or of a value that is not there yet.
    """

    def __init__(
        self, spec: ModelSpec, tensors: Mapping[str, Tensor], layers: Sequence[GatedLayer]
    ) -> None:
        self.spec = spec
        self.tensors = tensors
        self.layers = layers
        self._steps = [self._step(node, at) for at, node in enumerate(spec.program)]
        if not spec.program or spec.program[-1].kind != "output":
            raise ArtifactError("program: must end with its output. Export the model again.")

    def run(self, images: Tensor, decisions: Sequence[Decisions], mode: str) -> Tensor:
        """Scores [B, K] of normalised images [B, C, H, W]."""
        now = Pass(decisions, mode, [])
        now.values.append(images)
        for step in self._steps[1:]:
            now.values.append(step(now))
        result = now.values[-1]
        if not isinstance(result, Tensor):
            raise ArtifactError("program: its output is no tensor. Export the model again.")
        return result

    # --- one closure per node ---------------------------------------------------------

    def _step(self, node: Node, at: int) -> Callable[[Pass], Any]:
        makers: dict[str, Callable[[Node], Callable[[Pass], Any]]] = {
            "gated": self._gated,
            "follower": self._follower,
            "conv": self._convolution,
            "linear": self._linear,
            "affine": self._affine,
            "expand": self._expand,
            "call": self._call,
            "output": lambda node: _value(node.args[0]),
        }
        if node.kind == "input":
            if at != 0:
                raise ArtifactError("program: the input must come first. Export it again.")
            return lambda now: now.values[0]
        if not node.args:
            raise ArtifactError(f"program: {node.kind} without a value. Export it again.")
        for reference in _references([node.args, node.kwargs]):
            if not 0 <= reference < at:
                raise ArtifactError(
                    f"program: call {at} reads value {reference}, which is not there yet. "
                    "The file is damaged or was edited; export it again."
                )
        return makers[node.kind](node)

    def _gated(self, node: Node) -> Callable[[Pass], Tensor]:
        index = node.target
        if not isinstance(index, int) or not 0 <= index < len(self.layers):
            raise ArtifactError(f"program: there is no layer {index!r}. Export it again.")
        layer, x = self.layers[index], _value(node.args[0])

        def run(now: Pass) -> Tensor:
            if now.mode == GATHERED:
                return layer.gathered(x(now), now.decisions[0])
            return layer.masked(x(now), now.decisions)

        return run

    def _follower(self, node: Node) -> Callable[[Pass], Tensor]:
        weight, bias = self._pair(node)
        geometry, producer, x = _geometry(node), _layer_of(node, self.spec), _value(node.args[0])

        def run(now: Pass) -> Tensor:
            kept = now.kept(producer)
            rows = slice(None) if kept is None else torch.from_numpy(kept)
            y = geometry.convolve(x(now), weight[rows], bias[rows], len(weight[rows]))
            if now.mode == MASKED:  # its shift must not fill in pruned channels
                y = y * masks(now.decisions, producer, y.shape[1]).to(y)[:, :, None, None]
            return y

        return run

    def _convolution(self, node: Node) -> Callable[[Pass], Tensor]:
        weight, bias = self._pair(node)
        geometry, x = _geometry(node), _value(node.args[0])
        groups, runs = int(node.kwargs["groups"]), _runs(node, self.spec)

        def run(now: Pass) -> Tensor:
            columns = column_positions(runs, now.kept)
            part = weight if columns is None else weight[:, torch.from_numpy(columns)]
            return geometry.convolve(x(now), part, bias, groups)

        return run

    def _linear(self, node: Node) -> Callable[[Pass], Tensor]:
        weight, bias = self._pair(node)
        x, runs, each = _value(node.args[0]), _runs(node, self.spec), int(node.kwargs["each"])

        def run(now: Pass) -> Tensor:
            columns = column_positions(runs, now.kept)
            if columns is None:
                return F.linear(x(now), weight, bias)
            spread = (columns[:, None] * each + np.arange(each)).ravel()
            return F.linear(x(now), weight[:, torch.from_numpy(spread)], bias)

        return run

    def _affine(self, node: Node) -> Callable[[Pass], Tensor]:
        scale, shift = self._pair(node)
        x = _value(node.args[0])
        return lambda now: torch.addcmul(shift[:, None, None], x(now), scale[:, None, None])

    def _expand(self, node: Node) -> Callable[[Pass], Tensor]:
        """Puts the channels of layers at their places in a stream of all channels."""
        x, runs, each = _value(node.args[0]), _runs(node, self.spec), int(node.kwargs["each"])
        places = [self._places(run) for run in runs]
        total = sum(run.channels for run in runs)
        starts = np.cumsum([0] + [run.channels for run in runs[:-1]])

        def run(now: Pass) -> Tensor:
            parts = []
            for source, place, start in zip(runs, places, starts, strict=True):
                kept = None if source.layer is None else now.kept(source.layer)
                parts.append(start + (place if kept is None else place[kept]))
            value: Tensor = x(now)
            where = (np.concatenate(parts)[:, None] * each + np.arange(each)).ravel()
            full = value.new_zeros(len(value), total * each, *value.shape[2:])
            if value.dim() == 4:
                full = full.contiguous(memory_format=torch.channels_last)
            return full.index_copy_(1, torch.from_numpy(where), value)

        return run

    def _places(self, run: Run) -> Positions:
        if run.layer is None:
            return np.arange(run.channels)
        spec = self.spec.layers[run.layer]
        if spec.channels != run.channels:
            raise ArtifactError("program: damaged channel runs. Export the model again.")
        return stored_places(spec, run.layer, self.tensors)

    def _call(self, node: Node) -> Callable[[Pass], Any]:
        function = OPERATIONS.get(str(node.target))
        if function is None:
            raise ArtifactError(
                f"program: unknown operation {node.target!r}. The file is damaged, or made by "
                "a later version of rlprune: update it."
            )
        args = [_value(value) for value in node.args]
        kwargs = {name: _value(value) for name, value in node.kwargs.items()}

        def run(now: Pass) -> Any:
            return function(*(a(now) for a in args), **{k: v(now) for k, v in kwargs.items()})

        return run

    def _pair(self, node: Node) -> tuple[Tensor, Tensor]:
        try:
            return self.tensors[f"{node.target}.weight"], self.tensors[f"{node.target}.bias"]
        except KeyError as error:
            raise ArtifactError(f"{error.args[0]}: missing. Export the model again.") from None


def masks(decisions: Sequence[Decisions], layer: int, stored: int) -> Tensor:
    """Which stored channels of a layer each image keeps, bool [B, S]."""
    keep = np.ones((len(decisions), stored), dtype=bool)
    for row, image in enumerate(decisions):
        kept = image.kept[layer]
        if kept is not None:
            keep[row] = False
            keep[row, kept] = True
    return torch.from_numpy(keep)


# --- arguments ------------------------------------------------------------------------------


def _references(value: Any) -> list[int]:
    """Nodes that an argument refers to, at any depth."""
    if isinstance(value, Mapping):
        if set(value) == {"r"}:
            return [value["r"]] if isinstance(value["r"], int) else [-1]
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [reference for item in value for reference in _references(item)]
    return []


def _value(value: Any) -> Callable[[Pass], Any]:
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
        parts = [_value(item) for item in value]
        return lambda now: [part(now) for part in parts]
    return lambda now: value


def _slice(ends: Any) -> slice:
    plain = isinstance(ends, list) and len(ends) == 3
    if not plain or not all(end is None or isinstance(end, int) for end in ends):
        raise ArtifactError("program: a damaged slice. Export the model again.")
    return slice(*ends)


def _geometry(node: Node) -> Geometry:
    try:
        pairs = (node.kwargs[name] for name in Geometry._fields)
        return Geometry(*((int(pair[0]), int(pair[1])) for pair in pairs))
    except (KeyError, TypeError, ValueError, IndexError):
        raise ArtifactError("program: a damaged convolution. Export the model again.") from None


def _layer_of(node: Node, spec: ModelSpec) -> int:
    layer = node.kwargs.get("layer")
    if not isinstance(layer, int) or not 0 <= layer < len(spec.layers):
        raise ArtifactError(f"program: there is no layer {layer!r}. Export the model again.")
    return layer


def _runs(node: Node, spec: ModelSpec) -> tuple[Run, ...]:
    """Who provides a consumer's channels; runs of layers count what is stored of them."""
    given = node.kwargs.get("runs")
    runs = []
    for pair in given if isinstance(given, list) else []:
        layer, channels = pair if isinstance(pair, list) and len(pair) == 2 else (-1, 0)
        known = layer is None or (isinstance(layer, int) and 0 <= layer < len(spec.layers))
        if not known or not isinstance(channels, int) or channels < 1:
            raise ArtifactError("program: damaged channel runs. Export the model again.")
        runs.append(Run(layer, channels))
    if not runs:
        raise ArtifactError("program: channel runs are missing. Export the model again.")
    return tuple(
        run
        if node.kind == "expand" or run.layer is None
        else Run(run.layer, spec.layers[run.layer].stored)
        for run in runs
    )
