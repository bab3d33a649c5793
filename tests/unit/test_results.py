"""Result rows: the schema, the store, loading, files of every version, the summary table."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from result_rows import EXAMPLE, NOW, make_row

from rlprune.errors import FileAccessError, ResultsError
from rlprune.results import (
    COLUMNS,
    FILE_SCHEMAS,
    KEY,
    PARTITIONS,
    SCHEMA,
    SCHEMA_VERSION,
    SUMMARY_COLUMNS,
    ResultRow,
    compact,
    load,
    load_rows,
    summary_table,
    write_rows,
)
from rlprune.results.schema import LATENCY, row_from, row_id, rows_to_table
from rlprune.results.store import parquet_bytes


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
    assert record["schema_version"] == SCHEMA_VERSION == 4
    assert record["row_id"] == make_row().row_id
    for name, value in EXAMPLE.items():
        if value is None:
            assert pd.isna(record[name]), name
        elif isinstance(value, tuple):
            assert tuple(record[name]) == value, name
        else:
            assert record[name] == value, name
    assert pq.read_schema(path).equals(FILE_SCHEMAS[4])
    assert not set(PARTITIONS) & set(pq.read_schema(path).names)


FACTORY = "package.module:factory"  # ":" is quoted in folder names


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Rows that a reader must see with nothing of rlprune installed."""
    folder = tmp_path / "results"
    write_rows(folder, [make_row(backbone=FACTORY, dataset="a/b ü", budget_s=0.3)])
    # budget_s is all null here and a number above: types must still agree
    write_rows(folder, [make_row(step=step) for step in (1, 2)])
    part = folder / "dataset=digits" / "backbone=m_cifarnet"
    (part / ".rows-x.parquet.123.tmp").write_bytes(b"left by a killed writer")
    return folder


PLAIN = [("a/b ü", FACTORY, 4, 0.3), ("digits", "m_cifarnet", 1, None)]
PLAIN += [("digits", "m_cifarnet", 2, None)]


def test_plain_pandas_reads_the_folder(plain: Path) -> None:
    frame = pd.read_parquet(plain).sort_values(["dataset", "step"])
    assert frame["dataset"].tolist() == [row[0] for row in PLAIN]
    assert frame["backbone"].tolist() == [row[1] for row in PLAIN]
    assert frame["step"].tolist() == [row[2] for row in PLAIN]
    assert frame["budget_s"].fillna(-1).tolist() == [0.3, -1, -1]
    assert str(frame.dtypes["created_at"]) == "datetime64[us, UTC]"
    assert [list(names) for names in frame["layer_names"]] == [["features.0", "features.3"]] * 3
    some = pd.read_parquet(plain, columns=["step"], filters=[("backbone", "==", FACTORY)])
    assert some["step"].tolist() == [4]


