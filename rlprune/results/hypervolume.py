"""The volume that a set of points covers above the origin, exact in any dimension.

Two dimensions: rectangles under a staircase. Three: a sweep down the last one keeps the
staircase's area, n log n. More: slices of one dimension less.
"""

from __future__ import annotations

import bisect

import numpy as np

from rlprune.results.nondominated import Floats, front_mask


def dominated_volume(points: Floats) -> float:
    """The volume of all z >= 0 that are below some point in every dimension.

    Args:
        points: [d, n], no NaN; points that are not above 0 everywhere add nothing.

    Returns:
        The volume, infinite if a point that counts has an infinite coordinate.
    """
    points = points[:, (points > 0.0).all(axis=0)]
    if points.shape[1] == 0:
        return 0.0
    if np.isinf(points).any():
        return float("inf")
    return _volume(points)


def _volume(points: Floats) -> float:
    if len(points) == 1:
        return float(points.max())
    points = points[:, front_mask(points)]
    points = points[:, np.argsort(-points[-1], kind="stable")]
    if len(points) == 2:
        # heights fall, so widths rise; equal points have a width of zero
        return float((np.diff(points[0], prepend=0.0) * points[1]).sum())
    if len(points) == 3:
        return _sweep(points)
    thickness = -np.diff(points[-1], append=0.0)
    volumes = [
        _volume(points[:-1, : count + 1]) * thick
        for count, thick in enumerate(thickness.tolist())
        if thick > 0.0
    ]
    return float(sum(volumes))


def _sweep(points: Floats) -> float:
    """Three dimensions: the area above each height, times the way down to the next."""
    stairs = _Stairs()
    volume = 0.0
    heights = [*points[2].tolist(), 0.0]
    for index, (x, y) in enumerate(zip(points[0].tolist(), points[1].tolist(), strict=True)):
        stairs.add(x, y)
        volume += stairs.area * (heights[index] - heights[index + 1])
    return volume


class _Stairs:
    """The union of rectangles from the origin to (x, y), as a staircase falling to the right.

    Attributes:
        area: of the union.
    """

    def __init__(self) -> None:
        self.area = 0.0
        self._x: list[float] = []
        self._y: list[float] = []

    def add(self, x: float, y: float) -> None:
        """Adds a rectangle; steps that it covers disappear."""
        right = bisect.bisect_left(self._x, x)  # steps from here on are at least as wide
        floor = self._y[right] if right < len(self._y) else 0.0
        if floor >= y:
            return
        left = right
        edge, height = x, floor
        while left > 0 and self._y[left - 1] <= y:  # covered steps, from right to left
            left -= 1
            self.area += (edge - self._x[left]) * (y - height)
            edge, height = self._x[left], self._y[left]
        start = self._x[left - 1] if left > 0 else 0.0
        self.area += (edge - start) * (y - height)
        if right < len(self._x) and self._x[right] == x:
            right += 1  # as wide, but lower
        self._x[left:right] = [x]
        self._y[left:right] = [y]
