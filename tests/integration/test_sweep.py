"""Sweeps as users run them: real Ray, real Tune, real processes, real SIGKILL."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import TINY
from processes import comparable, finish, kill_tree, start
from s3_server import BUCKET, s3_server

from rlprune import files
from rlprune.results import KEY, load

SMALL: dict[str, Any] = {
    **TINY,
    "training": {**TINY["training"], "rounds": 1, "updates_per_round": 2, "pretrain_epochs": 2},
    "evaluation": {**TINY["evaluation"], "tradeoff_rates": [0.0], "baselines": ["uniform"]},
}
SPACE = {
    "budgets.storage_max": {"grid": [0.4, 0.6]},
    "budgets.compute_max": {"same": "budgets.storage_max"},
}


def write_spec(folder: Path, name: str = "small", **changes: Any) -> Path:
    """A sweep of two budgets, with parts replaced."""
    trial = {key: value for key, value in SMALL.items() if key != "name"}
    values = {"name": name, "trial": trial, "space": SPACE, **changes}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def wait_for(condition: Any, process: Any, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def states(uri: Path) -> dict[str, str]:
    values = json.loads((uri / "status.json").read_text())
    return {trial["name"]: trial["state"] for trial in values["trials"]}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed sweep: its working folder."""
    folder = tmp_path_factory.mktemp("calm")
    code, out, err = finish(start("sweep", write_spec(folder), cwd=folder))
    assert code == 0, err
    (folder / "out.txt").write_text(out)
    (folder / "err.txt").write_text(err)
    return folder


def test_a_sweep_measures_every_trial_and_says_how_to_go_on(calm: Path) -> None:
    rows = pd.read_parquet(calm / "runs" / "small" / "results")
    assert sorted(rows["method"]) == ["learned", "learned", "uniform", "uniform"]
    assert rows["trial"].nunique() == 2 and set(rows["experiment"]) == {"small"}
    assert not load(calm / "runs" / "small").duplicated(list(KEY)).any()
    out = (calm / "out.txt").read_text()
    assert "2 finished" in out and "rlprune pareto" in out and "rlprune report" in out
    assert set(states(calm / "runs" / "small").values()) == {"finished"}
    for name in states(calm / "runs" / "small"):
        folder = calm / "runs" / "small" / name
        assert len(list(folder.glob("checkpoint_*"))) == 2
        assert list(folder.glob("tensorboard/events.out.tfevents.*"))
        updates = pd.read_parquet(calm / "runs" / "small" / "updates" / f"{name}.parquet")
        assert len(updates) == 2 and "reward_runtime" in updates
        picture = calm / "runs" / "small" / "updates" / f"{name}.png"
        assert picture.stat().st_size > 10_000
        difficulty = pd.read_parquet(calm / "runs" / "small" / "difficulty" / f"{name}.parquet")
        learned = rows[(rows["trial"] == name) & (rows["method"] == "learned")].iloc[0]
        mean = (difficulty["macs_ratio"] * difficulty["images"]).sum() / difficulty["images"].sum()
        assert mean == pytest.approx(learned["macs_mean_ratio"])


def test_two_budgets_share_one_pretrained_network(calm: Path) -> None:
    assert len(list((calm / "runs" / "pretrained").glob("*.pt"))) == 1
    rows = load(calm / "runs" / "small")
    assert rows["seconds_pretrain"].nunique() == 1  # of the one training that both used
    assert rows["training_images"].nunique() == 1  # the cache does not hide the effort


def test_a_trial_of_a_sweep_equals_the_same_trial_alone(calm: Path, tmp_path: Path) -> None:
    """Sharing a pretrained network and a process with other trials changes no result."""
    rows = load(calm / "runs" / "small").sort_values("trial")
    name = rows["trial"].iloc[-1]  # the trial that took the network from the cache, or made it
    configuration = json.loads(rows["configuration"].iloc[-1])
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(configuration))
    code, _, err = finish(start("train", "alone.yaml", "--out", "alone", cwd=tmp_path))
    assert code == 0, err
    alone = comparable(tmp_path / "alone" / "results").drop(columns=["experiment", "row_id"])
    swept = comparable(calm / "runs" / "small" / "results").drop(columns=["experiment", "row_id"])
    swept = swept[swept["trial"] == name].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, swept)


