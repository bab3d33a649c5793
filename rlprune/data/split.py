"""Seeded, stratified splits: every class is divided in the same proportion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlprune.data.images import IntArray
from rlprune.errors import DataError

# Splitting and subsampling with the same seed must not reuse one random stream.
_SUBSAMPLE_STREAM = 1


def _name(label: int, class_names: Sequence[str] | None) -> str:
    if class_names is None:
        return f"class {label}"
    return f"class {class_names[label]!r} (label {label})"


def stratified_split(
    labels: IntArray,
    fraction: float,
    seed: int,
    class_names: Sequence[str] | None = None,
) -> tuple[IntArray, IntArray]:
    """Hold out ``fraction`` of the images of each class, at least one image per side.

    A class with n images gives ``round(fraction * n)`` of them, but at least 1 and at
    most n - 1.

    Args:
        labels: int64 ``[N]``, class numbers.
        fraction: part to hold out, strictly between 0 and 1.
        seed: of the choice; the same seed gives the same split.
        class_names: names by label, for error messages only.

    Returns:
        ``(kept, held_out)``: ascending positions; together 0..N-1, none twice.

    Raises:
        DataError: a class has fewer than two images, or ``fraction`` is not in (0, 1).
    """
    if not 0.0 < fraction < 1.0:
        raise DataError(
            f"the fraction to hold out must lie strictly between 0 and 1 (got {fraction}). "
            "Choose for example 0.1."
        )
    generator = np.random.default_rng(seed)
    held_out: list[IntArray] = []
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise DataError(
                f"{_name(label, class_names)} has only {len(members)} image; splitting "
                "needs at least 2 images of each class, one for each side. "
                "Add images of this class or remove the class."
            )
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held_out.append(generator.permutation(members)[:count])
    mask = np.zeros(len(labels), dtype=bool)
    for chosen in held_out:
        mask[chosen] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def subsample(labels: IntArray, count: int, seed: int, minimum: int = 2) -> IntArray:
    """Choose ``count`` images with the classes in (nearly) their original proportions.

    Args:
        labels: int64 ``[N]``, class numbers.
        count: how many images to keep; all are kept if ``count >= N``.
        seed: of the choice.
        minimum: least number of images of each class (or all that the class has); 2 by
            default, so that a validation image can still be taken out of each.

    Returns:
        Ascending positions, exactly ``min(count, N)`` of them.

    Raises:
        DataError: ``count`` is smaller than ``minimum`` images of every class.
    """
    if count >= len(labels):
        return np.arange(len(labels), dtype=np.int64)
    classes, available = np.unique(labels, return_counts=True)
    least = np.minimum(available, minimum)
    if count < least.sum():
        raise DataError(
            f"data.max_train_images is {count}, too few for {len(classes)} classes: "
            f"{minimum} of each are needed (to train on and to validate). "
            f"Set data.max_train_images to {int(least.sum())} or more."
        )
    sizes = _allocate(available, least, count)
    generator = np.random.default_rng((seed, _SUBSAMPLE_STREAM))
    parts = [
        generator.permutation(np.flatnonzero(labels == label))[:size]
        for label, size in zip(classes, sizes, strict=True)
    ]
    return np.sort(np.concatenate(parts))


def _allocate(available: IntArray, least: IntArray, count: int) -> IntArray:
    """Share ``count`` out in proportion to ``available`` (largest remainder first).

    Args:
        available: ``[K]`` images of each class.
        least: ``[K]`` lower bounds, <= available, with sum <= count <= sum of available.
        count: the total to reach.

    Returns:
        ``[K]`` sizes between ``least`` and ``available`` with sum ``count``.
    """
    quota = available * (count / available.sum())
    sizes: IntArray = np.clip(np.floor(quota).astype(np.int64), least, available)
    while (missing := count - int(sizes.sum())) != 0:
        if missing > 0:
            room = np.where(sizes < available, quota - sizes, -np.inf)
            sizes[np.argmax(room)] += 1
        else:
            excess = np.where(sizes > least, sizes - quota, -np.inf)
            sizes[np.argmax(excess)] -= 1
    return sizes
