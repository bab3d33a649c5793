"""Which points no other point beats: exact, for any number of objectives and many rows.

Pure NumPy. A point is beaten (dominated) if another one is at least as good in every
objective and better in one. Three steps, none of which changes the answer:

1. The front of a sample throws out most rows, block by block.
2. What is left is sorted (best first objective first, ties by the next one) and equal
   points become one. Then only earlier points can beat later ones, and being at least as
   good is the same as beating.
3. One objective: the first point. Two: those above the running maximum. More: divide and
   conquer; the first half's front filters the second half (Kung, Luccio and Preparata
   1975), n (log n)^(d-2) comparisons for d >= 3 objectives, up to constant factors.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_BLOCK = 1 << 16  # rows: a block of three objectives stays in a core's cache
_SAMPLE = 1 << 16
_THREADS = min(4, os.cpu_count() or 1)  # NumPy lets go of the interpreter's lock
_CANDIDATES = 256
_CHAMPIONS = 24
_LEAF = 128
_PAIRS = 1 << 14


@dataclass(frozen=True)
class Objective:
    """One objective of all rows.

    Attributes:
        values: [N] numbers; integers must be exact as float64.
        maximize: whether larger is better.
    """

    values: npt.NDArray[Any]
    maximize: bool

    def take(self, rows: slice | Positions) -> Floats:
        """Some rows as new float64 numbers of which larger is better."""
        taken = self.values[rows].astype(np.float64)
        return taken if self.maximize else np.negative(taken, out=taken)


def nondominated(objectives: Sequence[Objective], rows: Positions | None = None) -> Positions:
    """Positions of the rows that no other row beats.

    Equal rows are all kept. A row with NaN in any objective is never kept and beats none.

    Args:
        objectives: at least one, all of N rows.
        rows: the rows that take part, None for all.

    Returns:
        [K] positions among the N rows, ascending if ``rows`` is.
    """
    count = len(objectives[0].values) if rows is None else len(rows)
    if count == 0:
        return np.empty(0, dtype=np.int64)
    sieve = _sieve(objectives, rows)

    def sift(start: int) -> tuple[Positions, Floats]:
        """Positions and values of what is left of one block."""
        stop = min(start + _BLOCK, count)
        block = _take(objectives, slice(start, stop) if rows is None else rows[start:stop])
        alive = sieve.passing(block)
        positions = start + alive
        return positions if rows is None else rows[positions], block[:, alive]

    starts = range(0, count, _BLOCK)
    if len(starts) == 1:
        left = [sift(0)]
    else:
        with ThreadPoolExecutor(_THREADS) as pool:
            left = list(pool.map(sift, starts))
    positions = np.concatenate([block for block, _ in left])
    return positions[front_mask(np.concatenate([values for _, values in left], axis=1))]


def front_mask(values: Floats) -> Mask:
    """Which columns of ``values`` no other column beats.

    Args:
        values: [d, n], larger is better, no NaN.

    Returns:
        [n]; equal points are all kept or all left out.
    """
    if values.shape[1] == 0:
        return np.zeros(0, dtype=np.bool_)
    order = np.lexsort(values[::-1])[::-1]
    ordered = values[:, order]
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = (ordered[:, 1:] != ordered[:, :-1]).any(axis=0)
    kept = _front_of_sorted(ordered[:, first])
    mask = np.empty(len(order), dtype=np.bool_)
    mask[order] = kept[np.cumsum(first) - 1]
    return mask


def _take(objectives: Sequence[Objective], rows: slice | Positions) -> Floats:
    """[d, b] values of some rows, larger is better."""
    return np.stack([objective.take(rows) for objective in objectives])


@dataclass(frozen=True)
class _Sieve:
    """What a sample says about all rows.

    Attributes:
        champions: [c, d] points that together beat most of the sample.
        front: [d, f] the sample's front.
    """

    champions: Floats
    front: Floats

    def passing(self, block: Floats) -> Positions:
        """Which columns of ``block`` [d, b] have no NaN and may be on the front."""
        alive = np.flatnonzero(~np.isnan(block).any(axis=0))
        for champion in self.champions:
            alive = alive[~_beaten_by(champion, block[:, alive])]
        if self.front.size and len(block) > 1:
            left = block[:, alive]
            # a >= the next number is a > b: equal points must stay. Infinity has no next.
            left[0] = np.where(np.isinf(left[0]), np.nan, np.nextafter(left[0], np.inf))
            alive = alive[~_below(self.front, left)]
        return alive


def _sieve(objectives: Sequence[Objective], rows: Positions | None) -> _Sieve:
    """Made of an evenly spaced sample; its points are real rows, so the sieve is exact."""
    count = len(objectives[0].values) if rows is None else len(rows)
    if count < 4 * _SAMPLE:  # few rows: sorting them at once is faster
        nothing = np.empty((0, len(objectives)))
        return _Sieve(nothing, nothing.T)
    step = count // _SAMPLE
    sample = _take(objectives, slice(0, count, step) if rows is None else rows[::step])
    sample = sample[:, ~np.isnan(sample).any(axis=0)]
    front = np.unique(sample[:, front_mask(sample)], axis=1)
    return _Sieve(_champions(front, sample), front)


def _champions(front: Floats, sample: Floats) -> Floats:
    """[c, d] members of the front, each the one that beats most of what is left."""
    candidates = front[:, :: max(1, front.shape[1] // _CANDIDATES)]
    if candidates.size == 0 or len(candidates) == 2:  # two: the front itself is fast
        return np.empty((0, len(candidates)))
    beaten = np.stack([_beaten_by(point, sample) for point in candidates.T])
    chosen: list[int] = []
    while len(chosen) < _CHAMPIONS:
        counts = beaten.sum(axis=1)
        best = int(counts.argmax())
        if counts[best] < sample.shape[1] / 50:  # a pass over all rows would not pay
            break
        chosen.append(best)
        beaten = beaten[:, ~beaten[best]]
    return candidates.T[chosen]


def _beaten_by(point: Floats, values: Floats) -> Mask:
    """Which columns of ``values`` [d, n] the point [d] beats."""
    at_most: Mask = values[0] <= point[0]
    less = values[0] < point[0]
    for row, bound in zip(values[1:], point[1:], strict=True):
        at_most &= row <= bound
        less |= row < bound
    at_most &= less
    return at_most


def _front_of_sorted(values: Floats) -> Mask:
    """As :func:`front_mask`, for points [d, n] that are distinct and sorted, best first."""
    dimensions, count = values.shape
    kept = np.zeros(count, dtype=np.bool_)
    kept[0] = True
    if dimensions == 2:
        kept[1:] = values[1, 1:] > np.maximum.accumulate(values[1, :-1])
    elif dimensions > 2:
        kept[_divide(values, np.arange(count))] = True
    return kept


def _divide(values: Floats, rows: Positions) -> Positions:
    """The front among some of the sorted, distinct points, as a subset of ``rows``."""
    if len(rows) <= _LEAF:
        points = values[:, rows]
        return rows[~_below_pairwise(points, points, itself=True)]
    half = len(rows) // 2
    ahead, behind = _divide(values, rows[:half]), rows[half:]
    # the order settles the first objective
    below = _below(values[1:, ahead], values[1:, behind])
    return np.concatenate([ahead, _divide(values, behind[~below])])


def _below(ahead: Floats, behind: Floats) -> Mask:
    """Which columns of ``behind`` [k, b] some column of ``ahead`` [k, a] is >= everywhere."""
    if ahead.shape[1] == 0 or behind.shape[1] == 0:
        return np.zeros(behind.shape[1], dtype=np.bool_)
    if len(ahead) == 2:
        return _below_staircase(ahead, behind)
    if ahead.shape[1] * behind.shape[1] <= _PAIRS:
        return _below_pairwise(ahead, behind)
    if ahead[-1].min() >= behind[-1].max():
        return _below(ahead[:-1], behind[:-1])
    cut = _cut(np.concatenate([ahead[-1], behind[-1]]))
    strong, high = ahead[-1] >= cut, behind[-1] >= cut
    below = np.zeros(behind.shape[1], dtype=np.bool_)
    below[high] = _below(ahead[:, strong], behind[:, high])
    low = np.flatnonzero(~high)
    below[low] = _below(ahead[:-1, strong], behind[:-1, low])
    low = low[~below[low]]
    below[low] = _below(ahead[:, ~strong], behind[:, low])
    return below


def _cut(values: Floats) -> float:
    """A value near the median with some values below it; they are not all equal."""
    middle = np.partition(values, len(values) // 2)[len(values) // 2]
    least = values.min()
    return float(middle if middle > least else values[values > least].min())


def _below_staircase(ahead: Floats, behind: Floats) -> Mask:
    """:func:`_below` for two rows: the best second value among all with as good a first one."""
    order = np.argsort(ahead[0])
    best = np.maximum.accumulate(ahead[1, order[::-1]])[::-1]
    best = np.append(best, np.nan)  # none is as good in the first: NaN >= x is false
    mask: Mask = best[np.searchsorted(ahead[0, order], behind[0])] >= behind[1]
    return mask


def _below_pairwise(ahead: Floats, behind: Floats, *, itself: bool = False) -> Mask:
    """:func:`_below` by comparing all pairs; ``itself``: the same points, which are distinct."""
    pairs: Mask = ahead[0][:, None] >= behind[0]
    for left, right in zip(ahead[1:], behind[1:], strict=True):
        pairs &= left[:, None] >= right
    if itself:
        np.fill_diagonal(pairs, False)
    below: Mask = np.asarray(pairs.any(axis=0))
    return below
