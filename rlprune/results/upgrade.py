"""Rows of schema version 1, as rows of the current one.

Rows of later versions need no more than their new columns, as null, and the current version
(``rlprune.results.parts``): they are read in pieces.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from rlprune.results.schema import KEY, SCHEMA, SCHEMA_VERSION, row_id


def upgraded(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows of version 1 in the current schema.

    Args:
        table: rows of version 1.
        schema: the current schema, text columns as strings or as dictionaries.
    """
    keys = zip(*(table[name].to_pylist() for name in KEY), strict=True)
    made = {
        "schema_version": pa.repeat(pa.scalar(SCHEMA_VERSION, pa.int32()), len(table)),
        "row_id": pa.array([row_id(key) for key in keys], pa.int64()),
        # version 1 named one checkpoint, run/checkpoints/checkpoint_000012
        "checkpoint_uri": pc.replace_substring_regex(
            table["checkpoint_uri"], r"/checkpoints/checkpoint_\d+/?$", ""
        ),
    }
    there = {name: table[name] for name in table.column_names} | made
    columns = [there.get(field.name, pa.nulls(len(table), field.type)) for field in SCHEMA]
    return pa.table(
        [_typed(column, field.type) for column, field in zip(columns, schema, strict=True)],
        schema=schema,
    )


def _typed(column: pa.ChunkedArray | pa.Array, type_: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_dictionary(type_):
        return pc.dictionary_encode(column).cast(type_)
    return column
