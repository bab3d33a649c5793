"""Images that stay in their files: the same as those in memory, a few at a time."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from picture_sets import write_digits_folder, write_digits_parquet
from ray import cloudpickle

from rlprune.config import DataConfig, config_from_dict
from rlprune.data import ImageSet, StoredImages, iterate_batches, load_image_set
from rlprune.data import load as loading
from rlprune.data import stored as stored_module
from rlprune.errors import ConfigError, DataError

WRITERS = {"imagefolder": write_digits_folder, "parquet": write_digits_parquet}


def both(root: Path, name: str, **settings: object) -> tuple[ImageSet, ImageSet]:
    """The set in its files, and in memory."""
    WRITERS[name](root)
    sets = [
        load_image_set(DataConfig(name=name, root=str(root), streaming=on, **settings), 3)
        for on in (True, False)
    ]
    return sets[0], sets[1]


@pytest.mark.parametrize("name", WRITERS)
def test_every_split_holds_the_same_images(tmp_path: Path, name: str) -> None:
    stored, held = both(tmp_path, name, max_train_images=350)
    assert stored.mean == held.mean and stored.std == held.std
    assert stored.input_shape == held.input_shape == (1, 8, 8)
    rng = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        one, other = getattr(stored, split), getattr(held, split)
        assert isinstance(one, StoredImages) and len(one) == len(other)
        chosen = rng.choice(len(one), 50)  # in any order, some of them twice
        assert np.array_equal(one.take(chosen).images, other.take(chosen).images)
        assert np.array_equal(one.take(chosen).labels, other.take(chosen).labels)
        arguments = (32, None, held.mean, held.std)
        for (a, b), (c, d) in zip(
            iterate_batches(one, *arguments), iterate_batches(other, *arguments), strict=True
        ):
            assert a.equal(c) and b.equal(d)
    assert len(stored.train) + len(stored.validation) == 350


@pytest.mark.parametrize("name", WRITERS)
def test_a_stream_is_the_images_in_order(tmp_path: Path, name: str) -> None:
    stored, held = both(tmp_path, name)
    chosen = np.random.default_rng(1).permutation(len(held.train))[:70]
    parts = list(stored.train.stream(chosen, 32, threads=1))
    assert [len(part) for part in parts] == [32, 32, 6]
    assert np.array_equal(
        np.concatenate([part.images for part in parts]), held.train.take(chosen).images
    )
    assert np.array_equal(
        np.concatenate([part.labels for part in parts]), held.train.labels[chosen]
    )


def test_a_folder_is_visited_and_drawn_from_as_if_in_memory(tmp_path: Path) -> None:
    stored, held = both(tmp_path, "imagefolder")
    one, other = np.random.default_rng(5), np.random.default_rng(5)
    assert np.array_equal(stored.train.shuffled(one), held.train.shuffled(other))
    assert np.array_equal(stored.train.drawn(one, 40), held.train.drawn(other, 40))


def test_parquet_is_visited_window_by_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All images once, well mixed, and a window needs little more row groups than it must."""
    monkeypatch.setattr(stored_module, "WINDOW", 64)
    stored, _ = both(tmp_path, "parquet")
    train = stored.train
    assert isinstance(train, StoredImages) and train.files.starts is not None
    assert train.files.starts.tolist()[:4] == [0, 23, 46, 69]
    assert len(train.files.starts) == 18  # two files of 200 rows
    order = train.shuffled(np.random.default_rng(2))
    assert sorted(order.tolist()) == list(range(len(train)))
    assert np.array_equal(order, train.shuffled(np.random.default_rng(2)))
    assert not np.array_equal(order, train.shuffled(np.random.default_rng(3)))
    groups = np.searchsorted(train.files.starts, train.positions[order], side="right") - 1
    for start in range(0, len(order), 64):
        assert len(set(groups[start : start + 64].tolist())) <= 5  # about 20 images of each
    assert np.mean(np.diff(groups[:64]) == 0) < 0.6  # mixed, not group after group
    drawn = train.drawn(np.random.default_rng(2), 500)
    assert len(set(np.digitize(train.positions[drawn], train.files.starts).tolist())) <= 8


def test_what_travels_between_processes_is_small(tmp_path: Path) -> None:
    stored, held = both(tmp_path, "imagefolder")
    names = sum(len(str(path)) for path in tmp_path.rglob("*.png"))
    data = cloudpickle.dumps(stored)
    assert len(data) < 2 * names + 20_000
    again = cloudpickle.loads(data)
    assert np.array_equal(again.test.take([3, 1]).images, held.test.take([3, 1]).images)
    assert stored.train.nbytes == 16 * len(stored.train)


@pytest.mark.parametrize("name", WRITERS)
def test_changed_files_are_other_images(tmp_path: Path, name: str) -> None:
    stored, _ = both(tmp_path, name)
    before = stored.train.identity()
    assert (
        before
        == load_image_set(
            DataConfig(name=name, root=str(tmp_path), streaming=True), 3
        ).train.identity()
    )
    assert before != stored.validation.identity()
    file = min(path for path in tmp_path.glob("train*/**/*") if path.is_file()) \
        if name == "imagefolder" else tmp_path / "train-1.parquet"  # fmt: skip
    os.utime(file, (1, 1))
    assert stored.train.identity() != before


def test_statistics_of_many_images_are_those_of_a_fixed_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "STATISTICS_IMAGES", 100)
    stored, held = both(tmp_path, "imagefolder")
    again = load_image_set(DataConfig(name="imagefolder", root=str(tmp_path), streaming=True), 3)
    assert stored.mean == again.mean != held.mean
    assert stored.mean[0] == pytest.approx(held.mean[0], rel=0.05)
    assert stored.std[0] == pytest.approx(held.std[0], rel=0.05)


def test_an_image_that_cannot_be_decoded_is_named_when_it_is_needed(tmp_path: Path) -> None:
    write_digits_folder(tmp_path)
    broken = sorted((tmp_path / "train" / "7").iterdir())[4]
    broken.write_bytes(b"no picture")
    with pytest.raises(DataError, match=broken.name):  # the statistics need it
        load_image_set(DataConfig(name="imagefolder", root=str(tmp_path), streaming=True), 3)


def test_sets_that_are_read_whole_are_not_streamed() -> None:
    with pytest.raises(ConfigError, match=r"data\.streaming: only imagefolder and parquet"):
        config_from_dict({"data": {"name": "digits", "streaming": True}})
    with pytest.raises(DataError, match=r"Set data\.streaming to false"):
        load_image_set(DataConfig(streaming=True), 0)
