"""The command that gets a measured network again: the one place that decides it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Rows of schema version 1 name the checkpoint, later ones the trial's folder.
_CHECKPOINT = re.compile(r"/checkpoints/checkpoint_\d+/?$")


@dataclass(frozen=True)
class Reproduction:
    """How to get a point's network.

    Attributes:
        command: for a shell, "" where there is none.
        note: what the command does, or why there is none; one sentence.
    """

    command: str
    note: str


def reproduction(row: Mapping[str, Any]) -> Reproduction:
    """What to type to have a point's network measured again.

    Args:
        row: ``method``, ``checkpoint_uri``, ``tradeoff_rate`` (R_r) and ``budget_s`` of a
            result row; None or NaN where missing.
    """
    method, uri = str(row["method"]), row["checkpoint_uri"]
    if method != "learned":
        return Reproduction(
            "",
            f"Only learned networks are kept in checkpoints: train the trial again to get its "
            f"{method} network.",
        )
    if not isinstance(uri, str) or not uri:
        return Reproduction("", "The row names no checkpoint. Train the trial again.")
    folder = _CHECKPOINT.sub("", uri)
    parts = ["rlprune", "evaluate", folder]
    for option, name in (("--rate", "tradeoff_rate"), ("--ratio", "budget_s")):
        value = row[name]
        if value is not None and value == value:  # NaN is unequal to itself
            parts += [option, repr(float(value))]  # all digits: R_r is part of the key
    where = ""
    if "://" in folder:
        where = " Copy the folder to this machine first and give its local path."
    elif not folder.startswith("/"):
        where = " Run it where the run was started: the folder's path is relative to there."
    return Reproduction(
        shlex.join(parts), f"Loads the newest checkpoint and measures this point again.{where}"
    )
