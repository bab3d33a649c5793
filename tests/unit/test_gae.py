"""Generalised advantages against sums in plain Python, and against two other estimators."""

import random

import pytest
import torch

from rlprune.mdp import generalized_advantages


def td_error(rewards: list[float], values: list[float], gamma: float, t: int) -> float:
    """r_t + gamma V_{t+1} - V_t; nothing comes after the last layer."""
    following = values[t + 1] if t + 1 < len(values) else 0.0
    return rewards[t] + gamma * following - values[t]


def explicit_sum(
    rewards: list[float], values: list[float], gamma: float, gae_lambda: float, t: int
) -> float:
    """Schulman et al. 2016, Eq. (16): sum over k of (gamma lambda)^k delta_{t+k}."""
    return sum(
        (gamma * gae_lambda) ** k * td_error(rewards, values, gamma, t + k)
        for k in range(len(rewards) - t)
    )


def episodes(seed: int, count: int = 3, layers: int = 6) -> tuple[list[list[float]], ...]:
    draw = random.Random(seed)
    return tuple([[draw.gauss(0, 2) for _ in range(layers)] for _ in range(count)] for _ in "rv")


def advantages(
    rewards: list[list[float]], values: list[list[float]], gamma: float, gae_lambda: float
) -> tuple[list[list[float]], list[list[float]]]:
    pair = generalized_advantages(
        torch.tensor(rewards, dtype=torch.float64),
        torch.tensor(values, dtype=torch.float64),
        gamma,
        gae_lambda,
    )
    return pair[0].tolist(), pair[1].tolist()


def test_two_layers_by_hand() -> None:
    # gamma 0.5, lambda 0.5; rewards 0, 8; values 2, 4.
    # delta_1 = 8 - 4 = 4; delta_0 = 0 + 0.5 * 4 - 2 = 0; A_0 = 0 + 0.25 * 4 = 1; A_1 = 4
    found, targets = advantages([[0.0, 8.0]], [[2.0, 4.0]], 0.5, 0.5)
    assert found == [[1.0, 4.0]]
    assert targets == [[3.0, 8.0]]


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.999, 0.95), (0.9, 0.3), (1.0, 1.0)])
@pytest.mark.parametrize("seed", range(4))
def test_against_the_explicit_sum(gamma: float, gae_lambda: float, seed: int) -> None:
    rewards, values = episodes(seed)
    found, targets = advantages(rewards, values, gamma, gae_lambda)
    for b, (r, v) in enumerate(zip(rewards, values, strict=True)):
        expected = [explicit_sum(r, v, gamma, gae_lambda, t) for t in range(len(r))]
        assert found[b] == pytest.approx(expected, abs=1e-12)
        added = [a + b for a, b in zip(expected, v, strict=True)]
        assert targets[b] == pytest.approx(added, abs=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.97, 0.0])
def test_lambda_one_is_the_monte_carlo_return_minus_the_value(gamma: float) -> None:
    rewards, values = episodes(7)
    found, targets = advantages(rewards, values, gamma, 1.0)
    for b, (r, v) in enumerate(zip(rewards, values, strict=True)):
        returns = [sum(gamma**k * x for k, x in enumerate(r[t:])) for t in range(len(r))]
        assert found[b] == pytest.approx([g - x for g, x in zip(returns, v, strict=True)])
        assert targets[b] == pytest.approx(returns)


def test_lambda_zero_is_the_td_error() -> None:
    rewards, values = episodes(8)
    found, _ = advantages(rewards, values, 0.9, 0.0)
    for b, (r, v) in enumerate(zip(rewards, values, strict=True)):
        assert found[b] == pytest.approx([td_error(r, v, 0.9, t) for t in range(len(r))])


def test_perfect_values_leave_no_advantage() -> None:
    """A reward at the last layer alone, and values that foresee it."""
    values = [[0.5**2 * 4.0, 0.5 * 4.0, 4.0]]
    found, targets = advantages([[0.0, 0.0, 4.0]], values, 0.5, 0.7)
    assert found == [[0.0, 0.0, 0.0]] and targets == values
