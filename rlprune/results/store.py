"""Writes result rows: whole Parquet files that any reader can read at any moment.

Layout::

    results/dataset=D/backbone=B/rows-<trial>-<digest>-<method>-<step>-<digest of keys>.parquet

Folders are hive partitions (values URL-quoted); the partition columns are not in the files.
A file's name follows from the keys inside, so that a retried step writes the same file
again, and no writer reads or changes what another one wrote: many processes on many nodes
may write at once, also on object stores, which cannot rename. Points that are measured
again in another grouping leave a key in two files: :func:`rlprune.results.load` gives the
newest row, :func:`rlprune.results.compact` removes the others; readers that know nothing of
rlprune see both until then.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from rlprune import files
from rlprune.results.schema import (
    FILE_SCHEMAS,
    PARTITIONS,
    SCHEMA_VERSION,
    ResultRow,
    rows_to_table,
)


def write_rows(uri: str | Path, rows: Iterable[ResultRow]) -> list[str]:
    """Adds rows to a folder; when it returns, they are stored.

    Rows with the key (:data:`rlprune.results.schema.KEY`) of a row that is already there
    replace it; all others stay.

    Args:
        uri: folder of results, a local path (made if absent) or a URI.
        rows: any rows, of one or several trials, methods and steps.

    Returns:
        The files written, sorted.

    Raises:
        ResultsError: a row breaks the schema; nothing was written.
        FileAccessError: a file cannot be written (disk full, no permission, ...); names it.
    """
    groups: dict[tuple[object, ...], dict[int, ResultRow]] = {}
    for row in rows:
        group = groups.setdefault((row.dataset, row.backbone, *_stem(row)), {})
        group[row.row_id] = row  # of two rows with one key the later one
    tables = [rows_to_table(list(group.values())) for group in groups.values()]
    names = [files.join(os.fspath(uri), *_names(list(group.values()))) for group in groups.values()]
    for name, table in zip(names, tables, strict=True):
        files.write_whole(name, parquet_bytes(table))
    return sorted(names)


def partition_folders(values: Sequence[str]) -> list[str]:
    """Names of the folders for values of :data:`rlprune.results.schema.PARTITIONS`."""
    return [
        f"{name}={quote(value, safe='')}" for name, value in zip(PARTITIONS, values, strict=True)
    ]


def parquet_bytes(table: pa.Table, row_group_size: int | None = None) -> pa.Buffer:
    """A table of rows (:data:`rlprune.results.schema.SCHEMA`) as the bytes of a file.

    Args:
        table: the rows.
        row_group_size: rows per row group of a large file, with what lets readers skip
            groups and pages; None: a file of few rows, where that is most of its size.
    """
    inside, sink = table.select(FILE_SCHEMAS[SCHEMA_VERSION].names), pa.BufferOutputStream()
    large = row_group_size is not None
    pq.write_table(
        inside,
        sink,
        compression="zstd",
        row_group_size=row_group_size,
        use_dictionary=large,
        write_statistics=large or ["schema_version"],  # what tells a file's version
        write_page_index=large,
        store_schema=False,  # Parquet's own types say it all; as many bytes again
    )
    return sink.getvalue()


def _stem(row: ResultRow) -> tuple[object, ...]:
    return (row.experiment, row.trial, row.method, row.step)


def _names(group: list[ResultRow]) -> list[str]:
    """Folders and name of the file that holds these rows of one trial, method and step.

    The first digest tells trials apart whose names read alike; the second one is of the keys.
    """
    row = group[0]
    digest = hashlib.sha256(f"{row.experiment}\0{row.trial}".encode()).hexdigest()[:10]
    ids = ",".join(str(number) for number in sorted(each.row_id for each in group))
    keys = hashlib.sha256(ids.encode()).hexdigest()[:10]
    trial = re.sub(r"[^A-Za-z0-9-]+", "-", row.trial).strip("-")[:80]
    name = f"rows-{trial}-{digest}-{row.method}-{row.step:08d}-{keys}.parquet"
    return [*partition_folders([row.dataset, row.backbone]), name]
