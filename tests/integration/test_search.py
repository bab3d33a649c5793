"""Searchers and schedulers of sweeps: Optuna, successive halving, population-based training."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY

from rlprune.results import load
from rlprune.sweep.run import experiment_uri, read_spec, run_sweep
from rlprune.sweep.spec import SweepSpec, spec_from_dict
from rlprune.sweep.status import FINISHED, INTERRUPTED, PENDING, STOPPED, SweepStatus, read_status

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What run_sweep sets for Ray ends with the test."""
    for name in ("RAY_CHDIR_TO_TRIAL_DIR", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"):
        monkeypatch.delenv(name, raising=False)


def spec(folder: Path, rounds: int, **changes: Any) -> SweepSpec:
    trial: dict[str, Any] = copy.deepcopy(TINY)
    trial["training"] = {
        "pretrain_epochs": 1,
        "runtime_importance_epochs": 1,
        "static_importance_epochs": 0,
        "rounds": rounds,
        "updates_per_round": 1,
        "finetune_epochs": 0.5,
        "batch_size": 64,
    }
    trial["evaluation"] |= {"tradeoff_rates": [0.0], "baselines": []}
    del trial["name"]
    values = {"name": "search", "trial": trial, "storage_path": str(folder), **changes}
    return spec_from_dict(values, folder)


def run(sweep: SweepSpec, resume: bool = False) -> SweepStatus:
    return run_sweep(sweep, resume)


def test_optuna_searches_a_conditional_space_and_goes_on_after_a_time_limit(
    tmp_path: Path,
) -> None:
    sweep = spec(
        tmp_path,
        rounds=1,
        space={
            "pruning.tradeoff": {"choice": ["permanent", "paper"]},
            "budgets.storage_max": {
                "when": "pruning.tradeoff",
                "cases": {"permanent": {"uniform": [0.3, 0.9]}, "paper": 0.5},
            },
        },
        search={"algorithm": "optuna", "num_samples": 3, "seed": 1},
        max_concurrent=1,
        stop={"hours": 12 / 3600},
    )
    uri = Path(experiment_uri(sweep))
    counts = run(sweep).counts()
    assert counts[INTERRUPTED] + counts[PENDING] >= 1 and counts[STOPPED] == 0
    values = yaml.safe_load((uri / "sweep.yaml").read_text())
    values["stop"]["hours"] = None
    (uri / "sweep.yaml").write_text(yaml.safe_dump(values))
    names = set(read_status(str(uri)).trials)
    status = run(read_spec(str(uri)), resume=True)
    assert status.counts()[FINISHED] == 3 == len(status.trials)
    assert names <= set(status.trials)  # the interrupted one kept its name and folder
    rows = load(uri)
    assert rows["trial"].nunique() == 3 and rows["trial"].is_unique
    import optuna

    backend = optuna.storages.journal.JournalFileBackend(str(uri / "optuna.journal"))
    study = optuna.load_study(study_name="rlprune", storage=optuna.storages.JournalStorage(backend))
    told = {t.user_attrs["name"]: t.values for t in study.trials if t.state.name == "COMPLETE"}
    for _, row in rows.iterrows():
        assert told[row["trial"]] == [row["validation_accuracy"], row["storage_bytes"]]
    assert b"pickle" not in (uri / "optuna.journal").read_bytes()


def test_successive_halving_stops_the_worse_trials_and_keeps_them_stopped(tmp_path: Path) -> None:
    sweep = spec(
        tmp_path,
        rounds=3,
        # Such steps make a network of noise: they must not survive.
        space={"training.finetune_learning_rate": {"grid": [1e-3, 0.3, 0.2]}},
        scheduler={
            "name": "asha",
            "metric": "validation_loss",
            "grace_rounds": 1,
            "reduction_factor": 2,
        },
        max_concurrent=1,
    )
    status = run(sweep)
    assert status.counts()[STOPPED] >= 1
    finished = [trial.name for trial in status.in_state(FINISHED)]
    assert any("0.001" in name for name in finished)
    stopped = [trial.name for trial in status.in_state(STOPPED)]
    assert set(load(experiment_uri(sweep))["trial"]) == set(finished)
    again = run(sweep, resume=True)
    assert [trial.name for trial in again.in_state(STOPPED)] == stopped


def test_population_based_training_moves_worse_trials_to_better_weights(tmp_path: Path) -> None:
    sweep = spec(
        tmp_path,
        rounds=4,
        space={"training.finetune_learning_rate": {"grid": [1e-3, 0.3]}},
        scheduler={
            "name": "pbt",
            "metric": "validation_loss",
            "perturbation_rounds": 1,
            "mutations": {"training.finetune_learning_rate": {"loguniform": [1e-4, 1e-2]}},
        },
        max_concurrent=2,
    )
    status = run(sweep)
    assert status.counts()[FINISHED] == 2
    rows = load(experiment_uri(sweep)).set_index("trial")
    rates = {
        trial: json.loads(text)["training"]["finetune_learning_rate"]
        for trial, text in rows["configuration"].items()
    }
    worse = next(name for name in rates if "=0.3" in name)
    assert rates[worse] < 0.3, "it should have copied the better trial and its step"
