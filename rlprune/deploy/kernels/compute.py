"""What a layer computes for an image, in one call: the two functions that Python calls.

Legend: B images, P pixels, S stored channels, I stored input channels, i and n computed ones,
k taps of a kernel, h the agent's width, r rank, T layers.
"""

from __future__ import annotations

import numpy as np

from rlprune.deploy.kernels.convolve import LANES, convolve, row_stride, surround
from rlprune.deploy.kernels.filters import gather_filters, gather_inputs, scales
from rlprune.deploy.kernels.importances import importances, pooled_input
from rlprune.deploy.kernels.jit import carray, compiled, entry
from rlprune.deploy.kernels.places import (
    AGENT_AT,
    BIAS,
    BOOSTED,
    CAP,
    CHANNEL_AT,
    CHANNEL_ROWS,
    CODE_AT,
    COUNTS,
    DECIDES,
    ENCODER_AT,
    FILTERS_AT,
    HIDDEN,
    IN_CHANNELS,
    INPUTS,
    LAYER,
    LAYERS,
    PAD_X,
    PAD_Y,
    PIXELS,
    PLAIN,
    PREDICTOR_AT,
    RANK,
    RECTIFIED,
    RULES,
    RULES_AT,
    SHAPE,
    SHAPE_AT,
    SIZES,
    SIZES_AT,
    SPENT,
    STARTS,
    STARTS_AT,
    STORED,
    TABLE_AT,
    TABLE_WIDTH,
    TAPS,
    TAPS_AT,
    TERMS_AT,
    VOTES_AT,
    Double,
    Single,
    Whole,
)
from rlprune.deploy.kernels.ratios import keep_ratio, room
from rlprune.deploy.kernels.vectors import doubles, singles, wholes
from rlprune.deploy.kernels.votes import keep as keep_channels


@entry
def compute(
    jobs: Whole,
    x: Single,
    columns: Whole,
    budget: Double,
    numbers: Double,
    state: Single,
    pairs: Whole,
    kept: Whole,
    counts: Whole,
    weights: Single,
    shift: Single,
    around: Single,
    between: Single,
    out: Single,
) -> int:
    """Layers that follow each other: decides what each computes, and computes it.

    It stops early where an input is not finite (the layer's count is 0 then), and where a
    convolution is to be torch's: then there are only its filters (of a plain layer not even them).

    Args:
        jobs: of the layers, see ``places``, [L, JOB].
        x: input of one image [P, i].
        columns: which stored input channels those are, ascending, [i].
        budget: see ``places``.
        numbers: of the image [2 + T]; changed.
        state: of the agent [h]; changed.
        pairs: largest n i at which the convolution is ours, [L].
        kept: becomes the positions kept, ascending, in the first n places of each row.
        counts: becomes n of each layer, [L].
        weights, shift: room for filters and what is added to each channel.
        around: room for an input with zeros around it.
        between: room for outputs that only the next layer reads, two halves.
        out: becomes the output of the last layer [P', n].

    Returns:
        How many layers were computed.
    """
    last, half = len(jobs) - 1, len(between) // 2
    rooms = (weights, shift, around)
    for at in range(len(jobs)):
        job = jobs[at]
        start = at % 2 * half
        target = out if at == last else between[start : start + half]
        image = (budget, numbers, state, kept[at])
        count = _layer(job, x, columns, image, pairs[at], rooms, target)
        counts[at] = count
        if count == 0 or count * len(columns) > pairs[at]:
            return at
        columns = kept[at, :count]
        x = target[: job[PIXELS] * count].reshape(job[PIXELS], count)
    return len(jobs)


@compiled
def _layer(
    job: Whole,
    x: Single,
    columns: Whole,
    image: tuple[Double, Double, Single, Whole],
    pairs: int,
    rooms: tuple[Single, Single, Single],
    out: Single,
) -> int:
    """One layer of :func:`compute`; returns n."""
    budget, numbers, state, kept = image
    weights, shift, around = rooms
    stored, inputs, rank, hidden = job[STORED], job[INPUTS], job[RANK], job[HIDDEN]
    shape = carray(wholes(job[SHAPE_AT]), (SHAPE,))
    if shape[PLAIN]:  # its filters lie ready
        kept[:stored] = np.arange(stored)
        if stored * inputs <= pairs:
            size = job[TAPS] * inputs * job[TABLE_WIDTH] + LANES
            filters, shifts = singles(job[TABLE_AT]), singles(job[CHANNEL_AT])
            ready = carray(filters, (size,)), carray(shifts, (stored + LANES,))
            _convolve(job, x, inputs, ready, stored, shape[RECTIFIED], around, out)
        return int(stored)
    channel = carray(singles(job[CHANNEL_AT]), (CHANNEL_ROWS, stored))
    code = carray(singles(job[CODE_AT]), (inputs, rank))
    rows = inputs if rank == 0 else rank
    predictor = carray(singles(job[PREDICTOR_AT]), (rows, stored))
    pooled = pooled_input(x, columns, inputs)
    boosted = shape[BOOSTED]
    importance = importances(pooled, code, predictor, channel[BIAS], shape[IN_CHANNELS], boosted)
    count = decide(
        shape,
        carray(doubles(job[RULES_AT]), (RULES,)),
        carray(doubles(job[TERMS_AT]), (3, job[LAYERS])),
        budget,
        carray(wholes(job[VOTES_AT]), (2, stored)),
        carray(singles(job[ENCODER_AT]), (6 + inputs + stored, hidden)),
        carray(singles(job[AGENT_AT]), (2 * hidden + 2, hidden)),
        pooled,
        importance,
        numbers,
        state,
        kept,
    )
    if count == 0:
        return 0
    present, chosen = len(columns), kept[:count]
    pruned = np.float32((shape[IN_CHANNELS] - present) / shape[IN_CHANNELS])
    scale = np.empty(count, np.float32)
    scales(channel, importance, pruned, boosted, chosen, scale, shift)
    if count * present > pairs:
        filters = carray(singles(job[FILTERS_AT]), (stored, job[TAPS], inputs))
        gather_filters(filters, scale, chosen, columns, weights)
        return count
    table = carray(singles(job[TABLE_AT]), (job[TAPS], inputs, job[TABLE_WIDTH]))
    gather_inputs(table, scale, chosen, columns, row_stride(count), weights)
    _convolve(job, x, present, (weights, shift), count, shape[RECTIFIED], around, out)
    return count


@compiled
def _convolve(
    job: Whole,
    x: Single,
    present: int,
    filters: tuple[Single, Single],
    count: int,
    rectified: int,
    around: Single,
    out: Single,
) -> None:
    """Writes a layer's output [P', n] from its input [P, i], filters and what is added."""
    sizes = carray(wholes(job[SIZES_AT]), (SIZES,))
    if sizes[PAD_Y] + sizes[PAD_X] > 0:
        surround(x, sizes, around)
    else:
        around = x.reshape(-1)
    starts = carray(wholes(job[STARTS_AT]), (job[STARTS],))
    taps = carray(wholes(job[TAPS_AT]), (job[TAPS],))
    weights, shift = filters
    convolve(around, present, starts, taps, weights, shift, count, rectified, job[PIXELS], out)


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
        shape, rules, terms, budget: see ``places``; terms [3, T].
        votes: [2, S]: channels by static importance, least first; 1 where the static agent
            votes against the channel.
        encoder: [5 + I + S + 1, h].
        agent: [2 h + 2, h]: recurrence of (encoded, state), its bias, the head's weights.
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

    As ``Decisions.decide``; arguments as for :func:`choose_all`, pooled input [I] and u_r [S].
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
