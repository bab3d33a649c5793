"""How long a Pareto front over millions of result rows takes, and how much memory.

Writes a folder of result rows as ``rlprune results compact`` would leave it (hive
partitions, every column of the schema), then times, each in a fresh process and in turn:

- ours: ``rlprune.results.load`` of the objectives' columns (files checked, one row per
  key) and ``pareto_front``, exact, for two and for three objectives;
- pandas, two objectives: ``read_parquet`` of the same columns, ``sort_values``, a loop;
- pandas, three objectives: ``read_parquet``, then every row against all rows, on a sample
  only: the rest is extrapolated with the square of the rows, and said so.

    python analysis/benchmarks/pareto.py [--rows N] [--repeats N] [--large-front] [--json OUT]

The pandas versions neither check files nor remove doubled keys. It is a benchmark, not a
test: a missed target is printed, the exit status is 0. README.md beside this file has the
last numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rlprune.results import FILE_SCHEMAS, SCHEMA_VERSION

DATASETS = ("cifar10", "imagenet")
BACKBONES = ("resnet20", "resnet56", "vgg16_bn", "mobilenet_v2")
LAYERS = 3
ROW_GROUP = 125_000
MAXIMIZE = ("validation_accuracy",)
MINIMIZE = {2: ("storage_bytes",), 3: ("storage_bytes", "macs_mean")}
SAMPLE = 3_000
MOST_SECONDS, MOST_BYTES = 10.0, 2e9
DENSE_BYTES, DENSE_MACS = 4_000_000, 4e7

Floats = npt.NDArray[np.float64]


def _realistic(random: np.random.Generator, rows: int) -> tuple[Floats, Floats, Floats]:
    """Accuracy, bytes and MACs that rise together, with noise: fronts of tens of points."""
    kept = random.uniform(0.1, 1.0, rows)
    stored = np.clip(kept + random.uniform(0.0, 0.4, rows), 0.0, 1.0)
    accuracy = 0.93 - 0.6 * np.exp(-5.0 * kept) + random.normal(0.0, 0.01, rows)
    macs = DENSE_MACS * kept**2 * random.uniform(0.9, 1.1, rows)
    # of 10,000 images
    rounded: Floats = np.round(np.clip(accuracy, 0.0, 1.0), 4).astype(np.float64)
    return rounded, np.round(DENSE_BYTES * stored**1.8), macs


def _adversarial(random: np.random.Generator, rows: int) -> tuple[Floats, Floats, Floats]:
    """Nearly every row is nearly on the front: exact tradeoffs with a little noise."""
    stored, macs = random.uniform(0.01, 1.0, (2, rows))
    loss = random.exponential(1e-3, rows)
    accuracy = 0.5 + 0.4 * np.sqrt(stored) + 1e-4 * np.sqrt(macs) - loss
    return accuracy, np.round(DENSE_BYTES * stored), DENSE_MACS * macs


def _texts(random: np.random.Generator, rows: int, names: list[str]) -> pa.Array:
    codes = pa.array(random.integers(0, len(names), rows, dtype=np.int32))
    return pa.DictionaryArray.from_arrays(codes, names).cast(pa.string())


def _lists(rows: int, values: list[Any]) -> pa.Array:
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * len(values))
    return pa.ListArray.from_arrays(offsets, pa.array(values * rows))


def _table(random: np.random.Generator, rows: int, large_front: bool) -> pa.Table:
    """Rows of the files' schema; what the benchmark does not read is plausible filler."""
    make = _adversarial if large_front else _realistic
    accuracy, stored, macs = make(random, rows)
    columns: dict[str, Any] = {
        "schema_version": np.full(rows, SCHEMA_VERSION, np.int32),
        "experiment": _texts(random, rows, ["sweep"]),
        "trial": _texts(random, rows, [f"trial_{index:05d}" for index in range(2000)]),
        "method": _texts(random, rows, ["learned", "uniform", "random"]),
        "seed": random.integers(0, 5, rows),
        "tradeoff": _texts(random, rows, ["permanent"]),
        "tradeoff_rate": random.integers(0, 11, rows) / 10,
        "budget_rule": _texts(random, rows, ["projected"]),
        "validation_accuracy": accuracy,
        "test_accuracy": accuracy - 0.01,
        "macs_mean": macs,
        "macs_max": 1.3 * macs,
        "macs_dense": np.full(rows, DENSE_MACS),
        "storage_bytes": stored.astype(np.int64),
        "storage_dense_bytes": np.full(rows, DENSE_BYTES),
        "layer_names": _lists(rows, [f"layer{index}" for index in range(LAYERS)]),
        "checkpoint_uri": _texts(random, rows, ["runs/sweep/trial"]),
        "config_hash": _texts(random, rows, [f"{index:012x}" for index in range(2000)]),
        "created_at": random.integers(1_700_000_000, 1_800_000_000, rows) * 1_000_000,
        "row_id": random.integers(-(2**63), 2**63 - 1, rows),
    }
    arrays = [_filled(columns.get(f.name), f, rows) for f in FILE_SCHEMAS[SCHEMA_VERSION]]
    return pa.Table.from_arrays(arrays, schema=FILE_SCHEMAS[SCHEMA_VERSION])


