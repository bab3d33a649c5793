"""Writers and compactors of result rows, killed again and again while others read."""

from __future__ import annotations

import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from result_rows import make_row
from s3_server import BUCKET, s3_server
from store_nursery import RATES

from rlprune.results import KEY, compact, load, load_rows, write_rows

ROUNDS, WRITERS = 12, 4
TESTS = Path(__file__).resolve().parents[1]

Step = tuple[str, int]


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "results")
        return
    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield f"s3://{BUCKET}/results"


@dataclass
class Nursery:
    """The process that forks writers; what they say."""

    process: subprocess.Popen[str]
    committed: set[Step] = field(default_factory=set)
    compactions: int = 0
    failures: list[str] = field(default_factory=list)
    answers: queue.Queue[list[str]] = field(default_factory=queue.Queue)

    @classmethod
    def start(cls, uri: str) -> Nursery:
        path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        process = subprocess.Popen(
            [sys.executable, str(TESTS / "integration" / "store_nursery.py"), uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        nursery = cls(process)
        threading.Thread(target=nursery._listen, daemon=True).start()
        assert nursery.answers.get(timeout=60) == ["ready"]
        return nursery

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            words = line.split()
            if words[0] == "committed":
                self.committed.add((words[1], int(words[2])))
            elif words[0] == "compacted":
                self.compactions += 1
            elif words[0] == "failed":
                self.failures.append(line)
            else:
                self.answers.put(words)

    def ask(self, command: str) -> list[str]:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.answers.get(timeout=60)

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(timeout=20) == 0


@dataclass
class Reader:
    """Reads for ever in a thread of its own; keeps what went wrong."""

    read: Callable[[], Any]
    count: int = 0
    failures: list[BaseException] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Reader:
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _run(self) -> None:
        while not self.done.is_set():
            try:
                self.read()
                self.count += 1
            except BaseException as error:
                self.failures.append(error)
            time.sleep(0.02)


def torture(nursery: Nursery, moments: random.Random) -> None:
    """Starts writers, kills each at some moment, again and again.

    In every third round a compactor is killed with them, in every third it works beside them
    and is killed when it has finished once.
    """
    for number in range(ROUNDS):
        kills = []
        for writer in range(WRITERS):
            # a resumed trial repeats its last step
            first = max((s for name, s in nursery.committed if name == f"t{writer}"), default=0)
            kills.append(int(nursery.ask(f"write t{writer} {first}")[1]))
        compactor = int(nursery.ask("compact")[1]) if number % 3 else None
        if compactor and number % 3 == 1:
            kills.append(compactor)
        started, compactions = time.monotonic(), nursery.compactions
        moments.shuffle(kills)
        for pid, moment in zip(
            kills, sorted(moments.uniform(0.2, 2.0) for _ in kills), strict=True
        ):
            time.sleep(max(0.0, started + moment - time.monotonic()))
            os.kill(pid, signal.SIGKILL)
        if compactor and number % 3 == 2:
            while nursery.compactions == compactions and not nursery.failures:
                assert time.monotonic() < started + 60, "the compactor hangs"
                time.sleep(0.02)
            os.kill(compactor, signal.SIGKILL)
        assert nursery.ask("reap") == ["reaped"]


def check_loaded(nursery: Nursery, uri: str) -> None:
    """What was committed before is in what is read now, once."""
    before = set(nursery.committed)
    frame = load(uri, columns=list(KEY))
    assert not frame.duplicated(list(KEY)).any()
    assert before <= set(zip(frame["trial"], frame["step"], strict=True))


def read_with_pandas(uri: str) -> None:
    """Raw pandas: files may be gone since it listed them, but none is torn."""
    try:
        frame = pd.read_parquet(uri, columns=["step", "seed"])
    except FileNotFoundError:
        return  # merged by the compactor
    assert frame["step"].notna().all()


def test_killed_writers_and_compactors_lose_nothing(uri: str) -> None:
    nursery, local = Nursery.start(uri), "://" not in uri
    # raw pandas cannot read a folder without files
    write_rows(uri, [make_row(trial="before", step=1, tradeoff_rate=rate) for rate in RATES])
    with Reader(lambda: check_loaded(nursery, uri)) as own:
        if local:
            with Reader(lambda: read_with_pandas(uri)) as raw:
                torture(nursery, random.Random(7))
            assert not raw.failures, raw.failures[0]
            assert raw.count > 2
        else:
            torture(nursery, random.Random(7))
    nursery.stop()
    assert not nursery.failures, nursery.failures[0]
    assert not own.failures, own.failures[0]
    assert own.count > 2 and nursery.compactions >= ROUNDS // 3
    frame = load_rows(uri)
    check_rows(frame, nursery.committed, values=local)
    compact(uri)
    pd.testing.assert_frame_equal(load_rows(uri), frame)
    assert compact(uri).files_before == 1
    assert len(pd.read_parquet(uri)) == len(frame)
    if local:
        left = [path for path in Path(uri).rglob("*") if path.is_file()]
        assert {path.suffix for path in left} <= {".parquet", ".tmp"}


def check_rows(frame: pd.DataFrame, committed: set[Step], values: bool) -> None:
    """No committed row is lost, none is double, and retries won over what they repeated."""
    assert len(committed) > 4 * WRITERS
    assert not frame.duplicated(list(KEY)).any()
    counts = frame.groupby(["trial", "step"]).size()
    assert committed <= set(counts.index)
    assert (counts == len(RATES)).all()
    if values:  # on S3 a compaction may fall back to the first of two equal measurements
        last = frame.groupby("trial")["step"].transform("max")
        done = pd.Series(
            [step in committed for step in zip(frame["trial"], frame["step"], strict=True)]
        )
        assert (frame.loc[done & (frame["step"] < last), "seed"] == 1).all()
