"""The files of a results folder: found, opened as a snapshot, read in pieces.

Small files are read whole, in one go, so that a writer which replaces one meanwhile cannot
mix two versions; large ones (made by compaction) are read by column, and checked afterwards
to be the file that was opened.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TypeVar
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs

from rlprune import files
from rlprune.errors import ResultsError
from rlprune.files import FileEntry
from rlprune.results.footers import BadFileError, file_version
from rlprune.results.schema import FILE_SCHEMAS, PARTITIONS, SCHEMA, SCHEMA_VERSION
from rlprune.results.upgrade import upgraded

WHOLE_BYTES = 4 << 20
"""Files up to this size are read whole."""
_CHUNK_BYTES, _CHUNK_FILES = 64 << 20, 1000
_READS, _PAUSE_SECONDS = 6, 0.05
_CONNECTIONS = 16  # parallel reads on object stores, where each waits for the network
T = TypeVar("T")
_TEXT = pa.dictionary(pa.int32(), pa.string())


class VanishedError(Exception):
    """A file was removed or replaced between the listing and the end of its reading."""


@dataclass(frozen=True)
class Part:
    """One file of result rows.

    Attributes:
        entry: where it is, its size and time.
        version: schema version of its rows as they are written.
        rows: number of rows.
        partition: values of :data:`PARTITIONS`; None in version 1, where they are columns.
        fragment: its content, or where to read it.
        data: its bytes if it was read whole.
    """

    entry: FileEntry
    version: int
    rows: int
    partition: tuple[str, ...] | None
    fragment: pads.ParquetFileFragment
    data: pa.Buffer | None


def results_uri(uri: str) -> str:
    """The folder that holds the rows: ``uri``, or ``results`` inside a run or experiment.

    Raises:
        ResultsError: there is no such folder.
    """
    inner = files.join(uri, "results")
    if files.exists(inner):
        return inner
    if not files.exists(uri):
        raise ResultsError(f"results {uri}: no such folder. Give the folder of a run.")
    return uri


def text_schema(dictionaries: bool) -> pa.Schema:
    """:data:`SCHEMA`, on request with every text column as a dictionary."""
    if not dictionaries:
        return SCHEMA
    return pa.schema(
        [field.with_type(_TEXT) if field.type == pa.string() else field for field in SCHEMA]
    )


def with_dictionaries(table: pa.Table) -> pa.Table:
    """The same rows with every text column as a dictionary."""
    schema = text_schema(dictionaries=True)
    return table.cast(pa.schema([schema.field(name) for name in table.column_names]))


def chunks(entries: Sequence[FileEntry]) -> Iterator[list[FileEntry]]:
    """Small files in handfuls that fit into memory, each large one by itself."""
    chunk: list[FileEntry] = []
    size = 0
    for entry in entries:
        if entry.size > WHOLE_BYTES:
            yield [entry]
            continue
        if chunk and (size + entry.size > _CHUNK_BYTES or len(chunk) == _CHUNK_FILES):
            yield chunk
            chunk, size = [], 0
        chunk.append(entry)
        size += entry.size
    if chunk:
        yield chunk


def open_parts(
    found: pafs.FileSystem, entries: Sequence[FileEntry], dictionaries: bool = False
) -> list[Part | ResultsError | VanishedError]:
    """Opens and checks files, in order; what is wrong with one stands in its place."""
    text = {field.name for field in SCHEMA if field.type == pa.string()}
    options = pads.ParquetReadOptions(dictionary_columns=text if dictionaries else None)
    format_ = pads.ParquetFileFormat(read_options=options)
    open_one: Callable[[FileEntry], Part | ResultsError | VanishedError]
    open_one = partial(_open, found, format_, dictionaries)
    return for_each(found, open_one, entries)


def for_each(
    found: pafs.FileSystem, function: Callable[[FileEntry], T], entries: Sequence[FileEntry]
) -> list[T]:
    """Calls a function for every file; on object stores many at once."""
    if files.is_local(found) or len(entries) < 2:
        return [function(entry) for entry in entries]
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        return list(pool.map(function, entries))


def _open(
    found: pafs.FileSystem, format_: pads.ParquetFileFormat, dictionaries: bool, entry: FileEntry
) -> Part | ResultsError | VanishedError:
    """Opens a file; on an object store it counts as bad only if it reads the same twice.

    A writer may replace it, twice within the second that such a store's times tell apart,
    between the questions for its size and for its bytes.
    """
    before: pa.Buffer | None = None
    for _ in range(_READS):
        opened, data = _open_once(found, format_, dictionaries, entry)
        if not isinstance(opened, ResultsError) or data is None or files.is_local(found):
            break
        if before is not None and data.equals(before):
            break
        before = data
        time.sleep(_PAUSE_SECONDS)
    return opened


def _open_once(
    found: pafs.FileSystem, format_: pads.ParquetFileFormat, dictionaries: bool, entry: FileEntry
) -> tuple[Part | ResultsError | VanishedError, pa.Buffer | None]:
    """The file, or why not; and its bytes, if they were read whole."""
    values, data = _partition_of(entry.path), None
    try:
        if entry.size <= WHOLE_BYTES:
            with found.open_input_stream(entry.path) as stream:
                data = stream.read_buffer()
        fragment = _fragment(found, format_, entry, data, values, dictionaries)
        version, rows = file_version(fragment.metadata), fragment.metadata.num_rows
        if 1 < version < SCHEMA_VERSION:
            fragment = _fragment(found, format_, entry, data, values, dictionaries, old=True)
    except FileNotFoundError:
        return VanishedError(), data
    except BadFileError as error:
        return foreign_file(entry, str(error)), data
    except (pa.ArrowException, OSError) as error:
        # What was replaced after the listing (on object stores: while it was read) is not
        # damaged, and is there again under its new size or time.
        bad = damaged_file(entry, error)
        return (bad if unchanged(found, entry) else VanishedError()), data
    if version > 1 and values is None:
        text = "it must lie in folders dataset=.../backbone=..., which tell these columns"
        return foreign_file(entry, text), data
    return Part(entry, version, rows, values if version > 1 else None, fragment, data), data


def _fragment(
    found: pafs.FileSystem,
    format_: pads.ParquetFileFormat,
    entry: FileEntry,
    data: pa.Buffer | None,
    values: tuple[str, ...] | None,
    dictionaries: bool,
    old: bool = False,
) -> pads.ParquetFileFragment:
    """A file's content, from its bytes or where it lies.

    What is known of all its rows goes before what is in it: its folders' values and, of
    ``old`` files, the current version, whose rows they become (columns that they lack are
    null).
    """
    known = _partition_expression(values, dictionaries) if values else None
    if old and known is not None:
        known = known & (pc.field("schema_version") == pa.scalar(SCHEMA_VERSION, pa.int32()))
    if data is not None:
        return format_.make_fragment(data, partition_expression=known)
    return format_.make_fragment(
        entry.path, found, partition_expression=known, file_size=entry.size
    )


def _partition_of(path: str) -> tuple[str, ...] | None:
    """Values of the folders' names; None if one is lacking."""
    values = []
    for name in PARTITIONS:
        matches = re.findall(rf"(?:^|/){name}=([^/]+)(?=/)", path)
        if not matches:
            return None
        values.append(unquote(matches[-1]))
    return tuple(values)


