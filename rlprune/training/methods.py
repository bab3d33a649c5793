"""The learned policy and the simple methods beside it, behind one interface (no Ray here).

The published ones are in :mod:`rlprune.training.rivals`; facts of all in ``catalogue``.

| method | runtime ratios | static ratios | ships |
| --- | --- | --- | --- |
| learned | runtime agent | static agent | predictors and agent |
| uniform | the budget's ratio everywhere | likewise | predictors |
| random | random per layer, scaled to the budget | likewise | predictors |
| static_l1 | none (R_r = 0) | the budget's ratio, filters ranked by L1 norm | plain network |
| cascade | uniform, twice: a small network, a large one where it is unsure | likewise | both |
| dense | none | none | plain network |

``cascade`` is put together in :mod:`rlprune.training.cascade`. Its two networks are fine-tuned
on as many images each as the one of every other method, which is generous to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from rlprune.agents.networks import AgentPolicy, RuntimeAgent, StaticAgent
from rlprune.mdp import KeepRatioPolicy, PruningGate, PruningRules, RandomRatios, StaticPlan
from rlprune.mdp.policy import AnchoredRatios
from rlprune.pruning import (
    BilinearCost,
    BudgetBook,
    CostModel,
    EpisodeBudgets,
    Gate,
    GateDesign,
    GatedNetwork,
)
from rlprune.replicas import Share
from rlprune.training.setup import TrialSetup

PolicyFactory = Callable[[], KeepRatioPolicy]
BudgetChange = Callable[[EpisodeBudgets], EpisodeBudgets]


def _as_given(budgets: EpisodeBudgets) -> EpisodeBudgets:
    return budgets


@dataclass(frozen=True)
class Method:
    """How channels are chosen, and what the result ships.

    Attributes:
        name: as in the results.
        rules: of the decision process, with the method's own costs.
        book: tells the policy its budgets in terms of the method's own costs.
        runtime, static: make the policies, which do not explore. None: the method prunes
            nothing (dense).
        static_scores: replaces the learned static importance.
        predictors: whether runtime importance predictors are used.
        told: the budgets that the policies are told and kept to, from those of the trial.
        boosted: see :meth:`~rlprune.pruning.GatedNetwork.set_predictors`.

    A method is made for agents that do not change: static decisions are remembered.
    """

    name: str
    rules: PruningRules
    book: BudgetBook
    runtime: PolicyFactory | None
    static: PolicyFactory | None
    static_scores: tuple[Tensor, ...] | None = None
    predictors: bool = True
    told: BudgetChange = _as_given
    boosted: bool = False
    _plans: dict[tuple[float, ...], StaticPlan] = field(
        default_factory=dict, repr=False, compare=False
    )

    def gate(self, network: GatedNetwork, budgets: EpisodeBudgets) -> Gate:
        """The gate of one forward pass over as many images as there are budgets."""
        if self.runtime is None or self.static is None:
            return Gate()
        plan = self._known_plan(self.told(budgets))
        return PruningGate(self.rules, network, plan, self.runtime(), self.static_scores)

    def _known_plan(self, budgets: EpisodeBudgets) -> StaticPlan:
        """Static decisions follow from the budgets: made once each."""
        distinct, index = budgets.distinct()
        key = tuple(distinct.rows().flatten().tolist())
        if key not in self._plans:
            self._plans[key] = self.make_plan(distinct)
        return self._plans[key].select(index, budgets)

    def make_plan(self, budgets: EpisodeBudgets) -> StaticPlan:
        """The static decisions for one row of budgets each."""
        assert self.static is not None
        return StaticPlan(self.rules, budgets, self.static())


def learned(setup: TrialSetup, runtime: RuntimeAgent, static: StaticAgent) -> Method:
    """The two agents, playing their means."""
    return Method(
        "learned",
        setup.rules,
        setup.book,
        lambda: AgentPolicy(runtime),
        lambda: AgentPolicy(static),
        boosted=setup.config.pruning.boosted,
    )


def _own_rules(setup: TrialSetup, costs: CostModel) -> tuple[PruningRules, BudgetBook]:
    """Rules and budgets of a method without agent: budgets are always kept."""
    config = setup.config
    penalty = config.training.importance_penalty if costs.predictors else 0.0
    rules = PruningRules(costs, config.pruning, projected=True, importance_penalty=penalty)
    return rules, BudgetBook(costs, config.budgets, config.pruning)


def _with_predictors(setup: TrialSetup) -> CostModel:
    return CostModel(setup.graph, design=GateDesign.of(setup.config.pruning))


def dense(setup: TrialSetup) -> Method:
    """The backbone as it is."""
    rules, book = _own_rules(setup, CostModel(setup.graph, predictors=False))
    return Method("dense", rules, book, None, None, predictors=False)


def uniform(setup: TrialSetup) -> Method:
    """The same keep ratio in every layer, the largest that the budgets allow."""
    rules, book = _own_rules(setup, _with_predictors(setup))
    return Method(
        "uniform",
        rules,
        book,
        lambda: AnchoredRatios(),
        lambda: AnchoredRatios(),
        boosted=setup.config.pruning.boosted,
    )


def static_l1(
    setup: TrialSetup, network: GatedNetwork, norms: tuple[Tensor, ...] | None = None
) -> Method:
    """Filters of least L1 norm removed for good, the same ratio in every layer.

    Args:
        setup: of the trial.
        network: whose filters are ranked.
        norms: L1 norm of every filter, one [C] per layer, where they are known already
            (the choice is made once, before fine-tuning); None measures them now.

    Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets", Sec. 3.1.
    """
    rules, book = _own_rules(setup, CostModel(setup.graph, predictors=False))
    if norms is None:
        norms = tuple(
            layer.conv.weight.detach().abs().sum((1, 2, 3)).clone() for layer in network.layers
        )
    return Method(
        "static_l1",
        rules,
        book,
        lambda: AnchoredRatios(),
        lambda: AnchoredRatios(),
        static_scores=norms,
        predictors=False,
    )


def random_ratios(setup: TrialSetup, runtime_factors: Tensor, static_factors: Tensor) -> Method:
    """The budget's ratio times a fixed factor per layer, [T] each (:func:`random_factors`)."""
    rules, book = _own_rules(setup, _with_predictors(setup))
    return Method(
        "random",
        rules,
        book,
        lambda: AnchoredRatios(runtime_factors),
        lambda: AnchoredRatios(static_factors),
        boosted=setup.config.pruning.boosted,
    )


