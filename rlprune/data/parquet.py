"""Images in Parquet files, the layout of public data hubs."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rlprune.data.decode import EncodedImage, ImageFormat, decode_images, probe_format
from rlprune.data.images import ByteArray, IntArray
from rlprune.data.source import ImageSource, Progress, RawSet, check_folder, check_label_range
from rlprune.data.stored import ImageFiles
from rlprune.errors import DataError

_BATCH_ROWS = 2048

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Table:
    """One Parquet file: its place, labels ``[N]``, metadata of the schema, row groups' lengths."""

    path: Path
    labels: IntArray
    metadata: Mapping[bytes, bytes]
    groups: tuple[int, ...]


def read_parquet(root: str | None, image_size: int | None, progress: Progress | None) -> RawSet:
    """Read labels and class names of Parquet image files; pixels are read later.

    ``root/train*.parquet`` and ``root/test*.parquet`` (else ``root/validation*.parquet``)
    with a column ``image`` (encoded bytes, or a struct with the field ``bytes``) and an
    integer column ``label``. Class names come from the schema's metadata, ``classes``
    (separated by commas, or a JSON list) or ``huggingface`` (``ClassLabel``); otherwise
    they are "0", "1", ... up to the largest training label.

    Args:
        root: ``data.root``.
        image_size: side in pixels to resize to; None: all images must have one size.
        progress: reports the decoding.

    Returns:
        The set; colour unless the first training image is grey.

    Raises:
        DataError: files or columns missing, or of a wrong type; labels out of range.
    """
    folder = check_folder(root, "parquet", "train*.parquet and test*.parquet")
    train_paths = sorted(folder.glob("train*.parquet"))
    test_paths = sorted(folder.glob("test*.parquet")) or sorted(folder.glob("validation*.parquet"))
    if not train_paths or not test_paths:
        absent = "train*.parquet" if not train_paths else "test*.parquet or validation*.parquet"
        raise DataError(
            f"{folder}: there is no {absent}; both training and test files are needed. "
            "Set data.root to the folder that holds them."
        )
    train = [_read_table(path) for path in train_paths]
    test = [_read_table(path) for path in test_paths]
    if not len(train[0].labels):
        raise DataError(f"{train[0].path}: has no rows. Add images or remove the file.")
    class_names = _class_names(train)
    for table in (*train, *test):
        check_label_range(table.labels, len(class_names), partial(_row_name, table.path))
    first = next(_encoded_rows(train[0].path, np.zeros(1, dtype=np.int64)))[0]
    image_format = probe_format(first, image_size)
    return RawSet(
        train=_source(train, folder, image_format, "training images", progress),
        test=_source(test, folder, image_format, "test images", progress),
        class_names=class_names,
        grey=image_format.grey,
    )


def _row_name(path: Path, row: int) -> str:
    return f"{path} row {row}"


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read as Parquet ({error}). Fetch the file again.")


