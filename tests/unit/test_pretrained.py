"""Pretrained networks: what their key depends on, the cache, and going on from one."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlprune.agents.networks import RuntimeAgent, StaticAgent
from rlprune.config import config_from_dict
from rlprune.data import ImageArrays, ImageSet, load_image_set
from rlprune.errors import CheckpointError, FileAccessError
from rlprune.training.pretrained import PretrainedCache, images_digest, pretrained_key
from rlprune.training.program import TrialProgram
from rlprune.training.progress import Interrupted, Reporter
from rlprune.training.setup import setup_trial

SMALL: dict[str, Any] = {
    "name": "first",
    "data": {"name": "digits", "max_train_images": 96},
    "backbone": {"name": "m_cifarnet", "width": 0.1},
    "agents": {"hidden": 4},
    "training": {
        "pretrain_epochs": 2,
        "runtime_importance_epochs": 1,
        "static_importance_epochs": 1,
        "rounds": 1,
        "finetune_epochs": 1,
        "batch_size": 32,
    },
}


class NoAgents:
    """Pretraining and the importances are trained without agents; asking for them fails."""

    def train_agents(self, updates: int) -> None:
        raise AssertionError("no round is trained here")

    def agents(self) -> tuple[RuntimeAgent, StaticAgent]:
        raise AssertionError("no round is trained here")


class StopsAt(Reporter):
    """Interrupts a phase after some steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def advance(self, name: str, done: int, total: int, values: dict[str, float]) -> None:
        if done == self.step:
            raise Interrupted


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_image_set(config_from_dict(SMALL).data, 0)


def program_of(images: ImageSet, reporter: Reporter | None = None, **changes: Any) -> TrialProgram:
    """The small trial with "part__key" settings changed, on given images."""
    values = copy.deepcopy(SMALL)
    for name, value in changes.items():
        part, _, key = name.partition("__")
        if key:
            values.setdefault(part, {})[key] = value
        else:
            values[part] = value
    config = config_from_dict(values)
    return TrialProgram(setup_trial(config, images), images, "cpu", reporter or Reporter())


def key_of(images: ImageSet, **changes: Any) -> str:
    key = pretrained_key(program_of(images, **changes), images_digest(images))
    assert key is not None
    return key


def pretrained(images: ImageSet) -> TrialProgram:
    """The small trial, pretrained by itself."""
    program = program_of(images)
    while program.position < 2:
        assert program.pretrained_state() is None
        program.advance(NoAgents())
    return program


def same_tensors(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


# --- keys -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"training__pretrain_epochs": 3},
        {"training__pretrain_learning_rate": 0.0123},
        {"training__batch_size": 16},
        {"training__gradient_clip": 0.5},
        {"training__label_smoothing": 0.2},
        {"backbone__width": 0.2},
        {"backbone__name": "resnet20"},
        {"seed": 1},
    ],
    ids=lambda change: "-".join(change),
)
def test_the_key_changes_with_what_decides_on_the_network(
    digits: ImageSet, change: dict[str, Any]
) -> None:
    assert key_of(digits, **change) != key_of(digits)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "second"},
        {"budgets__storage_max": 0.9, "budgets__compute_max": 0.8},
        {"training__rounds": 7, "training__updates_per_round": 3},
        {"training__runtime_importance_epochs": 3},
        {"training__finetune_learning_rate": 0.5},
        {"agents__hidden": 8},
        {"evaluation__tradeoff_rates": [0.0], "evaluation__baselines": ["dense"]},
        {"resources__cpus": 1},
    ],
    ids=lambda change: "-".join(change),
)
def test_the_key_does_not_change_with_what_comes_later(
    digits: ImageSet, change: dict[str, Any]
) -> None:
    assert key_of(digits, **change) == key_of(digits)


def test_the_seed_counts_by_itself_and_so_do_the_initial_weights(digits: ImageSet) -> None:
    digest = images_digest(digits)
    first, second = program_of(digits), program_of(digits, seed=1)
    second.network.load_state_dict(first.network.state_dict())
    assert pretrained_key(first, digest) != pretrained_key(second, digest)  # order of images
    changed = program_of(digits)
    with torch.no_grad():
        next(changed.network.parameters()).view(-1)[0].add_(1e-6)
    assert pretrained_key(first, digest) != pretrained_key(changed, digest)


def test_the_key_changes_with_the_images_that_are_trained_on(digits: ImageSet) -> None:
    pixels, labels = digits.train.images.copy(), digits.train.labels.copy()
    pixels[3, 0, 2, 1] ^= 1
    labels[5] = (labels[5] + 1) % 10
    others = [
        dataclasses.replace(digits, train=ImageArrays(pixels, digits.train.labels)),
        dataclasses.replace(digits, train=ImageArrays(digits.train.images, labels)),
        dataclasses.replace(digits, train=digits.train.take(range(80))),
        dataclasses.replace(digits, mean=(0.123,)),
        dataclasses.replace(digits, std=(0.123,)),
        dataclasses.replace(digits, augmentation="crop_flip"),
    ]
    digests = {images_digest(images) for images in (digits, *others)}
    assert len(digests) == 1 + len(others)
    keys = {pretrained_key(program_of(digits), digest) for digest in digests}
    assert len(keys) == len(digests)
    unseen = dataclasses.replace(digits, validation=digits.test, test=digits.validation)
    assert images_digest(unseen) == images_digest(digits)
    frozen = np.asfortranarray(digits.train.images)  # the same values in another layout
    same = dataclasses.replace(digits, train=ImageArrays(frozen, digits.train.labels))
    assert images_digest(same) == images_digest(digits)


