"""Checks one Parquet file against the schema, from its footer alone."""

from __future__ import annotations

from functools import cache

import pyarrow as pa
import pyarrow.parquet as pq

from rlprune.results.schema import FILE_SCHEMAS, SCHEMA_VERSION


class BadFileError(Exception):
    """A file that holds no result rows of a known version; the message is the reason."""


def file_version(footer: pq.FileMetaData) -> int:
    """The schema version of a file.

    Args:
        footer: the file's metadata.

    Raises:
        BadFileError: not a file of rlprune, a newer version, or a column that is missing, of
            another type, doubled, unknown, or without a value where one is needed.
    """
    for version in sorted(FILE_SCHEMAS, reverse=True):  # the fast way, for our own files
        if footer.schema.equals(_parquet_schema(version)):
            written = _known(_written_version(footer, 0) or version)
            if written == version:
                return version
    names = footer.schema.names
    if "schema_version" not in names:
        raise BadFileError("not a file of rlprune (no column schema_version)")
    version = _known(_written_version(footer, names.index("schema_version")) or SCHEMA_VERSION)
    schema, wanted = footer.schema.to_arrow_schema(), FILE_SCHEMAS[version]
    _check_columns(schema, wanted)
    _check_values_are_there(footer, schema, wanted)
    return version


def _known(version: int) -> int:
    if version in FILE_SCHEMAS:
        return version
    raise BadFileError(
        f"schema version {version}, this rlprune reads versions 1 to {SCHEMA_VERSION}"
    )


@cache
def _parquet_schema(version: int) -> pq.ParquetSchema:
    """As in the footers of our own files: much faster to compare than Arrow's schema."""
    sink = pa.BufferOutputStream()
    pq.write_table(FILE_SCHEMAS[version].empty_table(), sink, store_schema=False)
    return pq.read_metadata(pa.BufferReader(sink.getvalue())).schema


def _written_version(footer: pq.FileMetaData, position: int) -> int | None:
    """What the column at ``position`` says; None: there are no rows."""
    if footer.num_rows == 0:
        return None
    found: set[int | None] = set()
    for group in range(footer.num_row_groups):
        statistics = footer.row_group(group).column(position).statistics
        known = statistics is not None and statistics.has_min_max
        found |= {statistics.min, statistics.max} if known else {None}
    if len(found) == 1 and isinstance(version := found.pop(), int):
        return version
    raise BadFileError("it must hold rows of one schema_version, with statistics in the footer")


def _check_columns(schema: pa.Schema, wanted: pa.Schema) -> None:
    types = {field.name: field.type for field in schema}
    if len(types) != len(schema):
        raise BadFileError("a column appears twice")
    for field in wanted:
        if field.name not in types:
            raise BadFileError(f"column {field.name} is missing")
        if types[field.name] != field.type:
            found = types[field.name]
            raise BadFileError(f"column {field.name} is {found}, must be {field.type}")
    extra = sorted(set(types) - set(wanted.names))
    if extra:
        raise BadFileError(f"unknown columns {', '.join(extra)}")


def _check_values_are_there(footer: pq.FileMetaData, schema: pa.Schema, wanted: pa.Schema) -> None:
    """Files of other writers may allow nulls where the schema does not; none may be there."""
    required = {
        field.name for field in wanted if not field.nullable and schema.field(field.name).nullable
    }
    for group in range(footer.num_row_groups):
        for index in range(footer.num_columns):
            column = footer.row_group(group).column(index)
            name, statistics = column.path_in_schema.split(".")[0], column.statistics
            if name not in required or "." in column.path_in_schema:  # lists: nulls are items
                continue
            if statistics is None or not statistics.has_null_count or statistics.null_count:
                raise BadFileError(f"column {name} has missing values")
