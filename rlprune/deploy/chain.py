"""Layers of a shipped model for one image, compiled: one, or several that follow each other.

Legend: L layers of a chain, S stored channels, I stored input channels, n and i computed ones,
P' output pixels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rlprune.deploy.decide import Positions, Rules, Single
from rlprune.deploy.layer import GatedLayer, column_positions
from rlprune.deploy.tables import Arrays

if TYPE_CHECKING:
    from rlprune.deploy.fast import FastDecisions

_MOST_VIEWS = 1024


class Buffers(threading.local):
    """Room for what only one layer needs; each thread has its own.

    Views of the filters are kept: making one takes as long as a layer's agent.

    Args:
        weights, shift: most numbers of each.
    """

    def __init__(self, weights: int, shift: int) -> None:
        self.weights, self.shift = torch.empty(weights), torch.empty(shift)
        self.arrays = (self.weights.numpy(), self.shift.numpy())
        self._more = [np.empty(0, dtype=np.float32), np.empty(0, dtype=np.float32)]
        self._views: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def more(self, around: int, between: int) -> list[Single]:
        """Room for so many numbers of inputs with zeros around them and of outputs."""
        for at, numbers in enumerate((around, between)):
            if len(self._more[at]) < numbers:
                self._more[at] = np.empty(numbers, dtype=np.float32)
        return self._more

    def filters(self, count: int, present: int, kernel: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Filters [n, i, kh, kw], channels last in memory, and shift [n]."""
        found = self._views.get((count, present, *kernel))
        if found is None:
            height, width = kernel
            shape = (count, present, height, width)
            strides = (height * width * present, 1, width * present, present)
            found = self.weights.as_strided(shape, strides), self.shift[:count]
            if len(self._views) >= _MOST_VIEWS:
                self._views.clear()
            self._views[shape] = found
        return found


