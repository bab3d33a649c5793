"""Compaction: fewer files, the same rows, nothing lost when others write or it is killed."""

from __future__ import annotations

import importlib
import os
import shutil
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from result_rows import NOW, make_row
from typer.testing import CliRunner

from rlprune import files
from rlprune.cli.main import app
from rlprune.errors import ResultsError
from rlprune.results import CompactReport, compact, load, load_rows, write_rows

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


FIRST = {"config_hash": "of m_cifarnet"}
# the package gives functions of these names
COMPACT = importlib.import_module("rlprune.results.compact")
PARTS = importlib.import_module("rlprune.results.parts")


def parquet_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.parquet"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """12 files in 2 partitions, 3 rows each; 2 more files: 2 rows again, and a new one."""
    results = tmp_path / "results"
    for step in range(6):
        for backbone in ("m_cifarnet", "package.module:factory"):
            network = {"backbone": backbone, "config_hash": f"of {backbone}"}
            rows = [make_row(step=step, tradeoff_rate=r, **network) for r in (1, 0.5, 0)]
            write_rows(results, rows)
    late = {**FIRST, "test_accuracy": 0.25, "created_at": NOW + timedelta(seconds=1)}
    write_rows(results, [make_row(step=0, tradeoff_rate=0.5, **late)])
    again = [make_row(step=1, tradeoff_rate=rate, **late) for rate in (0.5, 0.25)]
    write_rows(results, again)
    return results


def test_many_files_become_one_per_partition(folder: Path) -> None:
    before = load_rows(folder)
    sizes = [path.stat().st_size for path in parquet_files(folder)]
    seen: list[tuple[int, int]] = []
    report = compact(folder.parent, progress=lambda done, total: seen.append((done, total)))
    after = parquet_files(folder)
    assert len(after) == 2
    assert report == CompactReport(
        files_before=14,
        files_after=2,
        bytes_before=sum(sizes),
        bytes_after=sum(path.stat().st_size for path in after),
        duplicates=2,
    )
    assert report.bytes_after < report.bytes_before / 2
    assert seen[-1] == (14, 14)
    pd.testing.assert_frame_equal(load_rows(folder), before)
    assert len(pd.read_parquet(folder)) == 37  # readers without rlprune see no duplicates now
    for path in after:
        table = pq.read_table(path, partitioning=None)
        keys = list(
            zip(*(table[name].to_pylist() for name in ("step", "tradeoff_rate")), strict=True)
        )
        assert keys == sorted(keys)
        column = pq.read_metadata(path).row_group(0).column(1)
        assert column.compression == "ZSTD" and column.has_dictionary_page
    # again: nothing to do
    names = [(path, path.stat().st_mtime_ns) for path in after]
    assert compact(folder).files_after == 2
    assert [(path, path.stat().st_mtime_ns) for path in parquet_files(folder)] == names


def test_new_files_join_the_old_ones(folder: Path) -> None:
    compact(folder)
    write_rows(folder, [make_row(step=7), make_row(step=8)])
    late = make_row(step=3, test_accuracy=0.125, created_at=NOW + timedelta(days=1), **FIRST)
    write_rows(folder, [late])
    report = compact(folder)
    assert (report.files_before, report.files_after, report.duplicates) == (5, 2, 1)
    frame = load_rows(folder)
    assert len(frame) == 39
    assert frame.loc[frame["test_accuracy"] == 0.125, "step"].tolist() == [3]


def test_files_that_are_full_are_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(COMPACT, "ROWS_PER_FILE", 8)
    before = load_rows(folder)
    compact(folder)
    # 19 and 18 rows
    assert sorted(pq.read_metadata(p).num_rows for p in parquet_files(folder)) == [2, 3, 8, 8, 8, 8]
    full = {p: p.stat().st_mtime_ns for p in parquet_files(folder) if "-full-" in p.name}
    assert len(full) == 4
    pd.testing.assert_frame_equal(load_rows(folder), before)
    write_rows(folder, [make_row(step=7)])
    assert compact(folder).files_after == 6
    assert {path: path.stat().st_mtime_ns for path in full} == full
    assert len(load_rows(folder)) == 38


def test_large_files_are_read_in_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every file were too large to be read whole, and rows groups tiny."""
    before = load_rows(folder)
    monkeypatch.setattr(PARTS, "WHOLE_BYTES", 0)
    monkeypatch.setattr(COMPACT, "WHOLE_BYTES", 0)
    monkeypatch.setattr(COMPACT, "ROWS_PER_GROUP", 2)
    compact(folder)
    assert [pq.read_metadata(p).num_row_groups for p in parquet_files(folder)] == [10, 9]
    write_rows(folder, [make_row(step=7)])
    assert compact(folder).files_after == 2
    frame = load_rows(folder)
    pd.testing.assert_frame_equal(frame[frame["step"] < 7].reset_index(drop=True), before)
    assert len(frame) == 38


def test_old_versions_are_upgraded(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES, tmp_path / "results")
    before = load_rows(tmp_path)
    report = compact(tmp_path)
    assert report.upgraded == 9  # 3 files each of versions 1, 2 and 3
    pd.testing.assert_frame_equal(load_rows(tmp_path), before)
    assert not list((tmp_path / "results" / "results_v1").glob("*.parquet"))
    for path in parquet_files(tmp_path):
        assert set(pq.read_table(path, partitioning=None)["schema_version"].to_pylist()) == {4}
    assert compact(tmp_path).upgraded == 0