@lru_cache(maxsize=1024)
def _partition_expression(values: tuple[str, ...], dictionaries: bool) -> pc.Expression:
    whole = pc.scalar(True)
    for name, value in zip(PARTITIONS, values, strict=True):
        scalar = pa.scalar(value)
        if dictionaries:
            scalar = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), [value])[0]
        whole = whole & (pc.field(name) == scalar)
    return whole


def unchanged(found: pafs.FileSystem, entry: FileEntry) -> bool:
    """Whether a file still has the size and time that the listing gave.

    Raises:
        FileAccessError: it cannot be found out.
    """
    try:
        info = found.get_file_info(entry.path)
    except OSError as error:
        raise files.access_error(entry.uri, "cannot be looked up", error) from error
    if info.type != pafs.FileType.File:
        return False
    return bool(info.size == entry.size and info.mtime_ns == entry.modified_ns)


def read_parts(
    found: pafs.FileSystem,
    parts: Sequence[Part],
    columns: Sequence[str],
    expression: pc.Expression | None = None,
    dictionaries: bool = False,
) -> pa.Table:
    """Columns of some rows, in the current version: those of version 1, then all others.

    Both in the order of the files.

    Args:
        found: file system of the parts.
        parts: as :func:`open_parts` gave them, with the same ``dictionaries``.
        columns: names, which may be of :data:`PARTITIONS`.
        expression: only rows for which it is true.
        dictionaries: text columns as dictionaries.

    Raises:
        VanishedError: a large file was replaced meanwhile.
        ResultsError: the content of a file is damaged (only told for a single part).
        pa.ArrowException, OSError: the content of one of several files is damaged.
    """
    schema = text_schema(dictionaries)
    tables = [pa.schema([schema.field(name) for name in columns]).empty_table()]
    for first in (True, False):
        fragments = [part.fragment for part in parts if (part.version == 1) == first]
        if not fragments:
            continue
        options = {"columns": list(columns), "filter": expression}
        if first:
            table = pads.FileSystemDataset(fragments, FILE_SCHEMAS[1], fragments[0].format)
            rows = pads.dataset(upgraded(table.to_table(), schema))
        else:
            rows = pads.FileSystemDataset(fragments, schema, fragments[0].format)
        tables.append(rows.to_table(**options))
    for part in parts:
        if part.data is None and not unchanged(found, part.entry):
            raise VanishedError
    return pa.concat_tables(tables, promote_options="none")


def read_row_groups(found: pafs.FileSystem, part: Part) -> Iterator[pa.Table]:
    """All columns of a large file in pieces, text columns as dictionaries.

    Raises:
        VanishedError: the file was replaced meanwhile.
    """
    for fragment in part.fragment.split_by_row_group():
        group = replace(part, fragment=fragment)
        yield read_parts(found, [group], SCHEMA.names, dictionaries=True)


def damaged_file(entry: FileEntry, error: BaseException) -> ResultsError:
    """The error for a file that cannot be read as Parquet."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ResultsError(
        f"results file {entry.uri}: cannot be read as Parquet ({reason}). Move it out of the "
        "folder (the step that wrote it can be run again), or skip such files (--skip-bad)."
    )


def foreign_file(entry: FileEntry, reason: str) -> ResultsError:
    """The error for a Parquet file that holds no rows of a known version."""
    return ResultsError(
        f"results file {entry.uri}: {reason}. Move it out of the folder if it is not from "
        "rlprune, read it with the version of rlprune that wrote it, or skip such files "
        "(--skip-bad)."
    )
