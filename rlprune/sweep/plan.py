"""Planning a sweep: every trial checked and its cost estimated before anything starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from rich.console import Console

from rlprune.config import BackboneConfig, DataConfig, config_to_dict
from rlprune.data import ImageSet, load_image_set
from rlprune.errors import (
    BackboneError,
    BudgetError,
    ConfigError,
    DataError,
    InvalidInputError,
    Problem,
)
from rlprune.sweep.estimate import (
    ImageFacts,
    NetworkFacts,
    SweepPlan,
    TrialEstimate,
    bundles,
    cnn_processes,
    estimate_trial,
)
from rlprune.sweep.fields import pretraining_values
from rlprune.sweep.plan_table import plan_table
from rlprune.sweep.space import TrialPoint, sample_points, trial_config, trial_points
from rlprune.sweep.spec import SweepSpec
from rlprune.training.setup import TrialSetup

__all__ = [
    "SweepPlan",
    "TrialEstimate",
    "bundles",
    "check_schedulable",
    "plan_sweep",
    "plan_table",
    "print_plan",
]

LoadImages = Callable[[DataConfig, int], ImageSet]
SAMPLES = 32
"""Points that are looked at (beside two corners) where Optuna will choose the points."""

_SHOWN_TRIALS = 2
_Facts = TypeVar("_Facts")


class _Remembered(dict[object, object]):
    """Results of slow look-ups by key; a failure is remembered as well and raised again."""

    def get_or_make(self, key: object, make: Callable[[], _Facts]) -> _Facts:
        if key not in self:
            try:
                self[key] = make()
            except (DataError, BackboneError) as error:
                self[key] = error
        found = self[key]
        if isinstance(found, DataError | BackboneError):
            raise found
        return found  # type: ignore[return-value]


class _Planner:
    """Loads every image set and traces every backbone once."""

    def __init__(self, spec: SweepSpec, load: LoadImages) -> None:
        self.spec = spec
        self.load = load
        self.pretrained: set[object] = set()
        self._images = _Remembered()
        self._networks = _Remembered()

    def _facts(self, data: DataConfig, seed: int) -> ImageFacts:
        # Sizes and shapes do not depend on the seed.
        return self._images.get_or_make(data, lambda: ImageFacts.of(self.load(data, seed)))

    def _network(self, backbone: BackboneConfig, images: ImageFacts) -> NetworkFacts:
        key = (backbone, images.input_shape, images.num_classes)
        return self._networks.get_or_make(key, lambda: NetworkFacts.of(backbone, images))

    def estimate(self, point: TrialPoint, share: bool) -> TrialEstimate:
        """Checks and estimates one trial.

        Raises:
            InvalidInputError, DataError, BackboneError: what is wrong with it.
        """
        config = trial_config(self.spec, point.values, point.name)
        images = self._facts(config.data, config.seed)
        network = self._network(config.backbone, images)
        setup = TrialSetup.of(config, network.graph)
        setup.check_budgets()
        key = pretraining_values(config_to_dict(config))
        shared = share and key in self.pretrained
        self.pretrained.add(key)
        return estimate_trial(self.spec, point, setup, network, images, shared)


def plan_sweep(spec: SweepSpec, load: LoadImages = load_image_set) -> SweepPlan:
    """Builds the configuration of every trial, checks it, and estimates what it costs.

    Where Optuna will choose the points, :data:`SAMPLES` seeded draws and two corners of
    the space stand for them.

    Args:
        spec: the sweep.
        load: reads an image set, given its configuration and a seed.

    Raises:
        ConfigError, BudgetError: listing every problem of every trial; BudgetError if all
            are budgets that cannot be reached.
    """
    sampled = spec.search.algorithm == "optuna"
    points = sample_points(spec, SAMPLES) if sampled else trial_points(spec)
    planner, trials = _Planner(spec, load), []
    failures: list[tuple[str, Problem]] = []
    only_budgets = True
    for point in points:
        try:
            trials.append(planner.estimate(point, share=not sampled))
        except InvalidInputError as error:
            failures += [(point.name, problem) for problem in error.problems]
            only_budgets &= isinstance(error, BudgetError)
        except (DataError, BackboneError) as error:
            failures.append((point.name, _as_problem(error)))
            only_budgets = False
    if spec.scheduler.name == "pbt" and len(points) < 2:
        rule, remedy = "must have at least two trials for pbt", "Raise search.num_samples."
        raise ConfigError([Problem("search.num_samples", rule, len(points), remedy)])
    if failures:
        kind = BudgetError if only_budgets else ConfigError
        raise kind(_grouped(failures))
    return SweepPlan(spec, tuple(trials), sampled)


def _as_problem(error: DataError | BackboneError) -> Problem:
    field = "backbone" if isinstance(error, BackboneError) else "data"
    return Problem(field, "must be usable", type(error).__name__, str(error))


def _grouped(failures: Sequence[tuple[str, Problem]]) -> list[Problem]:
    """One problem for all trials that have it, naming the first ones."""
    names: dict[str, list[str]] = {}
    problems: dict[str, Problem] = {}
    for name, problem in failures:
        problems.setdefault(str(problem), problem)
        names.setdefault(str(problem), []).append(name)
    grouped = []
    for text, problem in problems.items():
        first, more = names[text][:_SHOWN_TRIALS], len(names[text]) - _SHOWN_TRIALS
        trials = ", ".join(first) + (f" and {more} more" if more > 0 else "")
        grouped.append(dataclasses.replace(problem, field=f"{problem.field} (trial {trials})"))
    return grouped


def print_plan(plan: SweepPlan, console: Console) -> None:
    """Prints the trials, their estimates and the totals."""
    console.print(plan_table(plan))


# --------------------------------------------------------------------------- the cluster


def check_schedulable(plan: SweepPlan, nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuses a plan with a trial that can never start on the given nodes.

    A trial's own process needs one node with its CPUs, GPUs and (estimated) memory; its CNN
    and rollout workers may be anywhere.

    Args:
        plan: the sweep.
        nodes: what each node has in all: "CPU", "GPU", and "memory" in bytes (not checked
            where it is absent).

    Raises:
        ConfigError: naming what is needed and what the largest node has.
    """
    failures = []
    for trial in plan.trials:
        if not any(_fits(trial, index, nodes) for index in range(len(nodes))):
            failures.append((trial.name, _unschedulable(trial, nodes)))
    if failures:
        raise ConfigError(_grouped(failures))


