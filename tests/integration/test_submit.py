"""Sweeps as jobs, as users run them: a real cluster with tokens, a real job server, real S3."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
import yaml
from conftest import TINY
from own_network import own_network
from processes import finish, start
from ray_cluster import RayCluster, ray_cluster
from s3_server import BUCKET, s3_server

from rlprune.results import KEY, load

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    **{key: value for key, value in TINY.items() if key != "name"},
    "training": {**TINY["training"], "rounds": 1, "updates_per_round": 2, "pretrain_epochs": 30},
    "evaluation": {**TINY["evaluation"], "tradeoff_rates": [0.0], "baselines": ["uniform"]},
}
SPACE = {
    "budgets.storage_max": {"grid": [0.4, 0.6]},
    "budgets.compute_max": {"same": "budgets.storage_max"},
}
LONG = 600.0  # seconds; a machine with other work on it has needed minutes for a job
FACTORY = """
import sys

def make(num_classes, in_channels):
    if "default_worker" in sys.argv[0]:
        raise RuntimeError("the sensor is unplugged")
    from rlprune.backbones import build_backbone
    from rlprune.config import BackboneConfig
    return build_backbone(BackboneConfig(width=0.1), num_classes, (in_channels, 8, 8))
"""


@dataclass(frozen=True)
class Site:
    """A cluster and a storage; the storage's secret key occurs nowhere else."""

    cluster: RayCluster
    s3: dict[str, str]
    private: Path

    @property
    def secret(self) -> str:
        return self.s3["AWS_SECRET_ACCESS_KEY"]

    def start(self, *arguments: str | Path, cwd: Path, **environment: str) -> Any:
        """The command beside the cluster, as a user with token and keys runs it."""
        given = {**self.s3, "RAY_AUTH_TOKEN_PATH": str(self.cluster.token_file), **environment}
        return start(*arguments, "--address", self.cluster.address, cwd=cwd, **given)

    def submit(self, spec: Path, *more: str | Path, **environment: str) -> Any:
        names = [part for name in self.s3 for part in ("--env", name)]
        return self.start("submit", spec, *names, *more, cwd=spec.parent, **environment)

    def keys(self, prefix: str = "") -> list[str]:
        """Names of all objects in the storage. (This process's own S3 client may have threads in
        the network of before.)"""
        listed = self._client().list_objects_v2(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for entry in listed.get("Contents", [])]

    def object(self, key: str) -> bytes:
        return bytes(self._client().get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def _client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.s3["AWS_ENDPOINT_URL"],
            aws_access_key_id=self.s3["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
        )

    def states(self, name: str) -> dict[str, str]:
        values = json.loads(self.object(f"sweeps/{name}/status.json"))
        return {trial["name"]: trial["state"] for trial in values["trials"]}

    def sweep_process(self) -> psutil.Process | None:
        """The process of the sweep inside the job that runs on this cluster."""
        for process in psutil.process_iter(["cmdline"]):
            if "rlprune.cli.main" in (process.info["cmdline"] or []):
                try:
                    if process.cwd().startswith(str(self.cluster.folder)):
                        return process
                except psutil.Error:
                    continue
        return None


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    private = tmp_path_factory.mktemp("private")
    with own_network(), s3_server() as environment, ray_cluster(private) as cluster:
        keys = {**environment, "AWS_SECRET_ACCESS_KEY": f"geheim-{secrets.token_hex(8)}"}
        yield Site(cluster, keys, private)


def write_spec(folder: Path, name: str, **changes: Any) -> Path:
    values = {"name": name, "trial": SMALL, "space": SPACE, "storage_path": f"s3://{BUCKET}/sweeps"}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}))
    return path


def wait_for(condition: Any, process: Any, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.1)


class CommandLines(threading.Thread):
    """Looks at all command lines of this machine, again and again, for a text."""

    def __init__(self, text: str) -> None:
        super().__init__(daemon=True)
        self.text = text.encode()
        self.seen: set[bytes] = set()
        self.looks = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.1):
            self.looks += 1
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = file.read_bytes()
                except OSError:
                    continue
                if self.text in line:
                    self.seen.add(line)


