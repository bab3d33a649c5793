"""The specification of a sweep: what to try, how to search, with what resources.

Like a trial's configuration it consists of frozen dataclasses that YAML overrides; every
problem is reported at once, before any work starts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from rlprune.config import TrialConfig, config_from_dict, config_to_dict
from rlprune.config_reading import STRICT, AtLeastOne, apply_override, problems_of, read_mapping
from rlprune.errors import ConfigError, Problem
from rlprune.presets import preset_names, preset_path
from rlprune.sweep.checks import spec_problems

_REMEDY = "See the comments in tune_configs/sweep_*.yaml for the meaning."

Metric = Literal["validation_accuracy", "validation_loss", "storage_bytes", "macs_mean", "macs_max"]


@dataclass(frozen=True, config=STRICT)
class Objective:
    """One thing that the search wants.

    Attributes:
        metric: of the learned policy at the search's tradeoff rate. Test metrics are not
            allowed: what is chosen by them is better on the test images than on others.
        mode: whether more is better, or less.
    """

    metric: Metric
    mode: Literal["min", "max"]


@dataclass(frozen=True, config=STRICT)
class SearchConfig:
    """How points of the space are chosen.

    Attributes:
        algorithm: "grid" crosses all grids; "random" also draws what is not a grid;
            "optuna" proposes points by what earlier trials measured.
        num_samples: draws for each cell of the grid (random), trials (optuna).
        seed: of all draws.
        sampler: Optuna's.
        objectives: what Optuna optimises; several: it looks for the whole front.
        tradeoff_rate: the R_r whose measured point gives the metrics; None: the last of
            ``evaluation.tradeoff_rates``.
    """

    algorithm: Literal["grid", "random", "optuna"] = "grid"
    num_samples: AtLeastOne = 1
    seed: Annotated[int, Field(ge=0)] = 0
    sampler: Literal["tpe", "nsga2", "random"] = "tpe"
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)] = (
        Objective("validation_accuracy", "max"),
        Objective("storage_bytes", "min"),
    )
    tradeoff_rate: Annotated[float, Field(ge=0.0, le=1.0)] | None = None


@dataclass(frozen=True, config=STRICT)
class SchedulerConfig:
    """Which trials may go on.

    Attributes:
        name: "none" runs every trial to its end, "asha" stops the worse ones early, "pbt"
            (population-based training) lets the worse ones go on from the better ones.
        metric: by which trials are compared; measured after every round.
        grace_rounds: rounds that every trial gets (asha).
        reduction_factor: at each halt one trial in so many goes on (asha).
        perturbation_rounds: rounds between two exchanges (pbt).
        mutations: field -> domain of its new values (pbt); only fields that may change in
            a running trial.
    """

    name: Literal["none", "asha", "pbt"] = "none"
    metric: Literal["validation_accuracy", "validation_loss"] = "validation_accuracy"
    grace_rounds: AtLeastOne = 1
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    perturbation_rounds: AtLeastOne = 1
    mutations: dict[str, Any] = Field(default_factory=dict)

    @property
    def mode(self) -> Literal["min", "max"]:
        """Whether more of the metric is better."""
        return "max" if self.metric == "validation_accuracy" else "min"


@dataclass(frozen=True, config=STRICT)
class TrialResources:
    """What a trial's own process reserves; each rollout worker adds one CPU.

    Each of ``resources.cnn_workers`` (above 1) adds as many CPUs again, and a whole GPU where
    ``gpus`` is above zero.

    Attributes:
        cpus: CPU cores; also the number of torch threads unless ``resources.cpus`` of the
            trial says otherwise.
        gpus: GPUs, or a fraction of one.
    """

    cpus: Annotated[float, Field(gt=0.0)] = 1.0
    gpus: Annotated[float, Field(ge=0.0)] = 0.0


@dataclass(frozen=True, config=STRICT)
class StopConfig:
    """When to stop.

    Attributes:
        hours: of the whole sweep; None: when all trials are done.
        max_failures: how often a trial is tried again after a failure.
        fail_fast: whether the first trial that fails for good ends the sweep.
    """

    hours: Annotated[float, Field(gt=0.0)] | None = None
    max_failures: Annotated[int, Field(ge=0)] = 2
    fail_fast: bool = False


@dataclass(frozen=True, config=STRICT)
class CheckpointPolicy:
    """Which checkpoints of a trial stay: the last ``keep``."""

    keep: AtLeastOne = 2


@dataclass(frozen=True, config=STRICT)
class SweepSpec:
    """A sweep.

    Attributes:
        name: of the experiment and of its folder.
        base: a preset or YAML file (relative to the specification) whose values ``trial``
            overrides; None in a loaded specification, where they are part of ``trial``.
        trial: every setting of the base trial, nested as in :class:`TrialConfig`.
        space: dotted name of a setting -> domain, see :mod:`rlprune.sweep.domains`.
        search, scheduler, resources, stop, checkpoints: see the classes.
        max_concurrent: most trials at the same time; None: as many as fit.
        storage_path: folder or pyarrow filesystem URI in which the experiment's lies.
        loggers: where a trial's curves go.
    """

    name: Annotated[str, Field(max_length=64)]
    base: str | None = None
    trial: dict[str, Any] = Field(default_factory=dict)
    space: dict[str, Any] = Field(default_factory=dict)
    search: SearchConfig = SearchConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    resources: TrialResources = TrialResources()
    max_concurrent: AtLeastOne | None = None
    stop: StopConfig = StopConfig()
    checkpoints: CheckpointPolicy = CheckpointPolicy()
    storage_path: Annotated[str, Field(min_length=1)] = "runs"
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow", "comet"], ...] = ("tensorboard",)


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """Reads a specification and applies ``a.b=value`` overrides to it.

    Args:
        path: YAML file, or the name of a preset such as ``sweep_digits``.
        overrides: for example ``trial.training.rounds=2``, ``search.num_samples=20`` or
            ``space.budgets.storage_max={grid: [0.3, 0.5]}``.

    Raises:
        ConfigError: listing every problem.
    """
    given = Path(path)
    file = given if given.exists() or given.suffix else preset_path(str(path))
    values = read_mapping(file)
    if "space" not in values:
        rule, remedy = "must have a search space", "For a single trial use `rlprune train`."
        raise ConfigError([Problem("space", rule, str(path), remedy)])
    problems = [problem for item in overrides if (problem := _override(values, item))]
    try:
        spec = spec_from_dict(values, file.parent)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems:
        raise ConfigError(problems)
    return spec


def spec_to_dict(spec: SweepSpec) -> dict[str, Any]:
    """The specification as plain nested dictionaries: YAML-safe and self-contained."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(spec))
    del plain["base"]
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):  # keys stay: those of cases may be numbers
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def spec_from_dict(values: Mapping[str, Any], base_dir: str | Path) -> SweepSpec:
    """Builds a checked specification; what is absent keeps its default.

    Args:
        values: nested mapping in the shape of :class:`SweepSpec`.
        base_dir: folder against which a relative ``base`` is resolved.

    Raises:
        ConfigError: listing every problem.
    """
    trial, problems = _whole_trial(values, Path(base_dir))
    merged = {**values, "base": None, "trial": trial}
    spec, found = _valid_parts(merged)
    bad = {str(problem.field).split(".")[0] for problem in found}
    across = [p for p in spec_problems(spec) if p.field.split(".")[0] not in bad]
    if problems or found or across:
        raise ConfigError([*found, *problems, *across])
    return spec


