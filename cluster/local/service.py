"""The local cluster as a whole: up, down, status."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.local import machines, network
from cluster.local.state import (
    HEAD,
    HUB,
    STORAGE,
    LocalClusterError,
    Machine,
    Shape,
    StateFolder,
    write_private,
)

Say = Callable[[str], None]

_START_SECONDS = 600.0
_PATIENCE_OF_RAY = 29.0  # `ray start` gives up when its node has not joined after 30 s
_HTTP_SECONDS = 10.0


@dataclass(frozen=True)
class NodeView:
    """One line of `status`.

    Attributes:
        name, address: of the machine.
        pid: its outer process; None if it is off.
        state: what Ray says: ``alive``, ``dead``, ``unknown`` (no answer); for the S3
            server ``answers`` or ``silent``.
        cpus: logical CPUs.
    """

    name: str
    address: str
    pid: int | None
    state: str
    cpus: int


@dataclass(frozen=True)
class _RayNode:
    identity: str
    address: str
    state: str


def running_shape(folder: StateFolder) -> Shape:
    """The shape of a cluster that was started.

    Raises:
        LocalClusterError: there is none of that name.
    """
    shape = folder.read_shape() if folder.path.exists() else None
    if shape is None:
        raise LocalClusterError(
            f"No local cluster {folder.name!r} was started. Start it with cluster/local/up."
        )
    return shape


def up(folder: StateFolder, wanted: Shape, say: Say) -> Shape:
    """Starts the cluster, or whatever of it does not run.

    Args:
        folder: the cluster's.
        wanted: its shape; a cluster that was started before keeps the one it has.
        say: told about every step.

    Returns:
        The shape that it has.

    Raises:
        LocalClusterError: not permitted here, or a node did not come up.
    """
    network.check_permitted()
    folder.create()
    shape = folder.read_shape() or wanted
    folder.write_shape(shape)
    hub = _start_basis(folder, shape, say)
    before = _ray_nodes(folder, shape) if _lives(folder, HEAD) else None
    started = _start_nodes(folder, shape, hub, say)
    old = {node.identity for node in before or ()}
    _wait_for_nodes(folder, shape, started, old, _again(folder, shape, hub, say))
    return shape


def down(folder: StateFolder) -> int:
    """Kills every machine and removes the cluster's folder. Nothing if there is none.

    Returns:
        How many machines were running.
    """
    if not folder.path.exists():
        return 0
    found = folder.machines()
    running = sum(machine.lives() for machine in found)
    for machine in reversed(found):  # the hub last: its namespace holds all cables
        machines.kill(machine)
    shutil.rmtree(folder.path)
    return running


def status(folder: StateFolder) -> list[NodeView]:
    """Every machine, and what Ray thinks of it."""
    shape = running_shape(folder)
    found = _ray_nodes(folder, shape)
    views = []
    for name in shape.names():
        machine, address = folder.read_machine(name), shape.address(name)
        states = {node.state for node in found or () if node.address == address}
        state = "alive" if "alive" in states else "unknown" if found is None else "dead"
        cpus = shape.head_cpus if name == HEAD else shape.cpus
        views.append(NodeView(name, address, _pid(machine), state, cpus))
    if shape.storage:
        state = "answers" if _storage_answers(shape) else "silent"
        pid = _pid(folder.read_machine(STORAGE))
        views.append(NodeView(STORAGE, shape.address(STORAGE), pid, state, 0))
    return views


def start_one(folder: StateFolder, name: str) -> None:
    """Starts a machine that is off, and does not wait for Ray to see it."""
    shape, hub = running_shape(folder), _hub(folder)
    machine = _machine(folder, name)
    if machine.lives():
        raise LocalClusterError(f"{name} is on already.")
    if name == STORAGE:
        machines.start_storage(folder, shape, hub)
    else:
        machines.start_node(folder, shape, hub, name)


def kill_one(folder: StateFolder, name: str) -> None:
    """SIGKILL for a whole machine: as if its power were cut."""
    machines.kill(_machine(folder, name))


def cut(folder: StateFolder, name: str) -> None:
    """Pulls a machine's network cable."""
    _machine(folder, name)
    network.cut(_hub(folder), name)


def join(folder: StateFolder, name: str) -> None:
    """Plugs a machine's network cable in again."""
    _machine(folder, name)
    network.join(_hub(folder), name)


def run_on(folder: StateFolder, name: str, command: list[str]) -> int:
    """Runs a command on a machine with the environment of Ray nodes."""
    shape = running_shape(folder)
    environment = machines.node_environment(folder, shape)
    command = [*machines.enter(_machine(folder, name)), *command]
    return subprocess.run(command, env=environment).returncode


