"""Training on images that stay in their files: Ray Data feeds it, results are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import streaming_memory
import yaml
from conftest import tiny_config
from picture_sets import write_digits_folder, write_digits_parquet
from processes import finish, start
from test_trial import run, run_interrupted

from rlprune.config import DataConfig, TrialConfig, config_to_dict
from rlprune.data import ImageSet, StoredImages, load_image_set
from rlprune.data import stored as stored_module
from rlprune.errors import DataError
from rlprune.replicas import Share
from rlprune.results import ResultRow
from rlprune.training.cnn import Epoch
from rlprune.training.streaming import StreamFeed

pytestmark = pytest.mark.usefixtures("ray_instance")
Tiny = Callable[..., TrialConfig]
BATCH = 32
SHORT: dict[str, Any] = {
    "data__name": "imagefolder",
    "data__max_train_images": None,
    "data__validation_fraction": 0.2,
    "evaluation__baselines": ("uniform",),
    "evaluation__tradeoff_rates": [0.5],
    "training__rounds": 1,
    "training__updates_per_round": 1,
}
PLACES = {"seconds_pretrain", "seconds_importance", "seconds_agents", "seconds_finetune"}
UNEQUAL = {*PLACES, "seconds_evaluate", "created_at", "checkpoint_uri", "configuration"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits_folder(tmp_path_factory.mktemp("folder"))


def load(name: str, root: Path, streaming: bool) -> ImageSet:
    return load_image_set(DataConfig(name=name, root=str(root), streaming=streaming), 0)


def epochs(images: StoredImages, count: int) -> Iterator[Epoch]:
    for number in range(count):
        order = images.shuffled(np.random.default_rng([7, number]))
        yield Epoch(number, order, BATCH)


@pytest.mark.parametrize("name", ["imagefolder", "parquet"])
def test_the_feed_gives_each_steps_images_from_any_step_on(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    {"imagefolder": write_digits_folder, "parquet": write_digits_parquet}[name](tmp_path)
    monkeypatch.setattr(stored_module, "PORTION", 50)
    monkeypatch.setattr(stored_module, "WINDOW", 70)
    held, train = load(name, tmp_path, False).train, load(name, tmp_path, True).train
    assert isinstance(train, StoredImages)
    feed = StreamFeed(train)
    steps = len(train) // BATCH
    whole, half = Share.whole(BATCH), Share(BATCH // 2, BATCH, BATCH)
    for epoch, first, share in zip(epochs(train, 3), (0, 4, 2), (whole, whole, half), strict=True):
        for step in range(first, steps):
            found = feed.take(epoch, step, share)
            wanted = held.take(epoch.positions(step, share))
            assert np.array_equal(found.images, wanted.images)
            assert np.array_equal(found.labels, wanted.labels)
    feed.take(epoch, 0, share)  # much is read ahead of it
    feed.close()
    deadline = time.monotonic() + 60
    while any("StreamingExecutor" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "it still reads"
        time.sleep(0.1)


def test_an_image_that_is_broken_later_is_named(tmp_path: Path) -> None:
    write_digits_folder(tmp_path, train=100)
    train = load("imagefolder", tmp_path, True).train
    assert isinstance(train, StoredImages)
    (epoch,) = epochs(train, 1)
    broken = sorted((tmp_path / "train" / "7").iterdir())
    for file in broken:
        file.write_bytes(b"no picture")
    feed = StreamFeed(train)
    with pytest.raises(DataError, match=r"train/7/\d+\.png: not an image"):
        for step in range(len(train) // BATCH):
            feed.take(epoch, step, Share.whole(BATCH))


def values(rows: list[ResultRow]) -> list[dict[str, Any]]:
    kept = [{k: v for k, v in vars(row).items() if k not in UNEQUAL} for row in rows]
    return [{k: v for k, v in row.items() if "hash" not in k and k != "row_id"} for row in kept]


@pytest.fixture(scope="module")
def streamed(folder: Path, ray_instance: None) -> list[ResultRow]:
    rows, _ = run(tiny_config(data__root=str(folder), data__streaming=True, **SHORT))
    return rows


def test_a_streamed_trial_measures_what_one_in_memory_does(
    tiny: Tiny, folder: Path, streamed: list[ResultRow]
) -> None:
    """To the bit: pretraining, rollouts, fine-tuning and BatchNorm see the same images."""
    held, _ = run(tiny(data__root=str(folder), **SHORT))
    assert len(held) == 2
    assert values(streamed) == values(held)


def test_a_streamed_trial_goes_on_from_any_step(
    tiny: Tiny, folder: Path, streamed: list[ResultRow], tmp_path: Path
) -> None:
    config = tiny(data__root=str(folder), data__streaming=True, **SHORT)
    rows, _, restarts = run_interrupted(config, 7, tmp_path)
    assert restarts >= 2
    assert values(rows) == values(streamed)


def test_two_processes_stream_their_shares(
    tiny: Tiny, folder: Path, streamed: list[ResultRow]
) -> None:
    config = tiny(data__root=str(folder), data__streaming=True, resources__cnn_workers=2, **SHORT)
    rows, _ = run(config)
    for one, two in zip(streamed, rows, strict=True):
        assert two.training_images == one.training_images
        assert abs(two.test_accuracy - one.test_accuracy) * 120 < 2.5
        assert two.test_loss == pytest.approx(one.test_loss, rel=0.02)


@pytest.mark.slow
def test_a_sweeps_trial_that_takes_every_cpu_is_streamed_as_well(
    folder: Path, streamed: list[ResultRow], tmp_path: Path
) -> None:
    """Ray Data's tasks get no CPU of their own, and run all the same."""
    values = config_to_dict(tiny_config(data__root=str(folder), data__streaming=True, **SHORT))
    del values["name"]
    every = {"cpus": os.cpu_count()}
    spec = {"name": "all", "trial": values, "space": {"seed": {"grid": [0]}}, "resources": every}
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(spec))
    status, out, err = finish(start("sweep", "all.yaml", cwd=tmp_path), timeout=600)
    assert status == 0, out + err
    rows = pd.read_parquet(tmp_path / "runs" / "all" / "results").sort_values("method")
    alone = sorted(streamed, key=lambda row: row.method)
    assert rows["test_loss"].tolist() == [row.test_loss for row in alone]


@pytest.mark.slow
def test_an_epoch_of_a_set_larger_than_the_memory_it_may_take(tmp_path: Path) -> None:
    """350 MB of pixels through an object store of 96 MB; processes hardly grow."""
    streaming_memory.write_folder(tmp_path)
    done = subprocess.run(
        [sys.executable, streaming_memory.__file__, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["set"] > 3 * told["store"]
    assert told["growth"] < told["set"] / 4, told
    assert not told["spilled"]
    assert told["accuracy"] > 0.8
