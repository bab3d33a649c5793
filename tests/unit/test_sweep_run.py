"""The small parts around Tune: folders and refusals."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlprune.errors import CheckpointError, ConfigError, RlpruneError
from rlprune.sweep import layout
from rlprune.sweep.loggers import check_packages, logger_callbacks
from rlprune.sweep.patches import no_keys_in_runtime_env
from rlprune.sweep.run import (
    check_new,
    check_nobody_runs_it,
    experiment_uri,
    is_begun,
    read_spec,
    wait_until_left,
)
from rlprune.sweep.space import trial_points
from rlprune.sweep.spec import SweepSpec, spec_from_dict, spec_to_dict
from rlprune.sweep.status import SweepStatus

OPTIONS = "?endpoint_override=localhost:9000&scheme=http"


def spec_of(**values: Any) -> SweepSpec:
    space = {"seed": {"grid": [0, 1]}}
    return spec_from_dict({"name": "first", "space": space, **values}, Path.cwd())


def write_experiment(folder: Path, spec: SweepSpec) -> None:
    folder.mkdir(parents=True)
    (folder / "sweep.yaml").write_text(yaml.safe_dump(spec_to_dict(spec), sort_keys=False))


# --- folders --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "base", "name"),
    [
        ("/data/runs/first", "/data/runs", "first"),
        ("/data/runs/first/", "/data/runs", "first"),
        ("/first", "/", "first"),
        ("s3://bucket/first", "s3://bucket", "first"),
        ("s3://bucket/runs/first/", "s3://bucket/runs", "first"),
        (f"s3://bucket/runs/first{OPTIONS}", f"s3://bucket/runs{OPTIONS}", "first"),
    ],
)
def test_storage_path_and_name_of_an_experiment(uri: str, base: str, name: str) -> None:
    assert layout.split(uri) == (base, name)


def test_only_local_paths_are_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert layout.absolute("runs/first") == str(tmp_path / "runs" / "first")
    assert layout.absolute(".") == str(tmp_path)
    assert layout.absolute("/data/../runs") == "/runs"
    assert layout.absolute("s3://bucket/runs") == "s3://bucket/runs"
    assert layout.absolute("file:///data/../runs") == "file:///data/../runs"


@pytest.mark.parametrize("base", ["runs", "s3://bucket", f"s3://bucket/runs{OPTIONS}"])
def test_an_experiment_is_split_as_it_was_joined(base: str) -> None:
    uri = experiment_uri(spec_of(storage_path=base))
    assert layout.split(uri) == (layout.absolute(base), "first")


def test_every_file_has_its_place() -> None:
    uri = "s3://bucket/runs/first"
    assert layout.updates(uri, "0001_width=0.5") == f"{uri}/updates/0001_width=0.5.parquet"
    assert layout.picture(uri, "0001_width=0.5") == f"{uri}/updates/0001_width=0.5.png"
    difficulty = layout.difficulty(uri, "0001_width=0.5")
    assert difficulty == f"{uri}/difficulty/0001_width=0.5.parquet"
    assert layout.error(uri, "0001_width=0.5") == f"{layout.trial(uri, '0001_width=0.5')}/error.txt"
    places = {layout.spec(uri), layout.status(uri), layout.journal(uri), layout.results(uri)}
    names = ("sweep.yaml", "status.json", "optuna.journal", "results")
    assert places == {f"{uri}/{name}" for name in names}


# --- specification of an experiment ---------------------------------------------------------


def test_a_moved_and_renamed_experiment_goes_on_where_it_is(tmp_path: Path) -> None:
    spec = spec_of(
        storage_path=str(tmp_path / "old"),
        trial={"agents": {"hidden": 11}},
        stop={"hours": 1.5},
        loggers=[],
    )
    write_experiment(tmp_path / "old" / "first", spec)
    assert read_spec(str(tmp_path / "old" / "first")) == spec
    (tmp_path / "new").mkdir()
    shutil.move(tmp_path / "old" / "first", tmp_path / "new" / "second")
    moved = read_spec(f"{tmp_path}/new/second/")
    assert (moved.storage_path, moved.name) == (str(tmp_path / "new"), "second")
    assert experiment_uri(moved) == str(tmp_path / "new" / "second")
    assert dataclasses.replace(moved, storage_path=spec.storage_path, name="first") == spec
    assert trial_points(moved) == trial_points(spec)


def test_an_experiment_is_found_from_any_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_experiment(tmp_path / "runs" / "first", spec_of())
    monkeypatch.chdir(tmp_path / "runs")
    assert experiment_uri(read_spec("first")) == str(tmp_path / "runs" / "first")


def test_no_sweep_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_spec(str(tmp_path / "elsewhere"))
    assert str(caught.value).startswith(f"{tmp_path}/elsewhere: no sweep there (no sweep.yaml).")
    assert "start one with `rlprune sweep SPEC`" in str(caught.value)


@pytest.mark.parametrize("name", ["a" * 70, "two words", "pretrained"])
def test_a_folders_name_that_no_sweep_may_have(tmp_path: Path, name: str) -> None:
    write_experiment(tmp_path / name, spec_of())
    with pytest.raises(ConfigError) as caught:
        read_spec(str(tmp_path / name))
    (problem,) = caught.value.problems
    assert (problem.field, problem.value) == ("name", name)


@pytest.mark.parametrize("content", ["name: [", "", "- a list", "\x00"])
def test_a_damaged_specification_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "sweep.yaml").write_text(content)
    with pytest.raises(RlpruneError) as caught:
        read_spec(str(tmp_path))
    assert str(tmp_path / "sweep.yaml") in str(caught.value)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("file", ["sweep.yaml", "results/method=learned/rows.parquet"])
def test_an_experiment_is_not_started_twice(tmp_path: Path, file: str) -> None:
    uri = tmp_path / "runs" / "first"
    check_new(str(uri))
    (uri / "tensorboard").mkdir(parents=True)
    check_new(str(uri))
    (uri / file).parent.mkdir(parents=True, exist_ok=True)
    (uri / file).write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        check_new(str(uri))
    message = str(caught.value)
    assert message.startswith(f"{uri} already holds an experiment.")
    assert f"`rlprune sweep --resume {uri}`" in message and "--set name=" in message


def test_a_sweep_is_run_by_one_process_at_a_time() -> None:
    status = SweepStatus()
    check_nobody_runs_it(status, "somewhere")
    status.begin([], 1)
    check_nobody_runs_it(status, "somewhere")  # it is this one
    status.host, status.pid = "elsewhere", 4321
    with pytest.raises(CheckpointError) as caught:
        check_nobody_runs_it(status, "somewhere")
    message = str(caught.value)
    assert message.startswith("somewhere: process 4321 on elsewhere is running this sweep.")
    assert "`rlprune status somewhere`" in message and "stop it before resuming" in message
    status.end()
    check_nobody_runs_it(status, "somewhere")


# --- trackers -------------------------------------------------------------------------------

PACKAGES = {"wandb": "wandb", "mlflow": "mlflow", "comet": "comet_ml"}
MISSING = {name: p for name, p in PACKAGES.items() if importlib.util.find_spec(p) is None}


@pytest.mark.skipif(not MISSING, reason="every tracker is installed")
def test_all_missing_trackers_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check_packages(spec_of(loggers=["tensorboard", *PACKAGES]))
    assert caught.value.exit_status == 2
    assert [problem.value for problem in caught.value.problems] == list(MISSING)
    for name, problem in zip(MISSING, caught.value.problems, strict=True):
        assert problem.field == "loggers"
        assert problem.rule == f"needs the package {MISSING[name]}"
        assert problem.remedy.startswith(f"pip install {MISSING[name]}, or take {name} out")
        assert str(problem) in str(caught.value)


def test_tensorboard_needs_nothing_and_no_callback_of_ours() -> None:
    check_packages(spec_of())
    check_packages(spec_of(loggers=[]))
    assert logger_callbacks(spec_of()) == []


# --- restore --------------------------------------------------------------------------------


def test_a_sweep_is_begun_when_its_specification_lies_there(tmp_path: Path) -> None:
    spec = spec_of(storage_path=str(tmp_path), base="quickstart")
    assert not is_begun(spec)
    write_experiment(tmp_path / "first", spec)
    assert is_begun(spec)
    otherwise_run = {"max_concurrent": 7, "resources": {"cpus": 4}, "stop": {"max_failures": 9}}
    assert is_begun(spec_of(storage_path=str(tmp_path), base="quickstart", **otherwise_run))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"trial": {"training": {"rounds": 9}}}, "trial"),
        ({"space": {"seed": {"grid": [0, 1, 2]}}}, "space"),
        ({"search": {"algorithm": "random", "num_samples": 3}}, "search"),
    ],
)
def test_another_sweep_of_the_same_name_is_not_gone_on_with(
    tmp_path: Path, change: dict[str, Any], part: str
) -> None:
    write_experiment(tmp_path / "first", spec_of(storage_path=str(tmp_path)))
    with pytest.raises(CheckpointError, match=f"differs in {part}\\.") as caught:
        is_begun(spec_of(storage_path=str(tmp_path), **change))
    assert "--set name=" in str(caught.value)


def test_a_driver_that_died_elsewhere_is_waited_for(tmp_path: Path) -> None:
    uri, told = str(tmp_path), []
    wait_until_left(uri, told.append)  # no status at all
    status = SweepStatus()
    status.begin(["a"], 1)
    status.host = "another-machine"
    status.updated -= 119.0  # silent in a second
    status.write(uri)
    started = time.monotonic()
    wait_until_left(uri, told.append, pause=0.05)
    assert 0.5 < time.monotonic() - started < 10 and len(told) == 1
    assert "another-machine" in told[0]


def test_a_driver_that_lives_is_left_alone(tmp_path: Path) -> None:
    uri = str(tmp_path)
    status = SweepStatus()
    status.begin(["a"], 1)
    status.host = "another-machine"
    status.write(uri)

    def sign_of_life(_: str) -> None:
        status.updated += 1.0
        status.write(uri)

    with pytest.raises(CheckpointError, match="another-machine is running this sweep"):
        wait_until_left(uri, sign_of_life, pause=0.01)


def test_keys_are_not_copied_into_the_trials_runtime_env(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Tune would put into logs and onto command lines."""
    from ray.tune.execution.class_cache import _ActorClassCache

    class Trainable:
        pass

    def env_vars() -> dict[str, str]:
        options = _ActorClassCache().get(Trainable)._default_options
        return dict(options["runtime_env"]["env_vars"])

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "geheim")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "geheim")
    assert env_vars()["AWS_SECRET_ACCESS_KEY"] == "geheim"  # else the patch has no use any more
    with no_keys_in_runtime_env():
        assert "geheim" not in env_vars().values() and "PL_DISABLE_FORK" in env_vars()
    assert env_vars()["AWS_SESSION_TOKEN"] == "geheim"
