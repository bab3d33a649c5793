"""Feature boosting and suppression: the k most salient channels of each image, k fixed.

Legend: B images, C channels of a layer.

Source: Gao et al. 2019, "Dynamic Channel Pruning: Feature Boosting and Suppression".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from rlprune.mdp import PruningGate, PruningRules, StaticPlan
from rlprune.mdp.policy import AnchoredRatios
from rlprune.pruning import BudgetBook, CostModel, EpisodeBudgets, Gate, GateDesign, GatedNetwork
from rlprune.training.methods import Method
from rlprune.training.rivals.bench import Bench, Fitted
from rlprune.training.setup import TrialSetup

_LEAST_SCALE = 1e-3


class SaliencyGate(PruningGate):
    """Winner-take-all on the saliencies; remembers their norms for the loss.

    Args:
        rules, network, plan: see :class:`~rlprune.mdp.PruningGate`.
        weight: lambda, of the saliencies' L1 norm in the loss.
    """

    def __init__(
        self, rules: PruningRules, network: GatedNetwork, plan: StaticPlan, weight: float
    ) -> None:
        super().__init__(rules, network, plan, AnchoredRatios())
        self._weight = weight
        self._norms: dict[int, Tensor] = {}

    def decide(self, layer: int, pooled: Tensor, importance: Tensor) -> Tensor:
        """Keep mask [B, C] of layer t."""
        self._norms[layer] = importance.abs().sum(1).mean()
        return super().decide(layer, pooled, importance)

    def penalty(self) -> Tensor:
        """lambda * sum over layers of ||g(x)||_1, mean over the images; [].

        Source: Gao et al. 2019, Sec. 3: the loss is extended by lambda sum_l ||g_l||_1.
        """
        return self._weight * torch.stack(list(self._norms.values())).sum()


@dataclass(frozen=True)
class SaliencyMethod(Method):
    """FBS.

    Attributes:
        weight: lambda.
    """

    weight: float = 0.0

    def gate(self, network: GatedNetwork, budgets: EpisodeBudgets) -> Gate:
        """The gate of one forward pass."""
        plan = self._known_plan(self.told(budgets))
        return SaliencyGate(self.rules, network, plan, self.weight)


@torch.no_grad()
def positive_scales(network: GatedNetwork) -> None:
    """Rewrites a network without predictors for g * (norm(conv(x)) + beta), g = relu(b).

    A negative scale turns its filter round (norm has no affine part of its own); the shift is
    divided by the scale, which FBS applies to both. What the network computes stays.
    """
    for layer in network.layers:
        scale = layer.runtime_predictor.bias
        sign = torch.where(scale < 0, -1.0, 1.0).to(scale)
        layer.conv.weight.mul_(sign.view(-1, 1, 1, 1))
        if layer.norm is not None:
            cast(Tensor, layer.norm.running_mean).mul_(sign)
        scale.abs_().clamp_(min=_LEAST_SCALE)
        layer.shift.div_(scale)


def fit(bench: Bench) -> Fitted:
    """Only rewrites the network; what FBS learns it learns with the network."""
    positive_scales(bench.network)
    return {}


def make(setup: TrialSetup, network: GatedNetwork, fitted: Fitted) -> SaliencyMethod:
    """pi(x) = wta_k(g(x)), g(x) = relu(W pool(x) + b), k the same share of every layer.

    Its layers compute pi(x) * (norm(conv(x)) + beta) (``rectified`` gates).

    Source: Gao et al. 2019, Sec. 3, the definitions of the layer, of pi and of g.
    Deviations: pool(x) is the mean, at unit scale (the paper: the mean magnitude; after ReLU
    the same but for the scale); W starts at zero and b at BatchNorm's scale, so that training
    starts at the pretrained network (theirs: random and 1); predictors have the rank that
    ``pruning.predictor_rank`` gives ours.
    """
    config = setup.config
    design = GateDesign(config.pruning.predictor_rank)
    costs = CostModel(setup.graph, design=design)
    return SaliencyMethod(
        "fbs",
        PruningRules(costs, config.pruning, projected=True),
        BudgetBook(costs, config.budgets, config.pruning),
        AnchoredRatios,
        AnchoredRatios,
        rectified=True,
        weight=config.methods.fbs_penalty,
    )
