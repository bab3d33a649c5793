"""What a layer computes for an image, in one call: the two functions that Python calls.

Legend: B images, P pixels, S stored channels, I stored input channels, i and n computed ones,
k taps of a kernel, h the agent's width, r rank, T layers.
"""

from __future__ import annotations

import numpy as np

from rlprune.deploy.kernels.filters import gather_rows, unfold
from rlprune.deploy.kernels.importances import importances, pooled_input
from rlprune.deploy.kernels.jit import compiled, entry
from rlprune.deploy.kernels.places import (
    BIAS,
    CAP,
    COUNTS,
    DECIDES,
    IN_CHANNELS,
    LAYER,
    SPENT,
    Double,
    Single,
    Whole,
)
from rlprune.deploy.kernels.ratios import keep_ratio, room
from rlprune.deploy.kernels.votes import keep as keep_channels


@entry
def choose(
    x: Single,
    columns: Whole,
    shape: Whole,
    rules: Double,
    terms: Double,
    budget: Double,
    filters: Single,
    code: Single,
    predictor: Single,
    channel: Single,
    votes: Whole,
    encoder: Single,
    agent: Single,
    numbers: Double,
    state: Single,
    kept: Whole,
    weights: Single,
    shift: Single,
    sizes: Whole,
    patches: Single,
    pairs: int,
) -> int:
    """Decides what a layer computes and gathers its filters; returns n, 0 where x is not finite.

    Args:
        x: input of one image [P, i].
        columns: which stored input channels those are, ascending, [i].
        shape, rules, terms, budget: see the places above; terms [3, T].
        filters: [S, k, I].
        code: [I, r]; r is 0 where the predictor is a whole matrix.
        predictor: [I, S] or [r, S].
        channel: numbers of every channel [6, S].
        votes: [2, S]: channels by static importance, least first; 1 where the static agent
            votes against the channel.
        encoder: [5 + I + S + 1, h].
        agent: [2 h + 2, h]: recurrence of (encoded, state), its bias, the head's weights.
        numbers: of the image [2 + T]; changed.
        state: of the agent [h]; changed.
        kept: becomes the positions kept, ascending, in its first n places.
        weights: becomes the scaled filters [n, k, i], one after the other.
        shift: becomes what is added to each channel kept.
        sizes: as in ``_unfold``; empty: nothing is unfolded.
        patches: becomes what each output pixel reads, [P', k, i].
        pairs: largest n i at which the input is unfolded.
    """
    pooled = pooled_input(x, columns, filters.shape[2])
    importance = importances(pooled, code, predictor, channel[BIAS], shape[IN_CHANNELS])
    count = decide(
        shape,
        rules,
        terms,
        budget,
        votes,
        encoder,
        agent,
        pooled,
        importance,
        numbers,
        state,
        kept,
    )
    if count == 0:
        return 0
    pruned = np.float32((shape[IN_CHANNELS] - len(columns)) / shape[IN_CHANNELS])
    gather_rows(filters, channel, importance, pruned, kept[:count], columns, weights, shift)
    if len(sizes) > 0 and count * len(columns) <= pairs:
        unfold(x, sizes, patches)
    return count


@entry
def choose_all(
    shape: Whole,
    rules: Double,
    terms: Double,
    budget: Double,
    votes: Whole,
    encoder: Single,
    agent: Single,
    pooled: Single,
    importance: Single,
    numbers: Double,
    state: Single,
    keep: Single,
) -> int:
    """Decides what a layer computes for each of B images; returns for how many, before NaN.

    Args:
        shape, rules, terms, budget, votes, encoder, agent: as for :func:`choose`.
        pooled: averages of the stored input channels, zero where not computed, [B, I].
        importance: u_r [B, S].
        numbers: of the images [B, 2 + T]; changed.
        state: of the agents [B, h]; changed.
        keep: zeros, become 1 in the channels kept, [B, S].
    """
    kept = np.empty(importance.shape[1], np.int64)
    for row in range(len(pooled)):
        count = decide(
            shape,
            rules,
            terms,
            budget,
            votes,
            encoder,
            agent,
            pooled[row],
            importance[row],
            numbers[row],
            state[row],
            kept,
        )
        if count == 0:
            return row
        for place in kept[:count]:
            keep[row, place] = np.float32(1.0)
    return len(pooled)


@compiled
def decide(
    shape: Whole,
    rules: Double,
    terms: Double,
    budget: Double,
    votes: Whole,
    encoder: Single,
    agent: Single,
    pooled: Single,
    importance: Single,
    numbers: Double,
    state: Single,
    kept: Whole,
) -> int:
    """Writes the positions kept; returns how many, 0 where the agent answers NaN.

    As ``Decisions.decide``; arguments as for :func:`choose`, pooled input [I] and u_r [S].
    """
    if shape[DECIDES] == 0:
        for place in range(len(importance)):
            kept[place] = place
        return len(importance)
    each, most, left = room(shape, rules, terms, budget, numbers)
    ratio = keep_ratio(
        shape, rules, budget, pooled, importance, encoder, agent, numbers, state, left
    )
    if ratio != ratio:
        return 0
    count = keep_channels(shape, rules, budget, votes, importance, ratio, most, kept)
    if budget[CAP] < np.inf:
        numbers[SPENT] += each * count
    numbers[COUNTS + shape[LAYER]] = count
    return count
