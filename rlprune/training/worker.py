"""Rollout workers: RLlib EnvRunners that walk the CNN and return stacked chunks."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED, NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.rllib.utils.typing import StateDict

from rlprune.agents.modules import module_spec, spaces
from rlprune.agents.networks import RUNTIME, STATIC, AgentPolicy
from rlprune.agents.rollout import RewardScales, roll_out
from rlprune.config import TrialConfig
from rlprune.data import ImageSet, augment, normalize
from rlprune.mdp.reward import PriceCurve
from rlprune.pruning import GateDesign
from rlprune.training.learner import Chunk
from rlprune.training.setup import TrialSetup, build_network, without_weights


@dataclass(frozen=True)
class SampleRequest:
    """Everything a worker needs for one chunk: a fresh worker is as good as an old one.

    Attributes:
        update: number of the PPO update (enters the random seed).
        episodes: how many this worker plays.
        images: object reference to the image set, read from the node's object store.
        modules: object reference to the agents' state; ``modules_version`` tells whether
            a worker has it already.
        network: object reference to the CNN's state; likewise ``network_version``.
        average_loss: moving average of the loss, for the reward.
        price: price of compute, None without a mean budget.
    """

    update: int
    episodes: int
    images: ray.ObjectRef
    modules: ray.ObjectRef
    modules_version: int
    network: ray.ObjectRef
    network_version: int
    average_loss: float
    price: PriceCurve | None


class RolloutWorker(EnvRunner):
    """One rollout worker (worker_index >= 1: a Ray actor; 0: in the trial's process).

    Stateless between chunks but for caches: a chunk follows from the request alone, the
    random numbers from (seed, update, worker_index). That is why a killed and replaced
    worker changes nothing in the results.
    """

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        if kwargs.get("worker_index"):  # a process of its own: only its errors are news
            logging.getLogger("ray").setLevel(logging.ERROR)
        super().__init__(config=config, **kwargs)
        self.worker_index: int = self.worker_index or 0
        self.trial: TrialConfig = self.config.trial
        if self.worker_index > 0:
            torch.set_num_threads(self.trial.rollouts.threads_per_runner)
        self.images: ImageSet | None = None
        self.device = self.config.trial_device if self.worker_index == 0 else "cpu"
        backbone = without_weights(self.trial.backbone)
        self.network = build_network(
            backbone,
            self.config.num_classes,
            self.config.input_shape,
            self.trial.seed,
            GateDesign.of(self.trial.pruning),
        ).to(self.device)
        self.network.eval()
        self.network.set_predictors(True, self.trial.pruning.boosted)
        self.setup = TrialSetup.of(self.trial, self.network.channels)
        self.module = module_spec(self.setup.graph, self.trial.agents).build()
        self._modules_version = -1
        self._network_version = -1

    def sample(self, *, request: SampleRequest | None = None, **kwargs: Any) -> list[Chunk]:
        """Plays the requested episodes.

        Returns:
            One chunk (in a list, as RLlib's learner groups take lists of episodes).
        """
        if request is None:
            raise ValueError("RolloutWorker.sample needs request=SampleRequest(...).")
        images = self._refresh(request)
        seeds = np.random.SeedSequence(
            [self.trial.seed, 1000, request.update, self.worker_index]
        ).spawn(3)
        rng = np.random.default_rng(seeds[0])
        group = self.trial.agents.samples_per_image
        arrays = images.train.take(images.train.drawn(rng, request.episodes // group))
        pixels = augment(arrays.images, images.augmentation, rng)
        inputs = normalize(pixels, images.mean, images.std, self.device)
        labels = torch.from_numpy(arrays.labels).to(self.device)
        budgets = self.setup.sample_episodes(self.setup.book, len(arrays), rng)
        repeat = torch.arange(len(arrays)).repeat_interleave(group)
        policies = [
            AgentPolicy(
                self.module[role].agent,
                torch.Generator().manual_seed(int(seed.generate_state(1)[0])),
            )
            for role, seed in zip((RUNTIME, STATIC), seeds[1:], strict=True)
        ]
        rollout = roll_out(
            self.network,
            self.setup.rules,
            policies[0],
            policies[1],
            inputs.repeat_interleave(group, 0),
            labels.repeat_interleave(group),
            budgets.select(repeat),
            self._scales(request, group),
        )
        chunk = Chunk(self.worker_index, rollout)
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED, len(chunk), reduce="sum")
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED_LIFETIME, len(chunk), reduce="lifetime_sum")
        return [chunk]

    def _scales(self, request: SampleRequest, group: int) -> RewardScales:
        return RewardScales(
            average_loss=request.average_loss,
            dense_macs=self.setup.book.dense_macs,
            dense_bytes=self.setup.book.dense_bytes,
            price=request.price,
            group=group,
        )

    def _refresh(self, request: SampleRequest) -> ImageSet:
        """Takes over what the request refers to, where it is new; returns the images."""
        if self.images is None:
            self.images = ray.get(request.images)
        if request.modules_version != self._modules_version:
            self.module.set_state(ray.get(request.modules))
            self._modules_version = request.modules_version
        if request.network_version != self._network_version:
            state = ray.get(request.network)
            self.network.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
            self._network_version = request.network_version
        return self.images

    # ------------------------------------------------ what RLlib expects of an EnvRunner

    def assert_healthy(self) -> None:
        """Raises if the worker was not built completely."""
        if self.network is None or self.module is None:
            raise RuntimeError(f"rollout worker {self.worker_index} is not complete")

    def get_spaces(self) -> dict[str, tuple[gym.Space[Any], gym.Space[Any]]]:
        """Observation and action space of both agents."""
        return spaces(self.setup.graph)

    def get_metrics(self) -> Any:
        """Reduced metrics since the last call."""
        return self.metrics.reduce()

    def get_state(self, *args: Any, **kwargs: Any) -> StateDict:
        """The agents' weights; everything else comes with each request."""
        return {COMPONENT_RL_MODULE: self.module.get_state()}

    def set_state(self, state: StateDict) -> None:
        """Takes over weights where there are any."""
        if COMPONENT_RL_MODULE in state:
            modules = state[COMPONENT_RL_MODULE]
            if isinstance(modules, ray.ObjectRef):
                modules = ray.get(modules)
            self.module.set_state(modules)
            self._modules_version = -1

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """How to build another one."""
        return (), {"config": self.config, "worker_index": self.worker_index}

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """The agents."""
        return [(COMPONENT_RL_MODULE, self.module)]
