"""A small sweep on a cluster of cluster/local, watched from outside while something breaks."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import pandas as pd
import psutil
import yaml
from local_cluster import RunningCluster

from cluster.local import machines, network, service
from cluster.local.state import HEAD, STORAGE
from rlprune.results import KEY, load

PATIENCE = 1200.0
"""Seconds; on a machine with other work such a sweep has taken minutes."""

SPEC: dict[str, Any] = {
    "name": "faults",
    "trial": {
        "data": {"name": "digits", "max_train_images": 400},
        "backbone": {"width": 0.1},
        "agents": {"hidden": 8, "samples_per_image": 4},
        "rollouts": {"rollouts_per_update": 32, "num_env_runners": 1},
        "training": {
            "pretrain_epochs": 1,
            "runtime_importance_epochs": 1,
            "static_importance_epochs": 1,
            "rounds": 4,
            "updates_per_round": 2,
            "finetune_epochs": 1,
            "batch_size": 64,
        },
        "evaluation": {
            "tradeoff_rates": [0.5],
            "baselines": ["uniform"],
            "batchnorm_images": 128,
        },
        "resources": {"cpus": 1},
    },
    "space": {
        "budgets.storage_max": {"grid": [0.4, 0.6]},
        "budgets.compute_max": {"same": "budgets.storage_max"},
    },
}
"""Two trials, each with a rollout worker of its own; a trial takes two of a node's CPUs."""

PATIENT = {"RAY_worker_niceness": "0", "RAY_raylet_start_wait_time_s": "240"}
"""Ray's workers would give way to any other work on this computer, for minutes; and a node that
takes more than half a minute to start would give up."""

UNEQUAL = ["created_at", "checkpoint_uri"]
"""Besides the seconds: columns that differ between two equal sweeps."""


