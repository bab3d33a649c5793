"""Rewards of the two agents, paid at the last layer of an episode.

Legend: B episodes. Costs are fractions of the dense network's. Source: paper Sec. 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

_OVERRUN_WEIGHT = 1.2
_OVERRUN_SCALE = 0.03
_SAVING_WEIGHT = 0.1
# Deviation: an overrun beyond 15 % of the dense cost is not punished harder (-177): the
# paper's unbounded exponential (-6e8 at 60 %) would drown everything else in a batch.
_LARGEST_EXPONENT = 5.0
_EXCESS_RATE = 0.5
"""Of the moving average of the excess: one update's images are too few to react to alone."""


_LARGEST_LOSS = 5.0
"""Nats. Deviation: an answer that gives the right class less than 0.7 % is not punished harder.
A narrow network can be wrong with a loss above 1,000, and one such image would drown a batch."""


def accuracy_term(loss: Tensor, average_loss: float) -> Tensor:
    """-CE loss [B], cut at 5 nats (a NaN counts as 5), over its moving average."""
    cut = torch.nan_to_num(loss, nan=_LARGEST_LOSS).clamp(max=_LARGEST_LOSS)
    return -cut / max(average_loss, 1e-6)


def _overrun(cost: Tensor, budget: Tensor) -> Tensor:
    exponent = ((cost - budget) / _OVERRUN_SCALE).clamp(max=_LARGEST_EXPONENT)
    return -_OVERRUN_WEIGHT * (torch.exp(exponent) - 1.0)


def compute_term(cost: Tensor, budget: Tensor) -> Tensor:
    """Penalty above the compute budget, small bonus below it, zero without a budget.

    Args:
        cost: MACs really spent over the dense network's, [B].
        budget: likewise, [B]; infinity = none.
    """
    bonus = _SAVING_WEIGHT * (budget - cost)
    term = torch.where(cost > budget, _overrun(cost, budget), bonus)
    return torch.where(torch.isfinite(budget), term, torch.zeros_like(cost))


def storage_term(cost: Tensor, budget: Tensor) -> Tensor:
    """Penalty above the storage budget, nothing below it. Arguments as compute_term."""
    term = torch.where(cost > budget, _overrun(cost, budget), torch.zeros_like(cost))
    return torch.where(torch.isfinite(budget), term, torch.zeros_like(cost))


def mean_compute_term(cost: Tensor, target: Tensor, price: Tensor) -> Tensor:
    """-price * (cost - target) / target [B]; zero without a mean budget.

    Relative to the target, so that one initial price suits every budget.

    Deviation: the paper has no budget on the mean. The price is a Lagrange multiplier,
    adapted by :class:`PriceCurve` until the mean cost meets the target.
    """
    limited = torch.isfinite(target)
    finite = torch.where(limited, target, torch.ones_like(target))
    term = -price * (cost - finite) / finite
    return torch.where(limited, term, torch.zeros_like(cost))


def leave_one_out(rewards: Tensor, group: int) -> Tensor:
    """Rewards minus the mean of the other episodes of the same image.

    Args:
        rewards: [B], episodes of one image in ``group`` consecutive rows.
        group: episodes per image; 1 returns the rewards unchanged.

    Returns:
        [B]. The baseline does not depend on the episode's own actions, so the policy
        gradient stays unbiased.
    """
    if group == 1:
        return rewards
    grouped = rewards.reshape(-1, group)
    others = (grouped.sum(1, keepdim=True) - grouped) / (group - 1)
    return (grouped - others).reshape(-1)


@dataclass
class PriceCurve:
    """Price of compute as a function of the mean-compute target, learned by dual ascent.

    What is charged is the learned price plus a term in proportion to the present excess. A
    policy follows the price with a delay, and without that term both swing: measured, the
    mean cost went from 1.4 to 0.6 times its target within 50 updates.

    Attributes:
        knots: targets (fraction of dense MACs) at which a price is kept.
        prices: non-negative, one per knot; linear in between.
        step: relative overspending of 1 raises the price by this much per update.
        gain: relative overspending of 1 is charged this much on top.
        excess: relative overspending at each knot, a moving average; starts at zero.

    Source: Stooke et al. 2020, "Responsive Safety in Reinforcement Learning by PID
    Lagrangian Methods", Sec. 5 (integral and proportional term).
    """

    knots: list[float]
    prices: list[float]
    step: float = 0.05
    gain: float = 0.5
    excess: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """No excess yet."""
        self.excess = self.excess or [0.0] * len(self.knots)

    def charged(self) -> list[float]:
        """What is charged at each knot, non-negative."""
        pairs = zip(self.prices, self.excess, strict=True)
        return [max(0.0, price + self.gain * excess) for price, excess in pairs]

    @classmethod
    def over(cls, low: float, high: float, count: int = 5, price: float = 0.3) -> PriceCurve:
        """A flat curve over targets from ``low`` to ``high``."""
        count = 1 if high - low < 1e-9 else count
        return cls(
            [low + (high - low) * i / max(count - 1, 1) for i in range(count)], [price] * count
        )

    def _weights(self, target: Tensor) -> Tensor:
        """Interpolation weights, [B] -> [B, knots]."""
        knots = torch.tensor(self.knots, dtype=torch.float64)
        if len(knots) == 1:
            return torch.ones(len(target), 1, dtype=torch.float64)
        spacing = knots[1] - knots[0]
        distance = (target.double().clamp(knots[0], knots[-1]).unsqueeze(1) - knots).abs()
        return (1.0 - distance / spacing).clamp(min=0.0)

    def price(self, target: Tensor) -> Tensor:
        """Price for each target, [B] -> float64 [B]."""
        return self._weights(target) @ torch.tensor(self.charged(), dtype=torch.float64)

    def update(self, target: Tensor, cost: Tensor) -> None:
        """One dual step: dearer where the mean cost exceeds the target, cheaper below.

        Args:
            target, cost: fractions of dense MACs, [B]; episodes without a target
                (infinity) do not count.
        """
        limited = torch.isfinite(target)
        if not bool(limited.any()):
            return
        target, cost = target[limited], cost[limited]
        weights = self._weights(target)
        excess = ((cost - target) / target).double()
        mean = (weights * excess.unsqueeze(1)).sum(0) / weights.sum(0).clamp(min=1e-9)
        for knot, total in enumerate(weights.sum(0).tolist()):
            if total > 1e-6:
                value = float(mean[knot])
                self.prices[knot] = max(0.0, self.prices[knot] + self.step * value)
                self.excess[knot] += _EXCESS_RATE * (value - self.excess[knot])
