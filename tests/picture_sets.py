"""scikit-learn's digits as files: a tree of PNG images, or Parquet."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits


def _digits(part: slice) -> tuple[list[bytes], list[int]]:
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[part]
    encoded = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "png")
        encoded.append(buffer.getvalue())
    return encoded, digits.target[part].tolist()


def write_digits_folder(root: Path, train: int = 400, test: int = 120) -> Path:
    """``root/train/CLASS/*.png`` and ``root/test/CLASS/*.png``."""
    for split, part in (("train", slice(train)), ("test", slice(train, train + test))):
        for number, (image, label) in enumerate(zip(*_digits(part), strict=True)):
            folder = root / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:05d}.png").write_bytes(image)
    return root


def write_digits_parquet(root: Path, train: int = 400, test: int = 120, group: int = 23) -> Path:
    """Two training files and a test file, in row groups of ``group`` images."""
    root.mkdir(parents=True, exist_ok=True)
    half = train // 2
    parts = {"train-0": slice(half), "train-1": slice(half, train)}
    for name, part in {**parts, "test-0": slice(train, train + test)}.items():
        images, labels = _digits(part)
        table = pa.table({"image": pa.array(images, pa.binary()), "label": pa.array(labels)})
        pq.write_table(table, root / f"{name}.parquet", row_group_size=group)
    return root
