"""Writes result rows to plain Parquet files, and reads them back.

A folder holds one file per (trial, method, step) under a name that follows from these, so
that a retried step writes the same file again. Files appear whole or not at all: a hidden
temporary file is written, synced and renamed. Any Parquet reader can read the folder at
any moment, also while it is being written.

One trial is written by one process at a time; different trials may be written at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import uuid
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rlprune.errors import ResultsError
from rlprune.results.schema import KEY, SCHEMA, SCHEMA_VERSION, ResultRow, rows_to_table


def write_rows(folder: str | Path, rows: Iterable[ResultRow]) -> list[Path]:
    """Adds rows to a folder; when it returns, they are on the disk.

    Rows with the key (:data:`rlprune.results.schema.KEY`) of a row that is already there
    replace it; all others stay.

    Args:
        folder: a local folder, made if absent.
        rows: any rows, of one or several trials, methods and steps.

    Returns:
        The files written, sorted.

    Raises:
        ResultsError: a row breaks the schema (nothing was written), the folder cannot be
            written, or a file to be extended is damaged; names the file.
    """
    target = _local(folder)
    groups: dict[str, list[ResultRow]] = {}
    for row in rows:
        groups.setdefault(_file_name(row), []).append(row)
    tables = {name: rows_to_table(group) for name, group in groups.items()}
    for name, table in tables.items():
        path = target / name
        if path.exists():
            table = pa.concat_tables([_read_file(path), table])
        _write_whole(path, _last_per_key(table))
    return sorted(target / name for name in tables)


def load_rows(folder: str | Path) -> pd.DataFrame:
    """All rows under a folder (or of one file), one per key: the newest.

    Args:
        folder: a local folder, searched with its subfolders, or a Parquet file.

    Returns:
        One row per evaluation point, columns as in
        :data:`rlprune.results.schema.COLUMNS`, sorted by key. Empty (with all columns) if
        there are no files yet.

    Raises:
        ResultsError: no such folder, or a file that is damaged, not from rlprune, or of a
            newer rlprune; names the file.
    """
    source = _local(folder)
    if not source.exists():
        raise ResultsError(f"results {source}: no such folder. Give the folder of a run.")
    files = [source] if source.is_file() else sorted(source.rglob("[!._]*.parquet"))
    table = pa.concat_tables([SCHEMA.empty_table(), *map(_read_file, files)])
    table = _last_per_key(table.sort_by("created_at"))
    frame: pd.DataFrame = table.to_pandas()
    return frame.sort_values(list(KEY), ignore_index=True)


def _local(folder: str | Path) -> Path:
    if "://" in str(folder):
        raise ResultsError(f"results {folder}: only local folders are supported so far.")
    return Path(folder)


def _file_name(row: ResultRow) -> str:
    """The file that holds a row; the digest tells trials apart whose names read alike."""
    digest = hashlib.sha256(f"{row.experiment}\0{row.trial}".encode()).hexdigest()[:10]
    trial = re.sub(r"[^A-Za-z0-9-]+", "-", row.trial).strip("-")[:80]
    return f"rows-{trial}-{digest}-{row.method}-{row.step:08d}.parquet"


def _last_per_key(table: pa.Table) -> pa.Table:
    keys: pd.DataFrame = table.select(list(KEY)).to_pandas()
    return table.filter(pa.array(~keys.duplicated(keep="last").to_numpy(), type=pa.bool_()))


def _read_file(path: Path) -> pa.Table:
    """One file, checked against the schema."""
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ResultsError(
            f"results file {path}: cannot be read as Parquet ({reason}). "
            "Move it out of the folder; the step that wrote it can be run again."
        ) from error
    problem = _schema_problem(table)
    if problem is not None:
        raise ResultsError(
            f"results file {path}: {problem}. Move it out of the folder if it is not from "
            "rlprune, or read it with the version of rlprune that wrote it."
        )
    return table.cast(SCHEMA)


def _schema_problem(table: pa.Table) -> str | None:
    """What differs from the schema, or None."""
    if "schema_version" not in table.column_names:
        return "not a file of rlprune (no column schema_version)"
    versions = set(table["schema_version"].to_pylist())
    if versions - {SCHEMA_VERSION}:
        found = ", ".join(map(str, sorted(versions, key=str)))
        return f"schema version {found}, this rlprune reads version {SCHEMA_VERSION}"
    found_types = {field.name: field.type for field in table.schema}
    if len(found_types) != len(table.schema):
        return "a column appears twice"
    for field in SCHEMA:
        if field.name not in found_types:
            return f"column {field.name} is missing"
        if found_types[field.name] != field.type:
            return f"column {field.name} is {found_types[field.name]}, must be {field.type}"
        if not field.nullable and table[field.name].null_count:
            return f"column {field.name} has missing values"
    extra = sorted(set(found_types) - set(SCHEMA.names))
    return f"unknown columns {', '.join(extra)}" if extra else None


def _write_whole(path: Path, table: pa.Table) -> None:
    """Writes a local file so that a reader sees the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                pq.write_table(table, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        _sync_folder(path.parent)
    except OSError as error:
        raise ResultsError(
            f"results file {path}: cannot be written ({error.strerror or error}). "
            "Free space or choose another folder, then resume."
        ) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
