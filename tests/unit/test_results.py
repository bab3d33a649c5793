"""Result rows: the schema, the store (also under kill -9), the summary table."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlprune.errors import ResultsError
from rlprune.results import (
    COLUMNS,
    KEY,
    SCHEMA,
    SCHEMA_VERSION,
    SUMMARY_COLUMNS,
    ResultRow,
    load_rows,
    summary_table,
    write_rows,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc)
EXAMPLE: dict[str, Any] = {
    "experiment": "quickstart",
    "trial": "trial",
    "step": 4,
    "method": "learned",
    "seed": 0,
    "backbone": "m_cifarnet",
    "width": 0.25,
    "dataset": "digits",
    "tradeoff": "permanent",
    "tradeoff_rate": 0.5,
    "budget_s": None,
    "storage_budget_bytes": 60_000.0,
    "compute_max_budget_macs": 500.0,
    "compute_mean_budget_macs": None,
    "budget_rule": "projected",
    "budgets_met": True,
    "validation_accuracy": 0.9,
    "test_accuracy": 0.875,
    "test_accuracy_top5": None,
    "validation_loss": 0.3,
    "test_loss": 0.4,
    "macs_mean": 250.0,
    "macs_p5": 200.0,
    "macs_p50": 250.0,
    "macs_p95": 300.0,
    "macs_max": 450.0,
    "macs_dense": 1000.0,
    "macs_mean_ratio": 0.25,
    "parameters": 10_000,
    "storage_bytes": 40_000,
    "storage_dense_bytes": 80_000,
    "storage_ratio": 0.5,
    "layer_names": ("features.0", "features.3"),
    "keep_ratio_mean": (0.5, 0.25),
    "keep_ratio_std": (0.0, 0.125),
    "stored_ratio": (0.75, 1.0),
    "rl_updates": 100,
    "rollouts": 25_600,
    "training_images": 50_000,
    "finetune_images": 6_000,
    "seconds_pretrain": 1.5,
    "seconds_importance": 0.5,
    "seconds_agents": 2.5,
    "seconds_finetune": 1.0,
    "seconds_evaluate": 0.25,
    "checkpoint_uri": None,
    "config_hash": "abc123",
    "versions": "{}",
    "created_at": NOW,
}


def make_row(**changes: Any) -> ResultRow:
    return ResultRow(**{**EXAMPLE, **changes})


def test_row_and_schema_have_the_same_fields_in_the_same_order() -> None:
    fields = [field.name for field in dataclasses.fields(ResultRow)]
    assert fields == [column.name for column in COLUMNS] == SCHEMA.names
    assert len(set(fields)) == len(fields)
    assert set(KEY) <= set(fields)


def test_row_types_agree_with_the_schema() -> None:
    plain = {pa.string(): "str", pa.float64(): "float", pa.bool_(): "bool"}
    plain |= {pa.int64(): "int", pa.int32(): "int", pa.timestamp("us", tz="UTC"): "datetime"}
    plain |= {pa.list_(pa.string()): "tuple[str, ...]"}
    plain |= {pa.list_(pa.float64()): "tuple[float, ...]"}
    annotations = {field.name: field.type for field in dataclasses.fields(ResultRow)}
    for column in COLUMNS:
        expected = plain[column.type] + (" | None" if column.nullable else "")
        assert annotations[column.name] == expected, column.name
        assert column.meaning, column.name


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    (path,) = write_rows(tmp_path / "new" / "folder", [make_row()])
    frame = load_rows(tmp_path)
    assert list(frame.columns) == SCHEMA.names
    (record,) = frame.to_dict("records")
    assert record["schema_version"] == SCHEMA_VERSION
    for name, value in EXAMPLE.items():
        if value is None:
            assert pd.isna(record[name]), name
        elif isinstance(value, tuple):
            assert tuple(record[name]) == value, name
        else:
            assert record[name] == value, name
    assert pq.read_schema(path).equals(SCHEMA)


def test_plain_pandas_reads_the_folder(tmp_path: Path) -> None:
    # budget_s is all null in one file and a number in the other: types must still agree
    write_rows(tmp_path, [make_row(step=1), make_row(step=2, budget_s=0.3)])
    (tmp_path / ".rows-x.parquet.123.tmp").write_bytes(b"left by a killed writer")
    frame = pd.read_parquet(tmp_path)
    assert len(frame) == 2
    assert frame.dtypes["budget_s"] == "float64"
    assert str(frame.dtypes["created_at"]) == "datetime64[us, UTC]"


def test_retry_overwrites_and_keeps_other_rows(tmp_path: Path) -> None:
    first = [make_row(tradeoff_rate=rate) for rate in (1.0, 0.5, 0.0)]
    files = write_rows(tmp_path, first)
    # the clock of another node may be behind: the later write wins all the same
    earlier = NOW - timedelta(hours=1)
    retried = [make_row(tradeoff_rate=0.5, test_accuracy=0.25, created_at=earlier)]
    assert write_rows(tmp_path, retried) == files
    assert write_rows(tmp_path, [make_row(method="dense", tradeoff_rate=None)]) != files
    write_rows(tmp_path, [make_row(method="dense", tradeoff_rate=None)])
    frame = load_rows(tmp_path).set_index(["method", "tradeoff_rate"])["test_accuracy"]
    assert len(frame) == 4
    assert frame[("learned", 0.5)] == 0.25
    assert frame[("learned", 1.0)] == 0.875


def test_duplicates_across_files_keep_the_newest(tmp_path: Path) -> None:
    late = NOW + timedelta(seconds=1)
    write_rows(tmp_path / "a", [make_row(test_accuracy=0.75, created_at=late)])
    write_rows(tmp_path / "b", [make_row(test_accuracy=0.5)])
    assert load_rows(tmp_path)["test_accuracy"].tolist() == [0.75]


def test_runs_that_share_names_but_not_a_configuration_stay_apart(tmp_path: Path) -> None:
    write_rows(tmp_path / "a", [make_row(seed=0, config_hash="aaa")])
    write_rows(tmp_path / "b", [make_row(seed=1, config_hash="bbb")])
    write_rows(tmp_path / "a", [make_row(seed=1, config_hash="bbb", tradeoff_rate=1.0)])
    assert sorted(load_rows(tmp_path)["seed"]) == [0, 1, 1]


def test_trials_with_look_alike_names_have_files_of_their_own(tmp_path: Path) -> None:
    names = ["a/b", "a_b", "a b", "ä", "", "x" * 500, "..", ".hidden"]
    files = write_rows(tmp_path, [make_row(trial=name) for name in names])
    assert len({file.name.casefold() for file in files}) == len(names)
    assert all(file.parent == tmp_path and file.name.startswith("rows-") for file in files)
    assert sorted(load_rows(tmp_path)["trial"]) == sorted(names)


def test_empty_folder_has_all_columns(tmp_path: Path) -> None:
    frame = load_rows(tmp_path)
    assert frame.empty
    assert list(frame.columns) == SCHEMA.names
    assert summary_table(frame).columns.tolist() == list(SUMMARY_COLUMNS)
    assert write_rows(tmp_path, []) == []


@pytest.mark.parametrize(
    ("make_file", "message"),
    [
        (lambda path: path.write_bytes(b"PAR1 torn"), "cannot be read as Parquet"),
        (lambda path: path.write_bytes(b""), "cannot be read as Parquet"),
        (lambda path: pd.DataFrame({"x": [1]}).to_parquet(path), "not a file of rlprune"),
        (
            lambda path: pq.write_table(SCHEMA.empty_table().drop(["test_loss"]), path),
            "column test_loss is missing",
        ),
        (
            lambda path: pq.write_table(pa.table({"schema_version": [2]}), path),
            "schema version 2, this rlprune reads version 1",
        ),
        (
            lambda path: pq.write_table(
                SCHEMA.empty_table().append_column("extra", pa.array([], pa.int8())), path
            ),
            "unknown columns extra",
        ),
    ],
)
def test_bad_file_is_one_error_that_names_it(tmp_path: Path, make_file: Any, message: str) -> None:
    write_rows(tmp_path, [make_row()])
    bad = tmp_path / "sub" / "bad.parquet"
    bad.parent.mkdir()
    make_file(bad)
    with pytest.raises(ResultsError, match=message) as caught:
        load_rows(tmp_path)
    assert str(bad) in str(caught.value)
    assert "Move it out of the folder" in str(caught.value)
    assert caught.value.exit_status == 2


def test_missing_folder_and_uri_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"nothing: no such folder"):
        load_rows(tmp_path / "nothing")
    with pytest.raises(ResultsError, match="only local folders"):
        write_rows("s3://bucket/results", [make_row()])


def test_unwritable_folder_names_the_file(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    with pytest.raises(ResultsError, match=r"file/rows-trial.*cannot be written"):
        write_rows(blocker, [make_row()])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "method must be one of learned, dense"),
        ({"keep_ratio_mean": (0.5,)}, r"keep_ratio_mean must have one value per layer \(2, got 1"),
        ({"created_at": datetime(2026, 1, 1)}, "created_at must have a time zone"),
    ],
)
def test_a_row_refuses_nonsense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        make_row(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_loss": None}, "'trial': test_loss .* is missing"),
        ({"parameters": 1.5}, "trial trial: parameters must be int64"),
        ({"dataset": 3}, "trial trial: dataset must be string"),
    ],
)
def test_a_row_of_wrong_types_writes_nothing(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ResultsError, match=message):
        write_rows(tmp_path, [make_row(method="dense"), make_row(**changes)])
    assert list(tmp_path.iterdir()) == []


def test_row_key_and_defaults() -> None:
    assert make_row().row_key == ("quickstart", "trial", "abc123", 4, "learned", 0.5, None)
    values = {k: v for k, v in EXAMPLE.items() if k not in ("versions", "created_at")}
    row = ResultRow(**values)
    assert '"torch"' in row.versions
    assert datetime.now(timezone.utc) - row.created_at < timedelta(minutes=1)


def test_summary_table() -> None:
    rows = [
        make_row(method="dense", tradeoff_rate=None, macs_max=1000.0, budgets_met=False),
        make_row(method="uniform", budgets_met=False),
        make_row(tradeoff_rate=0.0),
        make_row(tradeoff_rate=1.0, compute_max_budget_macs=None),
        make_row(tradeoff_rate=1.0, step=3),
    ]
    frame = pa.Table.from_pylist([dataclasses.asdict(r) for r in rows], SCHEMA).to_pandas()
    table = summary_table(frame)
    assert tuple(table.columns) == SUMMARY_COLUMNS
    assert table["method"].tolist() == ["learned", "learned", "dense", "uniform"]
    assert table["R_r"].tolist()[:2] == [1.0, 0.0]
    assert table["test accuracy [%]"].tolist() == [87.5] * 4
    assert math.isnan(table["max MACs / budget"][0])
    assert table["max MACs / budget"].tolist()[1:] == [0.9, 2.0, 0.9]
    assert table["budget met"].tolist() == ["yes", "yes", "-", "no"]
    assert table["storage bytes"].tolist() == [40_000] * 4


def test_summary_table_shows_what_differs() -> None:
    rows = [
        make_row(trial="b", budget_s=0.3),
        make_row(trial="a", budget_s=0.3),
        make_row(trial="a", budget_s=0.5),
    ]
    frame = pa.Table.from_pylist([dataclasses.asdict(r) for r in rows], SCHEMA).to_pandas()
    table = summary_table(frame)
    assert tuple(table.columns) == ("trial", "s", *SUMMARY_COLUMNS)
    assert table[["trial", "s"]].values.tolist() == [["a", 0.5], ["a", 0.3], ["b", 0.3]]


# A process that writes steps for ever and says which are on the disk. It forks the real
# writers: importing pandas once, not in every round, keeps the test short.
WRITER = """
import os, sys
from tests_rows import make_row
from rlprune.results import write_rows

