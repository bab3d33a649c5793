"""Shipped models at one image, faster: everything around a layer's convolution is compiled.

Optional, with numba (``pip install 'rlprune[fast]'``); the same decisions as without it.

Legend: T layers, S stored channels, I stored input channels, k taps of a kernel.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlprune.deploy.budget import Budget
from rlprune.deploy.decide import Decisions, Positions, Rules
from rlprune.deploy.layer import GatedLayer, column_positions
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


def load_kernels() -> Any:
    """The compiled functions, :mod:`rlprune.deploy.kernels`; loads numba.

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

    Attributes:
        kept, counts: as in :class:`Decisions`.
        told: the budget as the kernels read it.
        numbers, state: what the kernels remember from layer to layer.
    """

    def __init__(self, rules: Rules, budget: Budget) -> None:
        super().__init__(rules, budget)
        cap = np.inf if budget.cap is None else budget.cap
        dials = (budget.compute_dial, budget.storage_dial, budget.cap_dial)
        self.told = np.array([cap, *dials, budget.anchor])
        self.numbers = np.zeros(2 + len(rules.spec.layers))
        self.numbers[0] = rules.costs.spec.constant
        self.state = np.zeros(rules.spec.policy.hidden, dtype=np.float32)


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
        self._all = np.arange(layer.inputs)
        self._taps = layer.spec.kernel[0] * layer.spec.kernel[1]
        self._sizes = _NOTHING
        self._out, self._input = (0, 0), (0, 0)
        filters = layer.filter.permute(0, 2, 3, 1).contiguous()
        self._tables = (
            filters.view(layer.spec.stored, -1, layer.inputs).numpy(),
            *_predictor(layer),
            _channel(layer),
            rules.votes(layer.index),
            *_agent(layer, rules),
        )
        self._head = (_shape(layer, rules, kernels), *_costs(layer, rules, kernels))

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
        product = self._unfolds(pixels.shape)
        kept = np.empty(layer.spec.stored, dtype=np.int64)
        count = self._choose(
            pixels.reshape(-1, present),
            columns,
            *self._head,
            image.told,
            *self._tables,
            image.numbers,
            image.state,
            kept,
            *buffers.arrays,
            self._sizes if product else _NOTHING,
            buffers.unfolded,
        )
        if count == 0:
            raise ValueError(f"{layer.spec.name}: its input holds numbers that are not finite")
        image.kept[layer.index] = None if count == len(kept) else kept[:count]
        image.counts.append(count)
        if product:
            return self._product(count, present)
        weights, shift = buffers.filters(count, present, layer.spec.kernel)
        return layer.geometry.convolve(x, weights, shift)

    def _unfolds(self, shape: tuple[int, ...]) -> bool:
        """Whether an input [B, H, W, i] is unfolded; remembers the sizes that go with it."""
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


def accelerate(layers: Sequence[GatedLayer], rules: Rules) -> None:
    """Gives every layer its fast version.

    Raises:
        ArtifactError: numba cannot be loaded.
    """
    kernels = load_kernels()
    buffers = _Buffers(
        max(layer.filter.numel() for layer in layers),
        max(layer.spec.stored for layer in layers),
        min(max(layer.patches for layer in layers), _MOST_PATCHES),
    )
    for layer in layers:
        layer.fast = FastLayer(layer, rules, buffers, kernels)


# --- tables of a layer, in the order of the kernel's arguments ------------------------------


def _shape(layer: GatedLayer, rules: Rules, kernels: Any) -> Positions:
    spec, policy = layer.spec, rules.spec.policy
    shape = np.zeros(kernels.SHAPE, dtype=np.int64)
    shape[kernels.LAYER] = layer.index
    shape[kernels.CHANNELS] = spec.channels
    shape[kernels.IN_CHANNELS] = spec.in_channels
    shape[kernels.VOTES] = spec.static_votes
    shape[kernels.PERMANENT] = rules.spec.budget.tradeoff == "permanent"
    shape[kernels.AGENT] = policy.kind == "agent"
    shape[kernels.CHANGE] = policy.action == "change"
    shape[kernels.PROJECTED] = policy.projected
    return shape


def _costs(layer: GatedLayer, rules: Rules, kernels: Any) -> tuple[Any, Any]:
    costs, t = rules.costs.at_layer(layer.index), layer.index
    numbers = np.zeros(kernels.RULES)
    numbers[kernels.RATE] = rules.spec.budget.tradeoff_rate
    numbers[kernels.ALPHA] = rules.spec.budget.alpha
    numbers[kernels.OFFSET] = 0.0 if rules.agent is None else rules.agent.offset
    numbers[kernels.LINEAR] = costs.linear
    numbers[kernels.SLOPE_AFTER] = costs.slope_after
    numbers[kernels.LEAST] = costs.least
    numbers[kernels.LEAST_AFTER] = costs.least_after
    numbers[kernels.LINEAR_AFTER] = costs.linear_after
    numbers[kernels.SQUARE_AFTER] = costs.square_after
    terms = np.zeros((3, len(rules.spec.layers)))
    terms[kernels.EACH, :t] = costs.each
    terms[kernels.LEAST_TERMS, :t] = costs.least_terms
    terms[kernels.WIDE_TERMS, :t] = costs.wide_terms
    return numbers, terms


def _predictor(layer: GatedLayer) -> tuple[Any, Any]:
    """Code [I, r] and predictor, inputs first: a product then runs along memory."""
    if layer.predictor is None:
        raise ArtifactError(f"{layer.spec.name}: has no predictor. Export the model again.")
    code = layer.filter.new_zeros(layer.inputs, 0) if layer.code is None else layer.code.t()
    return code.contiguous().numpy(), layer.predictor.t().contiguous().numpy()


def _channel(layer: GatedLayer) -> Any:
    none = torch.zeros_like(layer.beta)
    scale, shift = layer.width_scale, layer.width_shift
    rows = [layer.beta, layer.mean, layer.static, layer.bias]
    rows += [none if scale is None else scale, none if shift is None else shift]
    return torch.stack(rows).numpy()


def _agent(layer: GatedLayer, rules: Rules) -> tuple[Any, Any]:
    agent = rules.agent
    if agent is None:
        return np.zeros((1, 0), dtype=np.float32), np.zeros((2, 0), dtype=np.float32)
    return agent.encoders[layer.index], agent.table
