"""Parts of cluster/local that need no namespaces."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.local import machines, network
from cluster.local.state import (
    LocalClusterError,
    Machine,
    Shape,
    StateFolder,
    start_time,
    write_private,
)

SHAPE = Shape(
    network="10.201.7",
    workers=2,
    cpus=1,
    head_cpus=0,
    store_mb=150,
    memory_gb=4.0,
    storage=True,
    environment={"EXTRA": "1"},
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateFolder:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = StateFolder("demo")
    found.create()
    return found


def test_addresses_of_the_machines() -> None:
    names = ["gateway", "head", "s3", "worker1", "worker9"]
    found = [SHAPE.address(name) for name in names]
    assert found == [f"10.201.7.{last}" for last in (1, 2, 3, 11, 19)]
    assert SHAPE.names() == ["head", "worker1", "worker2"]


def test_the_folder_is_private_and_keeps_one_token(folder: StateFolder) -> None:
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert folder.token.stat().st_mode & 0o777 == 0o600
    token = folder.token.read_text()
    assert len(token) == 64 and int(token, 16)
    folder.create()
    assert folder.token.read_text() == token
    other = StateFolder("other")
    other.create()
    assert other.token.read_text() != token


def test_a_folder_that_is_not_ours_is_refused(folder: StateFolder, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    (folder.parent / "trap").symlink_to(target)
    with pytest.raises(LocalClusterError, match="belongs to somebody else"):
        StateFolder("trap").create()
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("name", ["", "../x", "a b", "a/b", "-x"])
def test_names_that_are_no_names(name: str) -> None:
    with pytest.raises(LocalClusterError, match="use letters and digits"):
        StateFolder(name)


def test_shape_and_machines_come_back(folder: StateFolder) -> None:
    assert folder.read_shape() is None and folder.machines() == []
    folder.write_shape(SHAPE)
    machine = Machine("worker1", "10.201.7.11", os.getpid(), start_time(os.getpid()) or 0)
    folder.write_machine(machine)
    assert folder.read_shape() == SHAPE
    assert folder.machines() == [machine] and machine.lives()
    assert folder.read_machine("worker2") is None


def test_a_number_that_another_process_got_is_not_the_machine() -> None:
    started = start_time(os.getpid())
    assert started is not None
    machine = Machine("head", "10.201.7.2", os.getpid(), started - 1)
    assert not machine.lives()
    with pytest.raises(LocalClusterError, match="node start head"):
        machine.inner_pid()
    machines.kill(machine)  # must not touch the other process: this one


def test_a_dead_process_has_no_start_time_even_before_it_is_collected() -> None:
    process = subprocess.Popen(["sleep", "60"])
    assert start_time(process.pid) is not None
    process.kill()
    deadline = time.monotonic() + 10
    while start_time(process.pid) is not None:  # a zombie until wait()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert Path(f"/proc/{process.pid}").exists()
    process.wait()
    assert start_time(process.pid) is None


def test_private_files_are_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_nodes_get_no_secrets_and_settings_of_other_clusters(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-another-cluster")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-real-key")
    environment = machines.node_environment(folder, SHAPE)
    assert "RAY_ADDRESS" not in environment and "RAY_AUTH_TOKEN" not in environment
    assert environment["AWS_SECRET_ACCESS_KEY"] == "testing"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == str(folder.token)
    assert environment["EXTRA"] == "1"
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(machines.REPOSITORY)
    found = shutil.which("python", path=environment["PATH"])
    assert found is not None and Path(found).parent == Path(sys.executable).parent


def test_commands_of_the_nodes_hold_no_token(folder: StateFolder) -> None:
    token = folder.token.read_text()
    head, worker = machines.ray_command("head", SHAPE), machines.ray_command("worker2", SHAPE)
    assert token not in " ".join(head + worker)
    assert head[head.index("--num-cpus") + 1] == "0"
    assert head[head.index("--dashboard-host") + 1] == "10.201.7.2"  # not all interfaces
    assert worker[worker.index("--address") + 1] == "10.201.7.2:6379"
    assert worker[worker.index("--num-cpus") + 1] == "1"
    assert worker[worker.index("--object-store-memory") + 1] == "150000000"


def test_a_network_in_use_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = "[]"
    monkeypatch.setattr(network, "_run", lambda *command: routes)
    first = network.choose_network("demo")
    assert first.startswith("10.") and network.choose_network("demo") == first
    routes = f'[{{"dst": "default"}}, {{"dst": "{first}.0/24"}}]'
    assert network.choose_network("demo") != first
    routes = '[{"dst": "10.0.0.0/8"}]'
    with pytest.raises(LocalClusterError, match="No free network"):
        network.choose_network("demo")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LocalClusterError, match=r"ip, mount, nsenter, unshare not found.*iproute2"):
        network.check_permitted()


def test_where_namespaces_are_not_permitted_the_remedy_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an `unshare` that fails as the real one does for users without the right."""
    for tool in ("ip", "mount", "nsenter", "unshare"):
        path = tmp_path / tool
        path.write_text("#!/bin/sh\necho 'unshare: Operation not permitted' >&2\nexit 1\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LocalClusterError, match=r"not permitted here .*--map-root-user"):
        network.check_permitted()
