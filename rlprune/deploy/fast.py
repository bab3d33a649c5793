"""Shipped models, faster: everything around a layer's convolution is compiled.

Optional, with numba (``pip install 'rlprune[fast]'``); the same decisions as without it. Of a
single image a layer's filters are gathered as well; for a batch only decisions are compiled.

Legend: T layers, S stored channels, I stored input channels, k taps of a kernel.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlprune.deploy.budget import Budget
from rlprune.deploy.decide import Batch, Decisions, Rules, Single
from rlprune.deploy.layer import GatedLayer, column_positions
from rlprune.deploy.tables import policy_of, rules_of, weights_of
from rlprune.errors import ArtifactError

_MOST_VIEWS = 1024
_MOST_PATCHES = 1 << 18
"""Largest unfolded input, numbers: one product of matrices is faster than a convolution then.

It also costs the same at every number of channels, where a convolution is prepared anew.
"""
_NOTHING = np.zeros(0, dtype=np.int64)


def available() -> bool:
    """Whether numba is installed (it is not loaded yet)."""
    return importlib.util.find_spec("numba") is not None


def version() -> str | None:
    """Of numba; None: it is not installed."""
    if not available():
        return None
    try:
        return metadata.version("numba")
    except metadata.PackageNotFoundError:  # copied, not installed
        return "unknown"


def load_kernels() -> Any:
    """The compiled functions, the package ``rlprune.deploy.kernels``; loads numba.

    Raises:
        ArtifactError: numba is missing, or does not work with the other packages.
    """
    try:
        from rlprune.deploy import kernels
    except ImportError as error:
        raise ArtifactError(
            f"accelerate=True: numba cannot be loaded ({error}). "
            "Install it: pip install 'rlprune[fast]'."
        ) from None
    return kernels


class FastDecisions(Decisions):
    """The decisions for one image, taken by the compiled functions.

    Args:
        rules: of the model.
        budget: of the call.
        pairs: for each layer the largest product of computed channels and computed input
            channels at which the input is unfolded, if there is room for it.

    Attributes:
        kept, counts: as in :class:`Decisions`.
        pairs: see above.
        told: the budget as the kernels read it.
        numbers, state: what the kernels remember from layer to layer.
    """

    def __init__(self, rules: Rules, budget: Budget, pairs: Sequence[int]) -> None:
        super().__init__(rules, budget)
        self.pairs = pairs
        self.told = _told(budget)
        self.numbers, self.state = (rows[0] for rows in _memory(rules, 1))


class FastBatch(Batch):
    """The decisions for several images at once.

    Args:
        rules: of the model; its policy decides something.
        budget: of the call.
        images: how many.
        layers: :func:`accelerate`.
    """

    def __init__(
        self, rules: Rules, budget: Budget, images: int, layers: Sequence[FastLayer]
    ) -> None:
        super().__init__([Decisions(rules, budget) for _ in range(images)])
        self._layers = layers
        self._told = _told(budget)
        self._memory = _memory(rules, images)

    def decide(self, layer: int, pooled: Single, importance: Single) -> Single | None:
        """As in :class:`Batch`.

        Raises:
            ValueError: the input of an image is not finite.
        """
        keep = self._layers[layer].decide(self._told, pooled, importance, *self._memory)
        counts: list[int] = keep.sum(1, dtype=np.int64).tolist()
        for image, row, count in zip(self.images, keep, counts, strict=True):
            image.kept[layer] = None if count == len(row) else np.flatnonzero(row)
            image.counts.append(count)
        return None if min(counts) == keep.shape[1] else keep


def _told(budget: Budget) -> Any:
    cap = np.inf if budget.cap is None else budget.cap
    dials = (budget.compute_dial, budget.storage_dial, budget.cap_dial)
    return np.array([cap, *dials, budget.anchor])


def _memory(rules: Rules, images: int) -> tuple[Any, Any]:
    """What the kernels remember of each image: numbers [B, 2 + T] and state [B, h]."""
    numbers = np.zeros((images, 2 + len(rules.spec.layers)))
    numbers[:, 0] = rules.costs.spec.constant
    return numbers, np.zeros((images, rules.spec.policy.hidden), dtype=np.float32)


class _Buffers(threading.local):
    """Where filters and shifts are gathered; each thread has its own.

    Views of their beginnings are kept: making one takes as long as a layer's agent.

    Args:
        weights, shift, patches: most numbers of each.
    """

    def __init__(self, weights: int, shift: int, patches: int) -> None:
        self.weights, self.shift = torch.empty(weights), torch.empty(shift)
        self.patches = torch.empty(patches)
        self.arrays = (self.weights.numpy(), self.shift.numpy())
        self.unfolded = self.patches.numpy()
        self._views: dict[tuple[int, ...], tuple[Tensor, ...]] = {}

    def filters(self, count: int, present: int, kernel: tuple[int, int]) -> tuple[Tensor, ...]:
        """Filters [n, i, kh, kw], channels last in memory, and shift [n]."""
        found = self._views.get((count, present, *kernel))
        if found is None:
            height, width = kernel
            shape = (count, present, height, width)
            strides = (height * width * present, 1, width * present, present)
            found = self.weights.as_strided(shape, strides), self.shift[:count]
            self._keep(shape, found)
        return found

    def factors(self, count: int, pixels: int, read: int) -> tuple[Tensor, ...]:
        """Shift [n], patches [P', k i] and filters [k i, n], as ``addmm`` wants them."""
        found = self._views.get((count, pixels, read))
        if found is None:
            patches = self.patches.as_strided((pixels, read), (read, 1))
            filters = self.weights.as_strided((read, count), (1, read))
            found = self.shift[:count], patches, filters
            self._keep((count, pixels, read), found)
        return found

    def _keep(self, key: tuple[int, ...], views: tuple[Tensor, ...]) -> None:
        if len(self._views) >= _MOST_VIEWS:
            self._views.clear()
        self._views[key] = views


class FastLayer:
    """One gated layer for one image.

    Args:
        layer: the layer, with an importance predictor.
        rules: of the model.
        buffers: at least as large as the layer.
        kernels: :func:`load_kernels`.
    """

    def __init__(self, layer: GatedLayer, rules: Rules, buffers: _Buffers, kernels: Any) -> None:
        self._layer = layer
        self._buffers = buffers
        self._choose: Callable[..., int] = kernels.choose
        self._choose_all: Callable[..., int] = kernels.choose_all
        self._all = np.arange(layer.inputs)
        self._taps = layer.spec.kernel[0] * layer.spec.kernel[1]
        self._sizes = _NOTHING
        self._out, self._input = (0, 0), (0, 0)
        self._rules = rules_of(layer, rules, kernels.places)
        self._weights, self._policy = weights_of(layer), policy_of(layer, rules)

    def __call__(self, x: Tensor, image: FastDecisions) -> Tensor:
        """[1, i, H, W] -> [1, n, H', W']; decides what to compute on the way.

        Raises:
            ValueError: the input is not finite.
        """
        layer, buffers = self._layer, self._buffers
        columns = column_positions(layer.runs, image.kept.__getitem__)
        if columns is None:
            columns = self._all
        present = len(columns)
        if x.dim() != 4 or x.shape[1] != present or x.dtype != torch.float32:
            # Compiled code would read past its end.
            raise RuntimeError(
                f"its input is {x.dtype} {tuple(x.shape)}, not of {present} channels"
            )
        pixels = np.ascontiguousarray(x.numpy().transpose(0, 2, 3, 1))
        fits, pairs = self.fits(pixels.shape), image.pairs[layer.index]
        kept = np.empty(layer.spec.stored, dtype=np.int64)
        count = self._choose(
            pixels.reshape(-1, present),
            columns,
            *self._rules,
            image.told,
            *self._weights,
            *self._policy,
            image.numbers,
            image.state,
            kept,
            *buffers.arrays,
            self._sizes if fits else _NOTHING,
            buffers.unfolded,
            pairs,
        )
        if count == 0:
            raise self._not_finite()
        image.kept[layer.index] = None if count == len(kept) else kept[:count]
        image.counts.append(count)
        if fits and count * present <= pairs:
            return self._product(count, present)
        weights, shift = buffers.filters(count, present, layer.spec.kernel)
        return layer.geometry.convolve(x, weights, shift)

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
        keep = np.zeros(importance.shape, dtype=np.float32)
        done = self._choose_all(
            *self._rules, told, *self._policy, pooled, importance, numbers, state, keep
        )
        if done < len(keep):
            raise self._not_finite()
        return keep

    def _not_finite(self) -> ValueError:
        name = self._layer.spec.name
        return ValueError(f"{name}: its input holds numbers that are not finite")

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether there is room to unfold an input [B, H, W, i]; remembers its sizes."""
        if self._input != shape[1:3]:
            given, kernel = (shape[1], shape[2]), self._layer.spec.kernel
            self._out = self._layer.geometry.output(given, kernel)
            pairs = (given, self._out, kernel, *self._layer.geometry)
            self._sizes = np.array(pairs, dtype=np.int64).ravel()
            self._input = given  # last: another thread may look
        numbers = self._out[0] * self._out[1] * self._taps * shape[3]
        return shape[0] == 1 and 0 < numbers <= len(self._buffers.unfolded)

    def _product(self, count: int, present: int) -> Tensor:
        """The convolution as a product of matrices; the output lies channels last."""
        height, width = self._out
        factors = self._buffers.factors(count, height * width, self._taps * present)
        y = torch.addmm(*factors)
        strides = (height * width * count, 1, width * count, count)
        return y.as_strided((1, count, height, width), strides)


def accelerate(layers: Sequence[GatedLayer], rules: Rules) -> list[FastLayer]:
    """Gives every layer its fast version; returns these.

    Raises:
        ArtifactError: numba cannot be loaded.
    """
    kernels = load_kernels()
    buffers = _Buffers(
        max(layer.filter.numel() for layer in layers),
        max(layer.spec.stored for layer in layers),
        min(max(layer.patches for layer in layers), _MOST_PATCHES),
    )
    compiled = [FastLayer(layer, rules, buffers, kernels) for layer in layers]
    for layer, quick in zip(layers, compiled, strict=True):
        layer.fast = quick
    return compiled
