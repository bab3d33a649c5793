"""What training tells of itself: numbers by hand, files, TensorBoard; no Ray."""

from __future__ import annotations

import logging
import math
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tensorboardX.proto.event_pb2 import Event

from rlprune.agents.networks import RuntimeAgent, StaticAgent, Trajectory
from rlprune.agents.rollout import Rollout
from rlprune.config import config_from_dict
from rlprune.data import load_image_set
from rlprune.mdp.reward import PriceCurve
from rlprune.training import methods
from rlprune.training.diagnostics import (
    budget_used,
    difficulty,
    difficulty_rows,
    image_correlation,
    image_std,
    update_diagnostics,
)
from rlprune.training.log import TrainingLog
from rlprune.training.program import PRETRAINED, TrialProgram
from rlprune.training.progress import Reporter
from rlprune.training.session import SessionReporter
from rlprune.training.setup import setup_trial

# --- differences between images --------------------------------------------------------------


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def test_exploration_noise_is_no_difference_between_images() -> None:
    """Means 2, 6, 10: variance 16; within an image 2, over 2 episodes 1."""
    assert image_std(column(1, 3, 5, 7, 9, 11), 2).tolist() == pytest.approx([math.sqrt(15)])
    # the same image three times: all variance is noise
    assert image_std(column(0, 2, 0, 2, 2, 0), 2).tolist() == [0.0]


def test_one_episode_per_image_gives_the_plain_deviation() -> None:
    assert image_std(column(1, 2, 3, 6), 1).tolist() == pytest.approx([math.sqrt(14 / 3)])
    assert image_std(column(1), 1).tolist() == [0.0]


def test_every_layer_has_a_deviation_of_its_own() -> None:
    both = torch.cat([column(1, 3, 5, 7), column(4, 4, 4, 4)], 1)
    assert image_std(both, 2).tolist() == pytest.approx([math.sqrt(8 - 1), 0.0])


def test_what_budgets_change_is_no_difference_between_images() -> None:
    """Two kinds with means 2, 6 and 102, 106: within each 8, less the noise of 1."""
    values = column(1, 3, 5, 7, 101, 103, 105, 107)
    kinds = torch.tensor([0, 0, 1, 1])
    assert image_std(values, 2, kinds).tolist() == pytest.approx([math.sqrt(7)])
    assert image_std(values, 2).item() > 50
    assert image_std(values, 2, torch.arange(4)).tolist() == [0.0]  # nothing to compare with
    # an image without another one of its kind says nothing, and its noise does not count
    alone = column(1, 3, 5, 7, 0, 900)
    found = image_std(alone, 2, torch.tensor([0, 0, 1]))
    assert found.tolist() == pytest.approx([math.sqrt(7)])


def test_correlation_over_images() -> None:
    def found(second: list[float], kinds: list[int] | None = None) -> float:
        losses = torch.arange(1.0, len(second) + 1).repeat_interleave(2)
        noise = torch.tensor([-0.25, 0.25]).repeat(len(second))  # of two episodes each
        macs = torch.tensor(second).repeat_interleave(2)
        numbers = None if kinds is None else torch.tensor(kinds)
        return image_correlation(losses + noise, macs - 2 * noise, 2, numbers)

    assert found([2.0, 4.0, 6.0]) == pytest.approx(1.0)
    assert found([3.0, 2.0, 1.0]) == pytest.approx(-1.0)
    assert found([1.0, 3.0, 2.0]) == pytest.approx(0.5)
    assert found([2.0, 1.0, 12.0, 11.0]) > 0.5
    assert found([2.0, 1.0, 12.0, 11.0], [0, 0, 1, 1]) == pytest.approx(-1.0)
    assert found([0.1, 0.1, 0.1]) == 0.0
    assert found([2.0, 12.0], [0, 1]) == 0.0
    constant = torch.full((3,), 0.1)
    assert image_correlation(constant, torch.arange(3.0), 1) == 0.0


def test_budgets_used() -> None:
    cost, inf = torch.tensor([0.2, 0.3, 0.9]), math.inf
    assert budget_used(cost, torch.tensor([0.4, 0.3, inf])) == pytest.approx(0.75)
    assert budget_used(cost, torch.full((3,), inf)) is None


# --- one update ------------------------------------------------------------------------------


def rollout(**given: list[Any]) -> Rollout:
    """Episodes of two layers; what is not given is zero, budgets are infinite."""
    count = len(given["macs"])
    values: dict[str, Any] = dict.fromkeys(Rollout.__dataclass_fields__, torch.zeros(count))
    nothing = Trajectory(*(torch.zeros(count, 2) for _ in Trajectory.__dataclass_fields__))
    infinite = torch.full((count,), math.inf, dtype=torch.float64)
    values |= {"runtime": nothing, "static": nothing, "mean_target": infinite}
    values |= {"compute_cap": infinite, "storage_cap": infinite}
    values |= {key: torch.tensor(value, dtype=torch.float64) for key, value in given.items()}
    return Rollout(**values)


