"""A convolution of one image whose channels lie next to each other, without a library.

Blocks of outputs are summed up in registers, over all taps and input channels; the input is
read where it lies (zeros are put around it first where there is padding). What is gathered
for an image goes in as it is: a library would put it in another order first.

Legend: P input and P' output pixels, i and n computed channels, k taps of a kernel.
"""

from __future__ import annotations

import numpy as np

from rlprune.deploy.kernels.jit import compiled
from rlprune.deploy.kernels.places import HEIGHT, PAD_X, PAD_Y, WIDTH, Single, Whole
from rlprune.deploy.kernels.vectors import (
    FILTERS,
    INPUT,
    JOB,
    LAST,
    OUTPUT,
    PRESENT,
    RECTIFY,
    REGISTERS,
    SHIFT,
    STARTS,
    STRIDE,
    TAP_COUNT,
    TAPS,
    TARGETS,
    block,
)

_one, _two, _three = (block(REGISTERS, wide) for wide in (1, 2, 3))
LANES, PIXELS, _WIDEST = REGISTERS.lanes, REGISTERS.pixels, REGISTERS.widest


@compiled
def row_stride(count: int) -> int:
    """Numbers of a row of filters: whole registers."""
    return (count + LANES - 1) // LANES * LANES


@compiled
def surround(x: Single, sizes: Whole, out: Single) -> None:
    """Writes an input [P, i] with zeros around it.

    Args:
        x: the input.
        sizes: its height and width, and zeros above and before it, [4].
        out: becomes [(height + 2 PAD_Y) (width + 2 PAD_X), i]; at least as long.
    """
    present = x.shape[1]
    inner, side = sizes[WIDTH] * present, sizes[PAD_X] * present
    edge = sizes[PAD_Y] * (inner + 2 * side)
    _clear(out[:edge])
    at = edge
    numbers = x.reshape(-1)
    for row in range(sizes[HEIGHT]):
        _clear(out[at : at + side])
        _move(numbers[row * inner : (row + 1) * inner], out[at + side : at + side + inner])
        _clear(out[at + side + inner : at + side + inner + side])
        at += inner + 2 * side
    _clear(out[at : at + edge])


@compiled
def _clear(out: Single) -> None:
    for j in range(len(out)):
        out[j] = np.float32(0.0)


@compiled
def _move(source: Single, out: Single) -> None:
    for j in range(len(out)):
        out[j] = source[j]


@compiled
def convolve(
    x: Single,
    present: int,
    starts: Whole,
    taps: Whole,
    weights: Single,
    shift: Single,
    count: int,
    rectify: int,
    pixels: int,
    out: Single,
) -> None:
    """Writes the output [P', n].

    Args:
        x: the input with what is around it.
        present: i.
        starts: for each output pixel the input pixel that its first tap reads; the last one
            as often as fills up a block of ``PIXELS``.
        taps: how many pixels further each tap reads, [k].
        weights: [k i, stride], see :func:`row_stride`; LANES numbers longer.
        shift: n numbers and LANES more.
        count: n.
        rectify: 1: negative outputs become 0.
        pixels: P'.
        out: at least as long.
    """
    registers = (count + LANES - 1) // LANES
    targets = np.empty(len(starts), np.int64)
    for pixel in range(len(starts)):
        targets[pixel] = min(pixel, pixels - 1) * count
    job = np.empty(JOB, np.int64)
    job[INPUT], job[TAPS], job[TAP_COUNT] = x.ctypes.data, taps.ctypes.data, len(taps)
    job[PRESENT], job[STRIDE], job[RECTIFY] = present, registers * LANES, rectify
    done = 0
    while done < registers:
        wide = min(registers - done, _WIDEST)
        if registers - done == _WIDEST + 1:
            wide = (_WIDEST + 1) // 2  # rather two and two than three and one
        offset = 4 * done * LANES
        job[FILTERS], job[SHIFT] = weights.ctypes.data + offset, shift.ctypes.data + offset
        job[OUTPUT] = out.ctypes.data + offset
        job[LAST] = min(count - (done + wide - 1) * LANES, LANES)
        for pixel in range(0, len(starts), PIXELS):
            job[STARTS], job[TARGETS] = (
                starts.ctypes.data + 8 * pixel,
                targets.ctypes.data + 8 * pixel,
            )
            if wide == 1:
                _one(job.ctypes.data)
            elif wide == 2:
                _two(job.ctypes.data)
            else:
                _three(job.ctypes.data)
        done += wide
