"""The CNN trained by several processes: RLlib's learners, each with its share of every batch.

RLlib starts the processes (inside the trial's placement group, each with its CPUs or its GPU)
and tells when one dies; what a learner does with a batch is :class:`PhaseTrainer`'s work, the
same as in one process. The trial's own process is none of them: it says when to take a step,
so that progress, interruptions and checkpoints are as ever.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
import torch
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.util import get_current_placement_group, get_node_ip_address
from torch import Tensor

from rlprune.config import TrialConfig
from rlprune.data import ImageSet
from rlprune.errors import ReplicaError, RlpruneError
from rlprune.pruning import GateDesign, GatedNetwork
from rlprune.pruning.synchronised import synchronise
from rlprune.replicas import Replicas
from rlprune.training.cnn import CnnSchedule, Step, StepReport, run_steps
from rlprune.training.gates import GateRecipe, gates_of
from rlprune.training.group import Group, Place
from rlprune.training.progress import Interrupted
from rlprune.training.setup import TrialSetup, build_network, without_weights
from rlprune.training.streaming import feed_of
from rlprune.training.trainer import CnnJob, PhaseTrainer

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class CnnRun:
    """Some steps of a phase: all that a learner needs for them, so that a new one can go on.

    Attributes:
        job, recipe: the phase and its gates.
        network: weights and statistics at the start.
        trainer: optimizer and position there.
    """

    job: CnnJob
    recipe: GateRecipe
    network: dict[str, Tensor]
    trainer: dict[str, Any]


@dataclass(frozen=True)
class _Failure:
    """Why a learner could not do what it was asked; its own words, whatever can be pickled."""

    error: RlpruneError | None
    trace: str


class CnnLearner(TorchLearner):
    """One of the processes that train the CNN. It has none of RLlib's modules and losses."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        logging.getLogger("ray").setLevel(logging.ERROR)  # only errors are news
        super().__init__(*args, **kwargs)
        self.group = Group()

    def build(self) -> None:
        """Builds the network; the trial's set-up follows from it."""
        trial: TrialConfig = self.config.trial
        torch.set_num_threads(threads_per_worker(trial))
        self.kind = "cuda" if self.config.num_gpus_per_learner > 0 else "cpu"
        backbone = without_weights(trial.backbone)
        classes, shape = self.config.num_classes, self.config.input_shape
        design = GateDesign.of(trial.pruning)
        network = build_network(backbone, classes, shape, trial.seed, design)
        self.network = network.to(self.kind)
        self.trial_setup = TrialSetup.of(trial, self.network.channels)
        self.images: ImageSet | None = None

    def compute_loss_for_module(self, **_: Any) -> Tensor:
        """Of RLlib's modules, of which there are none.

        Raises:
            TypeError: always.
        """
        raise TypeError("CnnLearner has no RLModule; CnnTrainer computes the network's loss.")

    def shutdown(self) -> None:
        """Leaves the others."""
        self.group.leave()

    def join(self, place: Place, rank: int, size: int) -> None:
        """Forms the learners' group anew: RLlib's meets where anybody can listen and speak."""
        self.replicas: Replicas = self.group.join(place, rank, size, self.kind)
        synchronise(self.network, self.replicas)

    def begin(self, images: ray.ObjectRef, run: ray.ObjectRef) -> None:
        """Gets ready for the steps of a run; both are references into the object store."""
        if self.images is None:
            self.images = ray.get(images)
        given: CnnRun = ray.get(run)
        self.network.load_state_dict(given.network)
        recipe = given.recipe
        for agent in recipe.agents or ():
            agent.to(self.kind)
        self.trainer = PhaseTrainer(
            self.trial_setup,
            self.images,
            self.network,
            given.job,
            self.replicas,
            feed_of(self.images),
        )
        self.trainer.load_state_dict(given.trainer)
        self.take_step = self.trainer.steps(recipe)

    def end(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The first learner's network and trainer after a run; all others' are the same."""
        self.trainer.close()
        if self.replicas.rank > 0:
            return None
        state = self.network.state_dict()
        network = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        return network, _on_cpu(self.trainer.state_dict())


def _on_cpu(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_on_cpu(item) for item in value]
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def threads_per_worker(trial: TrialConfig) -> int:
    """Torch threads of each process; without ``resources.cpus`` they share the machine's."""
    if trial.resources.cpus is not None:
        return trial.resources.cpus
    return max(1, (os.cpu_count() or 1) // trial.resources.cnn_workers)


class CnnWorkers:
    """The processes that train a trial's network; started when they are first needed.

    Args:
        config: RLlib's of the trial, with its number of classes and input shape.
        images: reference to the image set.
    """

    def __init__(self, config: Any, images: ray.ObjectRef) -> None:
        trial: TrialConfig = config.trial
        gpus = 1 if config.trial_device == "cuda" else 0
        self._size = trial.resources.cnn_workers
        self._config = config.copy(copy_frozen=False)
        self._config.learners(
            num_learners=self._size,
            num_cpus_per_learner=config.cpus_per_cnn_worker,
            num_gpus_per_learner=gpus,  # a whole one: NCCL wants one for each process
        )
        self._config.training(learner_class=CnnLearner)
        self._config.freeze()
        self._images = images
        self._group: LearnerGroup | None = None

    def trainer(
        self, setup: TrialSetup, images: ImageSet, network: GatedNetwork, job: CnnJob
    ) -> RemoteTrainer:
        """Who trains a phase (a ``TrainerFactory``)."""
        fresh = PhaseTrainer(setup, images, network, dataclasses.replace(job, teacher=None))
        return RemoteTrainer(self, setup, network, job, fresh.state_dict())

    def begin(self, run: CnnRun) -> None:
        """Hands out what a run's steps need; starts the processes if there are none.

        Raises:
            ReplicaError: a process cannot be started, or failed.
        """
        if self._group is None:
            self._start()
        images, reference = self._images, ray.put(run)
        self._ask(lambda learner: learner.begin(images, reference))

    def step(self) -> Step:
        """One optimizer step of all processes.

        Raises:
            TrainingDivergedError: the loss is not finite.
            ReplicaError: a process failed.
        """
        return self._ask(_take_step)[0]

    def end(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Network and trainer after the steps taken."""
        answers = self._ask(_end)
        return next(answer for answer in answers if answer is not None)

    def stop(self) -> None:
        """Ends the processes."""
        if self._group is not None:
            group, self._group = self._group, None
            group.shutdown()

    def _start(self) -> None:
        try:
            self._group = LearnerGroup(
                config=self._config,
                module_spec=self._config.rl_module_spec,
                placement_group=get_current_placement_group(),
            )
        except ray.exceptions.RayError as error:
            raise ReplicaError(f"The CNN's workers could not start: {error}") from error
        homes = self._ask(_home)
        host = None if len({node for node, _ in homes}) == 1 else homes[0][1]
        place = self._ask(lambda learner: learner.group.open(host), first_only=True)[0]
        size = self._size
        self._ask(lambda learner: learner.join(place, learner._learner_index, size))

    def _ask(self, what: Callable[[Any], _Answer], first_only: bool = False) -> list[_Answer]:
        """What all learners answer, in their order.

        Raises:
            ReplicaError: one has died or failed; all are stopped then, to be started anew.
        """
        assert self._group is not None
        results = self._group.foreach_learner(
            functools.partial(_answer_or_say_why, what=what),
            remote_actor_ids=[0] if first_only else None,
        )
        found = list(results)
        dead = {int(result.actor_id): result.get() for result in found if not result.ok}
        failures = [r.get() for r in found if r.ok and isinstance(r.get(), _Failure)]
        if dead or failures or len(found) < (1 if first_only else self._size):
            self.stop()
            raise _explained(dead, failures)
        ordered = sorted(found, key=lambda result: int(result.actor_id))
        return [result.get() for result in ordered]


def _home(_: Any) -> tuple[str, str]:
    """Node and address of the process that runs it."""
    return ray.get_runtime_context().get_node_id(), get_node_ip_address()


def _end(learner: Any) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    state: tuple[dict[str, Tensor], dict[str, Any]] | None = learner.end()
    return state


def _take_step(learner: Any) -> Step:
    step: Step = learner.take_step()
    return step


def _answer_or_say_why(learner: Any, what: Callable[[Any], Any]) -> Any:
    """A learner's answer; after an error it leaves the others, who would wait for it."""
    try:
        return what(learner)
    except Exception as error:
        trace = traceback.format_exc()
        learner.group.leave()
        return _Failure(error if isinstance(error, RlpruneError) else None, trace)


def _explained(dead: dict[int, Exception], failures: list[_Failure]) -> RlpruneError:
    """The error that was the cause: those of processes that lost another come last."""
    own = [failure.error for failure in failures if failure.error is not None]
    if own:
        return own[0]
    if dead:
        number, error = next(iter(dead.items()))
        return ReplicaError(
            f"Process {number} of those that train the CNN has died (killed, out of memory, or "
            f"its machine is gone: {type(error).__name__}). The last checkpoint is kept: resume "
            "from it."
        )
    trace = failures[0].trace if failures else "no answer"
    return ReplicaError(f"A process that trains the CNN failed:\n{trace}")


class RemoteTrainer:
    """Trains the trial's network through one phase, in :class:`CnnWorkers`.

    Args:
        workers: the processes.
        setup: of the trial.
        network: of the trial; its weights are handed out before, and taken over after the
            steps of a :meth:`run`.
        job: the phase.
        state: of a trainer that has not taken a step.
    """

    def __init__(
        self,
        workers: CnnWorkers,
        setup: TrialSetup,
        network: GatedNetwork,
        job: CnnJob,
        state: dict[str, Any],
    ) -> None:
        self._workers = workers
        self._setup = setup
        self._network = network
        self._job = job
        self._state = state
        self._last_loss = float("nan")

    @property
    def schedule(self) -> CnnSchedule:
        """Of the phase."""
        return self._job.schedule

    @property
    def step(self) -> int:
        """Optimizer steps taken before this run."""
        return int(self._state["step"])

    @property
    def last_loss(self) -> float:
        """Of the last step."""
        return self._last_loss

    def run(
        self, steps: int, recipe: GateRecipe, report: StepReport | None = None
    ) -> tuple[float, float]:
        """See :meth:`CnnTrainer.run`.

        Raises:
            TrainingDivergedError: the loss became NaN or infinite.
            ReplicaError: a process failed; the steps of this call are lost, and the trial
                goes on from its last checkpoint.
        """
        gates_of(self._setup, self._network, recipe)  # predictors on or off here as well
        if steps <= 0:
            return 0.0, 0.0
        self._workers.begin(CnnRun(self._job, _packed(recipe), self._weights(), self._state))
        try:
            told = run_steps(steps, self._take_step, report)
        except Interrupted:
            self._take_over()
            raise
        self._take_over()
        return told

    def _take_step(self) -> Step:
        step = self._workers.step()
        self._last_loss = step.loss
        return step

    def _weights(self) -> dict[str, Tensor]:
        state = self._network.state_dict()
        return {name: tensor.detach().cpu() for name, tensor in state.items()}

    def _take_over(self) -> None:
        network, self._state = self._workers.end()
        self._network.load_state_dict(network)

    def state_dict(self) -> dict[str, Any]:
        """Optimizer and position, in the form of one process's trainer."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`, whoever made it."""
        self._state = state


def _packed(recipe: GateRecipe) -> GateRecipe:
    """The recipe in main memory; agents are copied: the learner goes on with its own."""
    agents = None
    if recipe.agents is not None:
        runtime, static = copy.deepcopy(recipe.agents)
        agents = (runtime.cpu(), static.cpu())
    scores = tuple(score.cpu() for score in recipe.static_scores)
    return dataclasses.replace(recipe, agents=agents, static_scores=scores)
