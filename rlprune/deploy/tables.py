"""A layer's numbers as the compiled functions read them, in the order of their arguments.

Legend: S stored channels, I stored input channels, T layers, r rank, h the agent's width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rlprune.deploy.decide import Positions, Rules
from rlprune.deploy.layer import GatedLayer
from rlprune.errors import ArtifactError


def rules_of(layer: GatedLayer, rules: Rules, kernels: Any) -> tuple[Any, ...]:
    """Arguments ``shape``, ``rules`` and ``terms`` of the kernels.

    Args:
        layer: with an importance predictor.
        rules: of the model.
        kernels: the module, for the places in them.
    """
    return (_shape(layer, rules, kernels), *_costs(layer, rules, kernels))


def weights_of(layer: GatedLayer) -> tuple[Any, ...]:
    """Arguments ``filters``, ``code``, ``predictor`` and ``channel``."""
    filters = layer.filter.permute(0, 2, 3, 1).contiguous()
    rows = filters.view(layer.spec.stored, -1, layer.inputs).numpy()
    return (rows, *_predictor(layer), _channel(layer))


def policy_of(layer: GatedLayer, rules: Rules) -> tuple[Any, ...]:
    """Arguments ``votes``, ``encoder`` and ``agent``."""
    return (rules.votes(layer.index), *_agent(layer, rules))


def _shape(layer: GatedLayer, rules: Rules, kernels: Any) -> Positions:
    spec, policy = layer.spec, rules.spec.policy
    shape = np.zeros(kernels.SHAPE, dtype=np.int64)
    shape[kernels.LAYER] = layer.index
    shape[kernels.CHANNELS] = spec.channels
    shape[kernels.IN_CHANNELS] = spec.in_channels
    shape[kernels.VOTES] = spec.static_votes
    shape[kernels.PERMANENT] = rules.spec.budget.tradeoff == "permanent"
    shape[kernels.DECIDES] = policy.kind != "none"
    shape[kernels.AGENT] = policy.kind == "agent"
    shape[kernels.CHANGE] = policy.action == "change"
    shape[kernels.PROJECTED] = policy.projected
    return shape


def _costs(layer: GatedLayer, rules: Rules, kernels: Any) -> tuple[Any, Any]:
    costs, t = rules.costs.at_layer(layer.index), layer.index
    numbers = np.zeros(kernels.RULES)
    numbers[kernels.RATE] = rules.spec.budget.tradeoff_rate
    numbers[kernels.ALPHA] = rules.spec.budget.alpha
    numbers[kernels.OFFSET] = 0.0 if rules.agent is None else rules.agent.offset
    numbers[kernels.LINEAR] = costs.linear
    numbers[kernels.SLOPE_AFTER] = costs.slope_after
    numbers[kernels.LEAST] = costs.least
    numbers[kernels.LEAST_AFTER] = costs.least_after
    numbers[kernels.LINEAR_AFTER] = costs.linear_after
    numbers[kernels.SQUARE_AFTER] = costs.square_after
    terms = np.zeros((3, len(rules.spec.layers)))
    terms[kernels.EACH, :t] = costs.each
    terms[kernels.LEAST_TERMS, :t] = costs.least_terms
    terms[kernels.WIDE_TERMS, :t] = costs.wide_terms
    return numbers, terms


def _predictor(layer: GatedLayer) -> tuple[Any, Any]:
    """Code [I, r] and predictor, inputs first: a product then runs along memory."""
    if layer.predictor is None:
        raise ArtifactError(f"{layer.spec.name}: has no predictor. Export the model again.")
    code = layer.filter.new_zeros(layer.inputs, 0) if layer.code is None else layer.code.t()
    return code.contiguous().numpy(), layer.predictor.t().contiguous().numpy()


def _channel(layer: GatedLayer) -> Any:
    none = torch.zeros_like(layer.beta)
    scale, shift = layer.width_scale, layer.width_shift
    rows = [layer.beta, layer.mean, layer.static, layer.bias]
    rows += [none if scale is None else scale, none if shift is None else shift]
    return torch.stack(rows).numpy()


def _agent(layer: GatedLayer, rules: Rules) -> tuple[Any, Any]:
    agent = rules.agent
    if agent is None:
        return np.zeros((1, 0), dtype=np.float32), np.zeros((2, 0), dtype=np.float32)
    return agent.encoders[layer.index], agent.table
