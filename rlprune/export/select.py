"""Which of the measured points ships: from result rows and the user's limits.

Validation chooses: no test accuracy is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import pandas as pd

from rlprune.amounts import parse_budget
from rlprune.errors import ArtifactError, ConfigError, Problem

Numbers: TypeAlias = "pd.Series[float]"
"""One for each row."""
_SHOWN = 3


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
        ArtifactError: no row keeps all of them; the message says of each limit what can be
            had if the others are kept, and which row is nearest to all.
    """
    learned = rows[rows["method"] == "learned"].reset_index(drop=True)
    if learned.empty:
        raise _nothing("no learned network has been measured there", "Finish the run first.")
    given = [*_named(limits), *_amounts(limits)]
    excess = pd.DataFrame({limit.text: limit.excess(learned) for limit in given})
    kept = learned[(excess <= 0).all(axis=1)] if given else learned
    if kept.empty:
        raise _unmet(learned, given, excess)
    order, rising = ["validation_accuracy", "storage_bytes", "macs_mean"], [False, True, True]
    if limits.min_accuracy is not None:
        order, rising = ["storage_bytes", "macs_mean", "validation_accuracy"], [True, True, False]
    row: pd.Series = kept.sort_values(order, ascending=rising, kind="stable").iloc[0]
    return row


# --- limits ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Limit:
    """One limit of the user.

    Attributes:
        text: as written on the command line.
        excess: by how much each row breaks it, as a part of the limit; not above 0: kept;
            infinite: another trial or rate.
        offer: what the given rows have instead; the first has the least excess.
        named: whether it is kept or not, and never nearly kept.
    """

    text: str
    excess: Callable[[pd.DataFrame], Numbers]
    offer: Callable[[pd.DataFrame], str]
    named: bool = False


def _named(limits: Limits) -> list[_Limit]:
    found = []
    if limits.trial is not None:
        found.append(
            _Limit(
                f"--trial {limits.trial}",
                lambda rows: _infinite(rows["trial"] != limits.trial),
                lambda rows: f"There are: {', '.join(sorted(map(str, rows['trial'].unique())))}.",
                named=True,
            )
        )
    if limits.rate is not None:
        rate = limits.rate
        found.append(
            _Limit(
                f"--rate {rate:g}",
                lambda rows: _infinite((rows["tradeoff_rate"] - rate).abs() >= 1e-9),
                lambda rows: f"Measured are R_r = {_rates(rows)}.",
                named=True,
            )
        )
    return found


def _infinite(broken: pd.Series[bool]) -> Numbers:
    return broken.map({True: math.inf, False: 0.0})


def _rates(rows: pd.DataFrame) -> str:
    return ", ".join(f"{value:g}" for value in sorted(rows["tradeoff_rate"].unique()))


def _amounts(limits: Limits) -> list[_Limit]:
    found = []
    if limits.max_storage is not None:
        columns = ("storage_bytes", "storage_dense_bytes")
        found.append(_at_most("--max-storage", limits.max_storage, *columns))
    if limits.max_macs is not None:
        found.append(_at_most("--max-macs", limits.max_macs, "macs_mean", "macs_dense"))
    if limits.min_accuracy is not None:
        found.append(_at_least(limits.min_accuracy))
    return found


def _at_most(option: str, text: str, column: str, dense: str) -> _Limit:
    try:
        amount = parse_budget(text)
    except ValueError as error:
        remedy = "Write for example 300KB, 40%, 12M or 0.5 (of the dense network)."
        raise ConfigError([Problem(option, "must be an amount", text, f"{error}. {remedy}")]) from (
            None
        )

    def excess(rows: pd.DataFrame) -> Numbers:
        limit = amount.value if amount.kind == "absolute" else amount.value * rows[dense]
        return (rows[column] - limit) / limit

    unit = "bytes" if column == "storage_bytes" else "MACs"

    def offer(rows: pd.DataFrame) -> str:
        row = rows.iloc[0]
        share = row[column] / row[dense]
        return f"at least {row[column]:,.0f} {unit}, {share:.3f} of dense ({_point(row)})."

    return _Limit(f"{option} {text}", excess, offer)


def _at_least(least: float) -> _Limit:
    if not 0.0 <= least <= 1.0:
        remedy = "Write 0.9 for 90 %."
        raise ConfigError([Problem("--min-accuracy", "must be from 0 to 1", least, remedy)])
    return _Limit(
        f"--min-accuracy {least:g}",
        lambda rows: (least - rows["validation_accuracy"]) / max(least, 1e-9),
        lambda rows: f"at most {rows.iloc[0]['validation_accuracy']:.4f} ({_point(rows.iloc[0])}).",
    )


# --- what to say where no row keeps them ----------------------------------------------------


def _unmet(rows: pd.DataFrame, limits: Sequence[_Limit], excess: pd.DataFrame) -> ArtifactError:
    """The error over limits that no row keeps, one alone or all together."""
    present = rows
    for limit in limits:  # a trial or a rate that is not there
        if limit.named:
            kept = present[excess[limit.text][present.index] <= 0]
            if kept.empty:
                return _nothing(f"no measured point keeps {limit.text}", limit.offer(present))
            present = kept
    ranked = _by_excess(rows, excess.clip(lower=0.0).sum(axis=1))
    nearest = ranked.iloc[0]
    reason = f"no measured point keeps {_listed([limit.text for limit in limits])}"
    if len(limits) == 1:
        return _nothing(reason, f"The nearest: {_described(nearest)}.")
    offers = [_offer(rows, limit, excess) for limit in limits]
    missed = {limit.text: float(limit.excess(ranked).iloc[0]) for limit in limits}
    misses = [f"{text} by {part:.1%}" for text, part in missed.items() if part > 0]
    closest = f"The nearest to all: {_described(nearest)}. It misses {_listed(misses)}."
    return _nothing(f"{reason} together", "\n".join(["", *offers, closest]))


def _offer(rows: pd.DataFrame, limit: _Limit, excess: pd.DataFrame) -> str:
    """What can be had of one limit where all others are kept."""
    others = rows[(excess.drop(columns=limit.text) <= 0).all(axis=1)]
    if limit.named:
        who = "no point" if others.empty else _points(others)
        return f"  {limit.text}: the others are kept by {who}."
    reached = "no point keeps the others; alone" if others.empty else "with the others kept"
    best = _by_excess(rows if others.empty else others, excess[limit.text])
    return f"  {limit.text}: {reached}, {limit.offer(best)}"


def _by_excess(rows: pd.DataFrame, excess: Numbers) -> pd.DataFrame:
    """Rows of least excess first; ties: higher accuracy, less storage, fewer MACs."""
    columns = ["excess", "validation_accuracy", "storage_bytes", "macs_mean"]
    rising = [True, False, True, True]
    return rows.assign(excess=excess).sort_values(columns, ascending=rising, kind="stable")


def _described(row: pd.Series) -> str:
    share = row["macs_mean"] / row["macs_dense"]
    return (
        f"{_point(row)} with {row['storage_bytes']:,.0f} bytes, {share:.3f} of the dense MACs "
        f"and a validation accuracy of {row['validation_accuracy']:.4f}"
    )


def _point(row: pd.Series) -> str:
    return f"trial {row['trial']} at R_r = {row['tradeoff_rate']:g}"


def _points(rows: pd.DataFrame) -> str:
    """A few of the points that rows are."""
    names = list(dict.fromkeys(_point(row) for _, row in rows.iterrows()))
    further = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + further


def _listed(texts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def _nothing(reason: str, remedy: str) -> ArtifactError:
    return ArtifactError(f"Nothing to export: {reason}. {remedy}")
