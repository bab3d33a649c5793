"""Scores of filters that follow from the weights alone.

Legend: C filters of a layer, each with C_in * kh * kw numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlprune.pruning import GatedNetwork


def filters_of(network: GatedNetwork) -> tuple[Tensor, ...]:
    """Filters of every prunable layer, one row each, [C, C_in * kh * kw]."""
    return tuple(layer.conv.weight.detach().flatten(1).clone() for layer in network.layers)


def median_distances(filters: Tensor) -> Tensor:
    """Sum of a filter's Euclidean distances to all filters of its layer, [C, n] -> [C].

    The filters of least sum lie nearest to the layer's geometric median: the others can
    stand in for them, so they are pruned.

    Source: He et al. 2019, "Filter Pruning via Geometric Median for Deep Convolutional
    Neural Networks Acceleration", Sec. 3.3: the filters that minimise
    g(x) = sum_j ||x - F_j||_2.
    """
    return torch.cdist(filters.double(), filters.double()).sum(1)


def squared_norms(filters: Tensor) -> Tensor:
    """Squared Euclidean norm of each filter, [C, n] -> [C]."""
    return filters.double().square().sum(1)


def scales_of(network: GatedNetwork) -> tuple[Tensor, ...]:
    """Magnitude of every channel's BatchNorm scale gamma, [C] per layer.

    Without predictors a gate's scale is its predictor's bias times u_s (which is 1 there).
    """
    return tuple(
        (layer.runtime_predictor.bias * layer.static_importance).detach().abs().double()
        for layer in network.layers
    )
