"""Shipped models, faster: layers are compiled.

Optional, with numba (``pip install 'rlprune[fast]'``); the same decisions as without it. Of a
single image everything is compiled: filters are gathered and, where that is faster, convolved
with as well; for a batch only decisions are.

Legend: T layers, S stored channels, I stored input channels, P' output pixels.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np

from rlprune.deploy.budget import Budget
from rlprune.deploy.chain import Buffers, Chain, FastLayer
from rlprune.deploy.decide import Batch, Decisions, Positions, Rules, Single
from rlprune.deploy.layer import GatedLayer
from rlprune.errors import ArtifactError


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
        limits: for each layer the largest product of computed channels and computed input
            channels at which the convolution is ours, torch's beyond it; [T].

    Attributes:
        kept, counts: as in :class:`Decisions`.
        limits: see above.
        told: the budget as the kernels read it.
        numbers, state: what the kernels remember from layer to layer.
    """

    def __init__(self, rules: Rules, budget: Budget, limits: Positions) -> None:
        super().__init__(rules, budget)
        self.limits = limits
        self.told = _told(budget)
        self.numbers, self.state = (rows[0] for rows in _memory(rules, 1))


class FastBatch(Batch):
    """The decisions for several images at once.

    Args:
        rules: of the model; its policy decides something.
        budget: of the call.
        images: how many.
        layers: of :func:`accelerate`.
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


@dataclass(frozen=True)
class Compiled:
    """What is compiled of a model.

    Attributes:
        layers: every layer.
        chains: several layers that follow each other, by the first one's index.
        kernels: :func:`load_kernels`; None: nothing is compiled.
    """

    layers: tuple[FastLayer, ...] = ()
    chains: Mapping[int, Chain] = field(default_factory=dict)
    kernels: Any = None


def accelerate(
    layers: Sequence[GatedLayer], rules: Rules, in_rows: Sequence[Sequence[int]]
) -> Compiled:
    """Gives every layer its fast version.

    Args:
        layers: of the model.
        rules: of the model.
        in_rows: layers of which each reads the one before and nothing else.

    Raises:
        ArtifactError: numba cannot be loaded.
    """
    kernels = load_kernels()
    spare = kernels.convolve.LANES
    buffers = Buffers(
        max(layer.filter[0].numel() * (layer.spec.stored + spare) for layer in layers) + spare,
        max(layer.spec.stored for layer in layers) + spare,
    )
    compiled = tuple(FastLayer(layer, rules, buffers, kernels) for layer in layers)
    for layer, quick in zip(layers, compiled, strict=True):
        layer.fast = quick
    chains = {row[0]: Chain([compiled[at] for at in row], buffers, kernels) for row in in_rows}
    return Compiled(compiled, chains, kernels)
