"""Fronts and hypervolumes against their definitions, on random frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlprune.results import aggregate_seeds, hypervolume, nondominated, pareto_front
from rlprune.results.nondominated import Objective

NAN, INF = float("nan"), float("inf")
ODD = np.array([NAN, INF, -INF, 0.0, -0.0, 1.0, 5e-324, np.nextafter(1.0, 2.0)])


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    """Objectives a, b, ... with ties, NaNs and infinities, and groups g, some missing."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, width = draw(st.integers(0, 24)), draw(st.integers(1, 5))
    kind = draw(st.sampled_from(["tied", "distinct", "odd"]))
    values = random.normal(size=(rows, width))
    if kind != "distinct":
        values = np.round(values)
    if kind == "odd":
        values = np.where(
            random.random(values.shape) < 0.3, random.choice(ODD, values.shape), values
        )
    df = pd.DataFrame(values, columns=list("abcde"[:width]), index=random.permutation(rows))
    return df.assign(g=random.choice(np.array(["x", "y", None], dtype=object), rows))


def objectives(df: pd.DataFrame) -> dict[str, list[str]]:
    """Every second column is minimised."""
    names = [name for name in df if name != "g"]
    return {"maximize": names[::2], "minimize": names[1::2]}


def beats(one: dict[str, float], other: dict[str, float], goals: dict[str, list[str]]) -> bool:
    """The definition, word by word."""
    signs = {**dict.fromkeys(goals["maximize"], 1), **dict.fromkeys(goals["minimize"], -1)}
    at_least = all(sign * one[name] >= sign * other[name] for name, sign in signs.items())
    return at_least and any(sign * one[name] > sign * other[name] for name, sign in signs.items())


def by_definition(df: pd.DataFrame, goals: dict[str, list[str]], grouped: bool) -> list[int]:
    """All pairs: [other, row]."""
    gains = [*(df[name] for name in goals["maximize"]), *(-df[name] for name in goals["minimize"])]
    values = np.stack([gain.to_numpy() for gain in gains])
    at_least = (values[:, :, None] >= values[:, None, :]).all(axis=0)
    better = (values[:, :, None] > values[:, None, :]).any(axis=0)
    labels = df["g"].fillna("missing").to_numpy()
    same = (labels[:, None] == labels[None, :]) | (not grouped)
    beaten = (at_least & better & same).any(axis=0)
    return np.flatnonzero(~beaten & ~np.isnan(values).any(axis=0)).tolist()


@settings(max_examples=1500, deadline=None)
@given(df=frames(), grouped=st.booleans(), category=st.booleans())
@example(df=pd.DataFrame({"a": [INF, INF, 1.0], "b": [INF, -INF, -INF], "g": None}), grouped=False,
         category=False)  # fmt: skip