@pytest.mark.fault
def test_a_job_is_stopped_killed_and_finished_and_keeps_its_secrets(
    site: Site, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, "small")
    watcher = CommandLines(site.secret)
    watcher.start()
    first = site.submit(spec, "--no-preflight", "--follow")
    wait_for(lambda: [k for k in site.keys("sweeps/small/") if "progress.json" in k], first)

    code, _, err = finish(site.submit(spec))
    assert code == 2 and "small-r1 is at work on s3://" in err and "rlprune jobs stop" in err
    code, out, err = finish(site.start("jobs", "stop", "small-r1", cwd=tmp_path))
    assert code == 0 and "STOPPED" in out, err
    code, followed, err = finish(first, LONG)
    assert code == 130 and "Interrupted. Continue with:" in followed, err
    assert "interrupted" in site.states("small").values()
    before = {k for k in site.keys("sweeps/small/") if "progress.json" in k}
    assert before

    second = site.submit(spec, "--no-preflight", "--follow")
    wait_for(lambda: "running" in site.states("small").values(), second)
    driver = site.sweep_process()
    assert driver is not None
    driver.send_signal(signal.SIGKILL)
    code, out, err = finish(second, LONG)
    assert code == 0, out + err
    assert "Submitted small-r2." in out and "killed by signal 9. Restart 1 of 5" in out
    assert "2 finished" in out
    watcher.over.set()
    watcher.join()

    local = tmp_path / "rows"
    for key in site.keys("sweeps/small/results/"):
        target = local / urllib.request.unquote(key).partition("/results/")[2]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(site.object(key))
    rows = load(local)
    assert sorted(rows["method"]) == ["learned", "learned", "uniform", "uniform"]
    assert rows["trial"].nunique() == 2 and not rows.duplicated(list(KEY)).any()

    _, jobs = site.cluster.get("/api/jobs/")
    mailboxes = set(re.findall(r"rlprune-environment-\w+\.zip", jobs))
    assert len(mailboxes) == 2
    for name in mailboxes:  # removed when the job ended
        assert site.cluster.get(f"/api/packages/gcs/{name}")[0] == 404
    assert watcher.looks > 50 and watcher.seen == set()
    secret = site.secret.encode()
    for text in (followed, out, err, jobs):
        assert site.secret not in text
    objects = site.keys()
    assert len(objects) > 20 and any(key.endswith("tuner.pkl") for key in objects)
    assert [key for key in objects if secret in site.object(key)] == []
    files = site.cluster.files()
    assert any(file.name == "runtime_env_agent.log" for file in files)
    assert [file for file in files if secret in file.read_bytes()] == []


def test_a_failing_trial_and_own_code(site: Site, tmp_path: Path) -> None:
    """With the checks of every node before it; they pass."""
    code_folder = tmp_path / "code"
    code_folder.mkdir()
    (code_folder / "own_net.py").write_text(FACTORY)
    trial = {**SMALL, "backbone": {"factory": "own_net:make"}}
    spec = write_spec(
        tmp_path, "broken", trial=trial, space={"seed": {"grid": [0]}}, stop={"max_failures": 0}
    )
    code, out, err = finish(site.submit(spec, "--code", code_folder, "--follow"), LONG)
    assert code == 1, out + err
    assert "1 failed" in out and "the sensor is unplugged" in out and "Restart" not in out
    assert "│ storage          │ ok │" in out and "2 answer" in out
    assert set(site.states("broken").values()) == {"failed"}
    code, out, err = finish(site.start("jobs", "list", cwd=tmp_path))
    assert code == 0 and "broken-r1" in out and "FAILED (1)" in out, err
    code, out, err = finish(site.start("jobs", "logs", "broken-r1", cwd=tmp_path))
    assert code == 0 and "the sensor is unplugged" in out, err
    code, _, err = finish(site.start("jobs", "stop", "broken-r1", cwd=tmp_path))
    assert code == 2 and "has ended already (FAILED)" in err


def test_preflight_finds_a_node_that_does_not_share_the_storage(site: Site, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, "local", storage_path=str(site.private))
    process = site.start("preflight", spec, "--set", "resources.cpus=3", cwd=tmp_path)
    code, out, err = finish(process, LONG)
    assert code == 2, out + err
    assert "Not started: storage, CPU, GPU, memory." in out
    words = " ".join(out.replace("│", " ").split())  # cells wrap where paths are long
    assert "No such file or directory" in words and "a trial needs 3 CPU" in words
    assert not list(site.private.iterdir())  # nothing is left behind


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (None, "asks for a token, and there is none"),
        ("f" * 64, "refused the token from RAY_AUTH_TOKEN_PATH"),
    ],
)
def test_without_the_right_token_nothing_is_let_in(
    site: Site, tmp_path: Path, token: str | None, words: str
) -> None:
    file = tmp_path / "token"
    if token is not None:
        file.touch(mode=0o600)
        file.write_text(token)
    given = {"RAY_AUTH_TOKEN_PATH": "" if token is None else str(file), "HOME": str(tmp_path)}
    spec = write_spec(tmp_path, "stranger")
    known = site.cluster.get("/api/jobs/")[1]
    for command in (("submit", spec), ("jobs", "list"), ("jobs", "stop", "small-r1")):
        code, _, err = finish(site.start(*command, cwd=tmp_path, **given))
        assert code == 2 and words in err and "RAY_AUTH_TOKEN_PATH" in err, err
        assert "Traceback" not in err
    assert site.cluster.get("/api/jobs/")[1] == known


def test_too_much_code_is_refused_before_anything_is_sent(site: Site, tmp_path: Path) -> None:
    code_folder = tmp_path / "code"
    (code_folder / "images").mkdir(parents=True)
    with (code_folder / "images" / "all.bin").open("wb") as file:
        os.truncate(file.fileno(), 101 * 2**20)
    spec = write_spec(tmp_path, "fat")
    code, _, err = finish(site.submit(spec, "--code", code_folder))
    assert code == 2 and "at most 100.0 MiB" in err and "images/ 101.0 MiB" in err
    assert "fat-r1" not in site.cluster.get("/api/jobs/")[1]