def write(folder, name, first):
    step = first
    while True:
        for version in (0, 1):  # the second time is a retry
            rows = [make_row(trial=name, step=step, tradeoff_rate=r, seed=version)
                    for r in (1.0, 0.5, 0.0)]
            write_rows(folder, rows)
        os.write(1, f"{name} {step}\\n".encode())
        step += 1

for line in sys.stdin:
    name, first = line.split()
    pid = os.fork()
    if pid == 0:
        write(sys.argv[1], name, int(first))
    os.write(1, f"pid {pid}\\n".encode())
    os.waitpid(pid, 0)
    os.write(1, b"dead 0\\n")
"""


def test_killed_writers_leave_no_torn_lost_or_double_rows(tmp_path: Path) -> None:
    (tmp_path / "tests_rows.py").write_text(Path(__file__).read_text())
    (tmp_path / "writer.py").write_text(WRITER)
    folder = tmp_path / "rows"
    folder.mkdir()
    done = threading.Event()
    reads: list[int] = []
    failures: list[BaseException] = []

    def read() -> None:
        while not done.is_set():
            try:
                reads.append(len(load_rows(folder)))
                if any(folder.glob("[!.]*")):
                    pd.read_parquet(folder)
            except BaseException as error:
                failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        committed = _write_and_kill(tmp_path, folder, rounds=6)
    finally:
        done.set()
        reader.join()
    assert not failures, failures[0]
    assert len(reads) > 2
    assert len(committed) > 2
    frame = load_rows(folder)
    assert not frame.duplicated(list(KEY)).any()
    # what was committed is there and whole; only a trial's last step may lack its retry
    counts = frame.groupby(["trial", "step"]).size()
    assert committed <= set(counts.index)
    assert (counts == 3).all()
    last = frame.groupby("trial")["step"].transform("max")
    assert (frame[frame["step"] < last]["seed"] == 1).all()


def _write_and_kill(scratch: Path, folder: Path, rounds: int) -> set[tuple[str, int]]:
    """Starts a writer and kills it at a random moment, again and again."""
    committed: set[tuple[str, int]] = set()
    path = os.pathsep.join([str(scratch), str(Path(__file__).resolve().parents[2])])
    parent = subprocess.Popen(
        [sys.executable, str(scratch / "writer.py"), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert parent.stdin is not None and parent.stdout is not None
    moments = random.Random(0)
    with parent:
        for number in range(rounds):
            # a resumed trial repeats its last step
            trial = f"trial{number % 2}"
            first = max((step for name, step in committed if name == trial), default=0)
            print(f"{trial} {first}", file=parent.stdin, flush=True)
            lines = iter(parent.stdout.readline, "")
            pid = 0
            for line in lines:
                name, value = line.split()
                if name == "dead":
                    break
                if name == "pid":
                    pid = int(value)
                    timer = threading.Timer(
                        moments.uniform(0.05, 0.4), os.kill, (pid, signal.SIGKILL)
                    )
                    timer.start()
                else:
                    committed.add((name, int(value)))
            assert pid, "the writer did not start"
        parent.stdin.close()
        deadline = time.monotonic() + 10
        while parent.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    assert parent.returncode == 0
    return committed
