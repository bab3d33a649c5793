"""Result rows: one schema, one store of plain Parquet files, one summary table."""

from rlprune.results.schema import (
    COLUMNS,
    KEY,
    METHODS,
    SCHEMA,
    SCHEMA_VERSION,
    Column,
    ResultRow,
    software_versions,
)
from rlprune.results.store import load_rows, write_rows
from rlprune.results.table import SUMMARY_COLUMNS, latest_points, summary_table

__all__ = [
    "COLUMNS",
    "KEY",
    "METHODS",
    "SCHEMA",
    "SCHEMA_VERSION",
    "SUMMARY_COLUMNS",
    "Column",
    "ResultRow",
    "latest_points",
    "load_rows",
    "software_versions",
    "summary_table",
    "write_rows",
]