def test_duckdb_reads_the_folder(plain: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    source = f"read_parquet('{plain}/**/*.parquet', hive_partitioning = true)"
    query = f"select dataset, backbone, step, budget_s from {source} order by dataset, step"
    assert duckdb.sql(query).fetchall() == PLAIN


def test_polars_reads_the_folder(plain: Path) -> None:
    polars = pytest.importorskip("polars")
    names = ["dataset", "backbone", "step", "budget_s"]
    # a pattern, because a bare folder may hold nothing but Parquet for polars, not even the
    # hidden file of a writer
    frame = polars.scan_parquet(plain / "**" / "*.parquet", hive_partitioning=True)
    assert frame.sort("dataset", "step").select(names).collect().rows() == PLAIN
    for hidden in plain.rglob(".rows*"):
        hidden.unlink()
    assert (
        polars.scan_parquet(plain).sort("dataset", "step").select(names).collect().rows() == PLAIN
    )


def test_retry_overwrites_the_same_file(tmp_path: Path) -> None:
    first = [make_row(tradeoff_rate=rate) for rate in (1.0, 0.5, 0.0)]
    (path,) = write_rows(tmp_path, first)
    # the clock of another node may be behind: the later write wins all the same
    earlier = NOW - timedelta(hours=1)
    retried = [
        make_row(tradeoff_rate=rate, test_accuracy=0.25, created_at=earlier)
        for rate in (0.5, 0.0, 1.0)
    ]
    assert write_rows(tmp_path, retried) == [path]
    assert load_rows(tmp_path)["test_accuracy"].tolist() == [0.25] * 3
    (other,) = write_rows(tmp_path, [make_row(method="dense", tradeoff_rate=None)])
    assert other != path
    assert len(load_rows(tmp_path)) == 4


def test_of_two_rows_with_one_key_the_later_is_written(tmp_path: Path) -> None:
    write_rows(tmp_path, [make_row(test_accuracy=0.1), make_row(test_accuracy=0.2)])
    assert load_rows(tmp_path)["test_accuracy"].tolist() == [0.2]


def test_points_measured_in_another_grouping_keep_the_newest(tmp_path: Path) -> None:
    late = NOW + timedelta(seconds=1)
    write_rows(tmp_path, [make_row(tradeoff_rate=rate) for rate in (1.0, 0.5)])
    write_rows(tmp_path, [make_row(test_accuracy=0.75, created_at=late)])
    assert len(pd.read_parquet(tmp_path)) == 3  # readers without rlprune see both
    assert load_rows(tmp_path)["test_accuracy"].tolist() == [0.75, 0.875]
    # a filter must not bring the old measurement of a point back
    old = load(tmp_path, columns=["test_accuracy"], filters=[("test_accuracy", ">", 0.8)])
    assert old["test_accuracy"].tolist() == [0.875]
    assert load(tmp_path, filters=pc.field("tradeoff_rate") == 1.0)["row_id"].size == 1
    none = load(tmp_path, filters=[("test_accuracy", ">", 0.8), ("tradeoff_rate", "==", 0.5)])
    assert none.empty and list(none.columns) == SCHEMA.names


def test_columns_and_filters(tmp_path: Path) -> None:
    rows = [make_row(backbone=FACTORY, seed=seed, step=seed) for seed in range(3)]
    write_rows(tmp_path, [*rows, make_row(backbone="007")])
    names = ["test_accuracy", "backbone", "seed"]
    frame = load(tmp_path, columns=names, filters=[("seed", "<", 2), ("backbone", "==", FACTORY)])
    assert list(frame.columns) == names
    assert sorted(frame["seed"]) == [0, 1]
    assert str(frame.dtypes["backbone"]) == "category"
    assert set(frame["backbone"]) == {FACTORY}
    # a name that looks like a number stays a name
    assert load(tmp_path, filters=[("backbone", "in", ["007"])])["backbone"].tolist() == ["007"]
    # a function that pyarrow lacks for categoricals
    starts = pc.starts_with(pc.field("backbone"), "package.")
    frame = load(tmp_path, columns=["backbone"], filters=starts)
    assert frame["backbone"].tolist() == [FACTORY] * 3
    assert str(frame.dtypes["backbone"]) == "category"
    frame.loc[0, "backbone"] = FACTORY  # the frame is the user's own
    assert load(tmp_path, columns=[]).shape == (4, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["test_acuracy"]}, "no column 'test_acuracy'. Did you mean 'test_accuracy'"),
        ({"columns": ["zzz"]}, "no column 'zzz'. `rlprune schema` lists them"),
        ({"filters": [("sed", "<", 3)]}, "no column 'sed'. Did you mean 'seed'"),
        ({"filters": [("seed", "~", 3)]}, r"filters .*Give a list of \(column, operator, value\)"),
        ({"filters": pc.field("seed") == "x"}, r"filter \(seed == \"x\"\): .*lists columns and"),
    ],
)
def test_columns_and_filters_that_cannot_be(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ResultsError, match=message):
        load(tmp_path, **options)


def test_a_run_a_partition_or_one_file(tmp_path: Path) -> None:
    (path,) = write_rows(tmp_path / "results", [make_row()])
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "updates.parquet")
    for place in (tmp_path, tmp_path / "results", Path(path).parent, path):
        frame = load(place, columns=["dataset", "seed"])
        assert frame.to_dict("records") == [{"dataset": "digits", "seed": 0}], place


def test_runs_that_share_names_but_not_a_configuration_stay_apart(tmp_path: Path) -> None:
    write_rows(tmp_path / "a", [make_row(seed=0, config_hash="aaa")])
    write_rows(tmp_path / "b", [make_row(seed=1, config_hash="bbb")])
    write_rows(tmp_path / "a", [make_row(seed=1, config_hash="bbb", tradeoff_rate=1.0)])
    assert sorted(load_rows(tmp_path)["seed"]) == [0, 1, 1]


