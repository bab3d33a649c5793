"""Means over seeds, and one method against another at equal budgets.

Both refuse to count a seed twice: rows that differ in something else than the seed are not
repetitions, and a standard error over them would mean nothing.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from rlprune.errors import ResultsError
from rlprune.results.frames import check_columns, group_codes, numeric

BUDGETS = (
    "budget_s",
    "storage_budget_bytes",
    "compute_max_budget_macs",
    "compute_mean_budget_macs",
)
_NETWORK = ("dataset", "backbone", "width")
SETTING = (*_NETWORK, "method", "tradeoff", "tradeoff_rate", *BUDGETS, "budget_rule")
"""What, besides the configuration, tells two measured settings apart; the seed does not."""
MEASURES = (
    "validation_accuracy",
    "test_accuracy",
    "test_accuracy_top5",
    "validation_loss",
    "test_loss",
    "macs_mean",
    "macs_p5",
    "macs_p50",
    "macs_p95",
    "macs_max",
    "macs_dense",
    "macs_mean_ratio",
    "parameters",
    "storage_bytes",
    "storage_dense_bytes",
    "storage_ratio",
    "latency_seconds",
    "latency_dense_seconds",
    "latency_ratio",
)
"""What is averaged over seeds."""
# What a method has no value of, so that it cannot be compared in it.
_NO_RATE = ("static_l1", "fbs", "rnp", "fpgm", "slimming", "torch_pruning", "legr", "amc")
_WITHOUT = {"dense": ("tradeoff_rate", *BUDGETS)} | {name: ("tradeoff_rate",) for name in _NO_RATE}


def aggregate_seeds(df: pd.DataFrame, by: Sequence[str] | None = None) -> pd.DataFrame:
    """One row per setting: means over its seeds, with standard errors.

    The means keep their columns' names, so that :func:`rlprune.results.pareto_front` takes
    the result as it takes rows. Do this before the front: the best of several seeds is
    better than the setting is.

    Args:
        df: rows with a column ``seed``, one per setting and seed.
        by: columns that make a setting; missing values are values like any other. None:
            those of :data:`SETTING` that ``df`` has, and the column ``configuration`` if
            it has that (seed and name left out; as ``settings_hash`` in the result).

    Returns:
        The setting's columns; ``n`` (seeds); for every column of :data:`MEASURES` that
        ``df`` has its mean and, as ``<column>_se``, the mean's standard error (sample
        standard deviation with n - 1, divided by the root of n; NaN for one seed);
        ``budgets_met`` (of all seeds). A missing value makes mean and error missing. In the
        order in which the settings appear.

    Raises:
        ResultsError: an unknown column, or a seed that a setting has twice.
    """
    check_columns(df, ["seed", *(by or ())])
    if by is not None and "seed" in by:
        raise ResultsError("aggregate_seeds: by cannot name the seed, it is what is averaged over.")
    if by is None and "configuration" in df:
        df = df.assign(settings_hash=df["configuration"].map(_settings_hash))
    keys = list(by) if by is not None else [k for k in (*SETTING, "settings_hash") if k in df]
    codes = group_codes(df, keys)
    _refuse_repeated_seeds(df, keys, codes, "aggregate_seeds")
    first = ~pd.Series(codes).duplicated().to_numpy()
    result = df.loc[first, keys].reset_index(drop=True)
    result["n"] = np.bincount(codes, minlength=len(result))
    for name in MEASURES:
        if name in df and name not in keys:
            result[name], result[f"{name}_se"] = _mean_and_error(numeric(df, name), codes)
    if "budgets_met" in df and "budgets_met" not in keys:
        met = df["budgets_met"].astype(bool).groupby(codes).all()
        result["budgets_met"] = met.to_numpy()
    return result


def dominance(
    df: pd.DataFrame,
    method: str,
    other: str,
    *,
    accuracy: str = "test_accuracy",
    by: Sequence[str] | None = None,
    standard_errors: float = 2.0,
) -> pd.DataFrame:
    """How much more accurate one method is than another at equal budgets, seed by seed.

    Rows are paired that agree in seed, data set, backbone, width, trade-off rule, R_r and
    all budgets. What a method has none of (``dense`` no budget and no R_r, ``static_l1`` no
    R_r) is not compared. Pairing takes out what the seeds have in common, so the error is
    that of the difference. Rows without a partner are left out.

    Args:
        df: rows, one per setting, method and seed.
        method: compared.
        other: what it is compared with.
        accuracy: the column whose difference ``method - other`` is taken.
        by: columns that must agree besides the seed; None: those above that ``df`` has.
        standard_errors: a setting is won or lost if the mean difference is more than this
            many standard errors away from 0; else, and with one pair, it is undecided.

    Returns:
        A row per setting, then one with the index "total". Columns: the setting; ``n``
        (paired seeds); ``difference`` and its standard error ``difference_se`` (n - 1; NaN
        for n = 1); ``wins``, ``losses``, ``undecided`` (0 or 1; in the total their sums). The
        total's difference and error are over seeds, each seed's mean over its settings:
        the settings of one seed share a trained network and are no independent samples.

    Raises:
        ResultsError: an unknown column, a method without rows, no pair, or a seed that a
            setting has twice.
    """
    keys = list(by) if by is not None else [k for k in SETTING if k in df]
    if by is None:  # the baselines' budget rule is always "projected"
        keys = [key for key in keys if key not in ("method", "budget_rule")]
    check_columns(df, ["seed", "method", accuracy, *keys])
    left, right = (_rows_of(df, name, keys) for name in (method, other))
    absent = {*_WITHOUT.get(method, ()), *_WITHOUT.get(other, ())}
    pairs = _pairs(left, right, keys, [key for key in keys if key not in absent], accuracy)
    if pairs.empty:
        raise ResultsError(
            f"dominance: {method} and {other} have no row with the same seed and "
            f"{', '.join(keys)}. Compare methods of the same trials."
        )
    codes = group_codes(pairs, keys)
    result = pairs.loc[~pd.Series(codes).duplicated().to_numpy(), keys].reset_index(drop=True)
    result["n"] = np.bincount(codes)
    gaps = pairs["difference"].to_numpy()
    result["difference"], result["difference_se"] = _mean_and_error(gaps, codes)
    bound = standard_errors * result["difference_se"]
    result["wins"] = (result["difference"] > bound).astype(int)
    result["losses"] = (result["difference"] < -bound).astype(int)
    result["undecided"] = 1 - result["wins"] - result["losses"]
    return pd.concat([result, _total(result, pairs)])


def _rows_of(df: pd.DataFrame, method: str, keys: list[str]) -> pd.DataFrame:
    rows = df[df["method"] == method].reset_index(drop=True)
    if rows.empty:
        there = ", ".join(sorted(map(str, df["method"].unique()))) or "none"
        raise ResultsError(f"dominance: there are no rows of method {method!r}; there are {there}.")
    _refuse_repeated_seeds(rows, keys, group_codes(rows, keys), f"dominance, {method}")
    return rows


def _pairs(
    left: pd.DataFrame, right: pd.DataFrame, keys: list[str], shared: list[str], accuracy: str
) -> pd.DataFrame:
    """One row per pair: the setting, the seed and the difference of accuracy."""
    columns = [*keys, "seed", accuracy]
    both = pd.concat([left[columns], right[columns]], ignore_index=True)
    both["_code"] = group_codes(both, [*shared, "seed"])
    merged = both[: len(left)].merge(both[len(left) :], on="_code", suffixes=("", "_other"))
    merged["difference"] = merged[accuracy] - merged[f"{accuracy}_other"]
    for key in keys:
        if key not in shared:  # only one of the two has a value
            merged[key] = merged[key].where(merged[key].notna(), merged[f"{key}_other"])
    pairs: pd.DataFrame = merged[[*keys, "seed", "difference"]]
    return pairs


def _total(result: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    seeds = pairs.groupby("seed")["difference"].mean().to_numpy()
    mean, error = _mean_and_error(seeds, np.zeros(len(seeds), dtype=np.int64))
    sums = {name: int(result[name].sum()) for name in ("wins", "losses", "undecided")}
    total = {"n": len(seeds), "difference": mean[0], "difference_se": error[0], **sums}
    return pd.DataFrame(total, index=pd.Index(["total"]))


def _mean_and_error(
    values: npt.NDArray[Any], codes: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and standard error of each group; NaN if a value is missing."""
    groups = pd.Series(values.astype(np.float64)).groupby(codes)
    complete = groups.count() == groups.size()
    error: pd.Series[float] = groups.std(ddof=1) / groups.size() ** 0.5
    mean = groups.mean().where(complete)
    return np.asarray(mean, dtype=np.float64), np.asarray(error.where(complete), dtype=np.float64)


