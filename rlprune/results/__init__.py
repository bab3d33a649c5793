"""Result rows: one schema, one store of plain Parquet files, one summary table."""

from rlprune.results.columns import COLUMNS, Column
from rlprune.results.compact import CompactReport, compact
from rlprune.results.load import load, load_rows
from rlprune.results.pareto import best, hypervolume, pareto_front
from rlprune.results.schema import (
    FILE_SCHEMAS,
    KEY,
    METHODS,
    PARTITIONS,
    SCHEMA,
    SCHEMA_VERSION,
    ResultRow,
    software_versions,
)
from rlprune.results.statistics import aggregate_seeds, dominance
from rlprune.results.store import write_rows
from rlprune.results.table import SUMMARY_COLUMNS, latest_points, summary_table
from rlprune.results.where import parse_where

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
    "CompactReport",
    "ResultRow",
    "aggregate_seeds",
    "best",
    "compact",
    "dominance",
    "hypervolume",
    "latest_points",
    "load",
    "load_rows",
    "pareto_front",
    "parse_where",
    "software_versions",
    "summary_table",
    "write_rows",
]
