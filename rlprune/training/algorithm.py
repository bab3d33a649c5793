"""The trial as an RLlib Algorithm: agents by PPO, the CNN by the trial's program."""

from __future__ import annotations

import functools
import math
import shutil
import tempfile
import time
import traceback
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.rllib.utils.typing import StateDict

from rlprune.agents.modules import module_spec
from rlprune.agents.networks import RUNTIME, STATIC, RuntimeAgent, StaticAgent
from rlprune.agents.rollout import Rollout
from rlprune.config import TrialConfig
from rlprune.data import ImageSet, StoredImages, load_image_set
from rlprune.errors import RolloutError, TrainingDivergedError
from rlprune.training.algorithm_config import PruningAlgorithmConfig
from rlprune.training.checkpoint import read_checkpoint, write_checkpoint
from rlprune.training.cnn_workers import CnnWorkers
from rlprune.training.diagnostics import (
    HISTOGRAM_EVERY,
    UpdateDiagnostics,
    update_diagnostics,
)
from rlprune.training.env_runners import self_contained_env_runners
from rlprune.training.evaluate import Measurement
from rlprune.training.learner import CLIP_FRACTION_KEY, KL_KEY, Chunk
from rlprune.training.program import TrialProgram
from rlprune.training.progress import Interrupted, Reporter
from rlprune.training.setup import TrialSetup, setup_trial
from rlprune.training.streaming import streaming_trainer
from rlprune.training.trainer import PhaseTrainer, TrainerFactory
from rlprune.training.worker import RolloutWorker, SampleRequest

_RECOVERY_SECONDS = 300.0
_LEARNER_KEYS = (COMPONENT_RL_MODULE, "weights_seq_no")