def _refuse_repeated_seeds(
    df: pd.DataFrame, keys: list[str], codes: npt.NDArray[np.int64], what: str
) -> None:
    repeated = pd.DataFrame({"code": codes, "seed": df["seed"].to_numpy()}).duplicated(keep=False)
    if not repeated.any():
        return
    first = df[repeated.to_numpy()].iloc[0]
    code = codes[int(repeated.to_numpy().argmax())]
    same = df[(codes == code) & (df["seed"] == first["seed"]).to_numpy()]
    differing = [str(name) for name in df if same[name].astype(str).nunique() > 1]
    setting = ", ".join(f"{key} {first[key]}" for key in keys)
    raise ResultsError(
        f"{what}: seed {first['seed']} appears {len(same)} times in one setting ({setting}). "
        f"These rows differ in {', '.join(differing) or 'nothing'}. Keep one row per seed "
        "(latest_points(df), or a filter), or name in by=[...] what tells settings apart."
    )


@functools.lru_cache(maxsize=4096)
def _settings_hash(configuration: object) -> str | None:
    """Twelve digits of a trial's configuration without its seed and name; null stays null."""
    if not isinstance(configuration, str):
        return None
    values = json.loads(configuration)
    settings = {key: value for key, value in values.items() if key not in ("seed", "name")}
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
