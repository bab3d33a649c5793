"""A layer's numbers as the compiled functions read them.

Legend: S stored channels, I stored input channels, T layers, r rank, h the agent's width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from rlprune.deploy.decide import Positions, Rules, Single
from rlprune.deploy.layer import GatedLayer

_GROUP = 16  # of kernels.filters


@dataclass(frozen=True)
class Arrays:
    """The numbers of a layer.

    Attributes:
        shape, rules, terms: see ``kernels.places``.
        filters: [S, k, I].
        table: the same, [k, I, S'], zeros from S on: choosing outputs runs along memory here.
            A plain layer convolves with it as it is.
        code: [I, r]; r is 0 where the predictor is a whole matrix.
        predictor: [I, S] or [r, S].
        channel: see ``kernels.places``, [6, S]; of a plain layer [S + LANES].
        votes: [2, S]; see ``kernels.choose_all``, as for the next two.
        encoder: [5 + I + S + 1, h].
        agent: [2 h + 2, h].
    """

    shape: Positions
    rules: Any
    terms: Any
    filters: Single
    table: Single
    code: Single
    predictor: Single
    channel: Single
    votes: Positions
    encoder: Single
    agent: Single

    @classmethod
    def of(cls, layer: GatedLayer, rules: Rules, kernels: Any) -> Arrays:
        """The arrays of a layer.

        Args:
            layer: of the model; without an importance predictor (plain) it decides nothing.
            rules: of the model.
            kernels: the package ``kernels`` (importing it here would load numba).
        """
        places, lanes = kernels.places, kernels.convolve.LANES
        filters = layer.filter.permute(0, 2, 3, 1).contiguous()
        rows = filters.view(layer.spec.stored, -1, layer.inputs).numpy()
        plain = layer.predictor is None
        table = _table(rows, lanes if plain else _GROUP, lanes)
        known = (_shape(layer, rules, places), *_costs(layer, rules, places), rows, table)
        channel = _added(layer, lanes) if plain else _channel(layer)
        own = (*_predictor(layer), channel, rules.votes(layer.index))
        return cls(*map(np.ascontiguousarray, (*known, *own, *_agent(layer, rules))))

    def job(
        self, places: Any, sizes: Positions, starts: Positions, taps: Positions, pixels: int
    ) -> Positions:
        """A row of ``jobs`` for an input of one size; it is good as long as all arrays live.

        Args:
            places: see :meth:`of`.
            sizes: see ``kernels.places``.
            starts, taps, pixels: see ``kernels.convolve``.
        """
        job = np.zeros(places.JOB, dtype=np.int64)
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, array in (own | {"sizes": sizes, "starts": starts, "taps": taps}).items():
            whole = name in ("shape", "votes", "sizes", "starts", "taps")
            double = name in ("rules", "terms")
            kind = np.int64 if whole else np.float64 if double else np.float32
            if array.dtype != kind or not array.flags.c_contiguous:
                raise RuntimeError(f"{name}: compiled code would misread {array.dtype}")
            job[getattr(places, f"{name.upper()}_AT")] = array.ctypes.data
        stored, count, inputs = self.filters.shape
        job[places.LAYERS], job[places.STORED] = self.terms.shape[1], stored
        job[places.TABLE_WIDTH], job[places.INPUTS] = self.table.shape[2], inputs
        job[places.TAPS], job[places.RANK] = count, self.code.shape[1]
        job[places.HIDDEN], job[places.STARTS] = self.agent.shape[1], len(starts)
        job[places.PIXELS] = pixels
        return job


def _table(rows: Single, group: int, spare: int) -> Single:
    """Filters [S, k, I] as [k, I, S'], S' whole groups; more numbers lie behind in memory."""
    stored, taps, inputs = rows.shape
    whole = -(-stored // group) * group
    room = np.zeros(taps * inputs * whole + spare, dtype=np.float32)
    table: Single = room[: taps * inputs * whole].reshape(taps, inputs, whole)
    table[..., :stored] = rows.transpose(1, 2, 0)
    return table


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
    shape[places.RECTIFIED] = layer.rectified
    shape[places.BOOSTED] = spec.boosted
    shape[places.PLAIN] = layer.predictor is None
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
        return np.zeros((layer.inputs, 0), np.float32), np.zeros((0, 0), np.float32)
    code = layer.filter.new_zeros(layer.inputs, 0) if layer.code is None else layer.code.t()
    return code.contiguous().numpy(), layer.predictor.t().contiguous().numpy()


def _added(layer: GatedLayer, spare: int) -> Single:
    """What a plain layer adds to its outputs, and numbers more in memory."""
    return np.concatenate([layer.beta.numpy(), np.zeros(spare, dtype=np.float32)])


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
