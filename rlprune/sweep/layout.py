"""Where a sweep keeps what. Every name is relative to the experiment's folder (or URI).

::

    sweep.yaml              the resolved specification
    status.json             every trial's state, for `rlprune status`
    optuna.journal          what Optuna has tried (only with that searcher)
    results/                Parquet rows of all trials
    updates/TRIAL.parquet   one row per PPO update; updates/TRIAL.png: the picture of them
    difficulty/             TRIAL.parquet: the learned policy on easy and on hard images
    TRIAL/checkpoint_*      the trial's last checkpoints
    TRIAL/tensorboard/      its TensorBoard files; TRIAL/error.txt: why it failed

Beside the experiments lies ``pretrained/``, the cache that they share.
"""

from __future__ import annotations

import os

from rlprune import files

PRETRAINED = "pretrained"


def absolute(uri: str) -> str:
    """Local paths are made absolute, as Tune wants them; URIs stay."""
    return uri if "://" in uri else os.path.abspath(uri)


def experiment(storage_path: str, name: str) -> str:
    """Folder or URI of an experiment; local ones are made absolute."""
    return files.join(absolute(storage_path), name)


def split(uri: str) -> tuple[str, str]:
    """Storage path and name of an experiment's (absolute) folder."""
    path, question, options = uri.partition("?") if "://" in uri else (uri, "", "")
    base, _, name = path.rstrip("/").rpartition("/")
    return f"{base or '/'}{question}{options}", name


def spec(uri: str) -> str:
    """The resolved specification."""
    return files.join(uri, "sweep.yaml")


def status(uri: str) -> str:
    """Every trial's state."""
    return files.join(uri, "status.json")


def journal(uri: str) -> str:
    """Optuna's journal (JSON lines)."""
    return files.join(uri, "optuna.journal")


def results(uri: str) -> str:
    """The rows of all trials."""
    return files.join(uri, "results")


def updates(uri: str, trial: str) -> str:
    """The PPO updates of one trial."""
    return files.join(uri, "updates", f"{trial}.parquet")


def picture(uri: str, trial: str) -> str:
    """The picture of one trial's training."""
    return files.join(uri, "updates", f"{trial}.png")


def difficulty(uri: str, trial: str) -> str:
    """What one trial's learned policy spends on easy and on hard images."""
    return files.join(uri, "difficulty", f"{trial}.parquet")


def trial(uri: str, name: str) -> str:
    """A trial's folder."""
    return files.join(uri, name)


def error(uri: str, name: str) -> str:
    """Why a trial failed last: Tune writes the traceback there."""
    return files.join(uri, name, "error.txt")
