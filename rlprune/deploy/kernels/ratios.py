"""How many channels an image computes in a layer: budget, agent, projection.

As ``rlprune.deploy.decide.Decisions`` and ``budget.Costs``. Legend: S stored channels, I stored
input channels, h the agent's width.
"""

from __future__ import annotations

import math

import numpy as np

from rlprune.deploy.kernels.importances import add_product
from rlprune.deploy.kernels.jit import compiled
from rlprune.deploy.kernels.places import (
    AGENT,
    ALPHA,
    ANCHOR,
    CAP,
    CAP_DIAL,
    CHANGE,
    CHANNELS,
    COMPUTE_DIAL,
    COUNTS,
    EACH,
    LAYER,
    LEAST,
    LEAST_AFTER,
    LEAST_TERMS,
    LINEAR,
    LINEAR_AFTER,
    OFFSET,
    PREVIOUS,
    PROJECTED,
    RATE,
    SLOPE_AFTER,
    SPENT,
    SQUARE_AFTER,
    STORAGE_DIAL,
    WIDE_TERMS,
    Double,
    Single,
    Whole,
)

_CONTEXT = 5  # of decide.CONTEXT
_MARGIN = 1e-4  # of budget.kept_count


@compiled
def kept_count(ratio: float, channels: int) -> int:
    """As ``budget.kept_count``."""
    return min(max(math.ceil(ratio * channels - _MARGIN), 1), channels)


@compiled
def room(
    shape: Whole, rules: Double, terms: Double, budget: Double, numbers: Double
) -> tuple[float, int, float]:
    """MACs of a channel, channels allowed, and the ratio that the rest can still have.

    As ``Costs.each``, ``largest_count`` and ``proportional_share``.
    """
    channels = shape[CHANNELS]
    if budget[CAP] == np.inf:
        return 0.0, channels, 1.0
    each, least, wide = rules[LINEAR], 0.0, 0.0
    for t in range(shape[LAYER]):
        count = numbers[COUNTS + t]
        each += terms[EACH, t] * count
        least += terms[LEAST_TERMS, t] * count
        wide += terms[WIDE_TERMS, t] * count
    free = budget[CAP] - numbers[SPENT]
    slope = max(each + rules[SLOPE_AFTER], 1e-9)
    room = np.floor((free - (rules[LEAST_AFTER] + least)) / slope + 1e-9)
    most = int(min(max(room, rules[LEAST]), channels))
    quadratic, linear, free = rules[SQUARE_AFTER], rules[LINEAR_AFTER] + wide, max(free, 0.0)
    root = math.sqrt(linear * linear + 4.0 * quadratic * free)
    return each, most, min(2.0 * free / max(linear + root, 1e-9), 1.0)


@compiled
def keep_ratio(
    shape: Whole,
    rules: Double,
    budget: Double,
    pooled: Single,
    importance: Single,
    encoder: Single,
    agent: Single,
    numbers: Double,
    state: Single,
    left: float,
) -> float:
    """As ``Decisions._ratio``; NaN where the agent's answer is."""
    base: float = budget[ANCHOR]
    if shape[CHANGE] == 1 and shape[LAYER] > 0:
        base = numbers[PREVIOUS]
    ratio = base
    if shape[AGENT] == 1:
        seen = np.empty(len(encoder), np.float32)
        seen[0], seen[1], seen[2] = base, budget[COMPUTE_DIAL], budget[STORAGE_DIAL]
        seen[3], seen[4], seen[-1] = rules[RATE], left, 1.0
        end = _CONTEXT + len(pooled)
        _standardise(pooled, seen[_CONTEXT:end], int(np.count_nonzero(pooled)))
        _standardise(importance, seen[end:-1], len(importance))
        ratio = _step(seen, encoder, agent, state) + rules[OFFSET] + base
        if ratio != ratio:
            return math.nan
    ratio = min(max(ratio, rules[ALPHA]), 1.0)
    numbers[PREVIOUS] = ratio
    if shape[PROJECTED] == 1 and budget[CAP] < np.inf:
        ratio *= min(left / budget[CAP_DIAL], 1.0)
    return float(ratio)


@compiled
def _standardise(features: Single, out: Single, count: int) -> None:
    """As ``decide._standardise``."""
    count = max(count, 1)
    total, square = 0.0, 0.0
    for value in features:
        total += value
    mean = np.float32(total / count)
    partial = count < len(features)
    for j in range(len(features)):
        value = features[j] - mean
        if partial and features[j] == 0.0:
            value = np.float32(0.0)
        out[j] = value
        square += value * value
    scale = np.float32(1.0 / math.sqrt(square / count + 1e-5))
    for j in range(len(features)):
        out[j] *= scale


@compiled
def _step(seen: Single, encoder: Single, agent: Single, state: Single) -> float:
    """The head's answer without its bias; moves ``state`` on."""
    width = len(state)
    encoded = np.zeros(width, np.float32)
    add_product(seen, encoder, encoded)
    for j in range(width):
        if encoded[j] < 0.0:
            encoded[j] = np.float32(0.0)
    following = np.zeros(width, np.float32)
    add_product(encoded, agent[:width], following)
    add_product(state, agent[width : 2 * width], following)
    answer = 0.0
    for j in range(width):
        state[j] = math.tanh(following[j] + agent[2 * width, j])
        answer += agent[2 * width + 1, j] * state[j]
    return answer
