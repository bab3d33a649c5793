"""Generalised advantage estimation for episodes that end at the last layer."""

from __future__ import annotations

import torch
from torch import Tensor


def generalized_advantages(
    rewards: Tensor, values: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """GAE(gamma, lambda) over complete episodes.

    delta_t = r_t + gamma V_{t+1} - V_t with V_T = 0;
    A_t = delta_t + gamma lambda A_{t+1}; the value target is A_t + V_t.

    Args:
        rewards, values: [B, T].
        gamma, gae_lambda: discounts in [0, 1].

    Returns:
        (advantages, value targets), [B, T] each.

    Source: Schulman et al. 2016, Eq. (16); paper Sec. 3.2 (gamma 0.999, lambda 0.95).
    """
    advantages = torch.zeros_like(rewards)
    following_value = torch.zeros_like(values[:, 0])
    following = torch.zeros_like(values[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following = delta + gamma * gae_lambda * following
        advantages[:, t] = following
        following_value = values[:, t]
    return advantages, advantages + values
