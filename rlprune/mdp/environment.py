"""The decision process: a gate that asks two policies and keeps within the budgets.

One episode = one image walking through the network. The static decisions do not depend
on the image and come first; then, while the network runs, the runtime policy decides
layer after layer.

Legend: B episodes, T layers, C channels of a layer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from rlprune.config import PruningConfig
from rlprune.mdp.observation import (
    context,
    runtime_observation,
    runtime_width,
    static_features,
)
from rlprune.mdp.policy import KeepRatioPolicy
from rlprune.pruning import (
    BilinearCost,
    CostModel,
    EpisodeBudgets,
    Gate,
    GatedNetwork,
    cap_keep,
    kept_count,
    permanent_count,
    permanent_mask,
    tradeoff_keep,
)

ActionKind = Literal["absolute", "change"]


class PruningRules:
    """What stays the same over all episodes of one backbone.

    Args:
        costs: the cost model of the network as it would ship.
        pruning: alpha and the trade-off rule.
        projected: whether budgets are met by construction.
        action: what the runtime agent's mean is anchored to.
        importance_penalty: weight of the importances' L1 norm in the network's loss.
    """

    def __init__(
        self,
        costs: CostModel,
        pruning: PruningConfig,
        projected: bool = True,
        action: ActionKind = "absolute",
        importance_penalty: float = 0.0,
    ) -> None:
        self.costs = costs
        self.importance_penalty = importance_penalty
        self.pruning = pruning
        self.projected = projected
        self.action = action
        self.graph = costs.graph
        self.num_layers = len(self.graph.layers)
        self.least = kept_count(
            torch.full((self.num_layers,), pruning.alpha, dtype=torch.float64), costs.channels
        )
        self.static_features = static_features(self.graph)
        self.runtime_width = runtime_width(self.graph)


class StaticPlan:
    """Static decisions of B episodes, made layer by layer before the network runs.

    Args:
        rules: see above.
        budgets: of the episodes.
        policy: chooses the static keep ratios a_s.

    Attributes:
        ratios: a_s clipped to [alpha, 1], [B, T].
        kept: static keep counts C - |M_s|, int64 [B, T].
        stored: channels that are not deleted for good S = C - |P|, int64 [B, T].
    """

    def __init__(
        self, rules: PruningRules, budgets: EpisodeBudgets, policy: KeepRatioPolicy
    ) -> None:
        self.rules = rules
        self.budgets = budgets
        episodes = len(budgets.rate)
        shape = (episodes, rules.num_layers)
        self.ratios = torch.ones(shape, dtype=torch.float64)
        self.kept = torch.zeros(shape, dtype=torch.int64)
        self.stored = torch.zeros(shape, dtype=torch.int64)
        self._forms = self._budget_forms()
        self._least = torch.stack(
            [self._stored(layer, rules.least[layer].expand(episodes)) for layer in range(shape[1])],
            dim=1,
        )
        policy.start(episodes)
        for layer in range(rules.num_layers):
            self._decide(layer, policy)

    def select(self, index: Tensor, budgets: EpisodeBudgets) -> StaticPlan:
        """The plan of episodes whose decisions are rows ``index`` [B] of this one."""
        chosen = copy.copy(self)
        chosen.budgets = budgets
        chosen.ratios, chosen.kept = self.ratios[index], self.kept[index]
        chosen.stored = self.stored[index]
        return chosen

    def _deletes(self) -> Tensor:
        """Where a static vote deletes anything for good, bool [B]."""
        if self.rules.pruning.tradeoff == "paper":
            return self.budgets.rate <= 0
        return self.budgets.rate < 1

    def _stored(self, layer: int, kept: Tensor) -> Tensor:
        channels = int(self.rules.costs.channels[layer])
        deleted = permanent_count(self.budgets.rate, kept, channels)
        return channels - torch.where(self._deletes(), deleted, torch.zeros_like(deleted))

    def _budget_forms(self) -> list[tuple[BilinearCost, Tensor]]:
        """Costs in S with their budgets [B]; a budget that S does not decide is infinite."""
        budgets, costs = self.budgets, self.rules.costs
        unlimited = torch.full_like(budgets.storage_bytes, float("inf"))
        static_only = budgets.rate <= 0
        compute = torch.minimum(budgets.compute_max, budgets.compute_mean)
        return [
            (
                costs.storage_bytes(agent_runs=True),
                torch.where(self._deletes() & ~static_only, budgets.storage_bytes, unlimited),
            ),
            (
                costs.storage_bytes(agent_runs=False),
                torch.where(static_only, budgets.storage_bytes, unlimited),
            ),
            (costs.static_macs(), torch.where(static_only, compute, unlimited)),
        ]

    def _room(self, layer: int) -> tuple[Tensor, Tensor]:
        """Stored channels allowed at this layer, int64 [B], and the share y left, [B]."""
        costs = self.rules.costs
        cap = torch.full((len(self.budgets.rate),), int(costs.channels[layer]))
        share = torch.ones(len(cap), dtype=torch.float64)
        for form, budget in self._forms:
            limited = torch.isfinite(budget)
            if bool(limited.any()):
                finite = torch.where(limited, budget, torch.zeros_like(budget))
                largest = form.largest_count(self.stored, layer, self._least, finite)
                left = form.proportional_share(self.stored, layer, costs.channels, finite)
                cap = torch.where(limited, torch.minimum(cap, largest), cap)
                share = torch.where(limited, torch.minimum(share, left), share)
        return cap, share

    def _decide(self, layer: int, policy: KeepRatioPolicy) -> None:
        channels = int(self.rules.costs.channels[layer])
        cap, share = self._room(layer)
        observation = self.budgets.rate
        if policy.observes:
            dial = torch.minimum(self.budgets.storage_dial, self.budgets.compute_dial)
            base = torch.where(self.budgets.rate <= 0, dial, self.budgets.storage_dial)
            leading = context(base, self.budgets, share)
            shape = self.rules.static_features[layer].expand(len(leading), -1)
            observation = torch.cat([leading, shape], dim=1)
        ratio = policy.ratio(layer, observation).double().cpu()
        ratio = ratio.clamp(self.rules.pruning.alpha, 1.0)
        kept = kept_count(ratio, channels)
        if self.rules.projected:
            kept = self._within(kept_count(self._damped(ratio, share), channels), cap, layer)
        self.ratios[:, layer] = ratio
        self.kept[:, layer] = kept
        self.stored[:, layer] = self._stored(layer, kept)

    def _damped(self, ratio: Tensor, share: Tensor) -> Tensor:
        """The ratio, lowered by what earlier layers overspent.

        The stored part 1 - (1 - R_r)(1 - a) is scaled by (share left) / (share planned).
        """
        rate = self.budgets.rate
        shared = 1.0 - (1.0 - rate) * (1.0 - ratio)
        planned = 1.0 - (1.0 - rate) * (1.0 - self.budgets.storage_dial)
        planned = torch.where(rate <= 0, torch.minimum(planned, self.budgets.compute_dial), planned)
        scale = (share / planned).clamp(max=1.0)
        damped = 1.0 - (1.0 - shared * scale) / (1.0 - rate).clamp(min=1e-9)
        return torch.where(scale < 1.0, damped.clamp(self.rules.pruning.alpha, 1.0), ratio)

    def _within(self, kept: Tensor, cap: Tensor, layer: int) -> Tensor:
        """The largest static keep count <= ``kept`` whose stored channels fit ``cap``."""
        if bool((self._stored(layer, kept) <= cap).all()):
            return kept
        channels = int(self.rules.costs.channels[layer])
        candidates = torch.arange(1, channels + 1).unsqueeze(1)
        rate = self.budgets.rate.unsqueeze(0)
        deleted = permanent_count(rate, candidates, channels)
        fits = (channels - deleted <= cap) | ~self._deletes()
        fits &= candidates <= kept
        best = torch.where(fits, candidates, torch.zeros_like(candidates)).amax(0)
        return torch.maximum(best, torch.minimum(kept, self.rules.least[layer]))


def runtime_anchor(budgets: EpisodeBudgets, rules: PruningRules) -> Tensor:
    """The runtime ratio a_r at which every layer computes the budget's share s, [B].

    Under a projected cap that is s itself: the votes then prune no more than 1 - s, since all
    of them are the runtime agent's own (P is the least important to it), and the gate drops
    what is above the intended count. Without a cap nothing is dropped, and a ratio of s would
    prune less than 1 - s under ``permanent`` at 0 < R_r < 1, where the votes of the two
    agents overlap by chance. With p = (1 - R_r)(1 - s_s) deleted for good and
    independent votes, a share q = (1 - s_s - p) / (1 - p) of what the runtime agent votes
    against beyond p is pruned for agreement, R_r of the rest by tradeoff:
    1 - s_c = p + (1 - a_r - p)(q + R_r (1 - q)), solved for a_r. (Under a cap that would leave
    a part of the budget unused: real votes agree more often than by chance.)

    It anchors the untrained agent and the baselines: at every R_r they are uniform in what
    is computed, not in the nominal votes.
    """
    if rules.pruning.tradeoff == "paper":  # there the expected share is s already
        return budgets.compute_dial
    rate, compute, storage = budgets.rate, budgets.compute_dial, budgets.storage_dial
    deleted = (1.0 - rate) * (1.0 - storage)
    agreed = ((1.0 - storage - deleted) / (1.0 - deleted).clamp(min=1e-9)).clamp(0.0, 1.0)
    effect = (agreed + rate * (1.0 - agreed)).clamp(min=1e-9)
    votes = deleted + (1.0 - compute - deleted).clamp(min=0.0) / effect
    expected = (1.0 - votes).clamp(rules.pruning.alpha, 1.0)
    if not rules.projected:
        return expected
    return torch.where(torch.isfinite(budgets.compute_max), compute, expected)


class PruningGate(Gate):
    """Masks of one forward pass over B images, decided by two policies within budgets.

    Args:
        rules: see above.
        network: the gated network that will be called with this gate.
        plan: the static decisions of the same B episodes.
        runtime_policy: chooses the runtime keep ratios a_r.
        static_scores: replaces the learned u_s, one tensor [C] per layer (``static_l1``).

    Attributes:
        computed: channels really kept, int64 [B, T]; complete after the pass.
        stored: channels not deleted for good, int64 [B, T].
        ratios: a_r clipped to [alpha, 1], [B, T].
    """

    def __init__(
        self,
        rules: PruningRules,
        network: GatedNetwork,
        plan: StaticPlan,
        runtime_policy: KeepRatioPolicy,
        static_scores: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.rules = rules
        self.plan = plan
        self.budgets = plan.budgets
        self.policy = runtime_policy
        learned = [layer.static_importance.detach() for layer in network.layers]
        self._device = learned[0].device
        self._scores = [scores.to(self._device) for scores in static_scores or learned]
        self.computed = torch.zeros_like(plan.stored)
        self.stored = plan.stored
        self.ratios = torch.ones_like(plan.ratios)
        self._form = rules.costs.macs(plan.stored, self.budgets.rate > 0)
        self._capped = bool(torch.isfinite(self.budgets.compute_max).any())
        self._static_only = bool((self.budgets.rate <= 0).all())
        self._anchor = runtime_anchor(self.budgets, rules)
        self._norms: dict[int, Tensor] = {}
        self.policy.start(len(plan.stored))

    def decide(self, layer: int, pooled: Tensor, importance: Tensor) -> Tensor:
        """Keep mask [B, C] of layer t; see :class:`~rlprune.pruning.Gate`."""
        channels = importance.shape[1]
        if self.rules.importance_penalty > 0.0:
            self._norms[layer] = importance.abs().sum(1).mean()
        importance, pooled = importance.detach(), pooled.detach()
        cap, share = self._room(layer, channels)
        scores, rule = self._scores[layer], self.rules.pruning.tradeoff
        static_kept = self.plan.kept[:, layer].to(self._device)
        rate = self.budgets.rate.to(self._device)
        permanent = permanent_mask(scores, static_kept, rate, rule)
        if self._static_only and not self.policy.records:
            kept = torch.full_like(self.plan.kept[:, layer], channels)
        else:
            ratio = self._ratio(layer, pooled, importance, share, ~permanent)
            kept = kept_count(ratio, channels)
            cap = torch.minimum(cap, self._intended(ratio, channels))
        masks = tradeoff_keep(
            importance, scores, kept.to(self._device), static_kept, rate, rule, permanent
        )
        keep = masks.keep
        if self._capped and self.rules.projected:
            keep = cap_keep(keep, importance, cap.to(self._device))
        self.computed[:, layer] = keep.sum(1).cpu()
        return keep

    def penalty(self) -> Tensor | None:
        """lambda * sum over layers of ||u_r||_1, mean over the images, []; None: lambda is 0.

        Source: Gao et al. 2019, Sec. 3, where the loss of FBS has this term. Deviation: the
        paper's loss has none.
        """
        if not self._norms:
            return None
        return self.rules.importance_penalty * torch.stack(list(self._norms.values())).sum()

    def _intended(self, ratio: Tensor, channels: int) -> Tensor:
        """Channels that a runtime ratio means to compute, int64 [B].

        The votes' overlap varies from image to image. Without this limit its accidents
        would add up, and the last layer would have to pay for them under a projected cap.
        """
        intended = kept_count(ratio * self.budgets.compute_dial / self._anchor, channels)
        runs = self.budgets.rate > 0
        return torch.where(runs, intended, torch.full_like(intended, channels))

    def _room(self, layer: int, channels: int) -> tuple[Tensor, Tensor]:
        """Computed channels allowed at this layer, int64 [B], and the share y left, [B]."""
        if not self._capped:
            cap = torch.full((len(self.computed),), channels)
            return cap, torch.ones(len(cap), dtype=torch.float64)
        limited = torch.isfinite(self.budgets.compute_max)
        budget = torch.where(limited, self.budgets.compute_max, self._form.constant)
        largest = self._form.largest_count(self.computed, layer, self.rules.least, budget)
        share = self._form.proportional_share(
            self.computed, layer, self.rules.costs.channels, budget
        )
        cap = torch.where(limited, largest, channels).clamp(max=channels)
        return cap, torch.where(limited, share, 1.0).clamp(max=1.0)

    def _ratio(
        self, layer: int, pooled: Tensor, importance: Tensor, share: Tensor, stored: Tensor
    ) -> Tensor:
        """The runtime agent's keep ratio, lowered by what earlier layers overspent, [B]."""
        observation = pooled
        if self.policy.observes:
            base = self._anchor
            if self.rules.action == "change" and layer > 0:
                base = self.ratios[:, layer - 1]
            leading = context(base, self.budgets, share)
            observation = runtime_observation(
                leading.to(self._device), pooled, importance, self.rules.runtime_width, stored
            )
        ratio = self.policy.ratio(layer, observation).double().cpu()
        ratio = ratio.clamp(self.rules.pruning.alpha, 1.0)
        self.ratios[:, layer] = ratio
        if self._capped and self.rules.projected:
            ratio = ratio * (share / self.budgets.cap_dial).clamp(max=1.0)
        return ratio

    def macs(self) -> Tensor:
        """MACs of each image as really computed, float64 [B]; after the pass."""
        return self._form.total(self.computed)

    def storage_bytes(self) -> Tensor:
        """Bytes stored for each episode's static decisions, float64 [B]."""
        runs = self.budgets.rate > 0
        with_agent = self.rules.costs.storage_bytes(agent_runs=True).total(self.stored)
        without = self.rules.costs.storage_bytes(agent_runs=False).total(self.stored)
        return torch.where(runs, with_agent, without)

    def parameters(self) -> Tensor:
        """Stored numbers for each episode, float64 [B]."""
        runs = self.budgets.rate > 0
        with_agent = self.rules.costs.parameters(agent_runs=True).total(self.stored)
        without = self.rules.costs.parameters(agent_runs=False).total(self.stored)
        return torch.where(runs, with_agent, without)
