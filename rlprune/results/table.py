"""The table that users look at: one line per evaluation point."""

from __future__ import annotations

import pandas as pd

from rlprune.results.schema import METHODS

SUMMARY_COLUMNS = (
    "method",
    "R_r",
    "test accuracy [%]",
    "MACs ratio (mean)",
    "max MACs / budget",
    "storage bytes",
    "storage ratio",
    "budget met",
)
_TELLING = {"backbone": "backbone", "dataset": "dataset", "trial": "trial", "budget_s": "s"}


def latest_points(df: pd.DataFrame) -> pd.DataFrame:
    """The rows of each trial's and method's last step (earlier steps are its history)."""
    series = ["experiment", "trial", "config_hash", "method"]
    last = df.groupby(series, dropna=False)["step"].transform("max")
    return df[df["step"] == last]


def summary_table(df: pd.DataFrame) -> pd.DataFrame:
    """The last step of every trial, as users want to see it.

    Args:
        df: rows as :func:`rlprune.results.load_rows` gives them.

    Returns:
        :data:`SUMMARY_COLUMNS`: accuracy in percent, MACs as a ratio of the dense
        network's, storage in bytes and as a ratio, "budget met" as "yes", "no" or "-"
        (dense); missing numbers are NaN. Before them come ``backbone``, ``dataset``,
        ``trial`` and ``s`` (the budget), each only where it differs between rows. Sorted
        by these, then learned before the baselines, R_r falling.
    """
    df = latest_points(df)
    lead = [name for name in _TELLING if _differs(df, name)]
    order = df["method"].map({method: rank for rank, method in enumerate(METHODS)})
    df = df.assign(_order=order).sort_values(
        [*lead, "_order", "tradeoff_rate"],
        ascending=[name != "budget_s" for name in lead] + [True, False],
        kind="stable",
    )
    table = pd.DataFrame(
        {
            "method": df["method"],
            "R_r": df["tradeoff_rate"],
            "test accuracy [%]": 100 * df["test_accuracy"],
            "MACs ratio (mean)": df["macs_mean_ratio"],
            "max MACs / budget": df["macs_max"] / df["compute_max_budget_macs"],
            "storage bytes": df["storage_bytes"],
            "storage ratio": df["storage_ratio"],
            "budget met": df["budgets_met"].map({True: "yes", False: "no"}),
        }
    )
    table.loc[table["method"] == "dense", "budget met"] = "-"
    for position, name in enumerate(lead):
        table.insert(position, _TELLING[name], df[name])
    return table.reset_index(drop=True)


def _differs(df: pd.DataFrame, column: str) -> bool:
    if column == "budget_s":  # always null for dense
        df = df[df["method"] != "dense"]
    return df[column].nunique(dropna=False) > 1
