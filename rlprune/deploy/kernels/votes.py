"""Which channels an image computes in a layer: the trade-off of both agents, and the cap.

As ``rlprune.deploy.decide.Rules.positions``. Legend: S stored channels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlprune.deploy.kernels.jit import compiled
from rlprune.deploy.kernels.places import (
    ANCHOR,
    CAP,
    CHANNELS,
    COMPUTE_DIAL,
    PERMANENT,
    PROJECTED,
    RATE,
    VOTES,
    Double,
    Single,
    Whole,
)
from rlprune.deploy.kernels.ratios import kept_count

_MARGIN = 1e-4  # of budget.share


@compiled
def ascending(importance: Single) -> Whole:
    """Stable order [S], least first, NaN last: as ``argsort(kind="stable")``.

    Sorted are whole numbers: a float's bits, turned so that they compare as the floats do,
    above its position.
    """
    keys = np.empty(len(importance), np.uint64)
    bits = (importance + np.float32(0.0)).view(np.uint32)  # there is no -0.0 any more
    for j in range(len(importance)):
        key = np.uint64(bits[j])
        if importance[j] != importance[j]:
            key = np.uint64(0xFFFFFFFF)
        elif key >= np.uint64(0x80000000):
            key = np.uint64(0xFFFFFFFF) - key
        else:
            key += np.uint64(0x80000000)
        keys[j] = (key << np.uint64(32)) + np.uint64(j)
    keys.sort()
    order = np.empty(len(importance), np.int64)
    for j in range(len(importance)):
        order[j] = np.int64(keys[j] & np.uint64(0xFFFFFFFF))
    return order


@compiled
def keep(
    shape: Whole,
    rules: Double,
    budget: Double,
    votes: Whole,
    importance: Single,
    ratio: float,
    most: int,
    kept: Whole,
) -> int:
    """Writes the positions kept and returns how many: ``Rules.positions`` and the cap."""
    stored, channels = len(importance), shape[CHANNELS]
    order = ascending(importance)
    against = min(max(stored - kept_count(ratio, channels), 0), stored)
    pruned = np.zeros(stored, np.bool_)
    _vote(shape, rules[RATE], votes, order, against, pruned)
    count = stored - int(np.count_nonzero(pruned))
    if shape[PROJECTED] == 1 and budget[CAP] < np.inf:
        intended = kept_count(ratio * budget[COMPUTE_DIAL] / budget[ANCHOR], channels)
        spare = count - min(most, intended)
        for place in order:
            if spare > 0 and not pruned[place]:
                pruned[place] = True
                spare -= 1
                count -= 1
    at = 0
    for place in range(stored):
        if not pruned[place]:
            kept[at] = place
            at += 1
    return count


@compiled
def _vote(
    shape: Whole, rate: float, votes: Whole, order: Whole, against: int, pruned: NDArray[np.bool_]
) -> None:
    """Marks what the trade-off prunes; the runtime agent is against ``order[:against]``."""
    permanent = shape[PERMANENT] == 1
    if permanent and rate >= 1.0:
        for place in order[:against]:
            pruned[place] = True
        return
    voted = np.zeros(len(order), np.bool_)
    alone = 0
    for place in order[:against]:
        voted[place] = True
        pruned[place] = votes[1, place] == 1  # both agents are against it
        alone += votes[1, place] != 1
    _mark(order[:against], votes[1], share(rate, alone), pruned)
    if permanent:
        return
    static = votes[0, : shape[VOTES]]
    alone = 0
    for place in static:
        alone += not voted[place]
    _mark(static, voted, share(1.0 - rate, alone), pruned)


@compiled
def _mark(order: Whole, other: NDArray[Any], count: int, pruned: NDArray[np.bool_]) -> None:
    """Prunes the first ``count`` of ``order`` that the other agent is not against."""
    for place in order:
        if count > 0 and other[place] == 0:
            pruned[place] = True
            count -= 1


@compiled
def share(rate: float, count: int) -> int:
    """As ``budget.share``."""
    return math.floor(rate * count + _MARGIN)
