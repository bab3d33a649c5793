"""Which stored channels an image computes in a layer: one image, NumPy (no torch call pays here).

The same decisions as ``rlprune.mdp.environment.PruningGate`` takes in training, for a network
from which the permanently pruned channels are gone; tests hold one against the other.

Legend: B images, S stored channels of the layer, I stored input channels, h the agent's width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rlprune.deploy.budget import Budget, Costs, kept_count, share
from rlprune.deploy.spec import ModelSpec

CONTEXT = 5
"""Leading numbers of the agent's observation: ``rlprune.mdp.observation``."""

Single = NDArray[np.float32]
Positions = NDArray[np.int64]
_NOTHING = np.zeros(0, dtype=np.float32)


class AgentWeights:
    """The runtime agent's numbers, all float32.

    Args:
        encoders: one [5 + I + S + 1, h] per layer: weights of context, pooled input and
            u_r, and the bias in the last row.
        shared: "input" [h, h], "hidden" [h, h], "bias" [h] of the recurrence, "mean" [h + 1]
            of the head with its bias at the end.
    """

    def __init__(self, encoders: Sequence[Single], shared: Mapping[str, Single]) -> None:
        self.encoders = [np.ascontiguousarray(weight) for weight in encoders]
        # One product for the recurrence: [h, 2h] times (encoded, state).
        self._recurrence = np.hstack([shared["input"], shared["hidden"]])
        self._bias = shared["bias"]
        self._mean, self.offset = shared["mean"][:-1], float(shared["mean"][-1])
        #: [2h + 2, h]: the recurrence by its inputs, its bias, the head's weights.
        self.table: Single = np.vstack([self._recurrence.T, self._bias[None], self._mean[None]])

    def step(
        self,
        layer: int,
        context: Sequence[float],
        pooled: Single,
        importance: Single,
        state: Single,
    ) -> tuple[float, Single]:
        """(change to the base, next state [h]) from pooled input [I] and u_r [S]."""
        weight = self.encoders[layer]
        end = CONTEXT + len(pooled)
        seen = np.empty(len(weight), dtype=np.float32)
        seen[:CONTEXT] = context
        _standardise(pooled, seen[CONTEXT:end], int(np.count_nonzero(pooled)))
        _standardise(importance, seen[end:-1], len(importance))
        seen[-1] = 1.0
        encoded = np.maximum(seen @ weight, 0.0)
        both = np.concatenate((encoded, state))
        state = np.tanh(self._recurrence @ both + self._bias)
        return float(self._mean @ state) + self.offset, state


def _standardise(features: Single, out: Single, count: int) -> None:
    """Writes the features at zero mean and unit deviation over the ``count`` present ones.

    Where some are absent, those that are zero stay zero. Cf. ``rlprune.mdp.observation``.
    """
    count = max(count, 1)
    np.subtract(features, np.float32(np.add.reduce(features) / count), out=out)
    if count < len(features):
        out[features == 0] = 0.0
    out *= np.float32(1.0 / math.sqrt(float(out @ out) / count + 1e-5))


class Decisions:
    """The decisions for one image, layer after layer.

    Args:
        rules: of the model.
        budget: of the call.

    Attributes:
        kept: positions among the stored channels by layer, ascending; None: all of them.
        counts: channels computed in the layers so far.
    """

    def __init__(self, rules: Rules, budget: Budget) -> None:
        self.rules = rules
        self.budget = budget
        self.kept: dict[int, Positions | None] = {}
        self.counts: list[int] = []
        self._spent = rules.costs.spec.constant
        self._previous = 0.0
        self._state = np.zeros(rules.spec.policy.hidden, dtype=np.float32)

    def decide(self, layer: int, pooled: Single, importance: Single) -> Positions | None:
        """Positions [n] of the channels to compute.

        Args:
            layer: index t; layers must be asked in order.
            pooled: averages of the stored input channels, zero where not computed, [I].
            importance: u_r [S].
        """
        spec = self.rules.spec.layers[layer]
        if self.rules.spec.policy.kind == "none":
            self.kept[layer] = None
            self.counts.append(spec.stored)
            return None
        cap, left = self._room(layer)
        ratio = self._ratio(layer, pooled, importance, left)
        kept = self.rules.positions(layer, importance, kept_count(ratio, spec.channels))
        cap = min(cap, self._intended(ratio, spec.channels))
        if self._capped and len(kept) > cap:
            order = importance[kept].argsort(kind="stable")
            kept = np.sort(kept[order[len(kept) - cap :]])
        self._spend(layer, len(kept))
        self.kept[layer] = None if len(kept) == spec.stored else kept
        return self.kept[layer]

    @property
    def _capped(self) -> bool:
        return self.budget.cap is not None and self.rules.spec.policy.projected

    def _spend(self, layer: int, count: int) -> None:
        if self.budget.cap is not None:
            self._spent += self.rules.costs.each(self.counts, layer) * count
        self.counts.append(count)

    def _room(self, layer: int) -> tuple[int, float]:
        """Channels allowed at this layer, and the ratio that the rest can still have."""
        channels = self.rules.spec.layers[layer].channels
        if self.budget.cap is None:
            return channels, 1.0
        costs, cap, spent = self.rules.costs, self.budget.cap, self._spent
        most = min(costs.largest_count(self.counts, layer, spent, cap), channels)
        return most, min(costs.proportional_share(self.counts, layer, spent, cap), 1.0)

    def _ratio(self, layer: int, pooled: Single, importance: Single, left: float) -> float:
        budget, policy = self.budget, self.rules.spec.policy
        base = budget.anchor
        if policy.action == "change" and layer > 0:
            base = self._previous
        ratio = base
        if policy.kind == "agent":
            rate = self.rules.spec.budget.tradeoff_rate
            context = (base, budget.compute_dial, budget.storage_dial, rate, left)
            agent = self.rules.agent
            assert agent is not None
            change, self._state = agent.step(layer, context, pooled, importance, self._state)
            ratio = change + base
            if math.isnan(ratio):
                name = self.rules.spec.layers[layer].name
                raise ValueError(f"{name}: its input holds numbers that are not finite")
        ratio = min(max(ratio, self.rules.spec.budget.alpha), 1.0)
        self._previous = ratio
        if self._capped:
            ratio *= min(left / budget.cap_dial, 1.0)
        return ratio

    def _intended(self, ratio: float, channels: int) -> int:
        return kept_count(ratio * self.budget.compute_dial / self.budget.anchor, channels)


