"""The same decisions as :mod:`rlprune.deploy.decide`, for a batch at once and in torch alone.

No step depends on a value in Python, so that a program with these decisions can be exported
(ONNX, ``torch.export``); and a batch needs no loop over its images.

Legend: B images, S stored channels of the layer, I stored input channels, h agent's width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rlprune.deploy.budget import Budget, Costs
from rlprune.deploy.spec import ModelSpec

_MARGIN = 1e-4  # as in rlprune.deploy.budget


class BatchAgent:
    """The runtime agent for a batch.

    Args:
        encoders: [5 + I + S + 1, h] per layer, as in the file.
        recurrence: "input" [h, h], "hidden" [h, h], "bias" [h] and the head "mean" [h + 1].
    """

    def __init__(self, encoders: Sequence[Tensor], recurrence: dict[str, Tensor]) -> None:
        self.encoders = list(encoders)
        self.input, self.hidden = recurrence["input"], recurrence["hidden"]
        self.bias, self.mean = recurrence["bias"], recurrence["mean"]

    def step(
        self, layer: int, context: Tensor, pooled: Tensor, importance: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Context [B, 5], pooled [B, I], u_r [B, S], state [B, h] -> (change [B], state)."""
        weight = self.encoders[layer]
        present = (pooled != 0).to(pooled.dtype)
        seen = [context, _standardised(pooled, present)]
        seen.append(_standardised(importance, torch.ones_like(importance)))
        encoded = F.relu(torch.cat(seen, 1) @ weight[:-1] + weight[-1])
        state = torch.tanh(encoded @ self.input.T + state @ self.hidden.T + self.bias)
        return state @ self.mean[:-1] + self.mean[-1], state


def _standardised(features: Tensor, present: Tensor) -> Tensor:
    count = present.sum(1, keepdim=True).clamp(min=1)
    centred = (features - (features * present).sum(1, keepdim=True) / count) * present
    return centred * torch.rsqrt(centred.square().sum(1, keepdim=True) / count + 1e-5)


