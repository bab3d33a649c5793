"""What the agents see.

Both observations begin with the same context, then come the layer's features:

| column | runtime agent | static agent |
| --- | --- | --- |
| 0 base | runtime_anchor, or the previous ratio (AgentConfig.action) | storage dial |
| 1 | compute dial s | compute dial s |
| 2 | storage dial s | storage dial s |
| 3 | R_r | R_r |
| 4 | share left: the uniform ratio that the rest of the network can still have | same |
| 5.. | pooled input and u_r, each standardised per image, zero-padded | shape of the layer |

At R_r = 0 the static agent alone keeps the compute budget: its base is the tighter dial.

Source: paper Sec. 3.2. Deviation: R_r, the room left in the budget and (for the
"change" action) the previous ratio are observed too, since one training serves many
budgets and the process would not be Markov without them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlprune.backbones.graph import ChannelGraph
from rlprune.pruning import EpisodeBudgets

CONTEXT_WIDTH = 5
STATIC_FEATURES = 8


def context(base: Tensor, budgets: EpisodeBudgets, room: Tensor) -> Tensor:
    """The five leading columns, [B] each -> [B, 5] float32."""
    columns = [base, budgets.compute_dial, budgets.storage_dial, budgets.rate, room]
    return torch.stack([column.float() for column in columns], dim=1)


def _standardised(features: Tensor, present: Tensor) -> Tensor:
    """Over the present channels of each image; zero elsewhere (nothing to multiply)."""
    count = present.sum(1, keepdim=True).clamp(min=1)
    mean = (features * present).sum(1, keepdim=True) / count
    centred = (features - mean) * present
    return centred * torch.rsqrt(centred.square().sum(1, keepdim=True) / count + 1e-5)


def runtime_width(graph: ChannelGraph) -> int:
    """Width D of the runtime observation: context plus the widest layer's features."""
    return CONTEXT_WIDTH + max(layer.in_channels + layer.out_channels for layer in graph.layers)


def runtime_observation(
    leading: Tensor, pooled: Tensor, importance: Tensor, width: int, stored: Tensor
) -> Tensor:
    """Observation of the runtime agent at one layer.

    Args:
        leading: context [B, 5].
        pooled: global average of the layer's input [B, C_in].
        importance: u_r [B, C].
        width: D; what the layer does not fill is zero.
        stored: channels that are not deleted for good, bool [B, C]; a shipped model has no
            u_r of the others, so the agent must not see it either.

    Returns:
        float32 [B, D].
    """
    observation = leading.new_zeros(len(leading), width)
    end = CONTEXT_WIDTH + pooled.shape[1]
    observation[:, :CONTEXT_WIDTH] = leading
    observation[:, CONTEXT_WIDTH:end] = _standardised(pooled, pooled != 0)
    observation[:, end : end + importance.shape[1]] = _standardised(importance, stored)
    return observation


def static_features(graph: ChannelGraph) -> Tensor:
    """Shape of every layer, [T, 8], of order one: sizes as logarithms, costs as shares."""
    rows = []
    for layer in graph.layers:
        area = layer.kernel_size[0] * layer.kernel_size[1]
        pixels = layer.out_size[0] * layer.out_size[1]
        weights = float(area * layer.in_channels * layer.out_channels)
        rows.append(
            [
                math.log2(layer.in_channels) / 8,
                math.log2(layer.out_channels) / 8,
                area / 9,
                math.log2(pixels) / 8,
                layer.stride[0] / 2,
                layer.index / len(graph.layers),
                weights * pixels,
                weights,
            ]
        )
    features = torch.tensor(rows)
    features[:, -2:] /= features[:, -2:].sum(0, keepdim=True)
    return features
