"""What the PPO learner is fed with: advantages, the penalty, and the order of episodes."""

import math

import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor, nn

from rlprune.agents.networks import RUNTIME, STATIC, Trajectory
from rlprune.agents.rollout import Rollout
from rlprune.training.learner import (
    Chunk,
    StackedChunks,
    mean_range_penalty,
    normalised_advantages,
)

# 1, 3, 5, 7: mean 4, squared distances 9 + 1 + 1 + 9 = 20, deviation sqrt(20 / 3) = 2.581989
ADVANTAGES = torch.tensor([[1.0, 3.0], [100.0, -50.0], [5.0, 7.0]])


# --- normalised advantages ------------------------------------------------------------------


def test_episodes_that_do_not_matter_get_nothing_and_have_no_say() -> None:
    found = normalised_advantages(ADVANTAGES, torch.tensor([True, False, True]))
    assert found[0].tolist() == pytest.approx([-1.161895, -0.387298], abs=1e-6)
    assert found[1].tolist() == [0.0, 0.0]
    assert found[2].tolist() == pytest.approx([0.387298, 1.161895], abs=1e-6)
    other = ADVANTAGES.clone()
    other[1] = -1e6
    again = normalised_advantages(other, torch.tensor([True, False, True]))
    assert torch.equal(again, found)


def test_where_all_episodes_matter_the_mean_is_zero_and_the_deviation_one() -> None:
    found = normalised_advantages(ADVANTAGES, torch.tensor([True, True, True]))
    assert found.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert found.std().item() == pytest.approx(1.0, abs=1e-6)
    # an order-preserving straight line through the advantages
    assert torch.equal(found.flatten().argsort(), ADVANTAGES.flatten().argsort())


def test_where_no_episode_matters_all_is_zero() -> None:
    found = normalised_advantages(ADVANTAGES, torch.tensor([False, False, False]))
    assert found.tolist() == [[0.0, 0.0]] * 3


def test_equal_advantages_become_zero() -> None:
    found = normalised_advantages(torch.full((3, 2), 4.0), torch.tensor([True, True, False]))
    assert found.tolist() == [[0.0, 0.0]] * 3


def test_the_input_is_left_as_it_is() -> None:
    before = ADVANTAGES.clone()
    normalised_advantages(ADVANTAGES, torch.tensor([True, False, True]))
    assert torch.equal(ADVANTAGES, before)


def test_a_single_decision_that_matters_stays_finite() -> None:
    found = normalised_advantages(torch.tensor([[2.0], [5.0]]), torch.tensor([True, False]))
    assert torch.isfinite(found).all()


# --- the penalty ----------------------------------------------------------------------------


def test_penalty_is_the_mean_squared_distance_from_the_range() -> None:
    # below 0.1 by 0.3, above 1 by 0.5, two inside: (0.09 + 0.25) / 4
    mean = torch.tensor([[-0.2, 0.1], [1.0, 1.5]])
    assert mean_range_penalty(mean, 0.1).item() == pytest.approx(0.085)
    assert mean_range_penalty(torch.tensor([0.1, 0.6, 1.0]), 0.1).item() == 0.0


# --- the batch ------------------------------------------------------------------------------


class Values(nn.Module):
    """Expects twice what the first column says."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def unwrapped(self) -> nn.Module:
        return self

    def compute_values(self, batch: dict[str, Tensor]) -> Tensor:
        return self.weight * batch[Columns.OBS][..., 0]


def chunk(worker: int, rates: list[float], signals: list[float], first: float) -> Chunk:
    """Episodes of two layers; every observation's only column is ``first``."""
    count = len(rates)
    trajectory = Trajectory(
        observations=torch.full((count, 2, 1), first),
        actions=torch.full((count, 2), float(worker)),
        log_probabilities=torch.full((count, 2), -1.0),
        distribution=torch.zeros(count, 2, 2),
    )
    signal = torch.tensor(signals, dtype=torch.float64)
    values = dict.fromkeys(Rollout.__dataclass_fields__, torch.zeros(count))
    values |= {"runtime": trajectory, "static": trajectory}
    values |= {"runtime_signal": signal, "static_signal": -signal}
    values["rate"] = torch.tensor(rates, dtype=torch.float64)
    return Chunk(worker, Rollout(**values))