def _start_basis(folder: StateFolder, shape: Shape, say: Say) -> Machine:
    """The hub and the S3 server. Without its hub a machine has no cable: all start anew."""
    names = [*shape.names(), *([STORAGE] if shape.storage else [])]
    hosts = [f"{shape.address(name)} {name}" for name in names]
    write_private(folder.path / "hosts", "\n".join(["127.0.0.1 localhost", *hosts, ""]))
    environment = machines.client_environment(folder, shape)
    lines = ["unset RAY_AUTH_TOKEN RAY_ADDRESS"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    write_private(folder.env_file, "\n".join([*lines, ""]))
    hub = folder.read_machine(HUB)
    if hub is None or not hub.lives():
        for machine in folder.machines():
            machines.kill(machine)
        hub = machines.start_hub(folder, shape)
    if shape.storage and not _lives(folder, STORAGE):
        say("starting the S3 server ...")
        machines.start_storage(folder, shape, hub)
        _wait(lambda: _make_bucket(shape), folder, [STORAGE], "the S3 server does not answer")
    return hub


def _start_nodes(folder: StateFolder, shape: Shape, hub: Machine, say: Say) -> list[str]:
    """Starts the nodes that are off; returns their names."""
    started = []
    if not _lives(folder, HEAD):
        for name in shape.names():  # workers of a dead head never find the next one
            machine = folder.read_machine(name)
            if machine is not None:
                machines.kill(machine)
        say(f"starting {HEAD} at {shape.address(HEAD)} ...")
        machines.start_node(folder, shape, hub, HEAD)
        answers = "the head's dashboard does not answer"
        again = _again(folder, shape, hub, say)
        _wait(lambda: _ray_nodes(folder, shape) is not None, folder, [HEAD], answers, again)
        started.append(HEAD)
    for name in shape.names()[1:]:
        if not _lives(folder, name):
            say(f"starting {name} at {shape.address(name)} ...")
            machines.start_node(folder, shape, hub, name)
            started.append(name)
    return started


def _wait_for_nodes(
    folder: StateFolder,
    shape: Shape,
    started: list[str],
    before: set[str],
    again: Callable[[str], None],
) -> None:
    """Waits until Ray has seen all nodes.

    Args:
        folder, shape: the cluster's.
        started: names of nodes that were started now.
        before: Ray's identities from before: where a node was killed a moment ago, its old
            life may still count as alive.
        again: starts a node that has ended.
    """

    def all_alive() -> bool:
        alive = [node for node in _ray_nodes(folder, shape) or () if node.state == "alive"]
        fresh = {node.address for node in alive if node.identity not in before}
        return all(
            shape.address(name) in (fresh if name in started else {n.address for n in alive})
            for name in shape.names()
        )

    _wait(all_alive, folder, shape.names(), "not all nodes have joined", again)


def _again(folder: StateFolder, shape: Shape, hub: Machine, say: Say) -> Callable[[str], None]:
    """What starts a node that has ended, unless it ended so soon that it would again."""
    started = dict.fromkeys(shape.names(), time.monotonic())

    def again(name: str) -> None:
        seconds = time.monotonic() - started[name]
        if seconds < _PATIENCE_OF_RAY:
            words = machines.last_words(folder, name)
            raise LocalClusterError(f"{name} ended after {seconds:.0f} s:\n{words}")
        say(f"{name} took too long on this busy computer, starting it again ...")
        machines.start_node(folder, shape, hub, name)
        started[name] = time.monotonic()

    return again


def _wait(
    done: Callable[[], bool],
    folder: StateFolder,
    names: list[str],
    problem: str,
    again: Callable[[str], None] | None = None,
) -> None:
    """Waits for a condition; machines that end meanwhile are started again, or told."""
    deadline = time.monotonic() + _START_SECONDS
    while not done():
        for name in [name for name in names if not _lives(folder, name)]:
            if again is None:
                words = machines.last_words(folder, name)
                raise LocalClusterError(f"{name} ended while it was starting:\n{words}")
            again(name)
        if time.monotonic() > deadline:
            log = machines.output_file(folder, names[-1])
            raise LocalClusterError(
                f"After {_START_SECONDS:.0f} s {problem}. See {log.parent.parent}/*/output.txt; "
                "clean up with cluster/local/down."
            )
        time.sleep(0.3)


def _ray_nodes(folder: StateFolder, shape: Shape) -> list[_RayNode] | None:
    """Every node that Ray knows, dead ones as well; None while the dashboard is silent."""
    url = f"http://{shape.address(HEAD)}:{machines.DASHBOARD_PORT}/nodes?view=summary"
    token = folder.token.read_text()
    try:
        answer = json.loads(_open(url, {"Authorization": f"Bearer {token}"}))
    except (OSError, ValueError):
        return None
    raylets = [node["raylet"] for node in answer["data"]["summary"]]
    return [
        _RayNode(raylet["nodeId"], raylet["nodeManagerAddress"], raylet["state"].lower())
        for raylet in raylets
    ]


def _make_bucket(shape: Shape) -> bool:
    url = f"{machines.storage_environment(shape)['AWS_ENDPOINT_URL']}/{machines.BUCKET}"
    try:
        _open(url, {}, method="PUT")
    except OSError:
        return False
    return True


def _storage_answers(shape: Shape) -> bool:
    try:
        _open(machines.storage_environment(shape)["AWS_ENDPOINT_URL"], {})
    except OSError:
        return False
    return True


def _open(url: str, headers: dict[str, str], method: str = "GET") -> bytes:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never by a proxy
    request = urllib.request.Request(url, headers=headers, method=method)
    with direct.open(request, timeout=_HTTP_SECONDS) as response:
        body: Any = response.read()
    return bytes(body)


def _lives(folder: StateFolder, name: str) -> bool:
    machine = folder.read_machine(name)
    return machine is not None and machine.lives()


def _pid(machine: Machine | None) -> int | None:
    return machine.pid if machine is not None and machine.lives() else None


def _hub(folder: StateFolder) -> Machine:
    hub = folder.read_machine(HUB)
    if hub is None or not hub.lives():
        raise LocalClusterError("The cluster's switch is off: start again with cluster/local/up.")
    return hub


def _machine(folder: StateFolder, name: str) -> Machine:
    shape = running_shape(folder)
    names = [*shape.names(), *([STORAGE] if shape.storage else [])]
    machine = folder.read_machine(name) if name in names else None
    if machine is None:
        raise LocalClusterError(f"No machine {name!r}: there are {', '.join(names)}.")
    return machine
