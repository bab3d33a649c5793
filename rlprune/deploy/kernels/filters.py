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


@compiled
def gather_rows(
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


@compiled
def unfold(x: Single, sizes: Whole, out: Single) -> None:
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


@compiled
def _move(source: Single, out: Single) -> None:
    for j in range(len(out)):
        out[j] = source[j]
