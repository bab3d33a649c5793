"""Reads result rows: only the columns needed, every file checked, one row per key."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rlprune import files
from rlprune.errors import ResultsError
from rlprune.results.parts import (
    Part,
    VanishedError,
    chunks,
    damaged_file,
    open_parts,
    read_parts,
    results_uri,
    text_schema,
    with_dictionaries,
)
from rlprune.results.schema import KEY, SCHEMA

logger = logging.getLogger(__name__)

Filters: TypeAlias = "pc.Expression | list[Any]"
Integers = npt.NDArray[np.int64]

_NEWEST = ("row_id", "created_at")
# The same in all rows of one key: a filter on these cannot tell an old row from a new one.
_OF_KEY = (*KEY, "row_id", "dataset", "backbone", "seed", "width", "tradeoff", "configuration")
_LISTINGS = 100


def load(
    uri: str | Path,
    *,
    columns: Sequence[str] | None = None,
    filters: Filters | None = None,
    skip_bad: bool = False,
) -> pd.DataFrame:
    """Result rows, one per key: the newest. Reads while others write and compact.

    Args:
        uri: a run's or experiment's folder (its ``results`` subfolder is read), a folder of
            results with its subfolders, or one file; a local path or any URI that
            :func:`rlprune.files.filesystem` takes.
        columns: only these, in this order; only they are read. None: all.
        filters: only rows for which this is true: a ``pyarrow.compute.Expression`` or
            pandas' ``[("backbone", "==", "resnet20"), ("seed", "<", 3)]``. It is applied while
            reading, and only to the newest row of each key.
        skip_bad: load the good files and warn (logging) about the others by name.

    Returns:
        One row per evaluation point, in the order of the files. With ``columns``, text
        columns are categoricals (small, fast to group by); without, they are strings. Empty,
        with all columns, if there are no rows.

    Raises:
        ResultsError: no such folder, an unknown column, a filter that does not fit its
            column, or (without ``skip_bad``) a file that is damaged, not from rlprune, or of a
            newer rlprune; names the file and the remedy.
        FileAccessError: the folder cannot be listed or read.
    """
    names = SCHEMA.names if columns is None else [_known(name) for name in columns]
    expression = _expression(filters)
    dictionaries = columns is not None and not _needs_strings(expression)
    stale = expression is not None and not _fits(expression, _OF_KEY)
    reader = _Reader(list(dict.fromkeys((*names, *_NEWEST))), expression, dictionaries, stale)
    _read_folder(reader, os.fspath(uri), skip_bad)
    table = reader.newest_rows().select(list(dict.fromkeys(names)))
    if columns is not None and not dictionaries:
        table = with_dictionaries(table)
    frame: pd.DataFrame = table.unify_dictionaries().to_pandas(
        split_blocks=True, self_destruct=True
    )
    return frame


def load_rows(uri: str | Path, *, skip_bad: bool = False) -> pd.DataFrame:
    """All columns of all rows, sorted by key; arguments and errors as in :func:`load`."""
    return load(uri, skip_bad=skip_bad).sort_values(list(KEY), ignore_index=True)


@dataclass
class _Reader:
    """Collects rows from files.

    Attributes:
        columns: what to read.
        expression: the filter.
        dictionaries: text columns as dictionaries.
        stale: the filter may pass an old row of a key whose newest row it refuses.
        tables: what was read.
        every: with ``stale``: (row_id, created_at) of all rows, filtered or not.
        bad: files that cannot be used.
    """

    columns: list[str]
    expression: pc.Expression | None
    dictionaries: bool
    stale: bool
    tables: list[pa.Table] = field(default_factory=list)
    every: list[pa.Table] = field(default_factory=list)
    bad: list[ResultsError] = field(default_factory=list)

    def read(self, found: pafs.FileSystem, entries: list[files.FileEntry]) -> bool:
        """Reads files; returns whether all were still there."""
        opened = open_parts(found, entries, self.dictionaries)
        self.bad += [part for part in opened if isinstance(part, ResultsError)]
        complete = not any(isinstance(part, VanishedError) for part in opened)
        return self._scan(found, [p for p in opened if isinstance(p, Part)]) and complete

    def _scan(self, found: pafs.FileSystem, parts: list[Part]) -> bool:
        try:
            rows = read_parts(found, parts, self.columns, self.expression, self.dictionaries)
            every = read_parts(found, parts, _NEWEST) if self.stale else None
        except VanishedError:
            return False
        except (pa.ArrowException, OSError) as error:
            if len(parts) > 1:  # one by one, to tell the damaged file from the good ones
                return all([self._scan(found, [part]) for part in parts])
            self.bad.append(damaged_file(parts[0].entry, error))
            return True
        self.tables.append(rows)
        self.every += [every] if every is not None else []
        return True

    def newest_rows(self) -> pa.Table:
        """The newest row of each key, if the filter passed it; empties the reader."""
        schema = text_schema(self.dictionaries)
        empty = pa.schema([schema.field(name) for name in self.columns]).empty_table()
        table = pa.concat_tables([empty, *self.tables])
        self.tables.clear()
        ids, times = id_and_time(table)
        keep = newest_mask(ids, times)
        if self.stale:
            current = _newest_times(ids, [id_and_time(part) for part in self.every]) <= times
            keep = current if keep is None else keep & current
        return table if keep is None else table.filter(pa.array(keep))


def _read_folder(reader: _Reader, uri: str, skip_bad: bool) -> None:
    """Reads all files, those too that a compaction puts in the place of others meanwhile."""
    folder = results_uri(uri)
    found, _ = files.filesystem(folder)
    seen: set[tuple[str, int, int]] = set()
    for _ in range(_LISTINGS):
        entries = [
            entry
            for entry in files.list_files(folder, ".parquet")
            if (entry.path, entry.size, entry.modified_ns) not in seen
        ]
        seen |= {(entry.path, entry.size, entry.modified_ns) for entry in entries}
        # what vanished was merged into files that are there by now: list again
        if all([reader.read(found, chunk) for chunk in chunks(entries)]):
            break
    else:
        raise ResultsError(
            f"results {folder}: files keep vanishing while they are read. Try later."
        )
    if reader.bad and not skip_bad:
        raise all_of(reader.bad)
    for error in reader.bad:
        logger.warning("Skipped: %s", error)


def all_of(errors: list[ResultsError]) -> ResultsError:
    """One error that tells of several files."""
    if len(errors) == 1:
        return errors[0]
    shown = "\n".join(f"  - {error}" for error in errors[:10])
    more = f"\n  and {len(errors) - 10} more" if len(errors) > 10 else ""
    return ResultsError(f"{len(errors)} results files cannot be used:\n{shown}{more}")


def id_and_time(table: pa.Table) -> tuple[Integers, Integers]:
    """``row_id`` and ``created_at`` (microseconds since 1970) of each row, shape ``[N]``."""
    times = table["created_at"].cast(pa.int64())
    return table["row_id"].to_numpy(), times.to_numpy()


def newest_mask(ids: Integers, times: Integers) -> npt.NDArray[np.bool_] | None:
    """Which rows are the newest of their key (of equal ones the last); None: all are.

    Args:
        ids: ``row_id`` of each row, shape ``[N]``.
        times: ``created_at`` of each row, microseconds since 1970, shape ``[N]``.
    """
    ordered = np.sort(ids)
    if not (ordered[1:] == ordered[:-1]).any():
        return None
    order = np.lexsort((times, ids))
    last = np.ones(len(ids), dtype=np.bool_)
    last[:-1] = ids[order[1:]] != ids[order[:-1]]
    mask = np.zeros(len(ids), dtype=np.bool_)
    mask[order[last]] = True
    return mask


def _newest_times(ids: Integers, every: list[tuple[Integers, Integers]]) -> Integers:
    """For each id, its latest time among all rows."""
    unique, inverse = np.unique(ids, return_inverse=True)
    newest = np.full(len(unique), np.iinfo(np.int64).min)
    for others, times in every if len(unique) else []:
        position = np.searchsorted(unique, others)
        position[position == len(unique)] = 0
        same = unique[position] == others
        np.maximum.at(newest, position[same], times[same])
    return newest[inverse]


def _known(name: str) -> str:
    if name in SCHEMA.names:
        return name
    near = difflib.get_close_matches(name, SCHEMA.names, 1, 0.5)
    hint = f" Did you mean {near[0]!r}?" if near else " `rlprune schema` lists them."
    raise ResultsError(f"results have no column {name!r}.{hint}")


def _expression(filters: Filters | None) -> pc.Expression | None:
    """The filter as an expression, checked against the schema."""
    if filters is None or isinstance(filters, pc.Expression):
        expression = filters
    else:
        try:
            expression = pq.filters_to_expression(filters)
        except (ValueError, TypeError, pa.ArrowException) as error:
            raise ResultsError(
                f"filters {filters!r}: {error}. Give a list of (column, operator, value), for "
                'example [("seed", "<", 3)].'
            ) from error
    if expression is not None:
        try:
            _try(expression, SCHEMA)
        except (pa.ArrowException, TypeError) as error:
            reason = str(error).splitlines()[0]
            if "FieldRef.Name(" in reason:
                _known(reason.partition("FieldRef.Name(")[2].partition(")")[0])
            raise ResultsError(
                f"filter {expression}: {reason}. `rlprune schema` lists columns and types."
            ) from error
    return expression


def _try(expression: pc.Expression, schema: pa.Schema) -> None:
    pads.dataset(schema.empty_table()).scanner(filter=expression).to_table()


def _needs_strings(expression: pc.Expression | None) -> bool:
    """Whether the filter has a function that pyarrow lacks for dictionaries."""
    try:
        if expression is not None:
            _try(expression, text_schema(dictionaries=True))
    except pa.ArrowException:
        return True
    return False


def _fits(expression: pc.Expression, names: Sequence[str]) -> bool:
    """Whether a filter uses no other columns than these."""
    try:
        _try(expression, pa.schema([SCHEMA.field(name) for name in names]))
    except pa.ArrowException:
        return False
    return True
