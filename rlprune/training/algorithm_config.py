"""A trial's configuration as RLlib's."""

from __future__ import annotations

import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo.ppo import PPOConfig

from rlprune.agents.networks import RUNTIME, STATIC
from rlprune.config import TrialConfig
from rlprune.training.learner import PenalisedPPOLearner, StackedChunks
from rlprune.training.worker import RolloutWorker


class PruningAlgorithmConfig(PPOConfig):
    """RLlib configuration of a trial: ``PruningAlgorithmConfig.of(trial).build_algo()``."""

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        if algo_class is None:
            from rlprune.training.algorithm import PruningAlgorithm  # imports this module

            algo_class = PruningAlgorithm
        super().__init__(algo_class=algo_class)
        self.trial: TrialConfig = TrialConfig()
        self.trial_device = "cpu"
        self.cpus_per_cnn_worker = 1.0
        self.num_classes = 0
        self.input_shape = (0, 0, 0)

    @classmethod
    def of(
        cls, trial: TrialConfig, cpus_per_cnn_worker: float | None = None
    ) -> PruningAlgorithmConfig:
        """Translates a trial's configuration into RLlib's.

        Args:
            trial: the trial.
            cpus_per_cnn_worker: that each of ``resources.cnn_workers`` reserves; None: the
                trial's torch threads, 1 where they are not given.
        """
        agents, rollouts, training = trial.agents, trial.rollouts, trial.training
        planned = max(1, training.planned_updates)
        episodes = planned * rollouts.rollouts_per_update
        config = cls()
        config.trial = trial
        config.cpus_per_cnn_worker = cpus_per_cnn_worker or float(trial.resources.cpus or 1)
        config.trial_device = resolve_device(trial.resources.device)
        config.framework("torch").debugging(seed=trial.seed, log_level="ERROR")
        config.env_runners(
            env_runner_cls=RolloutWorker,
            num_env_runners=rollouts.num_env_runners,
            merge_env_runner_states=False,
            broadcast_env_runner_states=False,
        )
        config.fault_tolerance(
            restart_failed_env_runners=True,
            delay_between_env_runner_restarts_s=1.0,
            num_consecutive_env_runner_failures_tolerance=100,
        )
        config.training(
            lr=[
                [0, agents.learning_rate],
                [episodes, 0.1 * agents.learning_rate],
            ],
            gamma=agents.gamma,
            lambda_=agents.gae_lambda,
            clip_param=agents.clip,
            vf_loss_coeff=agents.value_coefficient,
            vf_clip_param=float("inf"),
            entropy_coeff=agents.entropy_coefficient,
            grad_clip=agents.gradient_clip,
            grad_clip_by="global_norm",
            use_kl_loss=False,  # its coefficient would not be checkpointed
            num_epochs=agents.epochs,
            minibatch_size=None,
            train_batch_size_per_learner=rollouts.rollouts_per_update,
            learner_class=PenalisedPPOLearner,
            learner_config_dict={
                "alpha": trial.pruning.alpha,
                "mean_penalty": {
                    RUNTIME: agents.runtime_mean_penalty,
                    STATIC: agents.static_mean_penalty,
                },
            },
        )
        config.learners(
            num_learners=0,
            num_gpus_per_learner=1 if config.trial_device == "cuda" else 0,
            add_default_connectors_to_learner_pipeline=False,
            learner_connector=lambda obs_space, action_space: StackedChunks(
                obs_space, action_space, gamma=agents.gamma, gae_lambda=agents.gae_lambda
            ),
        )
        config.multi_agent(
            # A list: a set's order, and with it the agents' first weights, would differ
            # from process to process.
            policies=[RUNTIME, STATIC],
            policy_mapping_fn=lambda agent_id, *_, **__: agent_id,
        )
        return config


def resolve_device(device: str) -> str:
    """Resolves "auto": "cuda" where torch sees a GPU, else "cpu"."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