class PruningAlgorithm(Algorithm):
    """One trial; an iteration is one unit of :class:`TrialProgram`.

    For example an epoch of pretraining, or a round of agent training and fine-tuning.

    Attributes:
        program: the trial's course and state.
        measurements: what the last iteration measured.
        interrupted: whether the last iteration was stopped between two steps; training
            again goes on where it stopped.
    """

    config: PruningAlgorithmConfig

    def __init__(self, config: AlgorithmConfig | None = None, *args: Any, **kwargs: Any) -> None:
        """Arguments: as RLlib's; ``images``: an image set loaded already, or a reference to one."""
        self._loaded_images: ImageSet | ray.ObjectRef | None = kwargs.pop("images", None)
        self._cnn_workers: CnnWorkers | None = None
        super().__init__(config, *args, **kwargs)

    @classmethod
    def get_default_config(cls) -> AlgorithmConfig:
        """An empty trial configuration."""
        return PruningAlgorithmConfig()

    def setup(self, config: AlgorithmConfig) -> None:
        """Loads the images, checks the budgets, builds workers, learner and program."""
        trial: TrialConfig = self.config.trial
        if trial.resources.cpus is not None:
            torch.set_num_threads(trial.resources.cpus)
        loaded = self._loaded_images or load_image_set(trial.data, trial.seed)
        self._images_ref = loaded if isinstance(loaded, ray.ObjectRef) else ray.put(loaded)
        self._loaded_images = None
        images: ImageSet = ray.get(self._images_ref)  # a view: one copy per node
        setup = setup_trial(trial, images)
        own = self.config.copy(copy_frozen=False)
        own.num_classes, own.input_shape = images.num_classes, images.input_shape
        own.rl_module(rl_module_spec=module_spec(setup.graph, trial.agents))
        own.freeze()
        self.config = own
        with self_contained_env_runners():
            super().setup(own)
        trainers: TrainerFactory = PhaseTrainer
        if isinstance(images.train, StoredImages):
            trainers = streaming_trainer
        if trial.resources.cnn_workers > 1:
            self._cnn_workers = CnnWorkers(own, self._images_ref)
            trainers = self._cnn_workers.trainer
        self.program = TrialProgram(setup, images, own.trial_device, Reporter(), trainers)
        self.measurements: list[Measurement] = []
        self.interrupted = False
        self._network_version = 0
        self._network_ref: ray.ObjectRef | None = None

    @property
    def trial_setup(self) -> TrialSetup:
        """Costs, budgets and rules of the trial."""
        return self.program.setup

    def training_step(self) -> None:
        """Runs one unit; metrics go to RLlib's logger, measurements to ``measurements``."""
        self.interrupted = False
        self.measurements = []
        if self.program.finished:
            return
        try:
            self.measurements = self.program.advance(self)
        except Interrupted:
            self.interrupted = True
        self._network_ref = None
        self.metrics.log_value("unit", self.program.position, window=1)
        for measured in self.measurements:
            rate = f"R{measured.point.tradeoff_rate:g}"
            accuracy = measured.validation.accuracy
            self.metrics.log_value((measured.method, rate, "validation_accuracy"), accuracy)

    def _setup_logdir(self) -> None:
        """Outside Tune, RLlib would leave a folder in the user's home for every run."""
        if self._storage:
            super()._setup_logdir()
        else:
            self._logdir = tempfile.mkdtemp(prefix="rlprune-")

    def cleanup(self) -> None:
        """Ends workers and learner; removes the temporary folder."""
        if self._cnn_workers is not None:
            self._cnn_workers.stop()
        super().cleanup()
        if not self._storage:
            shutil.rmtree(self._logdir, ignore_errors=True)

    # ------------------------------------------------------------------- agents

    def agents(self) -> tuple[RuntimeAgent, StaticAgent]:
        """The learner's agents themselves (not copies), on the learner's device."""
        module = self.learner_group._learner.module
        return module[RUNTIME].unwrapped().agent, module[STATIC].unwrapped().agent

    def train_agents(self, updates: int) -> None:
        """PPO updates until ``updates`` have been taken in all; see AgentTrainer."""
        program, reporter = self.program, self.program.reporter
        total = program.config.training.planned_updates
        started = time.perf_counter()
        per_round = max(1, program.config.training.updates_per_round)
        if program.counters.rl_updates < updates:
            reporter.phase("agents", program.counters.rl_updates, total)
            if program.counters.rl_updates % per_round == 0:
                program.prepare_rollouts(self)
        try:
            while program.counters.rl_updates < updates:
                update = self._update_agents()
                done, record = program.counters.rl_updates, update.record
                program.history.append(record)
                reporter.scalars(done, {f"agents/{k}": v for k, v in record.items()})
                if (done - 1) % HISTOGRAM_EVERY == 0:
                    reporter.histograms(done, update.histograms())
                reporter.advance("agents", done, total, record)
        finally:
            seconds = program.counters.seconds
            spent = time.perf_counter() - started
            seconds["agents"] = seconds.get("agents", 0.0) + spent

    def _update_agents(self) -> UpdateDiagnostics:
        """One PPO update: rollouts, learner, moving averages."""
        program = self.program
        planned = max(1, program.config.training.planned_updates)
        for agent in self.agents():
            agent.narrow(program.counters.rl_updates / planned)
        chunks = self._collect()
        rollouts = [chunk.rollout for chunk in chunks]
        episodes = sum(len(rollout.loss) for rollout in rollouts)
        results = self.learner_group.update(
            episodes=chunks,
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: program.counters.rollouts},
            num_epochs=self.config.num_epochs,
            minibatch_size=None,
        )
        self.metrics.aggregate(results, key="learners")
        program.counters.rl_updates += 1
        program.counters.rollouts += episodes
        if program.price is not None:
            target = torch.cat([rollout.mean_target for rollout in rollouts])
            macs = torch.cat([rollout.macs for rollout in rollouts])
            program.price.update(target, macs)
        loss = float(torch.cat([rollout.loss for rollout in rollouts]).mean())
        decay = program.config.agents.loss_average_decay
        program.average_loss = decay * program.average_loss + (1 - decay) * loss
        return self._diagnostics(rollouts, results)

    def _diagnostics(self, rollouts: list[Rollout], results: Any) -> UpdateDiagnostics:
        """What the update tells, under its number and round."""
        program = self.program
        group, done = program.config.agents.samples_per_image, program.counters.rl_updates
        per_round = max(1, program.config.training.updates_per_round)
        found = update_diagnostics(rollouts, group, program.price, self._learned(results))
        number = {"update": float(done), "phase_round": float((done - 1) // per_round)}
        return replace(found, record={**number, **found.record})

    def _learned(self, results: Any) -> dict[str, float]:
        """The learner's numbers as ``role_key``.

        Raises:
            TrainingDivergedError: a loss is not finite.
        """
        learned: dict[str, float] = {}
        for role in (RUNTIME, STATIC):
            stats = results[0][role]
            for key in ("vf_explained_var", "entropy", "total_loss", CLIP_FRACTION_KEY, KL_KEY):
                value = stats[key]
                learned[f"{role}_{key}"] = float(value.peek() if hasattr(value, "peek") else value)
            if not math.isfinite(learned[f"{role}_total_loss"]):
                raise TrainingDivergedError(
                    f"The {role} agent's loss became {learned[f'{role}_total_loss']} at update "
                    f"{self.program.counters.rl_updates}. Lower agents.learning_rate and resume "
                    "from the last checkpoint."
                )
        return learned

    def _collect(self) -> list[Chunk]:
        """Chunks of all workers; a worker that died is waited for and asked again."""
        request = self._request()
        group = self.env_runner_group
        if self.config.num_env_runners == 0:
            local: list[Chunk] = group.local_env_runner.sample(request=request)
            return local
        wanted = set(range(1, self.config.num_env_runners + 1))
        chunks: dict[int, Chunk] = {}
        deadline = time.monotonic() + _RECOVERY_SECONDS
        while wanted - set(chunks):
            answers = group.foreach_env_runner(
                functools.partial(_sample_or_say_why, request=request),
                local_env_runner=False,
                remote_worker_ids=sorted(wanted - set(chunks)),
            )
            failures = [answer for answer in answers if isinstance(answer, str)]
            if failures:
                raise RolloutError(f"A rollout worker failed:\n{failures[0]}")
            chunks.update({chunk.worker_index: chunk for answer in answers for chunk in answer})
            if wanted - set(chunks):
                if time.monotonic() > deadline:
                    raise RolloutError(
                        f"Rollout workers {sorted(wanted - set(chunks))} did not come back "
                        f"within {_RECOVERY_SECONDS:g} s; see Ray's logs of these actors."
                    )
                time.sleep(0.5)
                self.restore_env_runners(group)
        return [chunks[index] for index in sorted(chunks)]

    def _request(self) -> SampleRequest:
        program = self.program
        if self._network_ref is None:
            state = program.network.state_dict()
            self._network_ref = ray.put({k: v.cpu().numpy() for k, v in state.items()})
            self._network_version += 1
        modules = self.learner_group.get_state(
            components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True
        )[COMPONENT_LEARNER][COMPONENT_RL_MODULE]
        runners = max(1, self.config.num_env_runners)
        return SampleRequest(
            update=program.counters.rl_updates,
            episodes=program.config.rollouts.rollouts_per_update // runners,
            images=self._images_ref,
            modules=ray.put(modules),
            modules_version=program.counters.rl_updates,
            network=self._network_ref,
            network_version=self._network_version,
            average_loss=program.average_loss,
            price=program.price,
        )

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """Brings dead workers back; requests carry all state, so nothing else is synced."""
        restored: list[int] = env_runner_group.probe_unhealthy_env_runners() or []
        return restored

    # -------------------------------------------------------------- checkpoints

    def get_state(self, *args: Any, **kwargs: Any) -> StateDict:
        """Everything that training depends on, as tensors and plain Python values."""
        learner = self.learner_group.get_state()[COMPONENT_LEARNER]
        return {
            "learner": {key: _plain(learner[key]) for key in _LEARNER_KEYS},
            # Not RLlib's copy: it rounds learning rate and betas to single precision, and
            # training would not go on as if it had never stopped.
            "optimizers": {
                name: optimizer.state_dict() for name, optimizer in self._optimizers().items()
            },
            "program": self.program.state_dict(),
            "training_iteration": self.training_iteration,
        }

    def set_state(self, state: StateDict) -> None:
        """Restores :meth:`get_state`."""
        current = self.learner_group.get_state()[COMPONENT_LEARNER]
        restored = {**current, **_numpy_weights(state["learner"])}
        self.learner_group.set_state({COMPONENT_LEARNER: restored})
        for name, optimizer in self._optimizers().items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.program.load_state_dict(state["program"])
        self._iteration = state["training_iteration"]
        self._network_ref = None

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The learner's optimizers by RLlib's names."""
        optimizers: dict[str, torch.optim.Optimizer] = self.learner_group._learner._named_optimizers
        return optimizers

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes ``state.pt`` and ``config.json`` into a folder.

        Deviation from RLlib: its own format pickles classes; ours holds tensors and plain
        values only and is read with ``weights_only=True``, so loading runs no code.
        """
        write_checkpoint(checkpoint_dir, self.config.trial, self.get_state())

    def load_checkpoint(self, checkpoint_dir: str, may_differ: Collection[str] = ()) -> None:
        """Restores a folder written by :meth:`save_checkpoint`.

        Args:
            checkpoint_dir: the folder.
            may_differ: fields that may have changed, see :func:`read_checkpoint`.

        Raises:
            CheckpointError: missing, damaged, or of another configuration.
        """
        self.set_state(read_checkpoint(checkpoint_dir, self.config.trial, may_differ))


def _sample_or_say_why(worker: RolloutWorker, request: SampleRequest) -> list[Chunk] | str:
    """A worker's chunk, or the traceback: RLlib would swallow an exception and go on."""
    try:
        return worker.sample(request=request)
    except Exception:
        return traceback.format_exc()


def _plain(value: Any) -> Any:
    """NumPy arrays and scalars become tensors and Python numbers, recursively."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    return value


def _numpy_weights(learner: dict[str, Any]) -> dict[str, Any]:
    """RLlib keeps module weights as NumPy arrays; optimizers keep tensors."""

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: convert(item) for key, item in value.items()}
        return value.numpy() if isinstance(value, torch.Tensor) else value

    return {**learner, COMPONENT_RL_MODULE: convert(learner[COMPONENT_RL_MODULE])}