def test_trials_with_look_alike_names_have_files_of_their_own(tmp_path: Path) -> None:
    names = ["a/b", "a_b", "a b", "ä", "", "x" * 500, "..", ".hidden"]
    paths = write_rows(tmp_path, [make_row(trial=name) for name in names])
    assert len({path.casefold() for path in paths}) == len(names)
    folder = tmp_path / "dataset=digits" / "backbone=m_cifarnet"
    assert sorted(paths) == sorted(map(str, folder.glob("rows-*.parquet")))
    assert sorted(load_rows(tmp_path)["trial"]) == sorted(names)


def test_empty_folder_has_all_columns(tmp_path: Path) -> None:
    frame = load_rows(tmp_path)
    assert frame.empty
    assert list(frame.columns) == SCHEMA.names
    assert summary_table(frame).columns.tolist() == list(SUMMARY_COLUMNS)
    assert write_rows(tmp_path, []) == []


FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def test_files_of_version_1_are_upgraded_on_read() -> None:
    frame = load_rows(FIXTURES / "results_v1").set_index(["trial", "method", "tradeoff_rate"])
    assert len(frame) == 5
    assert set(frame["schema_version"]) == {SCHEMA_VERSION}
    assert frame["configuration"].isna().all() and frame["latency_seconds"].isna().all()
    row = frame.loc[("first", "learned", 0.5)]
    assert row["checkpoint_uri"] == "runs/old"  # was runs/old/checkpoints/checkpoint_000004
    assert (row["backbone"], row["dataset"]) == ("my.package:factory", "digits")
    assert row["test_accuracy"] == 0.875
    key = ("old", "first", "abc123", 4, "learned", 0.5, None)
    assert row["row_id"] == row_id(key)
    assert list(row["keep_ratio_mean"]) == [0.5, 0.25]
    some = load(FIXTURES / "results_v1", columns=["seed"], filters=[("dataset", "==", "cifar10")])
    assert some["seed"].tolist() == [0]


