"""The two agents as plain torch networks (RLlib's wrappers are in ``modules``).

Legend: B episodes, T layers, D observation width, h hidden width.
Source: paper Sec. 3.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlprune.backbones.graph import ChannelGraph
from rlprune.config import AgentConfig
from rlprune.mdp.observation import CONTEXT_WIDTH, STATIC_FEATURES, runtime_width
from rlprune.mdp.policy import KeepRatioPolicy
from rlprune.pruning import AgentSize

RUNTIME = "runtime"
STATIC = "static"


@dataclass(frozen=True)
class AgentOutput:
    """What an agent says about one layer ([B]) or all of them ([B, T]).

    Attributes:
        mean, log_std: of the Gaussian over the unclipped keep ratio.
        value: expected return.
    """

    mean: Tensor
    log_std: Tensor
    value: Tensor


class _RecurrentAgent(nn.Module):
    """Heads shared by both agents: mean (anchored at the observation's base), log-std, value."""

    memory: nn.RNN | nn.LSTM
    least_log_std: Tensor

    def __init__(self, hidden: int, config: AgentConfig) -> None:
        super().__init__()
        self._spread = (max(config.initial_log_std, config.min_log_std), config.min_log_std)
        # A buffer: rollout workers and checkpoints get it with the weights.
        self.register_buffer("least_log_std", torch.tensor(self._spread[0]))
        self.mean_head = nn.Linear(hidden, 1)
        self.log_std_head = nn.Linear(hidden, 1)
        self.value_head = nn.Linear(hidden, 1)
        with torch.no_grad():
            for head in (self.mean_head, self.log_std_head, self.value_head):
                head.weight.zero_()
                head.bias.zero_()
            self.log_std_head.bias.fill_(config.initial_log_std)

    def encode(self, observations: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, h]."""
        raise NotImplementedError

    def encode_layer(self, layer: int, observation: Tensor) -> Tensor:
        """[B, D] of layer t -> [B, h]."""
        raise NotImplementedError

    def heads(self, hidden: Tensor, base: Tensor) -> AgentOutput:
        """[..., h] and the anchor [...] -> outputs [...]."""
        log_std = self.log_std_head(hidden).squeeze(-1).clamp(max=0.0)
        log_std = torch.maximum(log_std, self.least_log_std)
        return AgentOutput(
            mean=self.mean_head(hidden).squeeze(-1) + base,
            log_std=log_std,
            value=self.value_head(hidden).squeeze(-1),
        )

    def narrow(self, progress: float) -> None:
        """Lowers the least log-std linearly, from its initial value to the configured one.

        Without it PPO narrows a policy within tens of updates, long before the policy has
        found out which images need more: measured in analysis/learning.md.

        Args:
            progress: share of the planned updates that have been taken, 0 to 1.
        """
        wide, narrow = self._spread
        self.least_log_std.fill_(wide + min(1.0, progress) * (narrow - wide))

    def unroll(self, observations: Tensor) -> tuple[AgentOutput, Tensor]:
        """All layers at once: [B, T, D] -> outputs [B, T] and hidden states [B, T, h]."""
        hidden, _ = self.memory(self.encode(observations))
        return self.heads(hidden, observations[..., 0]), hidden

    def step(self, layer: int, observation: Tensor, state: Any) -> tuple[AgentOutput, Any]:
        """One layer: [B, D] and the memory (None at the start) -> outputs [B], memory."""
        encoded = self.encode_layer(layer, observation).unsqueeze(1)
        hidden, state = self.memory(encoded, state)
        return self.heads(hidden.squeeze(1), observation[:, 0]), state


class RuntimeAgent(_RecurrentAgent):
    """Decides per image and layer; a per-layer encoder and a one-layer RNN.

    Its mean head starts at zero: before any training it keeps the same ratio everywhere,
    the one that the budget allows.

    Args:
        graph: the backbone's channels.
        config: hidden width and initial spread.
    """

    def __init__(self, graph: ChannelGraph, config: AgentConfig) -> None:
        hidden, layers, width = config.hidden, len(graph.layers), runtime_width(graph)
        super().__init__(hidden, config)
        self.encoder_weight = nn.Parameter(torch.zeros(layers, width, hidden))
        self.encoder_bias = nn.Parameter(torch.zeros(layers, hidden))
        with torch.no_grad():
            for layer in graph.layers:
                used = CONTEXT_WIDTH + layer.in_channels + layer.out_channels
                bound = math.sqrt(3.0 / used)
                self.encoder_weight[layer.index, :used].uniform_(-bound, bound)
        self.memory = nn.RNN(hidden, hidden, batch_first=True)

    def encode(self, observations: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, h], one linear layer with ReLU per layer t."""
        encoded = torch.bmm(observations.transpose(0, 1), self.encoder_weight)
        return F.relu(encoded + self.encoder_bias.unsqueeze(1)).transpose(0, 1)

    def encode_layer(self, layer: int, observation: Tensor) -> Tensor:
        """[B, D] -> [B, h] by layer t's encoder."""
        return F.relu(observation @ self.encoder_weight[layer] + self.encoder_bias[layer])


class StaticAgent(_RecurrentAgent):
    """Decides per layer, the same for all images; a shared encoder and a one-layer LSTM."""

    def __init__(self, config: AgentConfig) -> None:
        super().__init__(config.hidden, config)
        self.encoder = nn.Linear(CONTEXT_WIDTH + STATIC_FEATURES, config.hidden)
        self.memory = nn.LSTM(config.hidden, config.hidden, batch_first=True)

    def encode(self, observations: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, h]."""
        return F.relu(self.encoder(observations))

    def encode_layer(self, layer: int, observation: Tensor) -> Tensor:
        """[B, D] -> [B, h]; the encoder is the same for every layer."""
        return F.relu(self.encoder(observation))


def runtime_agent_size(hidden: int) -> AgentSize:
    """What the runtime agent adds to a shipped model; log-std and value heads stay behind."""
    recurrence = 2 * hidden * hidden
    return AgentSize(
        encoder_width=hidden,
        parameters=recurrence + 2 * hidden + hidden + 1,
        parameters_per_layer=(CONTEXT_WIDTH + 1) * hidden,
        macs_per_layer=CONTEXT_WIDTH * hidden + recurrence + hidden,
    )


@dataclass(frozen=True)
class Trajectory:
    """Decisions of one agent in B episodes, as PPO needs them.

    Attributes:
        observations: [B, T, D].
        actions: unclipped ratios [B, T].
        log_probabilities: of the actions [B, T].
        distribution: mean and log-std [B, T, 2].
    """

    observations: Tensor
    actions: Tensor
    log_probabilities: Tensor
    distribution: Tensor


def gaussian_log_probability(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(action; mean, exp(log_std)^2), element by element."""
    squared = ((action - mean) / log_std.exp()).square()
    return -0.5 * squared - log_std - 0.5 * math.log(2 * math.pi)


class AgentPolicy(KeepRatioPolicy):
    """Lets an agent choose the ratios; samples and records them if a generator is given.

    Args:
        agent: runtime or static agent.
        generator: source of exploration noise; None plays the mean.
    """

    def __init__(
        self, agent: RuntimeAgent | StaticAgent, generator: torch.Generator | None = None
    ) -> None:
        self.agent = agent
        self.generator = generator
        self.records = generator is not None
        self._steps: list[tuple[Tensor, Tensor, AgentOutput]] = []
        self._state: Any = None

    def start(self, episodes: int) -> None:
        """Forgets the previous episodes."""
        self._state = None
        self._steps = []

    @torch.no_grad()
    def ratio(self, layer: int, observation: Tensor) -> Tensor:
        """Mean or sampled ratio [B]."""
        observation = observation.to(self.agent.mean_head.weight.device)
        output, self._state = self.agent.step(layer, observation, self._state)
        if self.generator is None:
            return output.mean
        noise = torch.randn(len(output.mean), generator=self.generator).to(output.mean.device)
        action = output.mean + output.log_std.exp() * noise
        self._steps.append((observation, action, output))
        return action

    def trajectory(self) -> Trajectory:
        """What was observed and sampled since :meth:`start`."""
        observations, actions, outputs = zip(*self._steps, strict=True)
        action = torch.stack(actions, 1)
        mean = torch.stack([output.mean for output in outputs], 1)
        log_std = torch.stack([output.log_std for output in outputs], 1)
        return Trajectory(
            observations=torch.stack(observations, 1),
            actions=action,
            log_probabilities=gaussian_log_probability(action, mean, log_std),
            distribution=torch.stack([mean, log_std], 2),
        )
