"""Merges the many small files of a results folder into few large ones.

Each partition's rows are sorted and written to new files, whole; only then the files they
came from are deleted, and only if nobody changed them meanwhile. A compaction that is killed
at any moment loses nothing: at worst rows lie in two files, which
:func:`rlprune.results.load` resolves and the next compaction cleans up. Writers, readers and
other compactions may run at the same time. One gap is left: a step that is measured again
within the milliseconds between the check of its old file and the deletion falls back to its
earlier measurement.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from rlprune import files
from rlprune.errors import ResultsError
from rlprune.files import FileEntry
from rlprune.results.load import all_of, id_and_time, newest_mask
from rlprune.results.parts import (
    WHOLE_BYTES,
    Part,
    VanishedError,
    chunks,
    damaged_file,
    for_each,
    open_parts,
    read_parts,
    read_row_groups,
    results_uri,
    unchanged,
    with_dictionaries,
)
from rlprune.results.schema import PARTITIONS, SCHEMA, SCHEMA_VERSION
from rlprune.results.store import parquet_bytes, partition_folders

ROWS_PER_FILE = 1_000_000
"""Most rows of one file; fewer where rows are long (many layers)."""
ROWS_PER_GROUP = 125_000
"""Rows that a reader can skip at once."""
TEMPORARY_SECONDS = 3600.0
"""Hidden temporary files that are older were left by killed writers."""

_BATCH_BYTES = 512 << 20  # of rows in memory, before they are sorted
_ORDER = ("experiment", "trial", "method", "step", "tradeoff_rate", "budget_s", "row_id")
_FULL, _LAST = "compacted-full-", "compacted-last-"

Integers = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CompactReport:
    """What a compaction did.

    Attributes:
        files_before: Parquet files found.
        files_after: Parquet files left.
        bytes_before: their size, bytes.
        bytes_after: their size now, bytes.
        duplicates: rows removed because a newer row has their key.
        upgraded: files of older schema versions that were rewritten.
        changed: files kept because they changed or vanished meanwhile.
        temporary: old hidden temporary files removed.
        skipped: files that cannot be used, left as they are (``skip_bad``).
    """

    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    duplicates: int = 0
    upgraded: int = 0
    changed: int = 0
    temporary: int = 0
    skipped: tuple[str, ...] = ()


def compact(
    uri: str | Path, *, skip_bad: bool = False, progress: Progress | None = None
) -> CompactReport:
    """Merges each partition's files into few large ones, sorted by trial, method and step.

    Also removes rows that newer ones replace, rewrites files of older schema versions and
    removes old temporary files. Memory is bounded by about 1.5 GB, plus 40 bytes per row
    of the largest partition.

    Args:
        uri: as in :func:`rlprune.results.load`, but a folder.
        skip_bad: leave files that cannot be read as they are, instead of refusing to start.
        progress: called with the number of files done and of all files.

    Raises:
        ResultsError: no such folder; or a damaged or foreign file: nothing was changed.
        FileAccessError: a file cannot be read, written or removed; no row was lost.
    """
    folder = results_uri(os.fspath(uri))
    found, path = files.filesystem(folder)
    if found.get_file_info(path).type == pafs.FileType.File:
        raise ResultsError(f"results {folder}: a single file. Give the folder it is in.")
    job = _Compaction(folder, path, found, skip_bad, progress or (lambda _done, _all: None))
    job.run()
    return job.report


@dataclass(frozen=True)
class _Source:
    """A file whose rows may move.

    Attributes:
        entry: the file as it was listed.
        ids: ``row_id`` of its rows, shape ``[N]``.
        times: ``created_at`` of its rows, microseconds since 1970, shape ``[N]``.
        digest: of its bytes, on object stores, whose times are too coarse to see a change.
        old: whether it is of an older schema version.
    """

    entry: FileEntry
    ids: Integers
    times: Integers
    digest: bytes | None
    old: bool = False

    @property
    def name(self) -> str:
        return self.entry.path.rpartition("/")[2]


@dataclass(frozen=True)
class _Piece:
    """Rows ``first``, ``first + 1``, ... of a file, with their ids and times."""

    part: Part
    first: int
    ids: Integers
    times: Integers


@dataclass
class _Compaction:
    folder: str
    path: str
    found: pafs.FileSystem
    skip_bad: bool
    progress: Progress
    report: CompactReport = field(default_factory=CompactReport)
    bad: list[ResultsError] = field(default_factory=list)
    done: int = 0

    def run(self) -> None:
        entries = self._list()
        self._note(files_before=len(entries), bytes_before=sum(entry.size for entry in entries))
        sources, old = self._survey(entries)
        if self.bad and not self.skip_bad:
            raise all_of(self.bad)
        if old:
            self._upgrade(old)
            self.bad.clear()  # those that are still there are found again
            sources, _ = self._survey(self._list())
        for place in sorted(sources):
            self._merge(place, sources[place])
        self._remove_temporary_files()
        self._note(skipped=tuple(str(error) for error in self.bad))
        left = self._list()
        self._note(files_after=len(left), bytes_after=sum(entry.size for entry in left))

    def _list(self) -> list[FileEntry]:
        return files.list_files(self.folder, ".parquet")

    def _note(self, **values: object) -> None:
        self.report = replace(self.report, **values)  # type: ignore[arg-type]

    def _survey(
        self, entries: Sequence[FileEntry]
    ) -> tuple[dict[str, list[_Source]], list[FileEntry]]:
        """Current files with the ids and times of their rows, by folder; and old files."""
        sources: dict[str, list[_Source]] = {}
        old: list[FileEntry] = []
        for chunk in chunks(entries):
            opened = open_parts(self.found, chunk)
            self.bad += [part for part in opened if isinstance(part, ResultsError)]
            parts = [part for part in opened if isinstance(part, Part)]
            old += [part.entry for part in parts if part.version == 1]
            for source in self._identify([part for part in parts if part.version > 1]):
                place = source.entry.path.rpartition("/")[0]
                sources.setdefault(place, []).append(source)
        return sources, old

    def _identify(self, parts: list[Part]) -> list[_Source]:
        try:
            table = read_parts(self.found, parts, ("row_id", "created_at"))
        except VanishedError:
            return []
        except (pa.ArrowException, OSError) as error:
            if len(parts) > 1:  # one by one, to tell the damaged file from the good ones
                return [source for part in parts for source in self._identify([part])]
            self.bad.append(damaged_file(parts[0].entry, error))
            return []
        return [
            _Source(
                piece.part.entry,
                piece.ids,
                piece.times,
                self._digest(piece.part.data),
                piece.part.version < SCHEMA_VERSION,
            )
            for piece in (_pieces(parts, table) if parts else [])
        ]

    def _digest(self, data: pa.Buffer | bytes | None) -> bytes | None:
        if data is None or files.is_local(self.found):
            return None
        return hashlib.sha256(data).digest()

    def _upgrade(self, old: list[FileEntry]) -> None:
        """Writes the rows of old files into the partitions, as files of the current version."""
        for chunk in chunks(old):
            read = list(self._tables(chunk, set()))
            table = pa.concat_tables([SCHEMA.empty_table(), *(_plain(table) for _, table in read)])
            outputs: set[str] = set()
            for values in table.group_by(list(PARTITIONS)).aggregate([]).to_pylist():
                mine = pc.scalar(True)
                for name in PARTITIONS:
                    mine = mine & (pc.field(name) == values[name])
                folders = partition_folders([values[name] for name in PARTITIONS])
                outputs |= self._write("/".join([self.path, *folders]), table.filter(mine), _LAST)
            none = np.array([], np.int64)
            parts = [piece.part for pieces, _ in read for piece in pieces]
            sources = [_Source(p.entry, none, none, self._digest(p.data)) for p in parts]
            self._delete(sources, outputs)
            self._note(upgraded=self.report.upgraded + len(parts))

    def _merge(self, place: str, sources: list[_Source]) -> None:
        """Rewrites the files of one folder that are small, old, or hold rows that are replaced."""
        # Of equally new rows the one in the file whose name comes first wins: that is a
        # compacted file, and every compaction that runs at the same time decides the same.
        sources = sorted(sources, key=lambda source: source.entry.path, reverse=True)
        ids = np.concatenate([source.ids for source in sources])
        mask = newest_mask(ids, np.concatenate([source.times for source in sources]))
        if mask is None:
            mask = np.ones(len(ids), np.bool_)
        masks = np.split(mask, np.cumsum([len(source.ids) for source in sources])[:-1])
        keep = dict(zip([source.entry.path for source in sources], masks, strict=True))
        whole = {s.name: not s.old and bool(keep[s.entry.path].all()) for s in sources}
        moving = [s for s in sources if not (s.name.startswith(_FULL) and whole[s.name])]
        if len(moving) == 1 and moving[0].name.startswith(_LAST) and whole[moving[0].name]:
            moving = []  # nothing to merge it with
        else:
            outputs, moved = self._rewrite(place, moving, keep)
            self._delete(moved, outputs)
            self._note(upgraded=self.report.upgraded + sum(source.old for source in moved))
        self._note(duplicates=self.report.duplicates + int(np.count_nonzero(~mask)))
        self.done += len(sources) - len(moving)
        self._advance(0)

    def _rewrite(
        self, place: str, moving: list[_Source], keep: dict[str, npt.NDArray[np.bool_]]
    ) -> tuple[set[str], list[_Source]]:
        """Writes what is to be kept of some files; returns the new files and what moved."""
        outputs: set[str] = set()
        pending: list[pa.Table] = []
        changed: set[str] = set()
        by_path = {source.entry.path: source for source in moving}
        useful = [s.entry for s in moving if keep[s.entry.path].any()]
        self._advance(len(moving) - len(useful))
        rows = size = 0
        for pieces, table in self._tables(useful, changed):
            wanted = [self._wanted(piece, by_path, keep, changed) for piece in pieces]
            table = table.filter(pa.array(np.concatenate([*wanted, np.zeros(0, np.bool_)])))
            pending.append(table)
            rows, size = rows + len(table), size + table.nbytes
            if rows >= ROWS_PER_FILE or size >= _BATCH_BYTES:
                table = pa.concat_tables(pending)
                end = len(table) if size >= _BATCH_BYTES else rows - rows % ROWS_PER_FILE
                outputs |= self._write(place, table.slice(0, end), _FULL)
                pending = [table.slice(end)]
                rows, size = len(pending[0]), pending[0].nbytes
        if rows:
            outputs |= self._write(place, pa.concat_tables(pending), _LAST)
        self._note(changed=self.report.changed + len(changed))
        return outputs, [source for source in moving if source.entry.path not in changed]

    def _wanted(
        self,
        piece: _Piece,
        by_path: dict[str, _Source],
        keep: dict[str, npt.NDArray[np.bool_]],
        changed: set[str],
    ) -> npt.NDArray[np.bool_]:
        """Which of a piece's rows to write: none if its file is not the one surveyed."""
        path, own = piece.part.entry.path, slice(piece.first, piece.first + len(piece.ids))
        source = by_path[path]
        if np.array_equal(piece.ids, source.ids[own]) and np.array_equal(
            piece.times, source.times[own]
        ):
            return keep[path][own]
        changed.add(path)
        return np.zeros(len(piece.ids), np.bool_)

    def _tables(
        self, entries: list[FileEntry], changed: set[str]
    ) -> Iterator[tuple[list[_Piece], pa.Table]]:
        """Tables of rows of several files, with the pieces of files that they consist of.

        Files that vanished or cannot be used are added to ``changed``.
        """
        for chunk in chunks(entries):
            # many tiny files read faster without dictionaries: these are made afterwards
            large = chunk[0].size > WHOLE_BYTES
            opened = open_parts(self.found, chunk, dictionaries=large)
            parts = [part for part in opened if isinstance(part, Part)]
            changed |= {entry.path for entry in chunk} - {part.entry.path for part in parts}
            yield from self._read(parts, changed)
            self._advance(len(chunk))

    def _read(
        self, parts: list[Part], changed: set[str]
    ) -> Iterator[tuple[list[_Piece], pa.Table]]:
        try:
            if len(parts) == 1 and parts[0].data is None:
                first = 0
                for table in read_row_groups(self.found, parts[0]):
                    yield [_Piece(parts[0], first, *id_and_time(table))], table
                    first += len(table)
            elif parts:
                table = read_parts(self.found, parts, SCHEMA.names).combine_chunks()
                yield _pieces(parts, table), with_dictionaries(table)
        except VanishedError:
            changed |= {part.entry.path for part in parts}
        except (pa.ArrowException, OSError) as error:
            if len(parts) > 1:  # one by one, to tell the damaged file from the good ones
                for part in parts:
                    yield from self._read([part], changed)
                return
            self.bad.append(damaged_file(parts[0].entry, error))
            changed.add(parts[0].entry.path)
            if not self.skip_bad:
                raise self.bad[-1] from error

    def _advance(self, count: int) -> None:
        self.done += count
        self.progress(min(self.done, self.report.files_before), self.report.files_before)

    def _write(self, place: str, table: pa.Table, prefix: str) -> set[str]:
        """Sorted rows as whole files below ``place``; returns their paths."""
        table = _sorted(table)
        outputs = set()
        for start in range(0, len(table), ROWS_PER_FILE):
            rows = table.slice(start, ROWS_PER_FILE)
            ids, times = id_and_time(rows)
            digest = hashlib.sha256(ids.tobytes() + times.tobytes()).hexdigest()[:16]
            name = f"{_FULL if len(rows) == ROWS_PER_FILE else prefix}{digest}.parquet"
            relative = place[len(self.path) :].strip("/").split("/")
            target = files.join(self.folder, *filter(None, relative), name)
            files.write_whole(target, parquet_bytes(rows, ROWS_PER_GROUP))
            outputs.add(f"{place}/{name}")
        return outputs

    def _delete(self, sources: list[_Source], outputs: set[str]) -> None:
        """Removes files whose rows are in others by now, unless they changed meanwhile."""
        digests = {source.entry.path: source.digest for source in sources}

        def remove(entry: FileEntry) -> bool:
            if not self._as_read(entry, digests[entry.path]):
                return False
            files.delete(entry.uri)
            return True

        entries = [source.entry for source in sources if source.entry.path not in outputs]
        removed = for_each(self.found, remove, entries)
        self._note(changed=self.report.changed + removed.count(False))

    def _as_read(self, entry: FileEntry, digest: bytes | None) -> bool:
        if digest is None:
            return unchanged(self.found, entry)
        try:
            with self.found.open_input_stream(entry.path) as stream:
                return self._digest(stream.read_buffer()) == digest
        except FileNotFoundError:
            return False
        except OSError as error:
            raise files.access_error(entry.uri, "cannot be read", error) from error

    def _remove_temporary_files(self) -> None:
        limit = (time.time() - TEMPORARY_SECONDS) * 1e9
        hidden = files.list_files(self.folder, files.TEMPORARY_SUFFIX, hidden=True)
        old = [entry for entry in hidden if entry.modified_ns < limit]
        for entry in old:
            files.delete(entry.uri)
        self._note(temporary=len(old))


def _pieces(parts: list[Part], table: pa.Table) -> list[_Piece]:
    """The files that a table was read from, in order."""
    ids, times = id_and_time(table)
    ends = np.cumsum([part.rows for part in parts])[:-1]
    split = zip(parts, np.split(ids, ends), np.split(times, ends), strict=True)
    return [_Piece(part, 0, own_ids, own_times) for part, own_ids, own_times in split]


def _sorted(table: pa.Table) -> pa.Table:
    keys = _plain(table.select(_ORDER))
    order = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in _ORDER])
    return table.unify_dictionaries().take(order)


def _plain(table: pa.Table) -> pa.Table:
    """With text columns as strings."""
    return table.cast(pa.schema([SCHEMA.field(name) for name in table.column_names]))
