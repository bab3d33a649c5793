"""The ``rlprune`` command in real processes, and how to kill them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import psutil

UNEQUAL = [
    "seconds_pretrain",
    "seconds_importance",
    "seconds_agents",
    "seconds_finetune",
    "seconds_evaluate",
    "created_at",
    "checkpoint_uri",
]
"""Columns that differ between two equal runs: times and places."""


def start(
    *arguments: str | Path, cwd: Path, hash_seed: int = 0, **environment: str
) -> subprocess.Popen[str]:
    """In a process group of its own; results must not depend on Python's hash seed."""
    return subprocess.Popen(
        [sys.executable, "-m", "rlprune.cli.main", *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": str(hash_seed),
            **environment,
        },
    )


def finish(process: subprocess.Popen[str], timeout: float = 240) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def kill_tree(process: subprocess.Popen[str]) -> None:
    """SIGKILL for the command and for every Ray process that it started."""
    tree = [psutil.Process(process.pid)]
    tree += tree[0].children(recursive=True)
    for member in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.communicate(timeout=30)


def comparable(results: Path) -> pd.DataFrame:
    """The rows of a folder without the columns that differ between equal runs."""
    frame = pd.read_parquet(results).drop(columns=UNEQUAL)
    for name in ("dataset", "backbone"):  # categories, where they are parts of the path
        frame[name] = frame[name].astype(str)
    return frame.sort_values(["trial", "method", "tradeoff_rate"]).reset_index(drop=True)
