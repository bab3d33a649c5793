"""Which of the measured points ships: from result rows and the user's limits.

Validation chooses: no test accuracy is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from rlprune.amounts import parse_budget
from rlprune.errors import ArtifactError, ConfigError, Problem


@dataclass(frozen=True)
class Limits:
    """What the shipped point must keep; None: anything.

    Attributes:
        trial: its name.
        rate: R_r.
        max_storage: bytes, text such as "300KB", or a percentage of the dense network's.
        max_macs: mean MACs of an image: likewise, or a part of the dense network's (0.5).
        min_accuracy: on the validation images, a fraction.
    """

    trial: str | None = None
    rate: float | None = None
    max_storage: str | None = None
    max_macs: str | None = None
    min_accuracy: float | None = None


def choose(rows: pd.DataFrame, limits: Limits) -> pd.Series:
    """The row to ship.

    Among the learned rows that keep all limits the one of highest validation accuracy; with
    ``min_accuracy`` the one of least storage. Ties: less storage, then fewer MACs.

    Args:
        rows: of a run or of a sweep.
        limits: of the user.

    Raises:
        ConfigError: a limit cannot be read.
        ArtifactError: no row keeps all of them; the message gives the nearest.
    """
    learned = rows[rows["method"] == "learned"]
    if learned.empty:
        raise _nothing("no learned network has been measured there", "Finish the run first.")
    for field, test, nearest in _tests(limits):
        kept = learned[test(learned)]
        if kept.empty:
            raise _nothing(f"no measured point keeps {field}", f"{nearest(learned)}.")
        learned = kept
    order, rising = ["validation_accuracy", "storage_bytes", "macs_mean"], [False, True, True]
    if limits.min_accuracy is not None:
        order, rising = ["storage_bytes", "macs_mean", "validation_accuracy"], [True, True, False]
    row: pd.Series = learned.sort_values(order, ascending=rising, kind="stable").iloc[0]
    return row


Test = Callable[[pd.DataFrame], "pd.Series[bool]"]
Nearest = Callable[[pd.DataFrame], str]


def _tests(limits: Limits) -> list[tuple[str, Test, Nearest]]:
    tests: list[tuple[str, Test, Nearest]] = []
    if limits.trial is not None:
        trial = limits.trial
        tests.append(
            (
                f"--trial {trial}",
                lambda rows: rows["trial"] == trial,
                lambda rows: f"There are: {', '.join(sorted(map(str, rows['trial'].unique())))}",
            )
        )
    if limits.rate is not None:
        rate = limits.rate
        tests.append(
            (
                f"--rate {rate:g}",
                lambda rows: (rows["tradeoff_rate"] - rate).abs() < 1e-9,
                lambda rows: (
                    "Measured are R_r = "
                    + ", ".join(f"{value:g}" for value in sorted(rows["tradeoff_rate"].unique()))
                ),
            )
        )
    for option, text, column, dense in (
        ("--max-storage", limits.max_storage, "storage_bytes", "storage_dense_bytes"),
        ("--max-macs", limits.max_macs, "macs_mean", "macs_dense"),
    ):
        if text is not None:
            tests.append((f"{option} {text}", *_at_most(option, text, column, dense)))
    if limits.min_accuracy is not None:
        least = limits.min_accuracy
        tests.append(
            (
                f"--min-accuracy {least:g}",
                lambda rows: rows["validation_accuracy"] >= least,
                lambda rows: "The nearest: " + _described(rows, "validation_accuracy", False),
            )
        )
    return tests


def _at_most(option: str, text: str, column: str, dense: str) -> tuple[Test, Nearest]:
    try:
        amount = parse_budget(text)
    except ValueError as error:
        remedy = "Write for example 300KB, 40%, 12M or 0.5 (of the dense network)."
        raise ConfigError([Problem(option, "must be an amount", text, f"{error}. {remedy}")]) from (
            None
        )

    def test(rows: pd.DataFrame) -> pd.Series[bool]:
        limit = amount.value if amount.kind == "absolute" else amount.value * rows[dense]
        return rows[column] <= limit

    return test, lambda rows: "The nearest: " + _described(rows, column, True)


def _described(rows: pd.DataFrame, column: str, rising: bool) -> str:
    row = rows.sort_values(column, ascending=rising).iloc[0]
    share = row["macs_mean"] / row["macs_dense"]
    return (
        f"trial {row['trial']} at R_r = {row['tradeoff_rate']:g} with "
        f"{row['storage_bytes']:,.0f} bytes, {share:.3f} of the dense MACs and a validation "
        f"accuracy of {row['validation_accuracy']:.4f}"
    )


def _nothing(reason: str, remedy: str) -> ArtifactError:
    return ArtifactError(f"Nothing to export: {reason}. {remedy}")
