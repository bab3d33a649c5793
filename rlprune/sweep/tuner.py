"""A sweep in Tune's terms: search space, searcher, scheduler, loggers, Tuner."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from ray import tune

from rlprune import files
from rlprune.config import config_to_dict
from rlprune.sweep import layout
from rlprune.sweep.callbacks import StatusKeeper
from rlprune.sweep.domains import Choice, Domain, RandInt, Stepped, Uniform, parse_domains
from rlprune.sweep.fields import get_field
from rlprune.sweep.loggers import logger_callbacks
from rlprune.sweep.memory import one_trial_pays_for_memory
from rlprune.sweep.plan import SweepPlan, bundles
from rlprune.sweep.search import NAME, OptunaJournal
from rlprune.sweep.shared import start_shared_data
from rlprune.sweep.space import suggest, trial_config, trial_name
from rlprune.sweep.spec import SweepSpec
from rlprune.sweep.status import OVER, SweepStatus
from rlprune.sweep.trainable import TrialTrainable

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
    space, journal, searcher, samples = _space(spec, plan, uri, status)
    if samples == 0:
        return
    seconds = None if spec.stop.hours is None else 3600 * spec.stop.hours
    deadline = None if seconds is None else time.monotonic() + seconds
    keeper = StatusKeeper(status, uri, watch, deadline, journal.upload if journal else None)
    tuner = tune.Tuner(
        tune.with_parameters(TrialTrainable, shared=start_shared_data()),
        param_space=space,
        tune_config=tune.TuneConfig(
            num_samples=samples,
            search_alg=searcher,
            scheduler=_scheduler(spec, plan),
            max_concurrent_trials=spec.max_concurrent,
            time_budget_s=seconds,
            reuse_actors=True,
            trial_name_creator=_name_of,
            trial_dirname_creator=_name_of,
        ),
        run_config=_run_config(spec, uri, [keeper, *logger_callbacks(spec)]),
    )
    with one_trial_pays_for_memory():
        tuner.fit()


def _name_of(trial: Any) -> str:
    return str(trial.config["point"]["name"])


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


def _space(
    spec: SweepSpec, plan: SweepPlan, uri: str, status: SweepStatus
) -> tuple[dict[str, Any], OptunaJournal | None, Any, int]:
    """Tune's param_space, the journal and the searcher if there is one, number of samples."""

    def over(name: str) -> bool:
        return name in status.trials and status.trials[name].state in OVER

    sweep = {
        "name": spec.name,
        "uri": uri,
        "pretrained": files.join(layout.split(uri)[0], layout.PRETRAINED),
        "tradeoff_rate": spec.search.tradeoff_rate,
    }
    if spec.search.algorithm != "optuna":
        points = [
            _point(spec, trial.name, trial.values) for trial in plan.trials if not over(trial.name)
        ]
        space = {"point": tune.grid_search(points), "sweep": sweep}
        return space, None, None, min(1, len(points))
    journal = OptunaJournal(spec, uri)
    again = journal.unfinished(over)
    names = {json.dumps(params, sort_keys=True): name for name, params in again.items()}

    def define(trial: Any) -> dict[str, Any]:
        values = suggest(spec, trial)
        # A trial that is run again keeps its name, and with it its folder and checkpoints.
        name = names.pop(json.dumps(trial.params, sort_keys=True), None)
        name = name or trial_name(spec, trial.number, values)
        trial.set_user_attr(NAME, name)
        return {"point": _point(spec, name, values), "sweep": sweep}

    done = sum(over(name) for name in status.trials)
    searcher = journal.searcher(define, list(again.values()))
    return {}, journal, searcher, max(0, spec.search.num_samples - done)


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
            "point": {
                "mutate": {field: _tune_domain(domain) for field, domain in mutations.items()}
            }
        },
        require_attrs=False,
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
