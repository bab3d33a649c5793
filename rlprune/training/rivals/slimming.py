"""Network slimming: BatchNorm scales are trained towards zero, the smallest are pruned.

Source: Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming".
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from rlprune.pruning import Gate, GatedNetwork
from rlprune.replicas import Share
from rlprune.training.rivals.bench import Bench, Fitted
from rlprune.training.rivals.filters import scales_of
from rlprune.training.rivals.selection import SelectedMethod, global_threshold, selected
from rlprune.training.setup import TrialSetup

SPARSE = "slimming_sparse"


class SparsityGate(Gate):
    """Prunes nothing; adds lambda * sum |gamma| over all layers' scales to the loss.

    Source: Liu et al. 2017, Sec. 3, Eq. (1), with g(gamma) = |gamma|. Deviation: the penalty's
    gradient goes through Adam as the loss's does: all networks here are trained by Adam
    (theirs: SGD).

    Args:
        network: without predictors, so that a gate's scale is its predictor's bias.
        weight: lambda.
    """

    def __init__(self, network: GatedNetwork, weight: float) -> None:
        super().__init__()
        self._network = network
        self._weight = weight

    def penalty(self) -> Tensor:
        """The term, []."""
        scales = [layer.runtime_predictor.bias.abs().sum() for layer in self._network.layers]
        total = scales[0]
        for scale in scales[1:]:
            total = total + scale
        return self._weight * total


def prepare(
    setup: TrialSetup, network: GatedNetwork, share: Share, rng: np.random.Generator
) -> Gate:
    """The gate of the sparsity training."""
    return SparsityGate(network, setup.config.methods.slimming_penalty)


def fit(bench: Bench) -> Fitted:
    """The scales that sparsity training has left, [C] per layer."""
    return {"scores": [part.cpu() for part in scales_of(bench.network)]}


def make(setup: TrialSetup, network: GatedNetwork, fitted: Fitted) -> SelectedMethod:
    """One threshold over all layers' scales, as low as the budgets allow (Sec. 3)."""
    scores = tuple(fitted["scores"])
    return selected("slimming", setup, scores, global_threshold(scores))