class Batch:
    """The decisions for several images, layer after layer.

    Args:
        images: the decisions for each.
    """

    def __init__(self, images: Sequence[Decisions]) -> None:
        self.images = images

    def decide(self, layer: int, pooled: Single, importance: Single) -> Single | None:
        """Which stored channels each image computes: 1, else 0, [B, S]; None: all of them.

        Args:
            layer: index t; layers must be asked in order.
            pooled: averages of the stored input channels, zero where not computed, [B, I].
            importance: u_r [B, S].
        """
        rows = zip(self.images, pooled, importance, strict=True)
        kept = [image.decide(layer, seen, scores) for image, seen, scores in rows]
        if all(positions is None for positions in kept):
            return None
        keep = np.zeros(importance.shape, dtype=np.float32)
        for row, positions in enumerate(kept):
            keep[row, slice(None) if positions is None else positions] = 1.0
        return keep

    def keep_all(self, layer: int) -> None:
        """The same where nothing is decided (a policy of kind "none")."""
        for image in self.images:
            image.decide(layer, _NOTHING, _NOTHING)


class Rules:
    """What stays the same over all images: who is voted against for good.

    Args:
        spec: of the model.
        static: u_s of the stored channels, [S] per layer.
        agent: the runtime agent, None where there is none.
    """

    def __init__(
        self, spec: ModelSpec, static: Sequence[Single], agent: AgentWeights | None
    ) -> None:
        self.spec = spec
        self.agent = agent
        channels = tuple(layer.channels for layer in spec.layers)
        self.costs = Costs(spec.costs, channels, spec.budget.alpha)
        self._static = [scores.argsort(kind="stable") for scores in static]
        self._against: list[NDArray[np.bool_]] = []
        for layer, order in zip(spec.layers, self._static, strict=True):
            against = np.zeros(layer.stored, dtype=bool)
            against[order[: layer.static_votes]] = True
            self._against.append(against)

    def votes(self, layer: int) -> Positions:
        """[2, S]: channels by static importance, least first; 1 for those voted against."""
        return np.vstack([self._static[layer], self._against[layer]]).astype(np.int64)

    def positions(self, layer: int, importance: Single, wanted: int) -> Positions:
        """Stored channels that the trade-off keeps, ascending (``pruning.masks.tradeoff_keep``).

        Args:
            layer: index t.
            importance: u_r [S].
            wanted: the runtime agent's keep count, of all C channels.
        """
        spec, rate = self.spec.layers[layer], self.spec.budget.tradeoff_rate
        votes = min(max(spec.channels - wanted - (spec.channels - spec.stored), 0), spec.stored)
        order = importance.argsort(kind="stable")
        if rate >= 1.0 and self.spec.budget.tradeoff == "permanent":
            return np.sort(order[votes:])
        voted = order[:votes]
        against = self._against[layer]
        pruned = np.zeros(spec.stored, dtype=bool)
        pruned[voted] = against[voted]  # both agents are against them
        alone = voted[~against[voted]]
        pruned[alone[: share(rate, len(alone))]] = True
        if self.spec.budget.tradeoff == "paper":
            runtime = np.zeros(spec.stored, dtype=bool)
            runtime[voted] = True
            static = self._static[layer][: spec.static_votes]
            static = static[~runtime[static]]
            pruned[static[: share(1.0 - rate, len(static))]] = True
        return np.flatnonzero(~pruned)
