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


def rules_of(layer: GatedLayer, rules: Rules, places: Any) -> tuple[Any, ...]:
    """Arguments ``shape``, ``rules`` and ``terms`` of the compiled functions.

    Args:
        layer: with an importance predictor.
        rules: of the model.
        places: the module ``rlprune.deploy.kernels.places`` (importing it here would load numba).
    """
    return (_shape(layer, rules, places), *_costs(layer, rules, places))


def weights_of(layer: GatedLayer) -> tuple[Any, ...]:
    """Arguments ``filters``, ``code``, ``predictor`` and ``channel``."""
    filters = layer.filter.permute(0, 2, 3, 1).contiguous()
    rows = filters.view(layer.spec.stored, -1, layer.inputs).numpy()
    return (rows, *_predictor(layer), _channel(layer))


def policy_of(layer: GatedLayer, rules: Rules) -> tuple[Any, ...]:
    """Arguments ``votes``, ``encoder`` and ``agent``."""
    return (rules.votes(layer.index), *_agent(layer, rules))


def _shape(layer: GatedLayer, rules: Rules, places: Any) -> Positions:
    spec, policy = layer.spec, rules.spec.policy
    shape = np.zeros(places.SHAPE, dtype=np.int64)
    shape[places.LAYER] = layer.index
    shape[places.CHANNELS] = spec.channels
    shape[places.IN_CHANNELS] = spec.in_channels
    shape[places.VOTES] = spec.static_votes
    shape[places.PERMANENT] = rules.spec.budget.tradeoff == "permanent"
    shape[places.DECIDES] = policy.kind != "none"
    shape[places.AGENT] = policy.kind == "agent"
    shape[places.CHANGE] = policy.action == "change"
    shape[places.PROJECTED] = policy.projected
    return shape


def _costs(layer: GatedLayer, rules: Rules, places: Any) -> tuple[Any, Any]:
    costs, t = rules.costs.at_layer(layer.index), layer.index
    numbers = np.zeros(places.RULES)
    numbers[places.RATE] = rules.spec.budget.tradeoff_rate
    numbers[places.ALPHA] = rules.spec.budget.alpha
    numbers[places.OFFSET] = 0.0 if rules.agent is None else rules.agent.offset
    numbers[places.LINEAR] = costs.linear
    numbers[places.SLOPE_AFTER] = costs.slope_after
    numbers[places.LEAST] = costs.least
    numbers[places.LEAST_AFTER] = costs.least_after
    numbers[places.LINEAR_AFTER] = costs.linear_after
    numbers[places.SQUARE_AFTER] = costs.square_after
    terms = np.zeros((3, len(rules.spec.layers)))
    terms[places.EACH, :t] = costs.each
    terms[places.LEAST_TERMS, :t] = costs.least_terms
    terms[places.WIDE_TERMS, :t] = costs.wide_terms
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