def test_columns_of_two_workers_by_hand() -> None:
    """gamma = lambda = 0.5, values 2 x 0.5 = 1 in every layer, rewards at the second layer.

    delta_1 = signal - 1, delta_0 = 0.5 * 1 - 1 = -0.5; A_1 = delta_1,
    A_0 = -0.5 + 0.25 A_1; targets A + 1. Signals of worker 1: 9 (R_r = 1), 5 (R_r = 0);
    of worker 2: 1 (R_r = 0.5).
    """
    chunks = [chunk(2, [0.5], [1.0], 0.5), chunk(1, [1.0, 0.0], [9.0, 5.0], 0.5)]
    connector = StackedChunks(gamma=0.5, gae_lambda=0.5)
    shared: dict[str, object] = {}
    modules = {RUNTIME: Values(), STATIC: Values()}
    batch = connector(rl_module=modules, batch={}, episodes=chunks, shared_data=shared)
    assert list(batch) == [RUNTIME, STATIC]
    assert shared == {f"_zero_padded_for_mid={role}": True for role in (RUNTIME, STATIC)}
    runtime, static = batch[RUNTIME], batch[STATIC]
    assert runtime[Columns.ACTIONS].tolist() == [[[1.0]] * 2, [[1.0]] * 2, [[2.0]] * 2]
    assert runtime[Columns.SEQ_LENS].tolist() == [2, 2, 2]
    # A_1 = 8, 4, 0 and A_0 = 1.5, 0.5, -0.5
    expected = [[2.5, 9.0], [1.5, 5.0], [0.5, 1.0]]
    assert runtime[Postprocessing.VALUE_TARGETS].tolist() == expected
    # the runtime agent decides in the first and the last episode: 1.5, 8, -0.5, 0 have mean
    # 2.25 and squared distances 0.5625 + 33.0625 + 7.5625 + 5.0625 = 46.25
    deviation = math.sqrt(46.25 / 3)
    advantages = runtime[Postprocessing.ADVANTAGES]
    assert advantages[0].tolist() == pytest.approx([-0.75 / deviation, 5.75 / deviation])
    assert advantages[1].tolist() == [0.0, 0.0]
    assert advantages[2].tolist() == pytest.approx([-2.75 / deviation, -2.25 / deviation])
    # the static agent's signals are -9, -5, -1: A_1 = -10, -6, -2, A_0 = -3, -2, -1
    expected = [[-2.0, -9.0], [-1.0, -5.0], [0.0, -1.0]]
    assert static[Postprocessing.VALUE_TARGETS].tolist() == expected
    # it decides in the last two: -2, -6, -1, -2 have mean -2.75 and squared distances
    # 0.5625 + 10.5625 + 3.0625 + 0.5625 = 14.75
    deviation = math.sqrt(14.75 / 3)
    advantages = static[Postprocessing.ADVANTAGES]
    assert advantages[0].tolist() == [0.0, 0.0]
    assert advantages[1].tolist() == pytest.approx([0.75 / deviation, -3.25 / deviation])
    assert advantages[2].tolist() == pytest.approx([1.75 / deviation, 0.75 / deviation])


def test_steps_of_a_chunk_are_decisions() -> None:
    one = chunk(1, [1.0, 0.5, 0.0], [0.0, 0.0, 0.0], 0.0)
    assert len(one) == one.env_steps() == 6


def test_the_order_of_arrival_does_not_matter() -> None:
    chunks = [chunk(worker, [1.0, 0.5], [worker, 2.0 * worker], 0.1) for worker in (1, 2, 3)]
    modules = {RUNTIME: Values(), STATIC: Values()}
    connector = StackedChunks(gamma=0.9, gae_lambda=0.8)
    first = connector(rl_module=modules, batch={}, episodes=chunks)
    again = connector(rl_module=modules, batch={}, episodes=chunks[::-1])
    for role in (RUNTIME, STATIC):
        for name, column in first[role].items():
            assert torch.equal(again[role][name], column)