class BatchDecisions:
    """Decisions for a batch, layer after layer.

    Args:
        spec: of the model.
        costs: of the model.
        budget: of the call.
        static: u_s of the stored channels, [S] per layer.
        agent: the runtime agent, None where there is none.
        images: B.

    Attributes:
        keep: masks of the layers so far, float32 [B, S]; None: all that is stored.
        counts: channels computed in the layers so far, float64 [B] each.
    """

    def __init__(
        self,
        spec: ModelSpec,
        costs: Costs,
        budget: Budget,
        static: Sequence[Tensor],
        agent: BatchAgent | None,
        images: int,
    ) -> None:
        self.spec, self.costs, self.budget = spec, costs, budget
        self.agent = agent
        self.keep: list[Tensor | None] = []
        self.counts: list[Tensor] = []
        self._static = static
        self._images = images
        self._state = torch.zeros(images, spec.policy.hidden)
        self._ratio = torch.zeros(images, dtype=torch.float64)
        self._spent = torch.full((images,), costs.spec.constant, dtype=torch.float64)

    def decide(self, layer: int, pooled: Tensor, importance: Tensor) -> Tensor | None:
        """Mask [B, S] (1: computed) from pooled input [B, I] and u_r [B, S]; None: all."""
        known = self.spec.layers[layer]
        if self.spec.policy.kind == "none":
            self.keep.append(None)
            self.counts.append(torch.full((self._images,), known.stored, dtype=torch.float64))
            return None
        cap, left = self._room(layer)
        ratio = self._decided(layer, pooled, importance, left)
        ranks = _ranks(importance)
        keep = self._traded(layer, ranks, _kept_count(ratio, known.channels))
        if self._capped:
            intended = _kept_count(
                ratio * (self.budget.compute_dial / self.budget.anchor), known.channels
            )
            excess = keep.sum(1).double() - torch.minimum(cap, intended)
            keep = keep * (_position(ranks, keep) >= excess.unsqueeze(1)).to(keep.dtype)
        count = keep.sum(1).double()
        self._spent = self._spent + self._each(layer) * count
        self.counts.append(count)
        self.keep.append(keep)
        return keep

    @property
    def _capped(self) -> bool:
        return self.budget.cap is not None and self.spec.policy.projected

    def _each(self, layer: int) -> Tensor:
        """MACs of each channel of a layer, given the counts before it, [B]."""
        each = torch.full_like(self._spent, self.costs.spec.linear[layer])
        for row, column, value in self.costs.spec.pairwise:
            if column == layer:
                each = each + value * self.counts[row]
        return each

    def _room(self, layer: int) -> tuple[Tensor, Tensor]:
        """Channels allowed at this layer, and the ratio that the rest can still have, [B]."""
        ones = torch.ones_like(self._spent)
        channels = self.spec.layers[layer].channels
        if self.budget.cap is None:
            return channels * ones, ones
        costs, least, full = self.costs, self.costs.least, self.costs.channels
        after, slope = costs.least_after[layer + 1] * ones, self._each(layer)
        linear, square = costs.linear_after[layer] * ones, costs.square_after[layer]
        for row, column, value in costs.spec.pairwise:
            if row < layer < column:
                after = after + value * self.counts[row] * least[column]
            if row == layer:
                slope = slope + value * least[column]
            if row < layer <= column:
                linear = linear + value * self.counts[row] * full[column]
        free = self.budget.cap - self._spent
        most = torch.floor((free - after) / slope.clamp(min=1e-9) + 1e-9)
        most = most.clamp(min=float(least[layer]), max=float(channels))
        free = free.clamp(min=0.0)
        root = torch.sqrt(linear.square() + 4.0 * square * free)
        return most, (2.0 * free / (linear + root).clamp(min=1e-9)).clamp(max=1.0)

    def _decided(self, layer: int, pooled: Tensor, importance: Tensor, left: Tensor) -> Tensor:
        """The runtime ratio, lowered by what earlier layers overspent, float64 [B]."""
        budget, policy = self.budget, self.spec.policy
        follows = policy.action == "change" and layer > 0
        base = self._ratio if follows else torch.full_like(self._ratio, budget.anchor)
        ratio = base
        if self.agent is not None:
            rate = self.spec.budget.tradeoff_rate
            told = (budget.compute_dial, budget.storage_dial, rate)
            columns = [base, *(torch.full_like(base, value) for value in told), left]
            context = torch.stack(columns, 1).float()
            change, self._state = self.agent.step(layer, context, pooled, importance, self._state)
            ratio = change.double() + base
        self._ratio = ratio.clamp(self.spec.budget.alpha, 1.0)
        if self._capped:
            return self._ratio * (left / budget.cap_dial).clamp(max=1.0)
        return self._ratio

    def _traded(self, layer: int, ranks: Tensor, wanted: Tensor) -> Tensor:
        """What the trade-off keeps, [B, S]; cf. ``Rules.positions``."""
        known, budget = self.spec.layers[layer], self.spec.budget
        votes = (known.stored - wanted).clamp(min=0.0).unsqueeze(1)
        voted = (ranks < votes).to(ranks.dtype)
        if budget.tradeoff_rate >= 1.0 and budget.tradeoff == "permanent":
            return 1.0 - voted
        order = _ranks(self._static[layer].unsqueeze(0))
        against = (order < known.static_votes).to(ranks.dtype)
        alone = voted * (1.0 - against)
        pruned = voted * against + _lowest(ranks, alone, budget.tradeoff_rate)
        if budget.tradeoff == "paper":
            static = (against * (1.0 - voted)).expand_as(voted)
            pruned = pruned + _lowest(order, static, 1.0 - budget.tradeoff_rate)
        return 1.0 - pruned


def _kept_count(ratio: Tensor, channels: int) -> Tensor:
    """ceil(ratio * channels), at least 1, at most ``channels``, float64."""
    return torch.ceil(ratio * channels - _MARGIN).clamp(1.0, float(channels))


def _ranks(scores: Tensor) -> Tensor:
    """Rank of each channel from the least on, ties by position, [B, S] -> float32 [B, S].

    By comparing all pairs: unlike a sort it is stable wherever the program runs.
    """
    size = scores.shape[1]
    before = torch.ones(size, size).tril(-1).bool()  # [i, j]: j comes before i
    mine, others = scores.unsqueeze(2), scores.unsqueeze(1)
    return ((others < mine) | ((others == mine) & before)).sum(2).float()


def _position(ranks: Tensor, members: Tensor) -> Tensor:
    """How many members rank below each channel, [B, S]."""
    below = (ranks.unsqueeze(1) < ranks.unsqueeze(2)).to(members.dtype)
    return (below * members.unsqueeze(1)).sum(2)


def _lowest(ranks: Tensor, members: Tensor, rate: float) -> Tensor:
    """The floor(rate * number) lowest members, 0 or 1, [B, S]."""
    count = torch.floor(rate * members.sum(1).double() + _MARGIN)
    return members * (_position(ranks, members) < count.unsqueeze(1)).to(members.dtype)