def _filled(values: Any, field: pa.Field, rows: int) -> pa.Array:
    """A column as its type wants it; where there are no values, something constant."""
    if values is not None:
        return values if isinstance(values, pa.Array) else pa.array(values).cast(field.type)
    if field.nullable:
        return pa.nulls(rows, field.type)
    if pa.types.is_list(field.type):
        return _lists(rows, [0.5] * LAYERS)
    value = {"bool": True, "string": "{}"}.get(str(field.type), 1)
    return pa.repeat(pa.scalar(value, field.type), rows)


def generate(folder: Path, rows: int, large_front: bool) -> int:
    """Writes the rows, never more than a row group of them in memory; returns bytes."""
    partitions = [(d, b) for d in DATASETS for b in BACKBONES]
    for index, (dataset, backbone) in enumerate(partitions):
        random = np.random.default_rng(index)
        place = folder / f"dataset={dataset}" / f"backbone={backbone}"
        place.mkdir(parents=True)
        left = rows * (index + 1) // len(partitions) - rows * index // len(partitions)
        path = place / "compacted-0.parquet"
        with pq.ParquetWriter(path, FILE_SCHEMAS[SCHEMA_VERSION], compression="zstd") as writer:
            while left > 0:
                writer.write_table(_table(random, min(left, ROW_GROUP), large_front))
                left -= ROW_GROUP
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))


@dataclass(frozen=True)
class Run:
    """One measured process.

    Attributes:
        load_s, front_s: seconds of reading and of the front.
        peak_bytes: most memory that the process had resident, Python and libraries included.
        rows: rows read.
        front: rows on the front.
        checksum: of the front's objectives; equal fronts have equal ones.
        load_average: of the machine's last minute, before the run.
    """

    load_s: float
    front_s: float
    peak_bytes: int
    rows: int
    front: int
    checksum: float
    load_average: float

    @property
    def total_s(self) -> float:
        """Reading and front."""
        return self.load_s + self.front_s


def _ours(folder: str, columns: list[str]) -> Iterator[pd.DataFrame]:
    """The rows, then the front."""
    from rlprune.results import load
    from rlprune.results.pareto import pareto_front

    df = load(folder, columns=columns)
    yield df
    yield pareto_front(df, maximize=MAXIMIZE, minimize=MINIMIZE[len(columns)])


def _sorted_loop(folder: str, columns: list[str]) -> Iterator[pd.DataFrame]:
    """Two objectives: sort, then keep what is cheaper than all that is more accurate."""
    df = pd.read_parquet(folder, columns=columns)
    yield df
    ordered = df.sort_values(columns, ascending=[False, True])
    kept, best, last = [], float("inf"), None
    for index, pair in zip(
        ordered.index, zip(ordered[columns[0]], ordered[columns[1]], strict=True), strict=True
    ):
        if pair[1] < best or pair == last:
            kept.append(index)
            best, last = pair[1], pair
    yield df.loc[kept]


