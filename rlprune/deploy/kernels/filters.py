"""A layer's filters for one image: what it computes, scaled by its importances.

Legend: S stored channels, I stored input channels, i and n computed ones, k taps of a kernel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlprune.deploy.kernels.jit import compiled
from rlprune.deploy.kernels.places import (
    BETA,
    MEAN,
    STATIC,
    WIDTH_SCALE,
    WIDTH_SHIFT,
    Single,
    Whole,
)
from rlprune.deploy.kernels.vectors import HAS_AVX512, press

_GROUP = 16  # of vectors.press


@compiled
def scales(
    channel: Single,
    importance: Single,
    pruned: np.float32,
    boosted: int,
    kept: Whole,
    scale: Single,
    shift: Single,
) -> None:
    """Writes u and beta (boosted: u * beta) - u * mean of the channels kept, n places of each."""
    one = np.float32(1.0)
    for row in range(len(kept)):
        place = kept[row]
        static = channel[STATIC, place]
        value = abs(importance[place] * static)
        if importance[place] < 0.0 or static < 0.0:
            value = -value
        beta = channel[BETA, place]
        if boosted:
            beta = value * beta
        value = value * (one + pruned * channel[WIDTH_SCALE, place])
        beta = beta + pruned * channel[WIDTH_SHIFT, place]
        scale[row] = value
        shift[row] = beta - value * channel[MEAN, place]


# --- one filter after the other, for torch's convolution -----------------------------------


@compiled
def gather_filters(
    filters: Single, scale: Single, kept: Whole, columns: Whole, weights: Single
) -> None:
    """Writes u times the filters kept, [n, k, i], from ``filters`` [S, k, I]."""
    taps, inputs, present = filters.shape[1], filters.shape[2], len(columns)
    picked, at = columns.astype(np.uint32), 0
    for row in range(len(kept)):
        for tap in range(taps):
            source, out = filters[kept[row], tap], weights[at : at + present]
            if present == inputs:
                _copy(source, scale[row], out)
            else:
                _pick(source, picked, scale[row], out)
            at += present


@compiled
def _copy(source: Single, scale: float, out: Single) -> None:
    for j in range(len(out)):
        out[j] = source[j] * scale


@compiled
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


# --- one input channel after the other, for our own ------------------------------------------


@compiled
def gather_inputs(
    table: Single, scale: Single, kept: Whole, columns: Whole, stride: int, weights: Single
) -> None:
    """Writes u times the filters kept, [k i, stride], from ``table`` [k, I, S'].

    S' is S and zeros up to a multiple of 16. Behind the n numbers of a row is anything.
    """
    if HAS_AVX512:
        press_inputs(table, scale, kept, columns, stride, weights)
    else:
        pick_inputs(table, scale, kept, columns, stride, weights)


@compiled
def pick_inputs(
    table: Single, scale: Single, kept: Whole, columns: Whole, stride: int, weights: Single
) -> None:
    """:func:`gather_inputs` for any processor."""
    count, picked = len(kept), kept.astype(np.uint32)
    for tap in range(table.shape[0]):
        for j in range(len(columns)):
            at = (tap * len(columns) + j) * stride
            _pick_each(table[tap, columns[j]], picked, scale, weights[at : at + count])


@compiled
def _pick_each(source: Single, picked: NDArray[np.uint32], scale: Single, out: Single) -> None:
    """``source[picked] * scale``; see :func:`_pick`."""
    whole = len(out) - len(out) % 4
    for j in range(0, whole, 4):
        a, b = source[picked[j]] * scale[j], source[picked[j + 1]] * scale[j + 1]
        c, d = source[picked[j + 2]] * scale[j + 2], source[picked[j + 3]] * scale[j + 3]
        out[j], out[j + 1], out[j + 2], out[j + 3] = a, b, c, d
    for j in range(whole, len(out)):
        out[j] = source[picked[j]] * scale[j]


@compiled
def press_inputs(
    table: Single, scale: Single, kept: Whole, columns: Whole, stride: int, weights: Single
) -> None:
    """:func:`gather_inputs` with AVX-512; ``weights`` has 16 numbers more than are asked for."""
    groups = table.shape[2] // _GROUP
    masks, counts = np.zeros(groups, np.int64), np.zeros(groups, np.int64)
    full = np.zeros(table.shape[2], np.float32)
    for j in range(len(kept)):
        group, bit = kept[j] // _GROUP, kept[j] % _GROUP
        masks[group] |= 1 << bit
        counts[group] += 1
        full[kept[j]] = scale[j]
    row_bytes, out = 4 * table.shape[2], weights.ctypes.data
    for tap in range(table.shape[0]):
        first = table.ctypes.data + tap * table.shape[1] * row_bytes
        for j in range(len(columns)):
            press(
                first + columns[j] * row_bytes,
                full.ctypes.data,
                masks.ctypes.data,
                counts.ctypes.data,
                groups,
                out,
            )
            out += 4 * stride