def test_the_front_is_what_the_definition_says(
    df: pd.DataFrame, grouped: bool, category: bool
) -> None:
    goals = objectives(df)
    expected = df.index[by_definition(df, goals, grouped)]
    if category:  # as rlprune.results.load gives text columns
        df["g"] = df["g"].astype("category")
    front = pareto_front(df, **goals, group_by="g" if grouped else None)
    assert front.index.tolist() == expected.tolist()
    assert list(front) == list(df)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same algorithm with its sizes so small that every branch runs on few rows."""
    for name, size in {
        "_BLOCK": 16,
        "_SAMPLE": 8,
        "_CANDIDATES": 4,
        "_LEAF": 3,
        "_PAIRS": 9,
    }.items():
        monkeypatch.setattr(nondominated, name, size)
    return


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=1000, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(32, 150),
    dimensions=st.integers(1, 5),
    levels=st.sampled_from([2, 4, 10, 10**9]),
    odd=st.booleans(),
)
def test_sieve_and_divide_and_conquer_change_nothing(
    seed: int, rows: int, dimensions: int, levels: int, odd: bool
) -> None:
    random = np.random.default_rng(seed)
    values = random.integers(0, levels, (dimensions, rows)).astype(float)
    if odd:
        values[random.random(values.shape) < 0.05] = INF
        values[random.random(values.shape) < 0.05] = -INF
        values[random.random(values.shape) < 0.02] = NAN
    at_least = (values[:, :, None] >= values[:, None, :]).all(axis=0)
    better = (values[:, :, None] > values[:, None, :]).any(axis=0)
    expected = np.flatnonzero(~(at_least & better).any(axis=0) & ~np.isnan(values).any(axis=0))
    goals = [Objective(row, True) for row in values]
    assert nondominated.nondominated(goals).tolist() == expected.tolist()
    lowest = [replace(goal, values=-goal.values, maximize=False) for goal in goals]
    assert nondominated.nondominated(lowest, np.arange(rows)).tolist() == expected.tolist()


@settings(max_examples=100, deadline=None)
@given(df=frames(), data=st.data())
def test_front_invariants(df: pd.DataFrame, data: st.DataObject) -> None:
    goals = objectives(df)
    front = pareto_front(df, **goals)
    pd.testing.assert_frame_equal(pareto_front(front, **goals), front)
    order = data.draw(st.permutations(range(len(df))))
    shuffled = pareto_front(df.iloc[order], **goals)
    pd.testing.assert_frame_equal(shuffled.sort_index(), front.sort_index())
    # rows worse than one of the front change nothing
    worse = front.copy()
    worse[goals["maximize"]] -= 1.0
    worse[goals["minimize"]] += 1.0
    finite = np.isfinite(front.drop(columns="g")).all(axis=1)
    large = front.drop(columns="g").abs().max(axis=1) > 1e15  # where adding 1 may change nothing
    both = pd.concat([df, worse[finite & ~large]])
    pd.testing.assert_frame_equal(pareto_front(both, **goals), front)
    # every row without missing values is on the front or beaten by one on it
    members = front.to_dict("records")
    for row in df.drop(front.index).dropna(subset=list(df.columns.drop("g"))).to_dict("records"):
        assert any(beats(member, row, goals) for member in members)


@st.composite
def grids(draw: st.DrawFn) -> pd.DataFrame:
    """Small integer points in one to four dimensions."""
    width = draw(st.integers(1, 4))
    points = st.lists(st.integers(-1, 4), min_size=width, max_size=width)
    rows = draw(st.lists(points, max_size=8))
    return pd.DataFrame(rows, columns=list("abcd"[:width]), dtype=float)


def volume(df: pd.DataFrame) -> float:
    """All maximised, reference 0; the second is minimised instead, from 4 downwards."""
    goals = {"maximize": [n for n in df if n != "b"], "minimize": [n for n in df if n == "b"]}
    return hypervolume(df, **goals, reference={n: 4.0 if n == "b" else 0.0 for n in df})


@settings(max_examples=250, deadline=None)
@given(df=grids())
def test_hypervolume_counts_the_cells_of_a_grid(df: pd.DataFrame) -> None:
    gains = df.copy()
    if "b" in df:
        gains["b"] = 4.0 - df["b"]
    cells = np.stack(np.meshgrid(*[np.arange(5)] * df.shape[1], indexing="ij"), axis=-1)
    cells = cells.reshape(-1, df.shape[1])
    covered = (cells[:, None, :] + 1 <= gains.to_numpy()[None]).all(axis=2).any(axis=1)
    assert volume(df) == covered.sum()


@settings(max_examples=100, deadline=None)
@given(df=grids(), data=st.data())
def test_hypervolume_is_monotone_and_the_fronts_own(df: pd.DataFrame, data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.booleans(), min_size=len(df), max_size=len(df)))
    assert volume(df[pd.Series(kept, dtype=bool)]) <= volume(df)
    goals = {"maximize": [n for n in df if n != "b"], "minimize": [n for n in df if n == "b"]}
    assert volume(pareto_front(df, **goals)) == volume(df)
    assert volume(pd.concat([df, df])) == volume(df)
    assert volume(df.iloc[::-1]) == volume(df)


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=12),
    rates=st.data(),
)
def test_one_seed_is_its_own_mean_without_an_error(
    values: list[float], rates: st.DataObject
) -> None:
    rows = len(values)
    budget = st.one_of(st.none(), st.just(1e6))
    df = pd.DataFrame(
        {
            "seed": 0,
            "tradeoff_rate": np.arange(rows) / rows,
            "storage_budget_bytes": rates.draw(st.lists(budget, min_size=rows, max_size=rows)),
            "test_accuracy": values,
        }
    ).astype({"storage_budget_bytes": float})
    result = aggregate_seeds(df)
    assert result["test_accuracy"].tolist() == values
    assert result["test_accuracy_se"].isna().all()
    assert result["n"].tolist() == [1] * rows
    pd.testing.assert_frame_equal(
        pareto_front(result, maximize="test_accuracy")[["tradeoff_rate", "test_accuracy"]],
        pareto_front(df, maximize="test_accuracy")[["tradeoff_rate", "test_accuracy"]],
    )
