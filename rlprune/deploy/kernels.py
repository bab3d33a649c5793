"""What a gated layer does for one image before its convolution, compiled with numba.

The same steps as ``GatedLayer.gathered`` and ``Decisions.decide``, in one call: there, each of
some thirty small operations costs more in its call than in its work. Importing this module
loads numba (a second); the first call compiles (seconds, once per installation: kept beside
this file or in the user's cache folder).

Numbers are float32 where the NumPy version has float32, and costs are float64; sums run in
another order. tests/unit/test_deploy_fast.py holds the decisions of one against the other.

Everything compiled stays in this one file: numba keeps a function until *its* file changes,
so a change of a function that it calls in another file would not be noticed.

Legend: B images, P pixels, S stored channels, I stored input channels, i and n computed ones,
k taps of a kernel, h the agent's width, r rank, T layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

_njit: Any = njit
_Function = TypeVar("_Function", bound=Callable[..., Any])
Single = NDArray[np.float32]
Double = NDArray[np.float64]
Whole = NDArray[np.int64]

# Places in a layer's ``shape``, whole numbers.
LAYER, CHANNELS, IN_CHANNELS, VOTES, PERMANENT, DECIDES, AGENT, CHANGE, PROJECTED = range(9)
SHAPE = 9
# Places in a layer's ``rules``: numbers of the model, then of ``budget.LayerCosts``.
RATE, ALPHA, OFFSET, LINEAR, SLOPE_AFTER, LEAST, LEAST_AFTER, LINEAR_AFTER, SQUARE_AFTER = range(9)
RULES = 9
# Rows of a layer's ``terms``, products with the counts of earlier layers.
EACH, LEAST_TERMS, WIDE_TERMS = range(3)
# Places in ``budget``; no cap is infinity.
CAP, COMPUTE_DIAL, STORAGE_DIAL, CAP_DIAL, ANCHOR = range(5)
# Places in an image's ``numbers``; the counts of the layers so far follow.
SPENT, PREVIOUS, COUNTS = range(3)
# Rows of ``channel``.
BETA, MEAN, STATIC, BIAS, WIDTH_SCALE, WIDTH_SHIFT = range(6)

_CONTEXT = 5  # of decide.CONTEXT
_MARGIN = 1e-4  # of budget.kept_count and budget.share
_EPSILON = 1e-6  # of layer.GatedLayer
_BLOCK = 64  # pixels summed up before their sum joins the total: keeps float32 sums exact


def _compiled(function: _Function) -> _Function:
    try:
        compiled: _Function = _njit(cache=True, error_model="numpy")(function)
    except RuntimeError:  # nowhere to keep what was compiled: compile in every process
        compiled = _njit(error_model="numpy")(function)
    return compiled


@_compiled
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
    pooled = _pooled(x, columns, filters.shape[2])
    importance = _importance(pooled, code, predictor, channel[BIAS], shape[IN_CHANNELS])
    count = _decide(
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
    _gather(filters, channel, importance, pruned, kept[:count], columns, weights, shift)
    if len(sizes) > 0 and count * len(columns) <= pairs:
        _unfold(x, sizes, patches)
    return count


@_compiled
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
        count = _decide(
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


@_compiled
def _decide(
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
    each, most, left = _room(shape, rules, terms, budget, numbers)
    ratio = _ratio(shape, rules, budget, pooled, importance, encoder, agent, numbers, state, left)
    if ratio != ratio:
        return 0
    count = _keep(shape, rules, budget, votes, importance, ratio, most, kept)
    if budget[CAP] < np.inf:
        numbers[SPENT] += each * count
    numbers[COUNTS + shape[LAYER]] = count
    return count


@_compiled
def _unfold(x: Single, sizes: Whole, out: Single) -> None:
    """Writes what each output pixel of a convolution reads, [P', k, i], zeros outside.

    Args:
        x: input of one image [P, i].
        sizes: (height, width) of input, output, kernel, stride, padding and dilation, [12].
        out: at least as long.
    """
    present, at = x.shape[1], 0
    for row in range(sizes[2]):
        for column in range(sizes[3]):
            for tap in range(sizes[4]):
                y = row * sizes[6] - sizes[8] + tap * sizes[10]
                for side in range(sizes[5]):
                    z = column * sizes[7] - sizes[9] + side * sizes[11]
                    if 0 <= y < sizes[0] and 0 <= z < sizes[1]:
                        _move(x[y * sizes[1] + z], out[at : at + present])
                    else:
                        out[at : at + present] = np.float32(0.0)
                    at += present


@_compiled
def _move(source: Single, out: Single) -> None:
    for j in range(len(out)):
        out[j] = source[j]


# --- importances --------------------------------------------------------------------------


@_compiled
def _pooled(x: Single, columns: Whole, inputs: int) -> Single:
    """Averages of all stored input channels, zero where not computed, [I]."""
    pixels, present = x.shape
    total, part = np.zeros(present, np.float32), np.empty(present, np.float32)
    for start in range(0, pixels, _BLOCK):
        part[:] = np.float32(0.0)
        for pixel in range(start, min(start + _BLOCK, pixels)):
            _add(x[pixel], part)
        _add(part, total)
    pooled = np.zeros(inputs, np.float32)
    for j in range(present):
        pooled[columns[j]] = total[j] / np.float32(pixels)
    return pooled


@_compiled
def _add(values: Single, out: Single) -> None:
    """Adds ``values`` to ``out``; loops over slices in functions of their own are vectorised."""
    for j in range(len(out)):
        out[j] += values[j]


@_compiled
def _add_scaled(values: Single, scale: float, out: Single) -> None:
    for j in range(len(out)):
        out[j] += values[j] * scale


@_compiled
def _add_product(values: Single, matrix: Single, out: Single) -> None:
    """Adds ``values @ matrix`` to ``out``."""
    for row in range(len(values)):
        if values[row] != 0.0:  # half of the inputs are not there
            _add_scaled(matrix[row], values[row], out)


@_compiled
def _importance(
    pooled: Single, code: Single, predictor: Single, bias: Single, width: int
) -> Single:
    """u_r [S] from the pooled input at unit scale over ``width`` channels."""
    power = 0.0
    for value in pooled:
        power += value * value
    scale = np.float32(1.0 / math.sqrt(power / width + _EPSILON))
    seen = pooled * scale
    if code.shape[1] > 0:
        coded = np.zeros(code.shape[1], np.float32)
        _add_product(seen, code, coded)
        seen = coded
    found = np.zeros(predictor.shape[1], np.float32)
    _add_product(seen, predictor, found)
    return found + bias


# --- how many -----------------------------------------------------------------------------


@_compiled
def _kept_count(ratio: float, channels: int) -> int:
    """As ``budget.kept_count``."""
    return min(max(math.ceil(ratio * channels - _MARGIN), 1), channels)


@_compiled
def _share(rate: float, count: int) -> int:
    """As ``budget.share``."""
    return math.floor(rate * count + _MARGIN)


@_compiled
def _room(
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


@_compiled
def _ratio(
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


@_compiled
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


@_compiled
def _step(seen: Single, encoder: Single, agent: Single, state: Single) -> float:
    """The head's answer without its bias; moves ``state`` on."""
    width = len(state)
    encoded = np.zeros(width, np.float32)
    _add_product(seen, encoder, encoded)
    for j in range(width):
        if encoded[j] < 0.0:
            encoded[j] = np.float32(0.0)
    following = np.zeros(width, np.float32)
    _add_product(encoded, agent[:width], following)
    _add_product(state, agent[width : 2 * width], following)
    answer = 0.0
    for j in range(width):
        state[j] = math.tanh(following[j] + agent[2 * width, j])
        answer += agent[2 * width + 1, j] * state[j]
    return answer


# --- which --------------------------------------------------------------------------------


@_compiled
def _ascending(importance: Single) -> Whole:
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


@_compiled
def _keep(
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
    order = _ascending(importance)
    against = min(max(stored - _kept_count(ratio, channels), 0), stored)
    pruned = np.zeros(stored, np.bool_)
    _vote(shape, rules[RATE], votes, order, against, pruned)
    count = stored - int(np.count_nonzero(pruned))
    if shape[PROJECTED] == 1 and budget[CAP] < np.inf:
        intended = _kept_count(ratio * budget[COMPUTE_DIAL] / budget[ANCHOR], channels)
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


@_compiled
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
    _mark(order[:against], votes[1], _share(rate, alone), pruned)
    if permanent:
        return
    static = votes[0, : shape[VOTES]]
    alone = 0
    for place in static:
        alone += not voted[place]
    _mark(static, voted, _share(1.0 - rate, alone), pruned)


@_compiled
def _mark(order: Whole, other: NDArray[Any], count: int, pruned: NDArray[np.bool_]) -> None:
    """Prunes the first ``count`` of ``order`` that the other agent is not against."""
    for place in order:
        if count > 0 and other[place] == 0:
            pruned[place] = True
            count -= 1


# --- filters ------------------------------------------------------------------------------


@_compiled
def _gather(
    filters: Single,
    channel: Single,
    importance: Single,
    pruned: np.float32,
    kept: Whole,
    columns: Whole,
    weights: Single,
    shift: Single,
) -> None:
    """Writes u times the filters kept, and beta - u * mean."""
    taps, inputs, present = filters.shape[1], filters.shape[2], len(columns)
    picked = columns.astype(np.uint32)  # no check for negative ones in the loop
    one, at = np.float32(1.0), 0
    for row in range(len(kept)):
        place = kept[row]
        static = channel[STATIC, place]
        scale = abs(importance[place] * static)
        if importance[place] < 0.0 or static < 0.0:
            scale = -scale
        scale = scale * (one + pruned * channel[WIDTH_SCALE, place])
        beta = channel[BETA, place] + pruned * channel[WIDTH_SHIFT, place]
        shift[row] = beta - scale * channel[MEAN, place]
        for tap in range(taps):
            if present == inputs:
                _copy(filters[place, tap], scale, weights[at : at + present])
            else:
                _pick(filters[place, tap], picked, scale, weights[at : at + present])
            at += present


@_compiled
def _copy(source: Single, scale: float, out: Single) -> None:
    for j in range(len(out)):
        out[j] = source[j] * scale


@_compiled
def _pick(source: Single, picked: NDArray[np.uint32], scale: float, out: Single) -> None:
    """``source[picked] * scale``; four at a time, so that loads do not wait for stores."""
    rest = len(out) % 4
    whole = len(out) - rest
    for j in range(0, whole, 4):
        a, b = source[picked[j]], source[picked[j + 1]]
        c, d = source[picked[j + 2]], source[picked[j + 3]]
        out[j], out[j + 1], out[j + 2], out[j + 3] = a * scale, b * scale, c * scale, d * scale
    for j in range(whole, len(out)):
        out[j] = source[picked[j]] * scale
