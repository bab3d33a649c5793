"""How important an image finds a layer's channels (paper Sec. 3.1): u_r from its pooled input.

Legend: P pixels, S stored channels, I stored input channels, i computed ones, r rank.
"""

from __future__ import annotations

import math

import numpy as np

from rlprune.deploy.kernels.jit import compiled
from rlprune.deploy.kernels.places import Single, Whole

_EPSILON = 1e-6  # of layer.GatedLayer
_BLOCK = 64  # pixels summed up before their sum joins the total: keeps float32 sums exact


@compiled
def averages(x: Single) -> Single:
    """Of each channel, [P, i] -> [i]."""
    pixels, present = x.shape
    total, part = np.zeros(present, np.float32), np.empty(present, np.float32)
    for start in range(0, pixels, _BLOCK):
        part[:] = np.float32(0.0)
        for pixel in range(start, min(start + _BLOCK, pixels)):
            _add(x[pixel], part)
        _add(part, total)
    return total / np.float32(pixels)


@compiled
def pooled_input(x: Single, columns: Whole, inputs: int) -> Single:
    """Averages of all stored input channels, zero where not computed, [I]."""
    pooled, found = np.zeros(inputs, np.float32), averages(x)
    for j in range(len(columns)):
        pooled[columns[j]] = found[j]
    return pooled


@compiled
def _add(values: Single, out: Single) -> None:
    """Adds ``values`` to ``out``; loops over slices in functions of their own are vectorised."""
    for j in range(len(out)):
        out[j] += values[j]


@compiled
def add_scaled(values: Single, scale: float, out: Single) -> None:
    """Adds ``scale * values`` to ``out``."""
    for j in range(len(out)):
        out[j] += values[j] * scale


@compiled
def add_product(values: Single, matrix: Single, out: Single) -> None:
    """Adds ``values @ matrix`` to ``out``."""
    for row in range(len(values)):
        if values[row] != 0.0:  # half of the inputs are not there
            add_scaled(matrix[row], values[row], out)


@compiled
def importances(
    pooled: Single, code: Single, predictor: Single, bias: Single, width: int, boosted: int
) -> Single:
    """u_r [S] from the pooled input at unit scale over ``width`` channels; boosted: cut at zero."""
    power = 0.0
    for value in pooled:
        power += value * value
    scale = np.float32(1.0 / math.sqrt(power / width + _EPSILON))
    seen = pooled * scale
    if code.shape[1] > 0:
        coded = np.zeros(code.shape[1], np.float32)
        add_product(seen, code, coded)
        seen = coded
    found = np.zeros(predictor.shape[1], np.float32)
    add_product(seen, predictor, found)
    found = found + bias
    if boosted:
        for place in range(len(found)):
            found[place] = max(found[place], np.float32(0.0))
    return found
