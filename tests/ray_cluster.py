"""A real Ray cluster with a job server and token authentication, on loopback alone."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GCS, DASHBOARD = 6399, 8299
_START_SECONDS = 120


@dataclass(frozen=True)
class RayCluster:
    """A head with CPUs and, if asked for, a node without.

    Attributes:
        folder: Ray's temporary files, logs among them.
        token_file: of mode 0600.
        address: of the job server.
    """

    folder: Path
    token_file: Path
    address: str

    @property
    def ray(self) -> Path:
        """Ray's temporary folder on the head."""
        return self.folder / "ray"

    def get(self, path: str) -> tuple[int, str]:
        """HTTP status and text of a GET with the token."""
        token = self.token_file.read_text()
        request = urllib.request.Request(
            self.address + path, headers={"Authorization": f"Bearer {token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def files(self) -> list[Path]:
        """All files that Ray has written."""
        return [path for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink()]


def _node(
    cluster: RayCluster, *arguments: str, private: Path | None = None
) -> subprocess.Popen[bytes]:
    """A node whose processes all end with it; ``private`` is an empty folder of its own there.

    So is Ray's own folder: nodes that shared it would overwrite each other's packages.
    """
    command = [
        "ray", "start", "--block", "--node-ip-address", "127.0.0.1", "--disable-usage-stats",
        "--object-store-memory", str(100 * 2**20), *arguments,
    ]  # fmt: skip
    ray = Path(sys.executable).with_name("ray")
    mount = ""
    if private is not None:
        own = cluster.folder / "node"
        own.mkdir(exist_ok=True)
        mount = f"mount -t tmpfs none '{private}' && mount --bind '{own}' '{cluster.ray}' && "
    shell = f"{mount}exec '{ray}' {' '.join(command[1:])}"
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "AWS_")) and name != "RLPRUNE_ENVIRONMENT"
    }
    # A job's entry point says `python`.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(cluster.token_file))
    environment["RAY_worker_niceness"] = "0"
    environment["RAY_raylet_start_wait_time_s"] = str(_START_SECONDS)  # where others are at work
    with (cluster.folder / "start.log").open("ab") as log:
        return subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c",
             shell],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment,
        )  # fmt: skip


@contextlib.contextmanager
def ray_cluster(private: Path | None = None) -> Iterator[RayCluster]:
    """Starts a head with two CPUs; call it inside :func:`own_network.own_network`.

    Args:
        private: also starts a node without CPUs, where this folder is another, empty one.
    """
    # Short: names of sockets may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="rp-"))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    cluster = RayCluster(folder, token, f"http://127.0.0.1:{DASHBOARD}")
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        nodes.append(
            _started(
                cluster, 1, "--head", "--port", str(GCS), "--num-cpus", "2",
                "--dashboard-host", "127.0.0.1", "--dashboard-port", str(DASHBOARD),
                "--temp-dir", str(cluster.ray),
            )
        )  # fmt: skip
        if private is not None:
            arguments = ("--address", f"127.0.0.1:{GCS}", "--num-cpus", "0")
            nodes.append(_started(cluster, 2, *arguments, private=private))
        yield cluster
    finally:
        for node in reversed(nodes):
            _end(node)
        shutil.rmtree(folder, ignore_errors=True)


def _started(
    cluster: RayCluster, count: int, *arguments: str, private: Path | None = None
) -> subprocess.Popen[bytes]:
    """A node that has joined as the ``count``-th."""
    node = _node(cluster, *arguments, private=private)
    deadline = time.monotonic() + 2 * _START_SECONDS
    while time.monotonic() < deadline and node.poll() is None:
        with contextlib.suppress(OSError):
            status, text = cluster.get("/nodes?view=summary")
            if status == 200 and text.count('"ALIVE"') >= count:
                return node
        time.sleep(0.2)
    _end(node)
    raise RuntimeError((cluster.folder / "start.log").read_text())


def _end(node: subprocess.Popen[bytes]) -> None:
    node.kill()
    node.wait()
