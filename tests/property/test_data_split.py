"""Splits keep every image exactly once and every class on both sides, whatever the labels."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rlprune.data import stratified_split, subsample

class_sizes = st.lists(st.integers(2, 40), min_size=1, max_size=8)
seeds = st.integers(0, 2**32 - 1)


def shuffled_labels(sizes: list[int], seed: int) -> np.ndarray:
    labels = np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)
    return np.random.default_rng(seed).permutation(labels)


@settings(deadline=None)
@given(class_sizes, st.floats(0.001, 0.999), seeds)
def test_split_partitions_and_is_stratified(sizes: list[int], fraction: float, seed: int) -> None:
    labels = shuffled_labels(sizes, seed)
    kept, held_out = stratified_split(labels, fraction, seed)
    assert sorted([*kept, *held_out]) == list(range(len(labels)))
    for label, size in enumerate(sizes):
        count = int(np.sum(labels[held_out] == label))
        assert 1 <= count <= size - 1
        assert abs(count - fraction * size) <= 0.5 or count in (1, size - 1)
    again = stratified_split(labels, fraction, seed)
    assert np.array_equal(again[0], kept) and np.array_equal(again[1], held_out)


@settings(deadline=None)
@given(class_sizes, st.floats(0.0, 1.0), seeds)
def test_subsample_has_the_exact_size_and_every_class(
    sizes: list[int], part: float, seed: int
) -> None:
    labels = shuffled_labels(sizes, seed)
    smallest = 2 * len(sizes)
    count = smallest + round(part * (len(labels) - smallest))
    chosen = subsample(labels, count, seed)
    assert len(chosen) == count == len(set(chosen.tolist()))
    assert np.all(np.diff(chosen) > 0)
    taken = np.bincount(labels[chosen], minlength=len(sizes))
    assert np.all(taken >= 2) and np.all(taken <= sizes)


@settings(deadline=None)
@given(class_sizes, st.integers(1, 10), seeds)
def test_subsample_of_a_multiple_is_proportional(sizes: list[int], factor: int, seed: int) -> None:
    """1/factor of classes that are all multiples of factor: nothing is left to rounding."""
    labels = shuffled_labels([size * factor for size in sizes], seed)
    chosen = subsample(labels, sum(sizes), seed)
    assert np.bincount(labels[chosen]).tolist() == sizes
