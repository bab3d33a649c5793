"""Feature boosting and suppression: the k most salient channels of each image, k fixed.

Source: Gao et al. 2019, "Dynamic Channel Pruning: Feature Boosting and Suppression".
"""

from __future__ import annotations

from rlprune.mdp import PruningRules
from rlprune.mdp.policy import AnchoredRatios
from rlprune.pruning import BudgetBook, CostModel, GateDesign, GatedNetwork, boost_gates
from rlprune.training.methods import Method
from rlprune.training.rivals.bench import Bench, Fitted
from rlprune.training.setup import TrialSetup


def fit(bench: Bench) -> Fitted:
    """Only rewrites the network; what FBS learns it learns with the network."""
    boost_gates(bench.network)
    return {}


def make(setup: TrialSetup, network: GatedNetwork, fitted: Fitted) -> Method:
    """pi(x) = wta_k(g(x)), g(x) = relu(W pool(x) + b), k the same share of every layer.

    Its layers compute pi(x) * (norm(conv(x)) + beta) (``boosted`` gates).

    Source: Gao et al. 2019, Sec. 3, the definitions of the layer, of pi and of g.
    Deviations: pool(x) is the mean, at unit scale (the paper: the mean magnitude; after ReLU
    the same but for the scale); W starts at zero and b at BatchNorm's scale, so that training
    starts at the pretrained network (theirs: random and 1); predictors have the rank that
    ``pruning.predictor_rank`` gives ours.
    """
    config = setup.config
    design = GateDesign(config.pruning.predictor_rank)
    costs = CostModel(setup.graph, design=design)
    return Method(
        "fbs",
        PruningRules(costs, config.pruning, importance_penalty=config.methods.fbs_penalty),
        BudgetBook(costs, config.budgets, config.pruning),
        AnchoredRatios,
        AnchoredRatios,
        boosted=True,
    )