def _all_pairs(folder: str, columns: list[str]) -> Iterator[pd.DataFrame]:
    """Any objectives: each row of a sample against all rows of the sample."""
    df = pd.read_parquet(folder, columns=columns)
    yield df
    df = df.iloc[:: max(1, len(df) // SAMPLE)].reset_index(drop=True)
    costs = df.assign(**{columns[0]: -df[columns[0]]})
    yield df[[not ((costs <= row).all(axis=1) & (costs < row).any(axis=1)).any()
              for _, row in costs.iterrows()]]  # fmt: skip


_WAYS = {"ours": _ours, "sorted_loop": _sorted_loop, "all_pairs": _all_pairs}


def measure(way: str, objectives: int, folder: str) -> Run:
    """Runs one way in this process."""
    load_average = os.getloadavg()[0]
    columns = [*MAXIMIZE, *MINIMIZE[objectives]]
    steps = _WAYS[way](folder, columns)
    start = time.perf_counter()
    df = next(steps)
    loaded = time.perf_counter()
    front = next(steps)
    done = time.perf_counter()
    values = front[columns].drop_duplicates().to_numpy(dtype=float)
    # resident memory is in KiB on Linux, in bytes on macOS
    unit = 1 if platform.system() == "Darwin" else 1024
    return Run(
        load_s=loaded - start,
        front_s=done - loaded,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        rows=len(df),
        front=len(front),
        checksum=float(np.sort(values.sum(axis=1)).sum()),
        load_average=load_average,
    )


def _in_fresh_process(way: str, objectives: int, folder: Path) -> Run:
    command = [sys.executable, __file__, "--measure", way, str(objectives), str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Run(**json.loads(done.stdout))


def compare(folder: Path, objectives: int, repeats: int) -> dict[str, list[Run]]:
    """Ours and pandas in turn, so that a slow minute hits both."""
    ways = ["ours", "sorted_loop" if objectives == 2 else "all_pairs"]
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way in ways:
            runs[way].append(_in_fresh_process(way, objectives, folder))
    return runs


def _median(runs: list[Run], name: str) -> float:
    return float(statistics.median(getattr(run, name) for run in runs))


def show(objectives: int, runs: dict[str, list[Run]]) -> None:
    """Prints medians, ratios and whether the target is met."""
    print(f"\n{objectives} objectives: {', '.join([*MAXIMIZE, *MINIMIZE[objectives]])}")
    print("               load     front     total     peak memory   front   machine load")
    for way, done in runs.items():
        load, front, total = (_median(done, n) for n in ("load_s", "front_s", "total_s"))
        loads = [run.load_average for run in done]
        print(
            f"  {way:<11}{load:6.2f} s {front:7.2f} s {total:7.2f} s "
            f"{_median(done, 'peak_bytes') / 1e9:11.2f} GB {done[0].front:7,}   "
            f"{min(loads):.1f}-{max(loads):.1f}"
        )
    ours, (name, other) = runs["ours"], list(runs.items())[1]
    ratios = [o.total_s / u.total_s for u, o in zip(ours, other, strict=True)]
    if name == "sorted_loop":
        same = len({run.checksum for run in (*ours, *other)}) == 1
        print(f"  pandas / ours: {statistics.median(ratios):.1f} times ({min(ratios):.1f}-", end="")
        print(f"{max(ratios):.1f}); the fronts are {'equal' if same else 'DIFFERENT'}")
    else:
        rows, front = ours[0].rows, _median(other, "front_s")
        days = front * (rows / SAMPLE) ** 2 / 86_400
        print(f"  all_pairs saw a sample of {SAMPLE:,} rows; {rows:,} rows would take it ", end="")
        print(f"{days:,.0f} days (extrapolated with the square)")
    seconds, memory = _median(ours, "total_s"), _median(ours, "peak_bytes")
    met = seconds < MOST_SECONDS and memory < MOST_BYTES
    print(f"  target: under {MOST_SECONDS:.0f} s and {MOST_BYTES / 1e9:.0f} GB: ", end="")
    print("met" if met else "MISSED")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000_000, help="default ten million")
    parser.add_argument("--repeats", type=int, default=5, help="runs per median (default 5)")
    parser.add_argument(
        "--large-front", action="store_true", help="data with a front of thousands of points"
    )
    parser.add_argument("--scratch", type=Path, help="where to write the rows (about 1 GB)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the numbers here")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.repeats < 1 or arguments.rows < 1:
        parser.error("--repeats and --rows must be at least 1")
    return arguments


def main() -> None:
    """Generates, measures and prints; the rows are removed afterwards."""
    arguments = _arguments()
    if arguments.measure:
        way, objectives, folder = arguments.measure
        print(json.dumps(asdict(measure(way, int(objectives), folder))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        start = time.perf_counter()
        size = generate(Path(scratch), arguments.rows, arguments.large_front)
        took = time.perf_counter() - start
        print(f"{arguments.rows:,} rows, {size / 1e9:.2f} GB, written in {took:.0f} s; ", end="")
        print(f"{os.cpu_count()} cores, pandas {pd.__version__}, pyarrow {pa.__version__}")
        numbers: dict[str, Any] = {"rows": arguments.rows, "bytes": size}
        for objectives in MINIMIZE:
            runs = compare(Path(scratch), objectives, arguments.repeats)
            show(objectives, runs)
            numbers[str(objectives)] = {w: [asdict(r) for r in done] for w, done in runs.items()}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
