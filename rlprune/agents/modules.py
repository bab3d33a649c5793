"""RLlib's view of the two agents: RLModules around the plain torch networks."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor

from rlprune.agents.networks import RUNTIME, STATIC, RuntimeAgent, StaticAgent
from rlprune.backbones.graph import ChannelGraph
from rlprune.config import AgentConfig
from rlprune.mdp.observation import CONTEXT_WIDTH, STATIC_FEATURES, runtime_width

_ACTION_SPACE = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)


class AgentModule(TorchRLModule, ValueFunctionAPI):
    """One agent as an RLModule over whole episodes: observations [B, T, D].

    ``model_config`` holds ``role`` ("runtime" or "static"), ``graph`` and ``agents``.
    Rollout workers step the plain network (``self.agent``) layer by layer; the learner
    unrolls it, so no connector needs to carry recurrent states.
    """

    def setup(self) -> None:
        """Builds the network."""
        config: AgentConfig = self.model_config["agents"]
        if self.model_config["role"] == RUNTIME:
            self.agent: RuntimeAgent | StaticAgent = RuntimeAgent(
                self.model_config["graph"], config
            )
        else:
            self.agent = StaticAgent(config)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        output, hidden = self.agent.unroll(batch[Columns.OBS])
        return {
            Columns.ACTION_DIST_INPUTS: torch.stack([output.mean, output.log_std], dim=-1),
            Columns.EMBEDDINGS: hidden,
        }

    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """Expected returns [B, T]."""
        if embeddings is None:
            embeddings = self.agent.unroll(batch[Columns.OBS])[1]
        values: Tensor = self.agent.value_head(embeddings).squeeze(-1)
        return values


def observation_space(graph: ChannelGraph, role: str) -> gym.spaces.Box:
    """Space of one layer's observation for an agent."""
    width = runtime_width(graph) if role == RUNTIME else CONTEXT_WIDTH + STATIC_FEATURES
    return gym.spaces.Box(-np.inf, np.inf, (width,), np.float32)


def spaces(graph: ChannelGraph) -> dict[str, tuple[gym.Space[Any], gym.Space[Any]]]:
    """Observation and action space of both agents, as EnvRunner.get_spaces wants them."""
    return {role: (observation_space(graph, role), _ACTION_SPACE) for role in (RUNTIME, STATIC)}


def module_spec(graph: ChannelGraph, config: AgentConfig) -> MultiRLModuleSpec:
    """Both agents as one MultiRLModule."""
    return MultiRLModuleSpec(
        rl_module_specs={
            role: RLModuleSpec(
                module_class=AgentModule,
                observation_space=observation_space(graph, role),
                action_space=_ACTION_SPACE,
                model_config={"role": role, "graph": graph, "agents": config},
            )
            for role in (RUNTIME, STATIC)
        }
    )