@pytest.mark.parametrize("whole_bytes", [4 << 20, 0])
def test_files_of_version_2(whole_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read whole, and as if they were too large for that."""
    monkeypatch.setattr("rlprune.results.parts.WHOLE_BYTES", whole_bytes)
    frame = load_rows(FIXTURES / "results_v2").set_index(["trial", "method", "tradeoff_rate"])
    assert len(frame) == 5
    assert set(frame["schema_version"]) == {SCHEMA_VERSION}
    assert frame[list(LATENCY)].isna().all(axis=None)
    assert set(frame["configuration"]) == {'{"seed": 0}'}
    assert frame["test_accuracy"].loc[("first", "learned", 0.0)] == 0.8
    assert frame["row_id"].loc[("second", "learned", 0.5)] == 1735397230532471395
    for columns in (["schema_version", "latency_machine"], None):
        for condition, count in (
            (pc.field("schema_version") == SCHEMA_VERSION, 5),  # as rows are given, not written
            (pc.field("schema_version") == 2, 0),
            (pc.field("latency_seconds").is_null() & (pc.field("backbone") == "resnet20"), 1),
        ):
            some = load(FIXTURES / "results_v2", columns=columns, filters=condition)
            assert len(some) == count, (columns, condition)


def test_files_of_version_3() -> None:
    frame = load_rows(FIXTURES / "results_v3").set_index(["trial", "method", "tradeoff_rate"])
    assert len(frame) == 5
    assert frame["latency_seconds"].isna().sum() == 2
    row = frame.loc[("first", "learned", 0.5)]  # timed twice
    assert (row["latency_seconds"], row["latency_batch"], row["latency_ratio"]) == (0.0045, 8, 0.5)
    assert row["latency_machine"] == "EPYC, 2 cores"
    assert row["latency_measured_at"] == NOW + timedelta(hours=1)
    assert frame.loc[("first", "learned", 0.0), "latency_p75_seconds"] == 0.005


def test_files_of_version_4() -> None:
    frame = load_rows(FIXTURES / "results_v4").set_index(["trial", "method"])
    assert set(frame["schema_version"]) == {SCHEMA_VERSION}
    assert list(frame.loc[("first", "learned"), "image_dependent_ratio"]) == [0.0, 0.5]
    assert frame.loc[("first", "cascade"), "image_dependent_ratio"] is None
    older = load_rows(FIXTURES / "results_v3")
    assert older["image_dependent_ratio"].isna().all()


def test_versions_are_read_together() -> None:
    all_of_them = load(FIXTURES, columns=["experiment"])["experiment"].value_counts()
    assert all_of_them.to_dict() == {"old": 5, "new": 5, "timed": 5, "counted": 2}


def test_a_newer_row_replaces_one_of_version_1(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "results_v1", tmp_path / "results")
    row = make_row(
        experiment="old", trial="second", dataset="cifar10", backbone="resnet20", budget_s=0.3,
        test_accuracy=0.99, created_at=NOW + timedelta(days=1),
    )  # fmt: skip
    write_rows(tmp_path / "results", [row])
    frame = load_rows(tmp_path)
    assert len(frame) == 5
    assert frame.loc[frame["trial"] == "second", "test_accuracy"].tolist() == [0.99]


def bad_version(path: Path, version: int) -> None:
    table = rows_to_table([make_row()]).select(FILE_SCHEMAS[4].names)
    column = pa.array([version], pa.int32())
    pq.write_table(table.set_column(0, SCHEMA.field("schema_version"), column), path)


def without_values(path: Path) -> None:
    table = rows_to_table([make_row()]).select(FILE_SCHEMAS[4].names)
    position = table.schema.get_field_index("test_loss")
    pq.write_table(table.set_column(position, "test_loss", pa.nulls(1, pa.float64())), path)


def damaged_inside(path: Path) -> None:
    """The footer is whole, the data are not."""
    data = bytearray(parquet_bytes(rows_to_table([make_row()])))
    footer = int.from_bytes(data[-8:-4], "little") + 8
    data[4:-footer] = b"\xff" * (len(data) - footer - 4)
    path.write_bytes(data)


EMPTY = FILE_SCHEMAS[4].empty_table()


@pytest.mark.parametrize(
    ("make_file", "message"),
    [
        (lambda path: path.write_bytes(b"PAR1 torn"), "cannot be read as Parquet"),
        (lambda path: path.write_bytes(b""), "cannot be read as Parquet"),
        (damaged_inside, "cannot be read as Parquet"),
        (lambda path: pd.DataFrame({"x": [1]}).to_parquet(path), "not a file of rlprune"),
        (lambda p: pq.write_table(EMPTY.drop(["test_loss"]), p), "column test_loss is missing"),
        (
            lambda path: bad_version(path, 5),
            "schema version 5, this rlprune reads versions 1 to 4",
        ),
        (lambda path: bad_version(path, 1), "column backbone is missing"),
        (without_values, "column test_loss has missing values"),
        (
            lambda path: pq.write_table(
                EMPTY.append_column("extra", pa.array([], pa.int8())), path
            ),
            "unknown columns extra",
        ),
        (
            lambda path: pq.write_table(
                EMPTY.set_column(2, "trial", pa.array([], pa.int8())), path
            ),
            "column trial is int8, must be string",
        ),
        (
            lambda path: pq.write_table(
                rows_to_table([make_row()]).select(FILE_SCHEMAS[4].names), path
            ),
            "must lie in folders dataset=.../backbone=...",
        ),
    ],
)
def test_bad_file_is_one_error_that_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, make_file: Any, message: str
) -> None:
    write_rows(tmp_path, [make_row()])
    bad = tmp_path / "sub" / "bad.parquet"
    if "dataset=" not in message:
        bad = tmp_path / "dataset=digits" / "backbone=m_cifarnet" / "bad.parquet"
    bad.parent.mkdir(exist_ok=True)
    make_file(bad)
    content = bad.read_bytes()
    for function in (load_rows, compact):
        with pytest.raises(ResultsError, match=message) as caught:
            function(tmp_path)
        assert str(bad) in str(caught.value)
        assert "Move it out of the folder" in str(caught.value)
        assert "--skip-bad" in str(caught.value)
        assert caught.value.exit_status == 2
    assert len(load_rows(tmp_path, skip_bad=True)) == 1
    assert str(bad) in caplog.text and message.split(".")[0] in caplog.text
    assert len(compact(tmp_path, skip_bad=True).skipped) == 1
    assert bad.read_bytes() == content
    assert len(load_rows(tmp_path, skip_bad=True)) == 1


def test_all_bad_files_are_named_at_once(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"bad{number:02d}.parquet").write_bytes(b"x")
    with pytest.raises(ResultsError, match="12 results files cannot be used") as caught:
        load(tmp_path)
    assert "bad09" in str(caught.value) and "and 2 more" in str(caught.value)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    for function in (load, load_rows, compact):
        with pytest.raises(ResultsError, match=r"nothing: no such folder. Give the folder of a"):
            function(tmp_path / "nothing")


def test_unwritable_folder_names_the_file(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    with pytest.raises(FileAccessError, match=r"file/.*rows-trial.*cannot be written"):
        write_rows(blocker, [make_row()])


def test_the_number_of_a_row_follows_from_its_key() -> None:
    number = int.from_bytes(
        hashlib.sha256(b'["quickstart", "trial", "abc123", 4, "learned", 0.5, null]').digest()[:8],
        "big",
        signed=True,
    )
    assert make_row().row_id == number
    assert make_row(test_accuracy=0.1, seed=3).row_id == number
    assert dataclasses.replace(make_row(step=5), step=4).row_id == number
    assert make_row(tradeoff_rate=1).row_id == make_row(tradeoff_rate=1.0).row_id
    assert make_row(tradeoff_rate=0.0).row_id == make_row(tradeoff_rate=-0.0).row_id
    names = ["experiment", "trial", "config_hash"]
    others = [make_row(**{name: "x"}).row_id for name in names]
    others += [make_row(step=3).row_id, make_row(method="dense").row_id]
    others += [make_row(tradeoff_rate=None).row_id, make_row(budget_s=0.5).row_id]
    others += [make_row(tradeoff_rate=None, budget_s=0.5).row_id, number]
    assert len(set(others)) == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "method must be one of learned, dense"),
        ({"keep_ratio_mean": (0.5,)}, r"keep_ratio_mean must have one value per layer \(2, got 1"),
        (
            {"image_dependent_ratio": (0.1,)},
            r"image_dependent_ratio must have one value .* \(2, got 1",
        ),
        ({"created_at": datetime(2026, 1, 1)}, "created_at must have a time zone"),
        ({"backbone": ""}, "backbone must not be empty"),
        ({"step": 1.5}, "step, .* must have the types of the schema"),
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
        ({"configuration": 3}, "trial trial: configuration must be string"),
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
    assert json.loads(row.versions)["torch"]
    assert re.fullmatch(r"\d+\.\d+\.\d+ \([0-9a-f]{8}\)", json.loads(row.versions)["rlprune"])
    assert datetime.now(timezone.utc) - row.created_at < timedelta(minutes=1)


TIMED: dict[str, Any] = {
    "latency_seconds": 0.004,
    "latency_p25_seconds": 0.003,
    "latency_p75_seconds": 0.005,
    "latency_dense_seconds": None,
    "latency_ratio": None,
    "latency_batch": 8,
    "latency_threads": 1,
    "latency_machine": "EPYC, 2 cores",
    "latency_measured_at": NOW,
}


@pytest.mark.parametrize("lacking", ["latency_seconds", "latency_batch", "latency_machine"])
def test_a_latency_needs_its_setting(lacking: str) -> None:
    make_row(**TIMED)
    with pytest.raises(ResultsError, match=r"latency_machine, .* must be given together"):
        make_row(**{**TIMED, lacking: None})


@pytest.mark.parametrize(
    "changes",
    [{}, TIMED, {"tradeoff_rate": None, "budget_s": 0.3, "checkpoint_uri": "s3://x"},
     {"layer_names": (), "keep_ratio_mean": (), "keep_ratio_std": (),
      "image_dependent_ratio": (), "stored_ratio": (),
      "rollouts": 2**53 + 1}],
)  # fmt: skip
def test_a_loaded_row_is_the_row_that_was_written(tmp_path: Path, changes: dict[str, Any]) -> None:
    # with a neighbour of other nulls, whose columns are of other types then
    row, other = make_row(**changes), make_row(step=9, **TIMED)
    write_rows(tmp_path, [row, other])
    frame = load_rows(tmp_path)
    assert [row_from(record) for record in frame.to_dict("records")] == [row, other]
    assert row_from(frame.iloc[0].to_dict()) == row


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_rows_of_every_version_can_be_written_again(tmp_path: Path, version: int) -> None:
    frame = load_rows(FIXTURES / f"results_v{version}")
    write_rows(tmp_path, [row_from(record) for record in frame.to_dict("records")])
    pd.testing.assert_frame_equal(load_rows(tmp_path), frame)


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
