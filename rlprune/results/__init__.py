"""Result rows: one schema, one store of plain Parquet files, one summary table."""

from rlprune.results.load import load, load_rows
from rlprune.results.schema import (
    COLUMNS,
    FILE_SCHEMAS,
    KEY,
    METHODS,
    PARTITIONS,
    SCHEMA,
    SCHEMA_VERSION,
    Column,
    ResultRow,
    software_versions,
)
from rlprune.results.store import write_rows
from rlprune.results.table import SUMMARY_COLUMNS, latest_points, summary_table

__all__ = [
    "COLUMNS",
    "FILE_SCHEMAS",
    "KEY",
    "METHODS",
    "PARTITIONS",
    "SCHEMA",
    "SCHEMA_VERSION",
    "SUMMARY_COLUMNS",
    "Column",
    "ResultRow",
    "latest_points",
    "load",
    "load_rows",
    "software_versions",
    "summary_table",
    "write_rows",
]
