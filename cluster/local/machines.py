"""Starting and killing the pretended machines, and the commands that run on them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cluster.local import network
from cluster.local.state import (
    HEAD,
    HUB,
    STORAGE,
    LocalClusterError,
    Machine,
    Shape,
    StateFolder,
    start_time,
)

GCS_PORT, DASHBOARD_PORT, CLIENT_PORT, STORAGE_PORT = 6379, 8265, 10001, 9000
BUCKET = "rlprune"
REPOSITORY = Path(__file__).resolve().parents[2]

_MACHINE_SCRIPT = Path(__file__).with_name("machine.sh")
_RAY_TEMP = Path("/tmp/ray")


def storage_environment(shape: Shape) -> dict[str, str]:
    """Variables that lead to the S3 server: dummy keys, as it asks for none.

    The server is reached by address: names are known on the machines only.
    """
    if not shape.storage:
        return {}
    return {
        "AWS_ENDPOINT_URL": f"http://{shape.address(STORAGE)}:{STORAGE_PORT}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def client_environment(folder: StateFolder, shape: Shape) -> dict[str, str]:
    """Variables with which a command reaches the cluster; the token itself is in its file."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder.token),
        "RAY_API_SERVER_ADDRESS": f"http://{shape.address(HEAD)}:{DASHBOARD_PORT}",
        **storage_environment(shape),
    }


def node_environment(folder: StateFolder, shape: Shape) -> dict[str, str]:
    """Environment of a Ray node, and so of all that runs on it.

    This shell's variables for Ray and AWS stay outside: they concern other clusters.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_"))}
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    programs = [str(Path(sys.executable).parent), kept.get("PATH", os.defpath)]
    return {
        **kept,
        "PATH": os.pathsep.join(programs),  # a job's `python` is this one, in no active .venv too
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder.token),
        **storage_environment(shape),
        **shape.environment,
    }


def ray_command(name: str, shape: Shape) -> list[str]:
    """``ray start`` for one node; it holds no secret, as everybody may read it in `ps`."""
    address, head = shape.address(name), shape.address(HEAD)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
    command += ["--node-ip-address", address, "--disable-usage-stats"]
    command += ["--object-store-memory", str(shape.store_mb * 10**6)]
    command += ["--memory", str(int(shape.memory_gb * 2**30))]
    if name != HEAD:
        return [*command, "--address", f"{head}:{GCS_PORT}", "--num-cpus", str(shape.cpus)]
    command += ["--head", "--port", str(GCS_PORT), "--num-cpus", str(shape.head_cpus)]
    command += ["--dashboard-host", head, "--dashboard-port", str(DASHBOARD_PORT)]
    return [*command, "--ray-client-server-port", str(CLIENT_PORT)]


def start_hub(folder: StateFolder, shape: Shape) -> Machine:
    """Starts the switch between the machines and this computer."""
    hub = _start(folder, HUB, "none", ["sleep", "infinity"], dict(os.environ))
    interface = f"rlp{hub.pid}"
    network.make_switch(hub, interface, shape.address("gateway"))
    return hub


def start_storage(folder: StateFolder, shape: Shape, hub: Machine) -> Machine:
    """Starts moto's S3 server: it keeps objects in memory and forgets them with the cluster."""
    address = shape.address(STORAGE)
    command = [sys.executable, "-m", "moto.server", "-H", address, "-p", str(STORAGE_PORT)]
    environment = {**os.environ, **storage_environment(shape)}
    return _start(folder, STORAGE, address, command, environment, hub)


def start_node(folder: StateFolder, shape: Shape, hub: Machine, name: str) -> Machine:
    """Starts a machine with a Ray node on it; it joins the cluster by itself."""
    environment = node_environment(folder, shape)
    return _start(folder, name, shape.address(name), ray_command(name, shape), environment, hub)


def _start(
    folder: StateFolder,
    name: str,
    address: str,
    command: list[str],
    environment: dict[str, str],
    hub: Machine | None = None,
) -> Machine:
    disk = folder.machine_folder(name) / "ray"
    disk.mkdir(parents=True, exist_ok=True)
    _RAY_TEMP.mkdir(exist_ok=True)  # the place where each machine mounts its own
    hosts = folder.path / "hosts"
    start = [*network.NAMESPACES, "--mount-proc", "bash", str(_MACHINE_SCRIPT)]
    with output_file(folder, name).open("wb") as output:
        process = subprocess.Popen(
            [*start, name, address, str(disk), str(hosts), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C in this shell is not meant for it
        )
    machine = Machine(name, address, process.pid, start_time(process.pid) or 0)
    folder.write_machine(machine)
    _wait_for_namespace(folder, machine)
    if hub is not None:
        network.plug_in(hub, name, machine.pid)
    return machine


def _wait_for_namespace(folder: StateFolder, machine: Machine) -> None:
    deadline = time.monotonic() + 20
    while network.namespace(machine.pid) in ("", network.namespace(os.getpid())):
        if time.monotonic() > deadline or not machine.lives():
            raise LocalClusterError(
                f"{machine.name} did not start: {last_words(folder, machine.name)}"
            )
        time.sleep(0.01)


def output_file(folder: StateFolder, name: str) -> Path:
    """What a machine's command prints."""
    return folder.machine_folder(name) / "output.txt"


def last_words(folder: StateFolder, name: str) -> str:
    """The end of what a machine's command has printed, for messages."""
    path = output_file(folder, name)
    text = path.read_text(errors="replace")[-1500:].strip() if path.exists() else ""
    return text or "it printed nothing."


def kill(machine: Machine, seconds: float = 20) -> None:
    """Switches a machine off: SIGKILL for all that runs on it. Nothing if it is off.

    Raises:
        LocalClusterError: it still runs after that many seconds.
    """
    inside = machine.inner_pid() if machine.lives() else 0
    inside_started = start_time(inside) if inside else None
    if machine.lives():
        os.kill(machine.pid, signal.SIGKILL)  # --kill-child takes the namespaces with it
    deadline = time.monotonic() + seconds
    # The inner process is gone only when all others of its namespace are.
    while machine.lives() or (inside and start_time(inside) == inside_started):
        if time.monotonic() > deadline:
            raise LocalClusterError(f"{machine.name} (process {machine.pid}) does not die.")
        _reap(machine.pid)
        time.sleep(0.02)


def _reap(pid: int) -> None:
    """Collects a child of this very process, or it would remain as a zombie."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass


def enter(machine: Machine) -> list[str]:
    """What goes before a command that is to run on a machine, as if logged in there.

    Raises:
        LocalClusterError: the machine is off.
    """
    command = ["nsenter", "--target", str(machine.inner_pid())]
    return [*command, "--net", "--pid", "--mount", "--uts", f"--wdns={Path.cwd()}"]