def _read_table(path: Path) -> _Table:
    """Check one file's columns and read its labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            _check_columns(path, schema)
            column = file.read(columns=["label"]).column("label")
            if column.null_count:
                row = int(np.flatnonzero(column.is_null().to_numpy())[0])
                raise DataError(
                    f"{_row_name(path, row)}: has no label ({column.null_count} such rows); every "
                    "image needs an integer label. Add the labels or remove the rows."
                )
            labels = column.cast(pa.int64()).to_numpy()
            count = file.num_row_groups
            groups = tuple(file.metadata.row_group(group).num_rows for group in range(count))
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error
    return _Table(path, np.asarray(labels, dtype=np.int64), dict(schema.metadata or {}), groups)


def _check_columns(path: Path, schema: Any) -> None:
    """Refuse a schema without usable columns ``image`` and ``label``."""
    import pyarrow as pa

    missing = [name for name in ("image", "label") if name not in schema.names]
    if missing:
        raise DataError(
            f"{path}: column {' and '.join(missing)} missing (it has: "
            f"{', '.join(schema.names) or 'none'}). Rename the columns to image and label."
        )
    label_type, image_type = schema.field("label").type, schema.field("image").type
    if not pa.types.is_integer(label_type):
        raise DataError(
            f"{path}: column label must hold integers 0..K-1 (it holds {label_type}). "
            "Number the classes and store the numbers."
        )
    if pa.types.is_struct(image_type) and image_type.get_field_index("bytes") >= 0:
        image_type = image_type.field("bytes").type
    if not (pa.types.is_binary(image_type) or pa.types.is_large_binary(image_type)):
        raise DataError(
            f"{path}: column image must hold encoded images, binary or struct{{bytes, path}} "
            f"(it holds {image_type}). Store the bytes of the JPEG or PNG files."
        )


def _class_names(tables: Sequence[_Table]) -> tuple[str, ...]:
    metadata = tables[0].metadata
    try:
        if b"classes" in metadata:
            text = metadata[b"classes"].decode("utf-8")
            names = json.loads(text) if text.lstrip().startswith("[") else text.split(",")
            return tuple(str(name).strip() for name in names)
        if b"huggingface" in metadata:
            features = json.loads(metadata[b"huggingface"])["info"]["features"]
            return tuple(str(name) for name in features["label"]["names"])
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s: no class names in the metadata (%r)", tables[0].path, error)
    largest = max(int(table.labels.max(initial=0)) for table in tables)
    return tuple(str(label) for label in range(largest + 1))


def _source(
    tables: Sequence[_Table],
    folder: Path,
    image_format: ImageFormat,
    what: str,
    progress: Progress | None,
) -> ImageSource:
    paths = [table.path for table in tables]
    counts = tuple(len(table.labels) for table in tables)
    encoded = partial(_encoded, paths, counts)

    def read(indices: IntArray) -> ByteArray:
        return decode_images(encoded(indices), len(indices), image_format, what, progress)

    lengths = [length for table in tables for length in table.groups if length]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    stored = ImageFiles(encoded, image_format, starts, partial(_identity, paths))
    labels = np.concatenate([table.labels for table in tables])
    return ImageSource(labels, np.arange(len(labels)), read, str(folder), stored)


def _identity(paths: Sequence[Path]) -> bytes:
    """Digest of the files' names, sizes and times of change [s]."""
    digest = hashlib.sha256()
    for path in paths:
        found = path.stat()
        digest.update(f"{path.name}\0{found.st_size} {int(found.st_mtime)}\0".encode())
    return digest.digest()


def _encoded(
    paths: Sequence[Path], counts: Sequence[int], indices: IntArray
) -> Iterator[Sequence[EncodedImage]]:
    """Read the encoded images at the ascending positions ``indices`` over all files.

    Row groups without a chosen row are skipped; at most ``_BATCH_ROWS`` rows are in
    memory at a time.
    """
    start = 0
    for path, count in zip(paths, counts, strict=True):
        end = start + count
        rows = indices[(indices >= start) & (indices < end)] - start
        if len(rows):
            yield from _encoded_rows(path, rows)
        start = end


def _encoded_rows(path: Path, rows: IntArray) -> Iterator[list[EncodedImage]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            start = 0
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                if np.any((rows >= start) & (rows < end)):
                    batches = file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=["image"])
                    yield from _select(path, batches, start, rows)
                start = end
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _select(
    path: Path, batches: Iterator[Any], start: int, rows: IntArray
) -> Iterator[list[EncodedImage]]:
    """Pick the wanted rows out of record batches, the first of which is row ``start``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for batch in batches:
        wanted = rows[(rows >= start) & (rows < start + batch.num_rows)]
        column = batch.column("image").take(pa.array(wanted - start))
        if pa.types.is_struct(column.type):
            column = pc.struct_field(column, "bytes")
        yield [
            EncodedImage(_row_name(path, row), content)
            for row, content in zip(wanted.tolist(), column.to_pylist(), strict=True)
        ]
        start += batch.num_rows
