"""A model's program made runnable: checked once, then a list of closures.

Tensors carry only the channels that exist: those computed for the image (one image at a time)
or all stored ones with zeros (batches). Which layer provides which channels is known from the
file, so that consumers pick their columns and residual streams put them in their places.

Legend: B images, S stored channels of a layer, I stored input channels, n computed ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rlprune.deploy.arguments import (
    geometry_of,
    layer_of,
    misshapen,
    references,
    runs_of,
    value_of,
)
from rlprune.deploy.decide import Batch, Decisions, Positions
from rlprune.deploy.layer import GatedLayer, column_positions, stored_places
from rlprune.deploy.operations import OPERATIONS
from rlprune.deploy.spec import ModelSpec, Node, Run
from rlprune.errors import ArtifactError

_FAILURES = (RuntimeError, TypeError, LookupError, ArithmeticError, AttributeError, MemoryError)
MASKED, GATHERED = "masked", "gathered"
"""Ways to run: all stored channels with zeros in place; computed channels alone."""


@dataclass
class Pass:
    """One run of the program.

    Attributes:
        batch: decisions of each image; one image where channels are gathered.
        mode: MASKED or GATHERED.
        values: of the nodes so far.
    """

    batch: Batch
    mode: str
    values: list[Any] = field(default_factory=list)

    def kept(self, layer: int) -> Positions | None:
        """Positions present of a layer; None where all stored channels are."""
        return self.batch.images[0].kept[layer] if self.mode == GATHERED else None


class InRow(NamedTuple):
    """Layers of which each reads the one before and nothing else.

    Attributes:
        first, last: calls of the program that they stand for, ReLUs included.
        layers: two or more.
    """

    first: int
    last: int
    layers: tuple[int, ...]


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
        kinds = [node.kind for node in spec.program]
        if kinds[:1] != ["input"] or kinds[-1] != "output":
            raise ArtifactError("program: must go from input to output. Export the model again.")
        called = [node.target for node in spec.program if node.kind == "gated"]
        if called != list(range(len(layers))):
            raise ArtifactError("program: must call each layer once, in order. Export it again.")
        self._reads = [references([node.args, node.kwargs]) for node in spec.program]
        self._steps = [self._step(node, at) for at, node in enumerate(spec.program)]
        last = {value: at for at, values in enumerate(self._reads) for value in values}
        self._done = [[value for value in last if last[value] == at] for at in range(len(kinds))]
        #: Layers of which each reads the one before and nothing else, two or more; each with
        #: the first and the last call of the program that such a row stands for.
        self.in_rows = self._in_rows()
        #: What computes such a row at once for one image, by its first layer.
        self.chains: Mapping[int, Any] = {}
        #: The compiled functions; None: nothing is compiled.
        self.kernels: Any = None

    def run(self, images: Tensor, batch: Batch, mode: str) -> Tensor:
        """Scores [B, K] of normalised images [B, C, H, W].

        Raises:
            ArtifactError: a call fails, which happens only in a file that was edited.
            ValueError: the images hold numbers that are not finite.
        """
        now = Pass(batch, mode, [])
        now.values.append(images)
        ends = self._ends() if mode == GATHERED else {}
        try:
            while (at := len(now.values)) < len(self._steps):
                if at in ends:
                    self._leap(now, at, ends[at])
                else:
                    now.values.append(self._steps[at](now))
                for value in self._done[len(now.values) - 1]:
                    now.values[value] = None  # memory that is still in the cache is used again
        except _FAILURES as error:
            raise self._failed(len(now.values), error) from error
        result, expected = now.values[-1], (len(images), len(self.spec.classes))
        if not isinstance(result, Tensor) or tuple(result.shape) != expected:
            raise ArtifactError(f"program: its output has not the shape {expected}. Export again.")
        return result

    def _ends(self) -> dict[int, InRow]:
        """The rows that are computed at once, by their first calls."""
        return {
            row.first: row
            for row in self.in_rows
            if (chain := self.chains.get(row.layers[0])) is not None and chain.intact
        }

    def _leap(self, now: Pass, at: int, row: InRow) -> None:
        """Computes a row; the values between are never there."""
        x = now.values[self._reads[at][0]]
        result = self.chains[row.layers[0]](x, now.batch.images[0])
        now.values += [None] * (row.last - at)
        now.values.append(result)

    def _in_rows(self) -> tuple[InRow, ...]:
        """See the attribute."""
        rows, at = [], 0
        while at < len(self.spec.program):
            if self.spec.program[at].kind == "gated":
                row = self._row_from(at)
                at = row.last
                if len(row.layers) > 1:
                    rows.append(row)
            at += 1
        return tuple(rows)

    def _row_from(self, first: int) -> InRow:
        """The longest row that begins with a call."""
        nodes, at, last = self.spec.program, first, first
        layers = [int(str(nodes[first].target))]
        while True:
            if at + 1 < len(nodes) and self._relu_in_place(nodes[at + 1]) and self._only(at):
                at += 1
            last = at
            following = nodes[at + 1] if at + 1 < len(nodes) else None
            if following is None or following.kind != "gated" or not self._only(at):
                return InRow(first, last, tuple(layers))
            layer = self.layers[int(str(following.target))]
            if [run.layer for run in layer.runs] != [layers[-1]]:
                return InRow(first, last, tuple(layers))
            layers.append(layer.index)
            at += 1

    def _only(self, at: int) -> bool:
        """Whether the next call is all that reads a value."""
        return self._reads[at + 1] == [at] and sum(r.count(at) for r in self._reads) == 1

    def _failed(self, at: int, error: Exception) -> ArtifactError:
        node = self.spec.program[at]
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return ArtifactError(
            f"program: call {at} ({node.kind} {node.target}) fails: {reason}. The file "
            "was edited, or there are too many images for the memory. Export it again."
        )

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
            "output": lambda node: value_of(node.args[0]),
        }
        if node.kind == "input":
            if at != 0:
                raise ArtifactError("program: the input must come first. Export it again.")
            return lambda now: now.values[0]
        if not node.args:
            raise ArtifactError(f"program: {node.kind} without a value. Export it again.")
        for reference in self._reads[at]:
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
        layer, x = self.layers[index], value_of(node.args[0])

        def run(now: Pass) -> Tensor:
            if now.mode == GATHERED:
                return layer.gathered(x(now), now.batch.images[0])
            return layer.masked(x(now), now.batch)

        return run

    def _follower(self, node: Node) -> Callable[[Pass], Tensor]:
        geometry, producer, x = geometry_of(node), layer_of(node, self.spec), value_of(node.args[0])
        weight, bias = self._pair(node, 4, 1)
        if len(weight) != self.spec.layers[producer].stored:
            raise misshapen(node, weight)

        def run(now: Pass) -> Tensor:
            kept = now.kept(producer)
            rows = slice(None) if kept is None else torch.from_numpy(kept)
            y = geometry.convolve(x(now), weight[rows], bias[rows], len(weight[rows]))
            if now.mode == MASKED:  # its shift must not fill in pruned channels
                y = y * masks(now.batch.images, producer, y.shape[1]).to(y)[:, :, None, None]
            return y

        return run

    def _convolution(self, node: Node) -> Callable[[Pass], Tensor]:
        geometry, x = geometry_of(node), value_of(node.args[0])
        groups, runs = int(node.kwargs["groups"]), runs_of(node, self.spec)
        weight, bias = self._pair(node, 4, sum(run.channels for run in runs) // max(groups, 1))

        def run(now: Pass) -> Tensor:
            columns = column_positions(runs, now.kept)
            part = weight if columns is None else weight[:, torch.from_numpy(columns)]
            return geometry.convolve(x(now), part, bias, groups)

        return run

    def _linear(self, node: Node) -> Callable[[Pass], Tensor]:
        x, runs, each = value_of(node.args[0]), runs_of(node, self.spec), int(node.kwargs["each"])
        weight, bias = self._pair(node, 2, sum(run.channels for run in runs) * each)
        by_inputs = weight.t().contiguous().numpy(), bias.contiguous().numpy()

        def run(now: Pass) -> Tensor:
            columns, given = column_positions(runs, now.kept), x(now)
            if columns is None:
                return F.linear(given, weight, bias)
            if each > 1:
                columns = (columns[:, None] * each + np.arange(each)).ravel()
            if self.kernels is not None and _single(given, len(columns)):
                return torch.from_numpy(
                    self.kernels.classify(given[0].numpy(), columns, *by_inputs)
                ).unsqueeze(0)
            return F.linear(given, weight.index_select(1, torch.from_numpy(columns)), bias)

        return run

    def _average(self, x: Callable[[Pass], Any]) -> Callable[[Pass], Any]:
        """The average over all pixels."""

        def run(now: Pass) -> Any:
            given = x(now)
            fits = given.dim() == 4 and given.dtype == torch.float32
            if now.mode != GATHERED or self.kernels is None or not fits:
                return F.adaptive_avg_pool2d(given, 1)
            rows = np.ascontiguousarray(given.numpy().transpose(0, 2, 3, 1))
            found = self.kernels.average(rows.reshape(-1, rows.shape[-1]))
            return torch.from_numpy(found).view(1, -1, 1, 1)

        return run

    def _affine(self, node: Node) -> Callable[[Pass], Tensor]:
        scale, shift = self._pair(node, 1)
        x = value_of(node.args[0])
        return lambda now: torch.addcmul(shift[:, None, None], x(now), scale[:, None, None])

    def _expand(self, node: Node) -> Callable[[Pass], Tensor]:
        """Puts the channels of layers at their places in a stream of all channels."""
        x, runs, each = value_of(node.args[0]), runs_of(node, self.spec), int(node.kwargs["each"])
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
            rows = value.movedim(1, -1)  # channels last: as convolutions leave them
            full = value.new_zeros(*rows.shape[:-1], total * each)
            flat = full.view(-1, total * each)
            flat.index_copy_(1, torch.from_numpy(where), rows.reshape(-1, rows.shape[-1]))
            return full.movedim(-1, 1)

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
        args = [value_of(value) for value in node.args]
        if self._relu_in_place(node):
            return self._relu(node, args[0])
        if node.target == "adaptive_avg_pool2d" and _to_one_pixel(node):
            return self._average(args[0])
        kwargs = {name: value_of(value) for name, value in node.kwargs.items()}

        def run(now: Pass) -> Any:
            return function(*(a(now) for a in args), **{k: v(now) for k, v in kwargs.items()})

        return run

    def _relu(self, node: Node, x: Callable[[Pass], Any]) -> Callable[[Pass], Any]:
        """In place; a compiled layer has done it already."""
        producer = self.spec.program[references(node.args)[0]]
        if producer.kind != "gated":
            return lambda now: torch.relu_(x(now))
        layer = self.layers[int(str(producer.target))]
        layer.rectified = True

        def run(now: Pass) -> Any:
            done = now.mode == GATHERED and getattr(layer.fast, "rectified", False)
            return x(now) if done else torch.relu_(x(now))

        return run

    def _relu_in_place(self, node: Node) -> bool:
        """Whether a call is a ReLU of a new tensor that nobody else reads."""
        plain = len(node.args) == 1 and set(node.kwargs) <= {"inplace"}
        read = references(node.args)
        if node.target != "relu" or not plain or len(read) != 1:
            return False
        if sum(reads.count(read[0]) for reads in self._reads) != 1:
            return False
        producer = self.spec.program[read[0]]
        new = producer.kind in ("gated", "follower", "conv", "affine")
        return new or (producer.kind, producer.target) == ("call", "add")

    def _pair(self, node: Node, dims: int, width: int | None = None) -> tuple[Tensor, Tensor]:
        """Weight of so many dimensions, [O, ``width``, ...], and bias [O]."""
        try:
            weight, bias = (self.tensors[f"{node.target}.{name}"] for name in ("weight", "bias"))
        except KeyError as error:
            raise ArtifactError(f"{error.args[0]}: missing. Export the model again.") from None
        right = weight.dim() == dims and tuple(bias.shape) == (len(weight),)
        if not right or (width is not None and weight.shape[1] != width):
            raise misshapen(node, weight)
        return weight, bias


def _to_one_pixel(node: Node) -> bool:
    sizes = [*node.args[1:], *node.kwargs.values()]
    known = len(node.args) == 2 or list(node.kwargs) == ["output_size"]
    return known and sizes in ([1], [[1, 1]], [(1, 1)])


def _single(x: Tensor, numbers: int) -> bool:
    """Whether compiled code can read a row of so many numbers."""
    return x.shape == (1, numbers) and x.dtype == torch.float32 and x.is_contiguous()


def masks(decisions: Sequence[Decisions], layer: int, stored: int) -> Tensor:
    """Which stored channels of a layer each image keeps, bool [B, S]."""
    keep = np.ones((len(decisions), stored), dtype=bool)
    for row, image in enumerate(decisions):
        kept = image.kept[layer]
        if kept is not None:
            keep[row] = False
            keep[row, kept] = True
    return torch.from_numpy(keep)