def test_an_experiment_is_not_started_twice_and_status_needs_no_ray(calm: Path) -> None:
    code, _, err = finish(start("sweep", "small.yaml", cwd=calm))
    assert code == 2 and "already holds an experiment" in err and "--resume" in err
    code, out, err = finish(start("status", "runs/small", cwd=calm))
    assert code == 0, err
    assert out.count("finished") == 3 and "R_r 0" in out and "ago" in out
    code, _, err = finish(start("status", "runs", cwd=calm))
    assert code == 2 and "no sweep there" in err


def test_resuming_a_finished_sweep_runs_nothing_again(calm: Path) -> None:
    before = comparable(calm / "runs" / "small" / "results")
    times = load(calm / "runs" / "small")["created_at"].tolist()
    code, out, err = finish(start("sweep", "--resume", "runs/small", cwd=calm))
    assert code == 0, err
    assert "2 finished" in out
    pd.testing.assert_frame_equal(comparable(calm / "runs" / "small" / "results"), before)
    assert load(calm / "runs" / "small")["created_at"].tolist() == times


def test_a_trial_of_a_sweep_can_be_evaluated_again(calm: Path, tmp_path: Path) -> None:
    shutil.copytree(calm / "runs", tmp_path / "runs")  # also: an experiment can be moved
    calm = tmp_path
    trial = calm / "runs" / "small" / next(iter(states(calm / "runs" / "small")))
    first = load(calm / "runs" / "small")
    code, _, err = finish(start("evaluate", trial, "--ratio", "0.7", cwd=calm))
    assert code == 0, err
    again = load(calm / "runs" / "small")
    added = again[again["budget_s"] == 0.7]
    assert added["trial"].tolist() == [trial.name] and added["budgets_met"].all()
    measured = ["trial", "method", "test_accuracy", "macs_mean", "storage_bytes"]
    rest = again.drop(added.index).reset_index(drop=True)
    pd.testing.assert_frame_equal(rest[measured], first[measured])


def test_interrupted_and_killed_at_random_moments(calm: Path, tmp_path: Path) -> None:
    """Ctrl-C, then SIGKILL of the whole process tree, twice; rows equal an undisturbed sweep's."""
    write_spec(tmp_path)
    moments = random.Random(3)
    sweep = tmp_path / "runs" / "small"
    arguments: list[str] = ["sweep", "small.yaml"]

    def begin() -> subprocess.Popen[str]:
        """The sweep, that has just saved a checkpoint of its own."""
        before = progress(sweep)
        process = start(*arguments, cwd=tmp_path, hash_seed=1)
        wait_for(lambda: progress(sweep) != before, process)
        return process

    interrupt(begin())
    arguments = ["sweep", "--resume", "runs/small"]
    kills = 0
    while kills < 2:
        process = begin()
        time.sleep(moments.uniform(0.0, 2.0))
        kill_tree(process)
        if set(states(sweep).values()) == {"finished"}:
            break  # a fast machine: nothing is left to be killed
        kills += 1
        code, out, _ = finish(start("status", "runs/small", cwd=tmp_path))
        assert code == 0 and "2 finished" not in out
    assert kills > 0
    code, out, err = finish(start(*arguments, cwd=tmp_path))
    assert code == 0, err
    assert "2 finished" in out
    pd.testing.assert_frame_equal(
        comparable(sweep / "results"), comparable(calm / "runs" / "small" / "results")
    )
    assert not load(sweep).duplicated(list(KEY)).any()
    for name in states(sweep):  # checkpoints of earlier sessions are gone
        progress_files = list((sweep / name).glob("checkpoint_*/progress.json"))
        sessions = {json.loads(path.read_text())["session"] for path in progress_files}
        assert 1 <= len(progress_files) <= 2 and len(sessions) == 1


def progress(sweep: Path) -> list[str]:
    """The whole checkpoints of all trials."""
    return sorted(str(path) for path in sweep.glob("*/checkpoint_*/progress.json"))


def interrupt(process: subprocess.Popen[str]) -> None:
    """Ctrl-C: the sweep says that it was interrupted and how to resume."""
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: Ray's processes get it too
    code, out, err = finish(process)
    assert code == 130, err
    assert "rlprune sweep --resume" in err and "Traceback" not in err
    assert "interrupted" in out


