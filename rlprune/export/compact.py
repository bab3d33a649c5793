"""The numbers of a gated network and its runtime agent without the deleted channels.

Legend: T layers, C channels of a layer, S stored, I stored input channels, h agent's width.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from rlprune.agents.networks import RuntimeAgent
from rlprune.capture import input_columns
from rlprune.deploy.decide import CONTEXT
from rlprune.deploy.layer import channel_columns
from rlprune.deploy.spec import LayerSpec
from rlprune.pruning import GatedConv, signed_product


@torch.no_grad()
def layer_tensors(module: GatedConv, spec: LayerSpec, stored: list[Tensor]) -> dict[str, Tensor]:
    """What the file holds of one gated convolution; see ``deploy.layer.GatedLayer``.

    Args:
        module: in eval mode.
        spec: of the layer.
        stored: positions of the stored channels of every layer, int64 [S].
    """
    index, rows = module.layer.index, stored[module.layer.index]
    columns = input_columns(module.layer.in_sources, stored, 1)
    filters = module.conv.weight[rows][:, columns]
    numbers = {
        "beta": module.shift[rows],
        "static": module.static_importance[rows],
        "bias": module.runtime_predictor.bias[rows],
    }
    if module.norm is not None:
        variance, mean = cast(Tensor, module.norm.running_var), module.norm.running_mean
        reciprocal = torch.rsqrt(variance[rows] + module.norm.eps)
        filters = filters * reciprocal[:, None, None, None]
        numbers["mean"] = cast(Tensor, mean)[rows] * reciprocal
    if module.width_scale is not None and module.width_shift is not None:
        numbers["width_scale"] = module.width_scale[rows]
        numbers["width_shift"] = module.width_shift[rows]
    tensors: dict[str, Tensor] = {}
    if spec.rank is None:  # the predictor is not used: u is its bias times u_s, for good
        bias = numbers["bias"].relu() if module.boosted else numbers["bias"]
        scale = signed_product(bias, numbers["static"])
        filters = filters * scale[:, None, None, None]
        beta = scale * numbers["beta"] if module.boosted else numbers["beta"]
        numbers["beta"] = beta - scale * numbers.get("mean", torch.zeros_like(scale))
    else:
        predictor = module.runtime_predictor
        if spec.rank == 0:
            tensors["predictor"] = predictor.weight[rows][:, columns]
        else:
            tensors["predictor"] = predictor.weight[rows]
            tensors["code"] = predictor.code[:, columns]
    tensors["filter"] = filters
    tensors["channel"] = torch.stack([numbers[name] for name in channel_columns(spec)], 1)
    if len(rows) < module.layer.out_channels:
        tensors["index"] = rows.to(smallest_type(module.layer.out_channels))
    return {f"{index}.{name}": value.detach().clone() for name, value in tensors.items()}


def smallest_type(channels: int) -> torch.dtype:
    """The smallest whole numbers that count so many channels."""
    if channels <= 256:
        return torch.uint8
    return torch.int16 if channels <= 1 << 15 else torch.int32


@torch.no_grad()
def agent_tensors(
    agent: RuntimeAgent, modules: list[GatedConv], stored: list[Tensor]
) -> dict[str, Tensor]:
    """What the file holds of the runtime agent; see ``deploy.decide.AgentWeights``."""
    tensors = {}
    for module in modules:
        layer = module.layer
        columns = input_columns(layer.in_sources, stored, 1)
        weight = agent.encoder_weight[layer.index]
        tensors[f"{layer.index}.encoder"] = torch.cat(
            [
                weight[:CONTEXT],
                weight[CONTEXT + columns],
                weight[CONTEXT + layer.in_channels + stored[layer.index]],
                agent.encoder_bias[layer.index].unsqueeze(0),
            ]
        )
    memory, head = agent.memory.state_dict(), agent.mean_head
    tensors["agent.input"] = memory["weight_ih_l0"]
    tensors["agent.hidden"] = memory["weight_hh_l0"]
    tensors["agent.bias"] = memory["bias_ih_l0"] + memory["bias_hh_l0"]
    tensors["agent.mean"] = torch.cat([head.weight[0], head.bias])
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