def _whole_trial(values: Mapping[str, Any], base_dir: Path) -> tuple[dict[str, Any], list[Problem]]:
    """Every setting of the base trial; the defaults where there are problems."""
    default = config_to_dict(TrialConfig())
    own = values.get("trial", {})
    if not isinstance(own, Mapping):
        remedy = "Write settings as in a trial's file, indented."
        return default, [Problem("trial", "must be a mapping", own, remedy)]
    try:
        base = _base_values(values.get("base"), base_dir)
        return config_to_dict(config_from_dict(_merged(base, own))), []
    except ConfigError as error:
        named = ("base", "CONFIG")
        return default, [
            p if p.field in named else dataclasses.replace(p, field=f"trial.{p.field}")
            for p in error.problems
        ]


def _base_values(base: object, base_dir: Path) -> dict[str, Any]:
    if base is None:
        return {}
    if not isinstance(base, str):
        remedy = "Write base: quickstart, or a path."
        raise ConfigError([Problem("base", "must be a preset's name or a path", base, remedy)])
    file = base_dir / base
    if not file.is_file():
        if base.removesuffix(".yaml") not in preset_names():
            remedy = f"Presets are {', '.join(preset_names())}; paths are relative to {base_dir}."
            rule = "must be the preset of a trial, or a file"
            raise ConfigError([Problem("base", rule, base, remedy)])
        file = preset_path(base)
    values = read_mapping(file)
    if "space" in values:
        remedy = "Name a trial's file; copy the sweep's file to change it."
        raise ConfigError([Problem("base", "must describe a trial, not a sweep", base, remedy)])
    return values


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings merged; ``above`` wins."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def _valid_parts(values: Mapping[str, Any]) -> tuple[SweepSpec, list[Problem]]:
    """The specification with defaults in place of invalid parts, and what is invalid."""
    adapter = TypeAdapter(SweepSpec)
    try:
        return adapter.validate_python(dict(values)), []
    except ValidationError as error:
        problems = [_explained(problem) for problem in problems_of(error, SweepSpec, _REMEDY)]
        bad = {str(item["loc"][0]) for item in error.errors()}
    rest = {key: value for key, value in values.items() if str(key) not in bad}
    return adapter.validate_python({"name": "unnamed", **rest}), problems


def _explained(problem: Problem) -> Problem:
    """A more helpful remedy for mistakes that are easily made."""
    sections = {field.name for field in dataclasses.fields(TrialConfig)}
    if problem.rule == "unknown key" and problem.field in sections:
        remedy = f"Settings of trials are indented below trial: trial.{problem.field}."
        return dataclasses.replace(problem, remedy=remedy)
    if problem.field.endswith(".metric") and str(problem.value).startswith("test_"):
        remedy = (
            "Choosing by the test images would make the reported test accuracy too good; "
            "use validation_accuracy or validation_loss."
        )
        return dataclasses.replace(problem, remedy=remedy)
    return problem


def _override(values: dict[str, Any], override: str) -> Problem | None:
    """Applies one override; below ``space`` the rest of the path is a setting's name."""
    path, separator, text = override.partition("=")
    path = path.strip()
    for head in ("space", "scheduler.mutations"):
        if separator and path.startswith(f"{head}."):
            holder: dict[str, Any] = {}
            problem = apply_override(holder, f"value={text}")
            if problem is not None:
                return dataclasses.replace(problem, field=path)
            node = values
            for key in head.split("."):
                node = node.setdefault(key, {}) if isinstance(node, dict) else {}
            node[path.removeprefix(f"{head}.")] = holder["value"]
            return None
    space = values.get("space")
    if isinstance(space, Mapping) and path.removeprefix("trial.") in space:
        remedy = f"Write --set {path.replace('trial.', 'space.', 1)}={text}."
        return Problem(path, "has no effect: the search space sets it", override, remedy)
    return apply_override(values, override)
