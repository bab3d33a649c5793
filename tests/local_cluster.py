"""A cluster of cluster/local for one test module; skipped, with the reason, where not permitted."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from cluster.local import machines, network, service
from cluster.local.state import HEAD, LocalClusterError, Shape, StateFolder


@dataclass(frozen=True)
class RunningCluster:
    """A head and workers that are up."""

    folder: StateFolder
    shape: Shape

    @property
    def head(self) -> str:
        return self.shape.address(HEAD)

    @property
    def jobs_url(self) -> str:
        return f"http://{self.head}:{machines.DASHBOARD_PORT}"

    def environment(self, token_file: str | None = "") -> dict[str, str]:
        """Of a command that uses the cluster: its token, another one, or (None) no token."""
        found = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_"))}
        found |= machines.client_environment(self.folder, self.shape)
        del found["RAY_API_SERVER_ADDRESS"]  # tests say where they go
        if token_file is None:
            found |= {"RAY_AUTH_MODE": "disabled"}
            del found["RAY_AUTH_TOKEN_PATH"]
        elif token_file:
            found["RAY_AUTH_TOKEN_PATH"] = token_file
        return found

    def python(
        self,
        code: str,
        environment: Mapping[str, str],
        node: str | None = None,
        timeout: float = 90,
    ) -> subprocess.CompletedProcess[str]:
        """Runs Python code on this computer, or on one of the machines."""
        command = [sys.executable, "-c", code]
        if node is not None:
            machine = self.folder.read_machine(node)
            assert machine is not None
            command = [*machines.enter(machine), *command]
        return subprocess.run(
            command, env=dict(environment), capture_output=True, text=True, timeout=timeout
        )


@contextlib.contextmanager
def local_cluster(
    name: str, workers: int = 2, storage: bool = False, cpus: int = 1, **environment: str
) -> Iterator[RunningCluster]:
    """Starts a cluster of that name, which no other test uses, and takes it down."""
    try:
        network.check_permitted()
    except LocalClusterError as error:
        pytest.skip(str(error))
    folder = StateFolder(name)
    service.down(folder)  # left by a test run that was killed
    shape = Shape(
        network=network.choose_network(name),
        workers=workers,
        cpus=cpus,
        head_cpus=0,
        store_mb=100,
        memory_gb=2.0,
        storage=storage,
        environment=environment,
    )
    try:
        service.up(folder, shape, lambda _: None)
        yield RunningCluster(folder, shape)
    finally:
        service.down(folder)