def test_record_of_an_update_of_two_workers() -> None:
    """Two images, one per worker, two episodes each."""
    inf = math.inf
    first = rollout(
        macs=[0.1, 0.3],
        loss=[1.0, 1.0],
        correct=[1.0, 0.0],
        storage=[0.5, 0.5],
        computed_ratio=[[0.2, 1.0], [0.4, 1.0]],
        mean_target=[0.4, 0.4],
        compute_cap=[0.5, 0.5],
        storage_cap=[0.5, 0.5],
    )
    second = rollout(
        macs=[0.4, 0.4],
        loss=[3.0, 3.0],
        correct=[1.0, 1.0],
        storage=[0.3, 0.3],
        computed_ratio=[[0.6, 1.0], [0.8, 1.0]],
        mean_target=[0.4, 0.4],
        compute_cap=[0.5, 0.5],
        storage_cap=[0.5, 0.5],
    )
    price = PriceCurve([0.4, 0.5], [1.0, 2.0])
    found = update_diagnostics([first, second], 2, price, {"runtime_entropy": -1.5})
    expected = {
        "reward_runtime": 0.0,
        "reward_static": 0.0,
        "loss": 2.0,
        "accuracy": 0.75,
        "macs_ratio": 0.3,
        "storage_ratio": 0.4,
        "keep_ratio_0": 0.5,
        "keep_ratio_std_0": math.sqrt(0.08 - 0.01),  # means 0.3, 0.7; within 0.02, halved
        "keep_ratio_1": 1.0,
        "keep_ratio_std_1": 0.0,
        "macs_difficulty": 1.0,
        "compute_used": 0.75,  # of the mean budget, not of the cap
        "storage_used": 0.8,
        "price": 1.5,
        "runtime_entropy": -1.5,
    }
    assert found.record == pytest.approx(expected)
    assert list(found.record) == list(expected)
    histograms = found.histograms()
    assert list(histograms) == ["keep_ratio/layer_0", "keep_ratio/layer_1"]
    assert histograms["keep_ratio/layer_0"].tolist() == [0.2, 0.4, 0.6, 0.8]
    capped = rollout(
        macs=[0.2, 0.4],
        rate=[1.0, 0.0],
        computed_ratio=[[0.2, 0.2], [0.9, 0.9]],
        mean_target=[0.4, inf],
        compute_cap=[0.5, 0.5],
    )
    record = update_diagnostics([capped], 1, None, {}).record
    assert record["compute_used"] == pytest.approx(0.65)  # 0.2 / 0.4 and, at R_r = 0, 0.4 / 0.5
    assert record["keep_ratio_std_0"] == 0.0  # the two differ in R_r
    assert "storage_used" not in record and "price" not in record


# --- easy and hard images --------------------------------------------------------------------


def test_deciles_from_the_easiest_to_the_hardest() -> None:
    """20 images: the k-th easiest costs k / 100, and every second answer is right."""
    rank = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    rows = difficulty_rows(0.5, rank.double() / 2, (rank + 1) / 100, rank % 4 < 2)
    assert [row["decile"] for row in rows] == list(range(1, 11))
    assert {row["images"] for row in rows} == {2} and {row["tradeoff_rate"] for row in rows} == {
        0.5
    }
    assert rows[0] == pytest.approx(
        {
            "tradeoff_rate": 0.5,
            "decile": 1,
            "dense_loss": 0.25,
            "macs_ratio": 0.015,
            "accuracy": 1.0,
            "images": 2,
        }
    )
    assert [row["macs_ratio"] for row in rows] == pytest.approx(
        [0.015 + 0.02 * k for k in range(10)]
    )
    assert [row["accuracy"] for row in rows] == [1.0, 0.0] * 5
    few = difficulty_rows(1.0, torch.tensor([2.0, 1.0, 3.0]), torch.ones(3), torch.ones(3) > 0)
    assert [(row["decile"], row["dense_loss"]) for row in few] == [(1, 1.0), (4, 2.0), (7, 3.0)]


