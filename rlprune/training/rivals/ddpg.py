"""A small DDPG agent for one continuous action in [low, 1].

Source: Lillicrap et al. 2016, "Continuous control with deep reinforcement learning", Algorithm
1, with the settings of He et al. 2018 (AMC), Sec. 3.3 and 4.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HIDDEN = 300
_BATCH = 64
_MEMORY = 2000
_TRACKING = 0.01
_NOISE = 0.5
_NOISE_DECAY = 0.95
_BASELINE_DECAY = 0.95


@dataclass(frozen=True)
class Transition:
    """One step.

    Attributes:
        state: [D].
        action: taken.
        following: next state [D], None at the end.
        reward: of the whole episode (gamma is 1, so each step gets it once, as AMC has it).
    """

    state: Tensor
    action: float
    following: Tensor | None
    reward: float


class DDPG:
    """Actor, critic, their slow copies, and a replay memory.

    Args:
        features: D.
        low: least action.
        rng: source of all randomness.
    """

    def __init__(self, features: int, low: float, rng: np.random.Generator) -> None:
        self._low = low
        self._rng = rng
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)))
            self._actor, self._critic = _network(features), _network(features + 1)
        self._slow_actor, self._slow_critic = map(copy.deepcopy, (self._actor, self._critic))
        self._actor_optimizer = torch.optim.Adam(self._actor.parameters(), lr=1e-4)
        self._critic_optimizer = torch.optim.Adam(self._critic.parameters(), lr=1e-3)
        self._memory: deque[Transition] = deque(maxlen=_MEMORY)
        self._baseline: float | None = None

    def _policy(self, actor: nn.Module, states: Tensor) -> Tensor:
        return self._low + (1.0 - self._low) * torch.sigmoid(actor(states)).squeeze(-1)

    @torch.no_grad()
    def act(self, state: Tensor, episode: int) -> float:
        """An action for state [D].

        Args:
            state: where the agent is.
            episode: since the warm-up's end; below 0 actions are uniformly random, later
                noise shrinks with it.
        """
        if episode < 0:
            return float(self._rng.uniform(self._low, 1.0))
        mean, spread = float(self._policy(self._actor, state)), _NOISE * _NOISE_DECAY**episode
        for _ in range(100):  # a normal cut to [low, 1], by rejection
            drawn = float(self._rng.normal(mean, spread))
            if self._low <= drawn <= 1.0:
                return drawn
        return mean

    def remember(self, episode: Sequence[Transition]) -> None:
        """Keeps an episode, and moves the baseline that is subtracted of rewards."""
        self._memory.extend(episode)
        reward = episode[-1].reward
        if self._baseline is None:
            self._baseline = reward
        self._baseline += (1.0 - _BASELINE_DECAY) * (reward - self._baseline)

    def learn(self) -> None:
        """One step of critic and actor on a batch of the memory."""
        size = min(_BATCH, len(self._memory))
        batch = [self._memory[i] for i in self._rng.choice(len(self._memory), size, replace=False)]
        states = torch.stack([step.state for step in batch])
        actions = torch.tensor([[step.action] for step in batch])
        target = self._targets(batch)
        value = self._critic(torch.cat([states, actions], 1)).squeeze(-1)
        _step(self._critic_optimizer, F.mse_loss(value, target))
        chosen = self._policy(self._actor, states).unsqueeze(1)
        _step(self._actor_optimizer, -self._critic(torch.cat([states, chosen], 1)).mean())
        for slow, fast in (
            (self._slow_actor, self._actor),
            (self._slow_critic, self._critic),
        ):
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.data.lerp_(new.data, _TRACKING)

    @torch.no_grad()
    def _targets(self, batch: Sequence[Transition]) -> Tensor:
        """y = r - b + Q'(s', mu'(s')), gamma = 1. Source: He et al. 2018, Sec. 3.3, Eq. (2)."""
        baseline = self._baseline or 0.0
        targets = torch.tensor([step.reward - baseline for step in batch])
        going_on = torch.tensor([step.following is not None for step in batch])
        if bool(going_on.any()):
            states = torch.stack([s.following for s in batch if s.following is not None])
            actions = self._policy(self._slow_actor, states).unsqueeze(1)
            values = self._slow_critic(torch.cat([states, actions], 1)).squeeze(-1)
            targets[going_on] += cast(Tensor, values)
        return targets


def _network(features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features, _HIDDEN),
        nn.ReLU(),
        nn.Linear(_HIDDEN, _HIDDEN),
        nn.ReLU(),
        nn.Linear(_HIDDEN, 1),
    )


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