@pytest.mark.fault
def test_an_experiment_in_object_storage_survives_sigkill(calm: Path, tmp_path: Path) -> None:
    """Everything lies on S3: no rename, nothing on the local disk to resume from."""
    with s3_server() as environment:
        uri = f"s3://{BUCKET}/sweeps/small"
        write_spec(tmp_path, storage_path=f"s3://{BUCKET}/sweeps")
        process = start("sweep", "small.yaml", cwd=tmp_path, **environment)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            wait_for(lambda: files.list_files(uri, "progress.json"), process)
            kill_tree(process)
            process = start("sweep", "--resume", uri, cwd=tmp_path, **environment)
            code, out, err = finish(process)
            assert code == 0, err
            assert "2 finished" in out
            assert len(files.list_files(f"{uri}/updates", ".png")) == 2
            assert len(files.list_files(f"{uri}/difficulty", ".parquet")) == 2
            local = tmp_path / "copy"
            for entry in files.list_files(f"{uri}/results", ".parquet"):
                target = local / entry.uri.partition("/results/")[2]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(files.read_whole(entry.uri))
        pd.testing.assert_frame_equal(
            comparable(local), comparable(calm / "runs" / "small" / "results")
        )
        code, out, err = finish(start("status", uri, cwd=tmp_path, **environment))
        assert code == 0 and out.count("finished") == 3, err
    assert not (tmp_path / "runs").exists()


FACTORY = '''
"""Two equal backbones; one fails in a trial's process (not in the driver) on request."""
import os
import pathlib
import sys

import numpy as np
from rlprune.backbones import build_backbone
from rlprune.config import BackboneConfig

HELD = []


def good(num_classes, in_channels):
    return build_backbone(BackboneConfig(width=0.1), num_classes, (in_channels, 8, 8))


def bad(num_classes, in_channels):
    worker = "default_worker" in sys.argv[0]
    if worker and pathlib.Path("FAIL").exists():
        raise RuntimeError("the sensor is unplugged")
    if worker and pathlib.Path("HUNGRY").exists():
        HELD.append(np.ones(int(os.environ["HUNGRY_BYTES"]), dtype=np.uint8))
    return good(num_classes, in_channels)
'''
OWN = {"backbone.factory": {"grid": ["own_backbone:bad", "own_backbone:good"]}}
OWN_TRIAL = {key: value for key, value in SMALL.items() if key not in ("name", "backbone")}


def test_a_failing_trial_is_named_and_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "own_backbone.py").write_text(FACTORY)
    (tmp_path / "FAIL").touch()
    write_spec(tmp_path, trial=OWN_TRIAL, space=OWN, stop={"max_failures": 0})
    code, out, err = finish(start("sweep", "small.yaml", cwd=tmp_path, PYTHONPATH=str(tmp_path)))
    assert code == 1, err
    assert "1 finished" in out and "1 failed" in out
    assert "sensor" in out and "unplugged" in out and "error.txt" in out and "--resume" in out
    sweep = tmp_path / "runs" / "small"
    failed = [name for name, state in states(sweep).items() if state == "failed"]
    assert "the sensor is unplugged" in (sweep / failed[0] / "error.txt").read_text()
    assert "Traceback" not in err
    (tmp_path / "FAIL").unlink()
    resumed = start("sweep", "--resume", "runs/small", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    code, out, err = finish(resumed)
    assert code == 0, err
    assert "2 finished" in out
    assert pd.read_parquet(sweep / "results")["trial"].nunique() == 2


@pytest.mark.fault
@pytest.mark.skipif(sys.platform != "linux", reason="Ray's memory monitor works on Linux only")
def test_the_memory_monitor_ends_one_trial_not_the_sweep(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    memory = psutil.virtual_memory()
    if memory.available < 10 * 2**30:
        pytest.skip("needs 10 GiB of free memory")
    (tmp_path / "own_backbone.py").write_text(FACTORY)
    (tmp_path / "HUNGRY").touch()
    threshold = (memory.total - memory.available + 4.5 * 2**30) / memory.total
    write_spec(tmp_path, trial=OWN_TRIAL, space=OWN, stop={"max_failures": 0}, max_concurrent=1)
    process = start(
        "sweep", "small.yaml", cwd=tmp_path, PYTHONPATH=str(tmp_path), HUNGRY_BYTES=str(6 * 2**30),
        RAY_memory_usage_threshold=f"{threshold:.3f}", RAY_memory_monitor_refresh_ms="100",
    )  # fmt: skip
    code, out, err = finish(process)
    assert code == 1, err
    assert "1 finished" in out and "1 failed" in out
    assert "memory" in out