def test_difficulty_of_a_measured_policy_leaves_the_program_as_it_is() -> None:
    config = config_from_dict(
        {
            "data": {"name": "digits", "max_train_images": 100},
            "backbone": {"width": 0.1},
            "agents": {"hidden": 4},
            "budgets": {"compute_max": 0.6},
            "evaluation": {"tradeoff_rates": [1.0, 0.5], "batchnorm_images": 64},
        }
    )
    images = load_image_set(config.data, config.seed)
    setup = setup_trial(config, images)
    program = TrialProgram(setup, images, "cpu", Reporter())
    program.snapshots[PRETRAINED] = program._weights()
    with torch.no_grad():  # the learned network has come to differ from the pretrained one
        for parameter in program.network.parameters():
            parameter.mul_(1.1)
    agents = (RuntimeAgent(setup.graph, config.agents), StaticAgent(config.agents))
    weights, method = program._weights(), methods.learned(setup, *agents)
    measured = []
    for ratio, rate in ((None, 1.0), (None, 0.5), (0.5, 0.5)):
        point = setup.book.point(rate, ratio)
        measured.append(program.evaluator.measure(program.network, method, point))
        program.network.load_state_dict(weights)
    random_state, predictors = torch.get_rng_state(), program.network.layers[0].use_predictor
    table = pd.DataFrame(difficulty(program, agents, measured))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, weights[k]) for k, tensor in program._weights().items())
    assert program.network.layers[0].use_predictor == predictors
    assert len(table) == 2 * 10 and table["images"].sum() == 2 * len(images.test)
    for result, rate in zip(measured, (1.0, 0.5), strict=False):
        rows = table[table["tradeoff_rate"] == rate]
        means = (rows[["macs_ratio", "accuracy"]].mul(rows["images"], axis=0)).sum()
        means /= rows["images"].sum()
        assert means["accuracy"] == pytest.approx(result.test.accuracy)
        dense = setup.book.dense_macs
        assert means["macs_ratio"] == pytest.approx(float(result.test.macs.mean()) / dense)
        assert rows["dense_loss"].is_monotonic_increasing
    assert table["dense_loss"].nunique() == 10  # the same dense network for every R_r
    assert difficulty(program, agents, measured[2:]) == []


# --- files -----------------------------------------------------------------------------------


def stub(updates: int) -> Any:
    """An algorithm between two units that have measured nothing."""
    history = [{"update": float(n), "reward_runtime": -1.0} for n in range(1, updates + 1)]
    program = SimpleNamespace(history=history)
    return SimpleNamespace(program=program, measurements=[], agents=lambda: (None, None))


def test_the_log_is_written_when_there_is_something_new(tmp_path: Path) -> None:
    updates, picture = tmp_path / "updates.parquet", tmp_path / "training.png"
    log = TrainingLog(updates, tmp_path / "difficulty.parquet", picture, 0.0)
    log.write(stub(0))
    assert list(tmp_path.iterdir()) == []
    log.write(stub(2))
    assert len(pd.read_parquet(updates)) == 2
    first = picture.stat().st_mtime_ns
    log.write(stub(2))
    assert picture.stat().st_mtime_ns == first  # no update since
    log.write(stub(3))
    assert picture.stat().st_mtime_ns > first
    assert len(pd.read_parquet(updates)) == 3


def test_pictures_are_not_drawn_more_often_than_asked(tmp_path: Path) -> None:
    picture = tmp_path / "training.png"
    log = TrainingLog(tmp_path / "u.parquet", tmp_path / "d.parquet", picture, 3600.0)
    log.write(stub(2))
    assert not picture.exists()
    assert len(pd.read_parquet(tmp_path / "u.parquet")) == 2


def test_a_picture_that_cannot_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture = tmp_path / "training.png"
    picture.mkdir()
    with caplog.at_level(logging.WARNING):
        log = TrainingLog(tmp_path / "u.parquet", tmp_path / "d.parquet", picture, 0.0)
        log.write(stub(2))
    assert "training.png: left out, could not be made" in caplog.text
    assert len(pd.read_parquet(tmp_path / "u.parquet")) == 2


# --- TensorBoard -----------------------------------------------------------------------------


def events(folder: Path) -> list[Event]:
    """TensorFlow's records: length, its checksum, the event, its checksum."""
    (path,) = folder.glob("events.out.tfevents.*")
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def test_histograms_can_be_read_back(tmp_path: Path) -> None:
    reporter = SessionReporter(Reporter(), tmp_path)
    ratios = torch.tensor([0.25, 0.25, 0.5, 1.0], dtype=torch.float64)
    values = {"keep_ratio/layer_0": ratios, "keep_ratio/layer_1": np.full(3, 0.5)}
    reporter.histograms(11, values)
    Reporter().histograms(11, values)  # nobody watches
    reporter.close()
    found = [event for event in events(tmp_path) if event.summary.value]
    assert [event.step for event in found] == [11, 11]
    spread, constant = (event.summary.value[0] for event in found)
    assert (spread.tag, constant.tag) == tuple(values)
    assert (spread.histo.min, spread.histo.max, spread.histo.num) == (0.25, 1.0, 4)
    assert [count for count in spread.histo.bucket if count] == [2, 1, 1]
    assert (constant.histo.min, constant.histo.max, sum(constant.histo.bucket)) == (0.5, 0.5, 3)


def test_tensorboard_reads_the_histograms(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reporter = SessionReporter(Reporter(), tmp_path)
    reporter.histograms(1, {"keep_ratio/layer_0": torch.tensor([0.25, 0.5])})
    reporter.close()
    reader = accumulator.EventAccumulator(str(tmp_path)).Reload()
    (event,) = reader.Histograms("keep_ratio/layer_0")
    assert event.step == 1 and event.histogram_value.num == 2
    assert event.histogram_value.sum == pytest.approx(0.75)
