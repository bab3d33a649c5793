"""What an image may cost and how many channels that leaves: one image, plain numbers.

The same arithmetic as the cost model's bilinear form (``rlprune.pruning.costs``), which
tests hold against it; here for one image at a time and without torch, because a call of
torch takes longer than these few products.

Legend: T prunable layers, C channels [T], n computed channels [T].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlprune.deploy.spec import BudgetSpec, CostSpec, ModelSpec

_MARGIN = 1e-4  # as in rlprune.pruning.masks: products such as 0.3 * 10 are not exact
_GRID = np.linspace(0.005, 1.0, 200)
Floats = NDArray[np.float64]


def kept_count(ratio: float, channels: int) -> int:
    """ceil(ratio * channels), at least 1, at most ``channels`` (paper Sec. 3.2)."""
    return min(max(math.ceil(ratio * channels - _MARGIN), 1), channels)


def share(rate: float, count: int) -> int:
    """floor(rate * count), robust against binary rounding."""
    return math.floor(rate * count + _MARGIN)


class LayerCosts(NamedTuple):
    """The sums of :class:`Costs` at one layer t, as products with the counts of layers before it.

    Attributes:
        each: MACs of one channel of t, by channel of each earlier layer, [t].
        least_terms: MACs of all later layers at their least, likewise.
        wide_terms: MACs of t and all later layers at full width, likewise.
        linear: MACs of one channel of t that no earlier layer changes.
        slope_after: MACs that one channel of t adds to later layers at their least.
        least: fewest channels of t.
        least_after: MACs of all later layers at their least, among each other.
        linear_after, square_after: MACs of t and all later layers among each other, per
            ratio and per square of the ratio that they have in common.
    """

    each: list[float]
    least_terms: list[float]
    wide_terms: list[float]
    linear: float
    slope_after: float
    least: int
    least_after: float
    linear_after: float
    square_after: float


class Costs:
    """MACs of an image as a function of the channels that it computes.

    Plain Python over the few terms that are not zero: at one image these are a handful of
    products, and a call of NumPy takes longer.

    Args:
        spec: coefficients.
        channels: C of every layer.
        alpha: least keep ratio.
    """

    def __init__(self, spec: CostSpec, channels: tuple[int, ...], alpha: float) -> None:
        self.spec = spec
        self.channels = channels
        self.alpha = alpha
        self.least = [kept_count(alpha, c) for c in channels]
        layers = len(channels)
        self._before: list[list[tuple[int, float]]] = [[] for _ in range(layers)]
        for row, column, value in spec.pairwise:
            self._before[column].append((row, value))
        # Costs of all layers from t on, alone and among each other: at their least (for the
        # cap), and per square of the ratio where all keep the same ratio (for the share).
        self.least_after, self.linear_after, self.square_after = (
            self._tails(counts, linear, pairs)
            for counts, linear, pairs in (
                (self.least, True, True),
                (channels, True, False),
                (channels, False, True),
            )
        )
        full = np.array(spec.full_linear)
        pairwise = np.zeros((layers, layers))
        for row, column, value in spec.pairwise:
            pairwise[row, column] = value
        width = np.array(channels, dtype=np.float64)
        counts = np.ceil(np.outer(_GRID, width) - _MARGIN).clip(1.0, width)
        self._full = (spec.full_constant, full, pairwise)
        self._table = self._full_macs(counts)

    def _tails(self, counts: Sequence[int], linear: bool, pairs: bool) -> list[float]:
        """Costs of the layers from t on, for t = 0 to T; from the end, each pair once."""
        own = [
            value * count * linear for value, count in zip(self.spec.linear, counts, strict=True)
        ]
        for row, column, value in self.spec.pairwise if pairs else ():
            own[row] += value * counts[row] * counts[column]
        tails = [0.0]
        for cost in reversed(own):
            tails.append(tails[-1] + cost)
        return tails[::-1]

    def _full_macs(self, counts: Floats) -> Floats:
        constant, linear, pairwise = self._full
        total: Floats = constant + counts @ linear + ((counts @ pairwise) * counts).sum(-1)
        return total

    def total(self, counts: Sequence[int]) -> float:
        """MACs at ``counts`` [T]."""
        total = self.spec.constant
        for t, count in enumerate(counts):
            total += self.each(counts, t) * count
        return total

    def each(self, counts: Sequence[float], layer: int) -> float:
        """MACs of each channel of a layer, given the counts of those before it."""
        each = self.spec.linear[layer]
        for row, value in self._before[layer]:
            each += value * counts[row]
        return each

    def _among(
        self, counts: Sequence[float], layer: int, later: Sequence[int], start: int
    ) -> float:
        """What decided layers (before ``layer``) and layers from ``start`` on cost together."""
        total = 0.0
        for t in range(start, len(later)):
            for row, value in self._before[t]:
                if row < layer:
                    total += value * counts[row] * later[t]
        return total

    def at_layer(self, layer: int) -> LayerCosts:
        """What the methods above add up at a layer, for those who do so elsewhere."""
        alone = [[float(row == other) for other in range(layer)] for row in range(layer)]
        slope = self.each([0] * layer, layer)
        return LayerCosts(
            each=[self.each(counts, layer) - slope for counts in alone],
            least_terms=[self._among(counts, layer, self.least, layer + 1) for counts in alone],
            wide_terms=[self._among(counts, layer, self.channels, layer) for counts in alone],
            linear=slope,
            slope_after=self._slope_after(layer),
            least=self.least[layer],
            least_after=self.least_after[layer + 1],
            linear_after=self.linear_after[layer],
            square_after=self.square_after[layer],
        )

    def _slope_after(self, layer: int) -> float:
        """MACs that each channel of a layer adds to the later layers at their least."""
        total = 0.0
        for t in range(layer + 1, len(self.least)):
            for row, value in self._before[t]:
                if row == layer:
                    total += value * self.least[t]
        return total

    def macs_at(self, number: float) -> float:
        """MACs of the network with nothing deleted and every layer at ratio ``number``."""
        counts = np.array([kept_count(number, c) for c in self.channels], dtype=np.float64)
        return float(self._full_macs(counts))

    def dial(self, macs: float) -> float:
        """The largest number s whose MACs fit; at least alpha."""
        fits = int((self._table <= macs + 1e-6).sum())
        return max(self.alpha, float(_GRID[max(fits - 1, 0)]))

    def largest_count(self, counts: Sequence[int], layer: int, spent: float, budget: float) -> int:
        """Most channels that ``layer`` may have if every later layer has its least.

        Args:
            counts: of the layers before it.
            layer: t.
            spent: MACs of the layers before it, and the constant.
            budget: MACs.
        """
        after = self.least_after[layer + 1]
        after += self._among(counts, layer, self.least, layer + 1)
        slope = self.each(counts, layer) + self._slope_after(layer)
        room = math.floor((budget - spent - after) / max(slope, 1e-9) + 1e-9)
        return max(room, self.least[layer])

    def proportional_share(
        self, counts: Sequence[int], layer: int, spent: float, budget: float
    ) -> float:
        """The ratio at which ``layer`` and all later layers together use up the budget."""
        quadratic, linear = self.square_after[layer], self.linear_after[layer]
        linear += self._among(counts, layer, self.channels, layer)
        room = max(budget - spent, 0.0)
        root = math.sqrt(linear * linear + 4.0 * quadratic * room)
        return 2.0 * room / max(linear + root, 1e-9)


@dataclass(frozen=True)
class Budget:
    """What a policy is told and kept to during a call.

    Attributes:
        cap: most MACs of an image, None: no cap.
        compute_dial, storage_dial, cap_dial: as numbers s.
        anchor: the runtime ratio at which every layer computes the compute budget's share.
    """

    cap: float | None
    compute_dial: float
    storage_dial: float
    cap_dial: float
    anchor: float


def runtime_anchor(budget: BudgetSpec, compute_dial: float, projected: bool) -> float:
    """The runtime ratio for a compute budget; the derivation is in ``mdp.environment``."""
    if budget.tradeoff == "paper" or (projected and budget.compute_max is not None):
        return compute_dial
    rate, storage = budget.tradeoff_rate, budget.storage_dial
    deleted = (1.0 - rate) * (1.0 - storage)
    agreed = min(max((1.0 - storage - deleted) / max(1.0 - deleted, 1e-9), 0.0), 1.0)
    effect = max(agreed + rate * (1.0 - agreed), 1e-9)
    votes = deleted + max(1.0 - compute_dial - deleted, 0.0) / effect
    return min(max(1.0 - votes, budget.alpha), 1.0)


def call_budget(spec: ModelSpec, costs: Costs, number: float | None) -> Budget:
    """The budget of a call: the artifact's own, or a number s in its place.

    Args:
        spec: of the model.
        costs: of the model.
        number: s in [alpha, 1]; the cap, where the model has one, becomes that of s.
    """
    known = spec.budget
    if number is not None:
        cap = None if known.compute_max is None else costs.macs_at(number)
        dial = number if cap is None else costs.dial(cap)
        known = replace(known, compute_max=cap, compute_dial=dial, cap_dial=dial)
    return Budget(
        cap=known.compute_max,
        compute_dial=known.compute_dial,
        storage_dial=known.storage_dial,
        cap_dial=known.cap_dial,
        anchor=runtime_anchor(known, known.compute_dial, spec.policy.projected),
    )