def _fits(trial: TrialEstimate, home: int, nodes: Sequence[Mapping[str, float]]) -> bool:
    """Whether the trial can run with its own process on node ``home``."""
    own, *workers = trial.bundles
    node = nodes[home]
    if any(node.get(kind, 0.0) < amount for kind, amount in own.items()):
        return False
    if node.get("memory", float("inf")) < trial.memory.host:
        return False
    free = [dict(other) for other in nodes]
    _take(free[home], own)
    # The largest first; rollout workers, which are all alike, fill what is left.
    for bundle in sorted(workers, key=lambda bundle: -bundle.get("GPU", 0.0)):
        place = next((other for other in free if _holds(other, bundle)), None)
        if place is None:
            return False
        _take(place, bundle)
    return True


def _holds(node: Mapping[str, float], bundle: Mapping[str, float]) -> bool:
    return all(node.get(kind, 0.0) >= amount for kind, amount in bundle.items())


def _take(node: dict[str, float], bundle: Mapping[str, float]) -> None:
    for kind, amount in bundle.items():
        node[kind] -= amount


def _unschedulable(trial: TrialEstimate, nodes: Sequence[Mapping[str, float]]) -> Problem:
    own, *workers = trial.bundles
    training = workers[: cnn_processes(trial.config)]
    rollouts = workers[len(training) :]
    needed = ", ".join(f"{amount:g} {kind}" for kind, amount in own.items())
    needed += f" and {trial.memory.host / 2**30:.1f} GiB of memory (estimated) on one node"
    if training:
        each = ", ".join(f"{amount:g} {kind}" for kind, amount in training[0].items())
        needed += f", {each} for each of {len(training)} processes that train the CNN"
    if rollouts:
        needed += f", and 1 CPU for each of {len(rollouts)} rollout workers"
    largest = max(nodes, key=lambda node: (node.get("GPU", 0.0), node.get("CPU", 0.0)), default={})
    has = f"{largest.get('CPU', 0.0):g} CPU, {largest.get('GPU', 0.0):g} GPU"
    if "memory" in largest:
        has += f", {largest['memory'] / 2**30:.1f} GiB"
    total = sum(node.get("CPU", 0.0) for node in nodes)
    return Problem(
        "resources",
        f"a trial needs {needed}",
        f"{len(nodes)} nodes with {total:g} CPUs in all; the largest has {has}",
        "Lower resources, trial.resources.cnn_workers, trial.rollouts.num_env_runners or "
        "trial.training.batch_size, or use a larger cluster.",
    )