def random_factors(setup: TrialSetup, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Random factors between 1/2 and 2 for the runtime and the static ratios, [T] each.

    Scaled so that they cost what the uniform ratio costs: in MACs and in bytes.
    """
    costs = _with_predictors(setup)
    book = _own_rules(setup, costs)[1]
    told = book.table(tuple(setup.evaluation_points()))
    compute, storage = float(told.compute_dial.min()), float(told.storage_dial.min())
    alpha = setup.config.pruning.alpha
    runtime = _balanced(costs.static_macs(), costs.channels, compute, alpha, rng)
    if storage >= 1.0:  # no storage budget: static deletion serves the compute budget
        return runtime, _balanced(costs.static_macs(), costs.channels, compute, alpha, rng)
    return runtime, _balanced(costs.storage_bytes(), costs.channels, storage, alpha, rng)


def _balanced(
    form: BilinearCost, channels: Tensor, ratio: float, alpha: float, rng: np.random.Generator
) -> Tensor:
    """Factors f with cost(clip(f * ratio)) = cost(ratio), by bisection on their scale."""
    factors = torch.from_numpy(np.exp2(rng.uniform(-1.0, 1.0, len(channels))))
    target = form.total((channels.double() * ratio).unsqueeze(0))
    low, high = 0.0, 4.0
    for _ in range(40):
        middle = (low + high) / 2
        counts = channels.double() * (factors * ratio * middle).clamp(alpha, 1.0)
        if bool(form.total(counts.unsqueeze(0)) <= target):
            low = middle
        else:
            high = middle
    return factors * low


def varied_ratio_gate(
    setup: TrialSetup, network: GatedNetwork, share: Share, rng: np.random.Generator
) -> Gate:
    """Random ratios per image of a share and layer, no budgets: for the importances.

    They reach from a little below the tightest budget's number to 1, see ``RandomRatios``.

    Deviation: the paper trains the importances unpruned; a network trained under varied
    ratios is one on which the agents can explore (rl-notes: any ratio works).
    """
    rates, count = np.asarray(setup.config.evaluation.tradeoff_rates), len(share)
    unlimited = torch.full((count,), float("inf"), dtype=torch.float64)
    ones = torch.ones(count, dtype=torch.float64)
    drawn = torch.from_numpy(np.full(count, rng.choice(rates)))
    budgets = EpisodeBudgets(drawn, unlimited, unlimited, unlimited, ones, ones, ones)
    told = setup.book.table(tuple(setup.evaluation_points()))
    least = float(torch.minimum(told.compute_dial, told.storage_dial).min())
    low = max(setup.config.pruning.alpha, 0.8 * least)

    def draw(_: int) -> Tensor:
        return torch.from_numpy(rng.random(share.total)[share.part])

    plan = StaticPlan(setup.rules, budgets, RandomRatios(low, draw))
    return PruningGate(setup.rules, network, plan, RandomRatios(low, draw))


def with_dial(budgets: EpisodeBudgets, dial: float) -> EpisodeBudgets:
    """The same budgets, but the policy is told ``dial`` as its compute budget."""
    return replace(budgets, compute_dial=torch.full_like(budgets.compute_dial, dial))