@pytest.mark.parametrize("whole_bytes", [4 << 20, 0])
@pytest.mark.parametrize("name", ["compacted-last-", "compacted-full-", "rows-"])
def test_a_single_file_of_version_2_is_upgraded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, whole_bytes: int
) -> None:
    """Also where nothing else is to be done; the new file may have the old one's name."""
    monkeypatch.setattr(PARTS, "WHOLE_BYTES", whole_bytes)
    monkeypatch.setattr(COMPACT, "WHOLE_BYTES", whole_bytes)
    (source,) = (FIXTURES / "results_v2").rglob("compacted-last-*.parquet")
    place = tmp_path / "results" / source.parent.relative_to(FIXTURES / "results_v2")
    place.mkdir(parents=True)
    shutil.copy(source, place / source.name.replace("compacted-last-", name))
    before = load_rows(tmp_path)
    report = compact(tmp_path)
    assert (report.upgraded, report.files_after, report.changed) == (1, 1, 0)
    pd.testing.assert_frame_equal(load_rows(tmp_path), before)
    (path,) = parquet_files(tmp_path)
    assert "latency_seconds" in pq.read_schema(path).names


def test_a_killed_compaction_is_repaired_by_the_next(folder: Path, tmp_path: Path) -> None:
    """Killed between writing and deleting: all files of before and after are there."""
    before = load_rows(folder)
    shutil.copytree(folder, tmp_path / "copy")
    compact(folder)
    shutil.copytree(tmp_path / "copy", folder, dirs_exist_ok=True)
    assert len(parquet_files(folder)) == 16
    pd.testing.assert_frame_equal(load_rows(folder), before)
    report = compact(folder)
    assert (report.files_after, report.duplicates) == (2, 39)
    pd.testing.assert_frame_equal(load_rows(folder), before)


def meanwhile(monkeypatch: pytest.MonkeyPatch, action: Any) -> None:
    """Does something after the merged files are written and before the others are deleted."""
    write = files.write_whole
    done: list[bool] = []

    def write_and_act(uri: str, data: Any) -> None:
        write(uri, data)
        if "compacted-" in uri and not done:
            done.append(True)
            action()

    monkeypatch.setattr(files, "write_whole", write_and_act)


def test_a_step_measured_again_meanwhile_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = {**FIRST, "test_accuracy": 0.0625, "created_at": NOW + timedelta(days=1)}

    def retry() -> None:
        write_rows(folder, [make_row(step=4, tradeoff_rate=r, **late) for r in (1, 0.5, 0)])

    meanwhile(monkeypatch, retry)
    assert compact(folder).changed == 1
    frame = load_rows(folder)
    assert len(frame) == 37
    assert (frame["test_accuracy"] == 0.0625).sum() == 3


def test_files_that_vanish_meanwhile_do_no_harm(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_rows(folder)
    meanwhile(monkeypatch, lambda: compact(folder))
    assert compact(folder).files_after >= 2
    pd.testing.assert_frame_equal(load_rows(folder), before)


def test_loading_while_files_are_merged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files vanish between the listing and the reading; their rows do not."""
    before = load_rows(folder)
    listing = files.list_files
    listed: list[int] = []

    def list_and_compact(*arguments: Any, **options: Any) -> Any:
        entries = listing(*arguments, **options)
        listed.append(len(entries))
        if len(listed) == 1:
            compact(folder)
        return entries

    monkeypatch.setattr(files, "list_files", list_and_compact)
    pd.testing.assert_frame_equal(load_rows(folder), before)
    assert listed[0] == 14 and listed[-1] == 2


def test_old_temporary_files_are_removed(folder: Path) -> None:
    part = folder / "dataset=digits" / "backbone=m_cifarnet"
    old, new = part / ".rows-a.parquet.1.tmp", part / ".rows-b.parquet.2.tmp"
    for path in (old, new):
        path.write_bytes(b"x")
    day_ago = time.time() - 86_400
    os.utime(old, (day_ago, day_ago))
    assert compact(folder).temporary == 1
    assert not old.exists() and new.exists()


def test_a_single_file_is_refused(folder: Path) -> None:
    with pytest.raises(ResultsError, match=r"a single file. Give the folder it is in"):
        compact(parquet_files(folder)[0])


@pytest.fixture
def runner() -> Iterator[CliRunner]:
    yield CliRunner()


def test_command(folder: Path, runner: CliRunner) -> None:
    old = FIXTURES / "results_v1"
    shutil.copytree(old, folder / "old")
    result = runner.invoke(app, ["results", "compact", str(folder.parent)])
    assert result.exit_code == 0, result.output
    assert "Files: 17 -> 4" in result.output
    assert "2 rows removed that newer ones replace" in result.output
    assert "3 files of older versions rewritten" in result.output
    (folder / "bad.parquet").write_bytes(b"x")
    result = runner.invoke(app, ["results", "compact", str(folder)])
    assert result.exit_code == 2 and "bad.parquet: cannot be read as Parquet" in result.output
    result = runner.invoke(app, ["results", "compact", str(folder), "--skip-bad"])
    assert result.exit_code == 0 and "Skipped: results file" in result.output
    assert len(load(folder, columns=["seed"], skip_bad=True)) == 42
    result = runner.invoke(app, ["results", "schema"])
    assert result.exit_code == 0 and "row_id" in result.output