def test_there_is_no_key_without_pretraining_or_once_it_has_begun(digits: ImageSet) -> None:
    digest = images_digest(digits)
    assert pretrained_key(program_of(digits, training__pretrain_epochs=0), digest) is None
    program = program_of(digits, StopsAt(2))
    with pytest.raises(Interrupted):
        program.advance(NoAgents())
    assert program.position == 0
    assert pretrained_key(program, digest) is None
    program.reporter = Reporter()
    program.advance(NoAgents())
    assert program.position == 1
    assert pretrained_key(program, digest) is None


# --- going on -------------------------------------------------------------------------------


def test_the_state_exists_at_the_end_of_pretraining_only(digits: ImageSet) -> None:
    program = pretrained(digits)
    state = program.pretrained_state()
    assert state is not None
    assert state["images"] == 2 * 2 * 32  # 86 images are two batches an epoch
    assert state["seconds"] == program.counters.seconds["pretrain"] > 0
    program.advance(NoAgents())
    assert program.pretrained_state() is None
    assert program_of(digits, training__pretrain_epochs=0).pretrained_state() is None


def test_who_adopts_a_network_goes_on_like_who_trained_it(tmp_path: Path, digits: ImageSet) -> None:
    trained = pretrained(digits)
    cache = PretrainedCache(str(tmp_path))
    saved = trained.pretrained_state()
    assert saved is not None
    cache.save("key", saved)
    state = cache.load("key")
    assert state is not None
    adopted = program_of(digits, name="second", budgets__storage_max=0.9)
    assert not same_tensors(adopted.network.state_dict(), trained.network.state_dict())
    adopted.adopt_pretrained(state)
    assert adopted.position == trained.position == 2
    assert adopted.trainer is None and trained.trainer is None
    assert adopted.counters == trained.counters
    before = trained.average_loss
    for unit in (3, 4):  # runtime importance, static importance
        for program in (trained, adopted):
            program.advance(NoAgents())
        assert adopted.position == trained.position == unit
        assert same_tensors(adopted.network.state_dict(), trained.network.state_dict())
        assert adopted.average_loss == trained.average_loss
        assert adopted.counters.cnn_images == trained.counters.cnn_images
    assert trained.average_loss != before
    assert trained.counters.cnn_images == {
        "pretrain": 128,
        "runtime_importance": 64,
        "static_importance": 64,
    }
    assert adopted.counters.seconds["pretrain"] == trained.counters.seconds["pretrain"]
    assert same_tensors(adopted.snapshots["pretrained"], trained.snapshots["pretrained"])


# --- the cache ------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    cache = PretrainedCache(str(tmp_path / "made" / "when needed"))
    assert cache.load("abc") is None
    state = {
        "network": {"weight": torch.tensor([1.5, -2.0]), "count": torch.tensor(3)},
        "average_loss": 0.1 + 0.2,
        "images": 10**12,
        "seconds": 1e-9,
    }
    cache.save("abc", state)
    found = cache.load("abc")
    assert found is not None and found.keys() == state.keys()
    assert same_tensors(found["network"], state["network"])
    assert {**found, "network": None} == {**state, "network": None}
    assert cache.load("abd") is None
    assert [path.name for path in Path(cache.uri).iterdir()] == ["abc.pt"]
    assert cache.path("abc") == str(tmp_path / "made" / "when needed" / "abc.pt")


class _Runs:
    """Unpickling it would run code of a stranger."""

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return (exec, ("raise SystemExit('a stranger\\'s code ran')",))


def _torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "damage",
    [
        _torn,
        _flipped,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no network at all"),
        lambda path: path.write_bytes(pickle.dumps(_Runs(), protocol=2)),
        lambda path: torch.save(_Runs(), path),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"network": {}}, path),
        lambda path: torch.save({"format_version": 2, "network": {}}, path),
    ],
    ids=["torn", "flipped", "empty", "text", "pickle", "code", "list", "no version", "newer"],
)
def test_damaged_and_foreign_files_are_refused(tmp_path: Path, damage: Any) -> None:
    cache = PretrainedCache(str(tmp_path))
    cache.save("abc", {"network": {"weight": torch.zeros(100)}, "average_loss": 1.0})
    damage(tmp_path / "abc.pt")
    with pytest.raises(CheckpointError) as caught:
        cache.load("abc")
    message = str(caught.value)
    assert message.startswith(f"pretrained network {tmp_path / 'abc.pt'}: cannot be read (")
    assert message.endswith("Delete the file: it will be trained again.")
    assert "\n" not in message
    assert caught.value.exit_status == 2


def test_a_newer_file_is_called_so(tmp_path: Path) -> None:
    torch.save({"format_version": 2, "network": {}}, tmp_path / "abc.pt")
    with pytest.raises(CheckpointError, match="another version of rlprune wrote it"):
        PretrainedCache(str(tmp_path)).load("abc")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FileAccessError, match=r"file/abc\.pt: cannot be written"):
        PretrainedCache(str(tmp_path / "file")).save("abc", {"network": {}})
