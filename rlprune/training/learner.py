"""RLlib's PPO learner with the paper's penalty, and the connector that feeds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor

from rlprune.agents.networks import RUNTIME, STATIC, gaussian_log_probability
from rlprune.agents.rollout import Rollout
from rlprune.mdp import generalized_advantages

MEAN_PENALTY_KEY = "mean_range_penalty"
CLIP_FRACTION_KEY = "clip_fraction"
KL_KEY = "sampled_kl"


@dataclass(frozen=True)
class Chunk:
    """What one rollout worker returns: B finished episodes, stacked.

    Attributes:
        worker_index: who played them (chunks are put in this order, for reproducibility).
        rollout: the episodes.
    """

    worker_index: int
    rollout: Rollout

    def __len__(self) -> int:
        """Environment steps: decisions per episode times episodes."""
        return int(self.rollout.runtime.actions.numel())

    def env_steps(self) -> int:
        """The same, under the name that RLlib's episodes have."""
        return len(self)


class StackedChunks(ConnectorV2):
    """Learner connector: chunks in, one batch [B, T, ...] per module with GAE columns out.

    Args:
        gamma, gae_lambda: see :func:`rlprune.mdp.generalized_advantages`.
    """

    def __init__(self, *args: Any, gamma: float, gae_lambda: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gamma = gamma
        self.gae_lambda = gae_lambda

    def __call__(
        self,
        *,
        rl_module: RLModule,
        batch: dict[str, Any],
        episodes: list[Chunk],
        explore: bool | None = None,
        shared_data: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Builds the batch; modules always come in the same order."""
        chunks = sorted(episodes, key=lambda chunk: chunk.worker_index)
        for role in (RUNTIME, STATIC):
            module = rl_module[role].unwrapped()
            device = next(module.parameters()).device
            batch[role] = self._columns(role, [chunk.rollout for chunk in chunks], module, device)
            if shared_data is not None:
                shared_data[f"_zero_padded_for_mid={role}"] = True
        return batch

    def _columns(
        self, role: str, rollouts: list[Rollout], module: Any, device: torch.device
    ) -> dict[str, Tensor]:
        def merged(name: str) -> Tensor:
            parts = [getattr(getattr(rollout, role), name) for rollout in rollouts]
            return torch.cat(parts).float().to(device)

        observations, actions = merged("observations"), merged("actions")
        final = torch.cat([getattr(rollout, f"{role}_signal") for rollout in rollouts])
        rewards = torch.zeros_like(actions)
        rewards[:, -1] = final.float().to(device)
        with torch.no_grad():
            values = module.compute_values({Columns.OBS: observations})
        advantages, targets = generalized_advantages(rewards, values, self.gamma, self.gae_lambda)
        rate = torch.cat([rollout.rate for rollout in rollouts]).to(device)
        normalised = normalised_advantages(advantages, rate > 0 if role == RUNTIME else rate < 1)
        length = torch.full((len(actions),), actions.shape[1], device=device)
        return {
            Columns.OBS: observations,
            Columns.ACTIONS: actions.unsqueeze(-1),
            Columns.ACTION_LOGP: merged("log_probabilities"),
            Columns.ACTION_DIST_INPUTS: merged("distribution"),
            Postprocessing.ADVANTAGES: normalised,
            Postprocessing.VALUE_TARGETS: targets,
            Columns.SEQ_LENS: length,
        }


def normalised_advantages(advantages: Tensor, matters: Tensor) -> Tensor:
    """Zero mean and unit deviation over the episodes in which the agent's decisions matter.

    Args:
        advantages: [B, T].
        matters: bool [B]; the runtime agent decides nothing at R_r = 0, the static agent
            nothing at R_r = 1. Such episodes get advantage zero: they would be noise.
    """
    if not bool(matters.any()):
        return torch.zeros_like(advantages)
    chosen = advantages[matters]
    scaled = (advantages - chosen.mean()) / chosen.std(unbiased=chosen.numel() > 1).clamp(min=1e-4)
    return scaled * matters.unsqueeze(1)


def mean_range_penalty(mean: Tensor, alpha: float) -> Tensor:
    """Mean squared distance of the policy's means from [alpha, 1]; a scalar.

    Source: the authors' script (weights 100 and 0.001 for runtime and static agent).
    """
    below, above = torch.relu(alpha - mean), torch.relu(mean - 1.0)
    return (below.square() + above.square()).mean()


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class PenalisedPPOLearner(PPOTorchLearner):
    """PPO plus ``weight * mean_range_penalty`` per module, and the usual diagnostics."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """RLlib's update on one torch thread.

        Its operations are too small to be shared, and threads that wait for each other at
        every one of them make it 10 to 30 times slower where another process uses a core.
        """
        with _one_torch_thread():
            return super().update(*args, **kwargs)

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Tensor]
    ) -> Tensor:
        """RLlib's PPO loss plus the penalty; [] tensor."""
        loss: Tensor = super().compute_loss_for_module(
            module_id=module_id, config=config, batch=batch, fwd_out=fwd_out
        )
        settings = config.learner_config_dict
        mean, log_std = fwd_out[Columns.ACTION_DIST_INPUTS].unbind(-1)
        penalty = mean_range_penalty(mean, settings["alpha"])
        with torch.no_grad():
            actions = batch[Columns.ACTIONS].squeeze(-1)
            change = gaussian_log_probability(actions, mean, log_std) - batch[Columns.ACTION_LOGP]
            clipped = ((change.exp() - 1.0).abs() > config.clip_param).float().mean()
            kl = (change.exp() - 1.0 - change).mean()
        self.metrics.log_dict(
            {MEAN_PENALTY_KEY: penalty, CLIP_FRACTION_KEY: clipped, KL_KEY: kl},
            key=module_id,
            window=1,
        )
        total: Tensor = loss + settings["mean_penalty"][module_id] * penalty
        return total