class _Move:
    """How a layer moves over inputs of one size.

    Args:
        layer: the layer.
        size: (height, width) of the input.
        block: output pixels that are computed together.

    Attributes:
        out: (height, width) of the output.
        pixels: P' of the output.
        around: pixels of the input with zeros around it; 0: there are none.
        arrays: ``sizes``, ``starts``, ``taps`` and ``pixels``, as the kernel reads them.
    """

    def __init__(self, layer: GatedLayer, size: tuple[int, int], block: int) -> None:
        move, kernel = layer.geometry, layer.spec.kernel
        self.out = move.output(size, kernel)
        height, width = self.out
        if min(self.out) < 1:
            raise RuntimeError(f"its input is only {size[0]} x {size[1]} pixels large")
        self.pixels = height * width
        whole = size[1] + 2 * move.padding[1]
        self.around = (size[0] + 2 * move.padding[0]) * whole if any(move.padding) else 0
        pixel = np.minimum(np.arange(-(-self.pixels // block) * block), self.pixels - 1)
        starts = pixel // width * (move.stride[0] * whole) + pixel % width * move.stride[1]
        rows = np.arange(kernel[0])[:, None] * (move.dilation[0] * whole)
        taps = (rows + np.arange(kernel[1]) * move.dilation[1]).ravel()
        self.arrays = (np.array([*size, *move.padding]), starts, taps, self.pixels)


class _Plan:
    """Layers that follow each other, for inputs of one size.

    Args:
        layers: the layers.
        size: (height, width) of the first one's input.
        kernels: :func:`load_kernels`.

    Attributes:
        size: see above.
        moves: of each layer.
        jobs: as the kernel reads them, [L, JOB].
        around, between: numbers of room that they need, see ``kernels.compute``.
    """

    def __init__(self, layers: Sequence[FastLayer], size: tuple[int, int], kernels: Any) -> None:
        self.size = size
        self.moves: list[_Move] = []
        for fast in layers:
            self.moves.append(_Move(fast.layer, size, kernels.convolve.PIXELS))
            size = self.moves[-1].out
        pairs = list(zip(layers, self.moves, strict=True))
        rows = [fast.arrays.job(kernels.places, *move.arrays) for fast, move in pairs]
        self.jobs = np.stack(rows)
        self.around = max(move.around * fast.layer.inputs for fast, move in pairs)
        outputs = [move.pixels * fast.layer.spec.stored for fast, move in pairs[:-1]]
        self.between = 2 * max(outputs, default=0)


class Chain:
    """Layers each of which reads the one before and nothing else, for one image.

    Args:
        layers: the layers, as many as there are in a row.
        buffers: at least as large as each of them.
        kernels: :func:`load_kernels`.
    """

    def __init__(self, layers: Sequence[FastLayer], buffers: Buffers, kernels: Any) -> None:
        self._layers = list(layers)
        self._buffers = buffers
        self._kernels = kernels
        self._compute: Callable[..., int] = kernels.compute
        first, self._last = layers[0].layer, layers[-1].layer
        self._runs, self._all = first.runs, np.arange(first.inputs)
        self._at = slice(first.index, self._last.index + 1)
        self._most = max(fast.layer.spec.stored for fast in layers)
        self._known: _Plan | None = None

    @property
    def intact(self) -> bool:
        """Whether nobody has put something else in the place of a layer."""
        for fast in self._layers:
            layer = fast.layer
            if layer.fast is not fast or "gathered" in layer.__dict__:
                return False
        return True

    def __call__(self, x: Tensor, image: FastDecisions) -> Tensor:
        """[1, i, H, W] -> [1, n, H', W']; decides what to compute on the way.

        Raises:
            ValueError: an input is not finite.
        """
        columns = column_positions(self._runs, image.kept.__getitem__)
        if columns is None:
            columns = self._all
        size, present = tuple(x.shape), len(columns)
        if len(size) != 4 or size[:2] != (1, present) or x.dtype != torch.float32:
            # Compiled code would read past its end.
            raise RuntimeError(f"its input is {x.dtype} {size}, not of {present} channels")
        plan = self._plan((size[2], size[3]))
        jobs, limits = plan.jobs, image.limits[self._at]
        out = torch.empty(plan.moves[-1].pixels * self._last.spec.stored)
        room = (*self._buffers.arrays, *self._buffers.more(plan.around, plan.between))
        at = 0
        while True:
            kept = np.empty((len(jobs), self._most), dtype=np.int64)
            counts = np.empty(len(jobs), dtype=np.int64)
            rows = np.ascontiguousarray(x.numpy().transpose(0, 2, 3, 1)).reshape(-1, len(columns))
            done = self._compute(
                *(jobs, rows, columns, image.told, image.numbers, image.state, limits),
                *(kept, counts, *room, out.numpy()),
            )
            self._note(image, at, counts.tolist(), kept, done)
            if done == len(jobs):
                return _as_image(out, plan.moves[-1], int(counts[-1]))
            if done > 0:
                start = (done - 1) % 2 * (len(room[3]) // 2)
                x = _as_image(
                    torch.from_numpy(room[3][start:]),
                    plan.moves[at + done - 1],
                    int(counts[done - 1]),
                )
            x = self._by_torch(x, self._layers[at + done], int(counts[done]))
            at += done + 1
            if at == len(self._layers):
                return x
            columns = kept[done, : counts[done]]
            jobs, limits = jobs[done + 1 :], limits[done + 1 :]

    def _note(
        self, image: FastDecisions, at: int, counts: list[int], kept: Positions, done: int
    ) -> None:
        """Tells the image what was computed, the layer that is torch's included."""
        for row, fast in enumerate(self._layers[at : at + done + 1]):
            count, layer = counts[row], fast.layer
            if count == 0:
                raise fast.not_finite()
            image.kept[layer.index] = None if count == layer.spec.stored else kept[row, :count]
            image.counts.append(count)

    def _plan(self, size: tuple[int, int]) -> _Plan:
        """For an input of (height, width); the last one is kept."""
        plan = self._known
        if plan is None or plan.size != size:
            self._known = plan = _Plan(self._layers, size, self._kernels)
        return plan

    def _by_torch(self, x: Tensor, fast: FastLayer, count: int) -> Tensor:
        layer = fast.layer
        weights, shift = layer.filter, layer.beta
        if layer.predictor is not None:
            weights, shift = self._buffers.filters(count, x.shape[1], layer.spec.kernel)
        y = layer.geometry.convolve(x, weights, shift)
        return y.relu_() if layer.rectified else y


def _as_image(numbers: Tensor, move: _Move, count: int) -> Tensor:
    """What compiled code has written, channels last, as [1, n, H', W']."""
    height, width = move.out
    strides = (move.pixels * count, 1, width * count, count)
    return numbers.as_strided((1, count, height, width), strides)


class FastLayer:
    """One layer, compiled: alone for one image, or its decisions for several.

    Args:
        layer: the layer; a plain one decides nothing.
        rules: of the model.
        buffers: at least as large as the layer.
        kernels: :func:`load_kernels`.

    Attributes:
        layer: see above.
        arrays: what the kernels read.
        rectified: whether negative outputs become 0 for one image: the layer's output is
            read by a ReLU and by nothing else.
    """

    def __init__(self, layer: GatedLayer, rules: Rules, buffers: Buffers, kernels: Any) -> None:
        self.layer = layer
        self.rectified = layer.rectified
        self.arrays = Arrays.of(layer, rules, kernels)
        self._choose_all: Callable[..., int] = kernels.choose_all
        self._alone = Chain([self], buffers, kernels)

    def __call__(self, x: Tensor, image: FastDecisions) -> Tensor:
        """As :class:`Chain`, of this layer alone."""
        return self._alone(x, image)

    def decide(
        self, told: Any, pooled: Single, importance: Single, numbers: Any, state: Single
    ) -> Single:
        """Which stored channels each image keeps, 1 or 0, [B, S].

        Args:
            told: the budget.
            pooled, importance: as in :class:`Batch`.
            numbers, state: what is remembered of the images; changed.

        Raises:
            ValueError: the input of an image is not finite.
        """
        keep, own = np.zeros(importance.shape, dtype=np.float32), self.arrays
        done = self._choose_all(
            *(own.shape, own.rules, own.terms, told, own.votes, own.encoder, own.agent),
            *(pooled, importance, numbers, state, keep),
        )
        if done < len(keep):
            raise self.not_finite()
        return keep

    def not_finite(self) -> ValueError:
        """The error for an input with numbers that are not."""
        return ValueError(f"{self.layer.spec.name}: its input holds numbers that are not finite")
