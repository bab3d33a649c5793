"""A sweep in Tune's terms: search space, searcher, scheduler, loggers, Tuner."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray import tune

from rlprune import files
from rlprune.config import config_to_dict
from rlprune.sweep import layout
from rlprune.sweep.callbacks import StatusKeeper
from rlprune.sweep.checkpoints import find_checkpoints
from rlprune.sweep.domains import Choice, Domain, RandInt, Stepped, Uniform, parse_domains
from rlprune.sweep.fields import get_field
from rlprune.sweep.loggers import logger_callbacks
from rlprune.sweep.patches import (
    no_forced_snapshots,
    no_keys_in_runtime_env,
    one_trial_pays_for_memory,
    trials_survive_a_lost_process_between_two,
)
from rlprune.sweep.plan import SweepPlan, bundles
from rlprune.sweep.search import NAME, OptunaJournal
from rlprune.sweep.shared import start_shared_data
from rlprune.sweep.space import suggest, trial_config, trial_name
from rlprune.sweep.spec import SweepSpec
from rlprune.sweep.status import OVER, SweepStatus
from rlprune.sweep.trainable import TrialTrainable
from rlprune.training.checkpoint import CONFIG_FILE

_ROUND = "round"
_KEPT_FOR_OTHERS = 6


def fit(
    spec: SweepSpec,
    plan: SweepPlan,
    uri: str,
    status: SweepStatus,
    watch: Callable[[SweepStatus], None],
) -> None:
    """Runs every trial that is not over yet; Ray must be running.

    Args:
        spec: the sweep.
        plan: its trials.
        uri: the experiment's folder.
        status: kept up to date.
        watch: told about every change.
    """
    search = _search(spec, plan, uri, status)
    if search.samples == 0:
        return
    seconds = None if spec.stop.hours is None else 3600 * spec.stop.hours
    deadline = None if seconds is None else time.monotonic() + seconds
    keeper = StatusKeeper(status, uri, watch, deadline, search.upload)
    kind: type[TrialTrainable] = type("SweepTrial", (TrialTrainable,), {"points": search.points})

    def name_of(trial: Any) -> str:
        return str(kind.point_of(trial.config)["name"])

    tuner = tune.Tuner(
        tune.with_parameters(kind, shared=start_shared_data()),
        param_space=search.space,
        tune_config=tune.TuneConfig(
            num_samples=search.samples,
            search_alg=search.searcher,
            scheduler=_scheduler(spec, plan),
            max_concurrent_trials=spec.max_concurrent,
            time_budget_s=seconds,
            reuse_actors=True,
            trial_name_creator=name_of,
            trial_dirname_creator=name_of,
        ),
        run_config=_run_config(spec, uri, [keeper, *logger_callbacks(spec)]),
    )
    with one_trial_pays_for_memory(), trials_survive_a_lost_process_between_two():
        with no_forced_snapshots(), no_keys_in_runtime_env():
            tuner.fit()


def _checkpoints_kept(spec: SweepSpec) -> int:
    """Population-based training copies checkpoints of other trials some time after the fact."""
    return max(spec.checkpoints.keep, _KEPT_FOR_OTHERS if spec.scheduler.name == "pbt" else 1)


def _run_config(spec: SweepSpec, uri: str, callbacks: list[Any]) -> Any:
    storage_path, name = layout.split(uri)
    return tune.RunConfig(
        name=name,
        storage_path=storage_path,
        callbacks=callbacks,
        failure_config=tune.FailureConfig(
            max_failures=0 if spec.stop.fail_fast else spec.stop.max_failures,
            fail_fast=spec.stop.fail_fast,
        ),
        checkpoint_config=tune.CheckpointConfig(
            num_to_keep=_checkpoints_kept(spec), checkpoint_at_end=True
        ),
        sync_config=tune.SyncConfig(sync_artifacts=True),
        verbose=0,
    )


@dataclass(frozen=True)
class _Search:
    """What Tune is told about the points.

    Attributes:
        space: Tune's param_space.
        points: what its indices stand for.
        samples: how often to go through it; 0: nothing is left to do.
        searcher, journal: Optuna's, if it chooses the points.
    """

    space: dict[str, Any]
    points: list[dict[str, Any]]
    samples: int
    searcher: Any = None
    journal: OptunaJournal | None = None

    @property
    def upload(self) -> Callable[[], None] | None:
        """Saves the journal."""
        return None if self.journal is None else self.journal.upload


def _search(spec: SweepSpec, plan: SweepPlan, uri: str, status: SweepStatus) -> _Search:
    def over(name: str) -> bool:
        return name in status.trials and status.trials[name].state in OVER

    sweep = {
        "name": spec.name,
        "uri": uri,
        "pretrained": files.join(layout.split(uri)[0], layout.PRETRAINED),
        "tensorboard": "tensorboard" in spec.loggers,
        "session": uuid.uuid4().hex,
        "tradeoff_rate": spec.search.tradeoff_rate,
    }
    if spec.search.algorithm != "optuna":
        trials = [trial for trial in plan.trials if not over(trial.name)]
        points = [_point(spec, trial.name, trial.values) for trial in trials]
        if spec.scheduler.name == "pbt":
            for point in points:
                _take_last_mutations(point, uri)
        # Tune copies what a grid lists once for each of its cells: numbers, not points.
        indices = list(range(len(points)))
        space = {"index": tune.grid_search(indices), "sweep": sweep}
        if spec.scheduler.name == "pbt":
            cells = [{"index": i, "mutate": points[i]["mutate"]} for i in indices]
            space = {"cell": tune.grid_search(cells), "sweep": sweep}
        return _Search(space, points, min(1, len(points)))
    journal = OptunaJournal(spec, uri)
    again = journal.unfinished(over)
    names: dict[str, list[str]] = {}
    for name, params in again.items():
        names.setdefault(json.dumps(params, sort_keys=True), []).append(name)
    for name in [name for name in status.trials if not over(name) and name not in again]:
        del status.trials[name]  # killed before the journal knew it: it will be drawn anew

    def define(trial: Any) -> dict[str, Any]:
        values = suggest(spec, trial)
        # A trial that is run again keeps its name, and with it its folder and checkpoints.
        known = names.get(json.dumps(trial.params, sort_keys=True))
        name = known.pop(0) if known else trial_name(spec, trial.number, values)
        trial.set_user_attr(NAME, name)
        return {"point": _point(spec, name, values), "sweep": sweep}

    done = sum(over(name) for name in status.trials)
    searcher = journal.searcher(define, list(again.values()))
    return _Search({}, [], max(0, spec.search.num_samples - done), searcher, journal)


def _point(spec: SweepSpec, name: str, values: dict[str, Any]) -> dict[str, Any]:
    config = trial_config(spec, values, name)
    trial = config_to_dict(config)
    return {
        "name": name,
        "trial": trial,
        "bundles": bundles(spec, config),
        # What a scheduler may change while the trial runs, at the values that it starts with.
        "mutate": {field: get_field(trial, field) for field in spec.scheduler.mutations},
    }


def _take_last_mutations(point: dict[str, Any], uri: str) -> None:
    """Settings that population-based training had changed before the sweep was resumed."""
    for found in find_checkpoints(layout.trial(uri, point["name"])):
        if found.progress is not None:
            text = files.read_whole(files.join(found.uri, CONFIG_FILE))
            stored = json.loads(text)
            point["mutate"] = {field: get_field(stored, field) for field in point["mutate"]}
            return


def _scheduler(spec: SweepSpec, plan: SweepPlan) -> Any:
    settings = spec.scheduler
    rounds = max(trial.config.training.rounds for trial in plan.trials)
    if settings.name == "none":
        return None
    if settings.name == "asha":
        return tune.schedulers.ASHAScheduler(
            time_attr=_ROUND,
            metric=settings.metric,
            mode=settings.mode,
            # It would end a trial that reaches max_t: baselines come after the last round.
            max_t=rounds + 1,
            grace_period=min(settings.grace_rounds, rounds),
            reduction_factor=settings.reduction_factor,
        )
    mutations, _ = parse_domains("scheduler.mutations", settings.mutations)
    return tune.schedulers.PopulationBasedTraining(
        time_attr=_ROUND,
        metric=settings.metric,
        mode=settings.mode,
        perturbation_interval=settings.perturbation_rounds,
        hyperparam_mutations={
            "cell": {"mutate": {field: _tune_domain(domain) for field, domain in mutations.items()}}
        },
        require_attrs=False,
        synch=True,  # trials are compared at the same round, however fast each of them is
    )


def _tune_domain(domain: Domain) -> Any:
    if isinstance(domain, Choice):
        return list(domain.values)
    if isinstance(domain, Uniform):
        draw = tune.loguniform if domain.log else tune.uniform
        return draw(domain.low, domain.high)
    if isinstance(domain, Stepped):
        return tune.quniform(domain.low, domain.high, domain.step)
    if isinstance(domain, RandInt):
        return tune.randint(domain.low, domain.high + 1)
    raise TypeError(f"{type(domain).__name__} is no domain to draw from")  # refused by the spec
