"""Running a sweep with Ray Tune: start, resume, end."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from rlprune import files
from rlprune.errors import CheckpointError
from rlprune.sweep import layout
from rlprune.sweep.loggers import check_packages
from rlprune.sweep.plan import check_schedulable, plan_sweep
from rlprune.sweep.spec import SweepSpec, spec_from_dict, spec_to_dict
from rlprune.sweep.status import SweepStatus, read_status
from rlprune.training.cluster import private_ray

Watch = Callable[[SweepStatus], None]

_DECIDING = ("trial", "space", "search", "scheduler")
_PAUSE = 2.0


def experiment_uri(spec: SweepSpec) -> str:
    """Folder or URI of the experiment; local ones are made absolute, as Tune wants them."""
    return layout.experiment(spec.storage_path, spec.name)


def read_spec(uri: str) -> SweepSpec:
    """The specification of the experiment in a folder, which may have been moved.

    Raises:
        CheckpointError: no sweep there, or its file is damaged.
        ConfigError: the folder has a name that no sweep may have, or another version of
            rlprune wrote settings that this one does not know.
    """
    path = layout.spec(uri)
    if not files.exists(path):
        raise CheckpointError(
            f"{uri}: no sweep there (no sweep.yaml). Give the folder that `rlprune sweep` named, "
            "or start one with `rlprune sweep SPEC`."
        )
    try:
        values = yaml.safe_load(files.read_whole(path))
        if not isinstance(values, dict):
            raise ValueError("it holds no mapping")
    except (yaml.YAMLError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a readable specification ({' '.join(str(error).split())}). "
            "Copy the file from which the sweep was started to this place, then resume."
        ) from None
    storage_path, name = layout.split(layout.absolute(uri))
    return spec_from_dict({**values, "storage_path": storage_path, "name": name}, Path.cwd())


def local_nodes() -> list[dict[str, float]]:
    """What this machine offers to trials."""
    import torch

    return [
        {
            "CPU": float(os.cpu_count() or 1),
            "GPU": float(torch.cuda.device_count()),
            "memory": float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        }
    ]


def available_nodes() -> list[dict[str, float]]:
    """Nodes that trials would run on: the cluster in RAY_ADDRESS, or this machine."""
    if not os.environ.get("RAY_ADDRESS"):
        return local_nodes()
    with private_ray(0, 0):
        return _cluster_nodes()


def check_new(uri: str) -> None:
    """Refuses an experiment that exists.

    Raises:
        CheckpointError: with the command that resumes it.
    """
    if files.exists(layout.spec(uri)) or files.list_files(layout.results(uri), ".parquet"):
        raise CheckpointError(
            f"{uri} already holds an experiment. Resume it with `rlprune sweep --resume {uri}`, "
            "or choose another name (--set name=...)."
        )


def is_begun(spec: SweepSpec) -> bool:
    """Whether this very sweep lies in its storage already, to be gone on with.

    What only says how it is run (resources, max_concurrent, stop, checkpoints, loggers) may
    have changed since.

    Raises:
        CheckpointError: a sweep of the same name lies there that does something else.
    """
    uri = experiment_uri(spec)
    if not files.exists(layout.spec(uri)):
        return False
    stored, given = spec_to_dict(read_spec(uri)), spec_to_dict(spec)
    other = [part for part in _DECIDING if stored[part] != given[part]]
    if other:
        raise CheckpointError(
            f"{uri} holds a sweep of this name that differs in {', '.join(other)}. Choose another "
            "name (--set name=...), or give the specification with which that sweep was started."
        )
    return True


def wait_until_left(uri: str, tell: Callable[[str], None], pause: float = _PAUSE) -> None:
    """Waits until a driver that may have died with its machine has been silent for long enough.

    Args:
        uri: the experiment's folder.
        tell: told once, if there is anything to wait for.
        pause: seconds between two looks.

    Raises:
        CheckpointError: it is alive: its status file has changed meanwhile.
    """
    first = status = _status(uri)
    while status.driver_lives():
        if status is first:
            tell(f"{uri}: {status.host} may be running this sweep. Waiting for a sign of life ...")
        elif status.updated != first.updated:
            check_nobody_runs_it(status, uri)
        time.sleep(pause)
        status = _status(uri)


def _status(uri: str) -> SweepStatus:
    return read_status(uri) if files.exists(layout.status(uri)) else SweepStatus()


def check_nobody_runs_it(status: SweepStatus, uri: str) -> None:
    """Refuses an experiment at which another process is at work.

    Raises:
        CheckpointError: naming the process.
    """
    if status.driver_lives():
        raise CheckpointError(
            f"{uri}: process {status.pid} on {status.host} is running this sweep. Watch it with "
            f"`rlprune status {uri}`, or stop it before resuming."
        )


def run_sweep(spec: SweepSpec, resume: bool = False, watch: Watch | None = None) -> SweepStatus:
    """Runs a sweep to its end, or goes on with one.

    Args:
        spec: what to do.
        resume: the experiment exists: finished trials stay, all others go on from their
            own checkpoints.
        watch: told about every change.

    Returns:
        The final state of every trial; interrupted and failed ones are in it.

    Raises:
        InvalidInputError, DataError, BackboneError, CheckpointError, FileAccessError:
            refused before anything was started.
    """
    uri = experiment_uri(spec)
    if not resume:
        check_new(uri)
    check_packages(spec)
    plan = plan_sweep(spec)
    check_schedulable(plan, available_nodes())
    files.write_whole(
        layout.spec(uri), yaml.safe_dump(spec_to_dict(spec), sort_keys=False).encode()
    )
    status = _status(uri)
    searching = spec.search.algorithm == "optuna"
    names = [] if searching else [estimate.name for estimate in plan.trials]
    check_nobody_runs_it(status, uri)
    status.begin(names, spec.search.num_samples if searching else len(names))
    status.write(uri)
    watch = watch or (lambda _: None)
    watch(status)
    _prepare_environment()
    try:
        from rlprune.sweep.tuner import fit  # after the environment: Ray reads it on import

        with private_ray(os.cpu_count() or 1, plan.shared_image_bytes, log_to_driver=False):
            logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are told by us
            fit(spec, plan, uri, status, watch)
    finally:
        status.end()
        status.write(uri)
    return status


def _cluster_nodes() -> list[dict[str, float]]:
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _prepare_environment() -> None:
    """Settings that Tune and its workers read from the environment."""
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths keep their meaning
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # there is none at first
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its tables cannot be switched off
    # Trials write their own TensorBoard files; Tune's JSON and CSV logs would be copied into
    # the storage again and again.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