def comparable(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in order, without times and places."""
    timed = [name for name in rows if name.startswith("seconds_")]
    rows = rows.drop(columns=[*timed, *UNEQUAL])
    for name in ("dataset", "backbone"):
        rows[name] = rows[name].astype(str)
    return rows.sort_values(["trial", "method", "tradeoff_rate"]).reset_index(drop=True)


def undisturbed(
    sweep: Sweep, *more: str | Path, spec: dict[str, Any] | None = None
) -> pd.DataFrame:
    """The rows of the sweep where nothing happens."""
    with ended(sweep.submit("--no-preflight", *more, spec=spec or SPEC)) as job:
        output, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, output
    return sweep.rows()


@dataclass(frozen=True)
class Sweep:
    """A sweep that was submitted, or will be.

    Attributes:
        cluster: on which it runs.
        place: folder in the bucket, one for each test.
        folder: for files on this computer.
    """

    cluster: RunningCluster
    place: str
    folder: Path

    # ------------------------------------------------------------------ commands

    def submit(self, *more: str | Path, spec: dict[str, Any] = SPEC) -> subprocess.Popen[str]:
        """`rlprune submit --follow` on this computer."""
        file = self.folder / "faults.yaml"
        file.write_text(yaml.safe_dump(spec))
        command = [sys.executable, "-m", "rlprune.cli.main", "submit", str(file)]
        command += ["--address", self.cluster.jobs_url, "--follow", *map(str, more)]
        command += ["--storage-path", f"s3://{machines.BUCKET}/{self.place}"]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.cluster.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def processes(self, node: str, *words: str) -> list[psutil.Process]:
        """Processes of one machine with one of these words on their command lines."""
        machine = self.cluster.folder.read_machine(node)
        assert machine is not None
        home = network.namespace(machine.pid)
        found = []
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            if any(word in line for word in words):
                if network.namespace(process.pid) == home:
                    found.append(process)
        return found

    def workers_with(self, *words: str) -> dict[str, list[psutil.Process]]:
        """Worker machines on which such processes run, and these."""
        names = self.cluster.shape.names()[1:]
        found = {name: self.processes(name, *words) for name in names if self._is_on(name)}
        return {name: processes for name, processes in found.items() if processes}

    def on(self, node: str, *command: str) -> str:
        """Runs a command on a machine."""
        machine = self.cluster.folder.read_machine(node)
        assert machine is not None
        entered = [*machines.enter(machine), *command]
        return subprocess.run(entered, check=True, capture_output=True, text=True).stdout

    def _is_on(self, name: str) -> bool:
        machine = self.cluster.folder.read_machine(name)
        return machine is not None and machine.lives()

    # ------------------------------------------------------------------- storage

    def objects(self, below: str = "") -> list[str]:
        """Names of all objects."""
        prefix = f"{self.place}/faults/{below}"
        pages = self._client().get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=machines.BUCKET, Prefix=prefix)
        return [entry["Key"] for page in found for entry in page.get("Contents", [])]

    def states(self) -> dict[str, str]:
        """Every trial's state, as the sweep has noted it; none before it has."""
        return {trial["name"]: trial["state"] for trial in self._status()}

    def failures(self) -> int:
        """How often trials have failed, as the sweep has noted it."""
        return sum(trial["failures"] for trial in self._status())

    def _status(self) -> list[dict[str, Any]]:
        if not self.objects("status.json"):
            return []
        status = json.loads(self._read(f"{self.place}/faults/status.json"))
        return list(status["trials"])

    def saved(self) -> dict[str, set[str]]:
        """The whole checkpoints of each trial."""
        found: dict[str, set[str]] = {}
        for key in self.objects():
            if key.endswith("/progress.json"):
                trial, checkpoint = key.split("/")[-3:-1]
                found.setdefault(trial, set()).add(checkpoint)
        return found

    def rows(self) -> pd.DataFrame:
        """The results, checked file by file, one row per point."""
        with tempfile.TemporaryDirectory() as folder:
            for key in self.objects("results/"):
                target = Path(folder, urllib.parse.unquote(key).partition("/results/")[2])
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(self._read(key))
            return load(folder)

    def text(self, key: str) -> str:
        """An object's text."""
        return self._read(key).decode()

    def _read(self, key: str) -> bytes:
        return bytes(self._client().get_object(Bucket=machines.BUCKET, Key=key)["Body"].read())

    def _client(self) -> Any:
        found = machines.storage_environment(self.cluster.shape)
        return boto3.client(
            "s3",
            endpoint_url=found["AWS_ENDPOINT_URL"],
            aws_access_key_id=found["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=found["AWS_SECRET_ACCESS_KEY"],
            region_name=found["AWS_DEFAULT_REGION"],
            config=botocore.config.Config(
                connect_timeout=5, read_timeout=20, retries={"max_attempts": 5}
            ),
        )

    # ------------------------------------------------------------------- waiting

    def until_two_have_saved(self, job: subprocess.Popen[str]) -> set[str]:
        """Waits until two trials run that have checkpoints, and much to do; their names."""

        def running() -> set[str]:
            states, saved = self.states(), self.saved()
            return {name for name in saved if states.get(name) == "running"}

        wait_until(lambda: len(running()) == 2, job)
        return running()

    def recovery(
        self, trials: Sequence[str] | set[str], began: float, job: subprocess.Popen[str]
    ) -> float:
        """Seconds from ``began`` until each of these trials has saved again (or has finished).

        Call it right after the fault: what was saved before does not count. The job must not
        give up meanwhile.
        """
        before = self.saved()
        left = set(trials)

        def all_again() -> bool:
            now, states = self.saved(), self.states()
            for name in list(left):
                new = now.get(name, set()) - before.get(name, set())
                if new or states.get(name) == "finished":
                    left.discard(name)
            return not left

        wait_until(all_again, job)
        return time.monotonic() - began

    def check(self, job: subprocess.Popen[str], calm: pd.DataFrame) -> str:
        """Waits for the job's end: all trials complete, and the rows of an undisturbed sweep.

        Returns:
            What the job has printed.
        """
        output, _ = job.communicate(timeout=PATIENCE)
        assert job.returncode == 0, output
        states = self.states()
        assert set(states) == set(calm["trial"]) and set(states.values()) == {"finished"}, output
        print(f"trials were tried again {self.failures()} times")
        rows = self.rows()
        keys = rows[list(KEY)].astype(str)
        assert not keys.duplicated().any()
        assert set(map(tuple, keys.values)) == set(map(tuple, calm[list(KEY)].astype(str).values))
        pd.testing.assert_frame_equal(comparable(rows), comparable(calm))
        return output


def wait_until(
    done: Callable[[], bool], job: subprocess.Popen[str] | None = None, seconds: float = PATIENCE
) -> None:
    """Waits for a condition, as long as a job (if one is given) has not ended without it."""
    deadline = time.monotonic() + seconds
    while not done():
        assert job is None or job.poll() is None or done(), job.communicate()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.2)


def mended(cluster: RunningCluster) -> RunningCluster:
    """The cluster with all that a test has switched off switched on again."""
    for name in [*cluster.shape.names(), STORAGE]:
        machine = cluster.folder.read_machine(name)
        if machine is not None and machine.lives():
            service.join(cluster.folder, name)
    service.up(cluster.folder, cluster.shape, lambda _: None)
    return cluster


def leave_nothing(sweep: Sweep) -> None:
    """Ends what a test that failed has left at work."""
    for process in sweep.processes(HEAD, "rlprune.jobs.entry", "rlprune.cli.main sweep"):
        process.kill()


@contextlib.contextmanager
def ended(job: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """A command that does not outlive the test."""
    try:
        yield job
    finally:
        job.kill()
        job.wait()


@contextlib.contextmanager
def no_route(sweep: Sweep, nodes: Sequence[str], to: str) -> Iterator[None]:
    """Machines that cannot send to another one meanwhile, and are told so at once."""
    address = f"{sweep.cluster.shape.address(to)}/32"
    for node in nodes:
        sweep.on(node, "ip", "route", "add", "unreachable", address)
    try:
        yield
    finally:
        for node in nodes:
            with contextlib.suppress(subprocess.CalledProcessError):  # the machine is off
                sweep.on(node, "ip", "route", "del", "unreachable", address)


def note(fault: str, seconds: float) -> None:
    """Keeps a time to recovery for the table, where RLPRUNE_FAULT_TIMES names a file."""
    print(f"{fault}: {seconds:.1f} s to recovery, {os.getloadavg()[0]:.1f} processes at work")
    path = os.environ.get("RLPRUNE_FAULT_TIMES")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{fault}\t{seconds:.1f}\t{os.getloadavg()[0]:.1f}\n")
