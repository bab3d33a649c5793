"""Static methods: from scores of filters, or ratios of layers, to channels within budgets.

Legend: T prunable layers, C channels of a layer. Every budget is checked with
:class:`~rlprune.pruning.CostModel`, the same for all methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlprune.mdp import PruningRules, StaticPlan
from rlprune.mdp.policy import AnchoredRatios, KeepRatioPolicy
from rlprune.pruning import BudgetBook, CostModel, EpisodeBudgets
from rlprune.training.methods import Method
from rlprune.training.setup import TrialSetup

_BISECTIONS = 40


@dataclass(frozen=True)
class Limits:
    """What a static network may cost.

    Attributes:
        costs: of the network without predictors and agent.
        macs: most multiply-accumulates per image; infinity: any number.
        size: most bytes; infinity: any number.
        least: channels below which no layer goes, int64 [T].
    """

    costs: CostModel
    macs: float
    size: float
    least: Tensor

    def fits(self, counts: Tensor) -> bool:
        """Whether ``counts`` [T] channels keep both budgets."""
        row = counts.unsqueeze(0)
        return (
            float(self.costs.static_macs().total(row)) <= self.macs + 1e-6
            and float(self.costs.storage_bytes(agent_runs=False).total(row)) <= self.size + 1e-6
        )


Selection = Callable[[Limits], Tensor]
"""Channels that every layer keeps within limits, int64 [T]."""


def global_threshold(scores: tuple[Tensor, ...]) -> Selection:
    """Prunes the filters of least score in the whole network, as few as the limits allow.

    Filters of equal score go together (those that a residual stream couples have equal ones).
    A layer at its least count is left as it is.

    Args:
        scores: comparable over layers, one [C] per layer.
    """
    thresholds = torch.unique(torch.cat([part.double().cpu().flatten() for part in scores]))

    def select(limits: Limits) -> Tensor:
        def counts(below: int) -> Tensor:
            if below == 0:
                return limits.costs.channels.clone()
            limit = thresholds[below - 1]
            kept = torch.stack([(part.double().cpu() > limit).sum() for part in scores])
            return torch.maximum(kept, limits.least)

        low, high = 0, len(thresholds)  # the fewest thresholds below which all is pruned
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if limits.fits(counts(middle)) else (middle + 1, high)
        return counts(low)

    return select


def scaled_ratios(ratios: Tensor) -> Selection:
    """Keeps given shares of the layers, all multiplied by one number: the largest that fits.

    Args:
        ratios: [T], which need not fit by themselves.
    """

    def select(limits: Limits) -> Tensor:
        channels = limits.costs.channels

        def counts(scale: float) -> Tensor:
            wanted = torch.round(channels * (ratios.double() * scale).clamp(max=1.0)).long()
            return torch.maximum(wanted, limits.least)

        low, high = 0.0, 1.0 / float(ratios.min().clamp(min=1e-3))
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if limits.fits(counts(middle)) else (low, middle)
        return counts(low)

    return select


class _Counts(KeepRatioPolicy):
    """Given keep counts [B, T] as ratios."""

    observes = False

    def __init__(self, counts: Tensor, channels: Tensor) -> None:
        self._ratios = counts.double() / channels.double()

    def ratio(self, layer: int, observation: Tensor) -> Tensor:
        """Of layer t, [B]."""
        return self._ratios[:, layer]


@dataclass(frozen=True)
class SelectedMethod(Method):
    """A static method whose layers keep different shares.

    Attributes:
        selection: how many channels each layer keeps; which ones follows from
            ``static_scores``.
    """

    selection: Selection | None = None

    def make_plan(self, budgets: EpisodeBudgets) -> StaticPlan:
        """The static decisions for one row of budgets each."""
        if self.selection is None:
            raise ValueError("SelectedMethod needs a selection.")
        costs = self.rules.costs
        compute = torch.minimum(budgets.compute_max, budgets.compute_mean)
        rows = [
            self.selection(Limits(costs, float(macs), float(size), self.rules.least))
            for macs, size in zip(compute, budgets.storage_bytes, strict=True)
        ]
        return StaticPlan(self.rules, budgets, _Counts(torch.stack(rows), costs.channels))


def _plain_rules(setup: TrialSetup, projected: bool) -> tuple[PruningRules, BudgetBook]:
    config, costs = setup.config, CostModel(setup.graph, predictors=False)
    rules = PruningRules(costs, config.pruning, projected)
    return rules, BudgetBook(costs, config.budgets, config.pruning)


def static_limits(setup: TrialSetup, macs: float | None, size: float | None) -> Limits:
    """Limits of a plain network; None: no budget."""
    rules, _ = _plain_rules(setup, projected=False)
    unlimited = float("inf")
    return Limits(
        rules.costs,
        unlimited if macs is None else macs,
        unlimited if size is None else size,
        rules.least,
    )


def selected(
    name: str, setup: TrialSetup, scores: tuple[Tensor, ...], selection: Selection
) -> SelectedMethod:
    """A method that keeps the filters of largest score, as many as ``selection`` says.

    Nothing is projected: the selection has to keep the budgets, and whether it does is
    measured as for every method.
    """
    rules, book = _plain_rules(setup, projected=False)
    return SelectedMethod(
        name,
        rules,
        book,
        AnchoredRatios,
        AnchoredRatios,
        static_scores=scores,
        predictors=False,
        selection=selection,
    )


def ranked_uniform(name: str, setup: TrialSetup, scores: tuple[Tensor, ...]) -> Method:
    """A method that keeps the same share of every layer, the filters of largest score."""
    rules, book = _plain_rules(setup, projected=True)
    return Method(
        name, rules, book, AnchoredRatios, AnchoredRatios, static_scores=scores, predictors=False
    )
