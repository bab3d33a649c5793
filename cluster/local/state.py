"""What is remembered of a local cluster: a private folder, its token, its processes."""

from __future__ import annotations

import json
import os
import secrets
import stat
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from rlprune.errors import RlpruneError

HEAD = "head"
STORAGE = "s3"
HUB = "hub"


class LocalClusterError(RlpruneError):
    """The local cluster cannot be started, found or changed; the message says what to do."""

    exit_status = 2


@dataclass(frozen=True)
class Machine:
    """A process that holds the namespaces of one pretended machine.

    Attributes:
        name: ``head``, ``worker1``, ..., ``s3``, or ``hub`` (the switch between them).
        address: its IPv4 address; empty for the hub.
        pid: the process outside the namespaces. Killing it kills all that run inside.
        started: its start time in clock ticks since boot: tells it from a later process
            that got the same number.
    """

    name: str
    address: str
    pid: int
    started: int

    def lives(self) -> bool:
        """Whether that very process still runs."""
        return start_time(self.pid) == self.started

    def inner_pid(self) -> int:
        """The first process inside the namespaces, as numbered outside of them.

        Raises:
            LocalClusterError: the machine is off.
        """
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        found = children.read_text().split() if self.lives() else []
        if not found:
            raise LocalClusterError(
                f"{self.name} is off. Start it again with `cluster/local/node start {self.name}`."
            )
        return int(found[0])


@dataclass(frozen=True)
class Shape:
    """How large the cluster is; chosen by `up`, kept until `down`.

    Attributes:
        network: first three bytes of all addresses, for example ``10.201.7``.
        workers: number of worker nodes.
        cpus: logical CPUs of each worker.
        head_cpus: logical CPUs of the head.
        store_mb: object store of each node [MB].
        memory_gb: what Ray may promise to tasks that ask for memory, for each node [GiB].
        storage: whether an S3 server belongs to it.
        environment: further variables of every node.
    """

    network: str
    workers: int
    cpus: int
    head_cpus: int
    store_mb: int
    memory_gb: float
    storage: bool
    environment: dict[str, str]

    def address(self, name: str) -> str:
        """A machine's address; "gateway" is this computer's own end."""
        if name.startswith("worker"):
            return f"{self.network}.{10 + int(name.removeprefix('worker'))}"
        return f"{self.network}.{ {'gateway': 1, HEAD: 2, STORAGE: 3}[name] }"

    def names(self) -> list[str]:
        """Names of the Ray nodes, head first."""
        return [HEAD, *(f"worker{number}" for number in range(1, self.workers + 1))]


def start_time(pid: int) -> int | None:
    """Start time of a process [clock ticks since boot]; None if there is none, or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # a command's name may hold blanks and brackets
    return None if fields[0] == "Z" else int(fields[19])


class StateFolder:
    """The folder of one local cluster; nobody else may read it.

    It lies below the folder for temporary files because the paths of Ray's sockets must
    stay short.
    """

    def __init__(self, name: str) -> None:
        if not name.isalnum():
            raise LocalClusterError(
                f"{name!r} is no name for a cluster: use letters and digits, for example demo2."
            )
        self.name = name
        self.parent = Path(tempfile.gettempdir()) / f"rlprune-cluster-{os.getuid()}"
        self.path = self.parent / name

    @property
    def token(self) -> Path:
        """The file with the cluster's token (mode 0600)."""
        return self.path / "token"

    @property
    def env_file(self) -> Path:
        """What a shell reads to reach the cluster."""
        return self.path / "env"

    def create(self) -> None:
        """Makes the folder and a new token, unless they are there.

        Raises:
            LocalClusterError: somebody else has put something in its place.
        """
        for folder in (self.parent, self.path):
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                raise LocalClusterError(
                    f"{folder} belongs to somebody else: remove it, or set TMPDIR to a folder "
                    "of your own (with a short path)."
                )
            folder.chmod(0o700)
        if not self.token.exists():
            write_private(self.token, secrets.token_hex(32))

    def machine_folder(self, name: str) -> Path:
        """Where a machine keeps Ray's session and its output."""
        return self.path / name

    def read_shape(self) -> Shape | None:
        """The cluster's shape; None if it was never started."""
        path = self.path / "shape.json"
        return Shape(**json.loads(path.read_text())) if path.exists() else None

    def write_shape(self, shape: Shape) -> None:
        """Keeps the cluster's shape."""
        write_private(self.path / "shape.json", json.dumps(asdict(shape)))

    def read_machine(self, name: str) -> Machine | None:
        """A machine that was started, running or not."""
        path = self.path / f"{name}.json"
        return Machine(**json.loads(path.read_text())) if path.exists() else None

    def write_machine(self, machine: Machine) -> None:
        """Keeps what is needed to find and kill a machine."""
        write_private(self.path / f"{machine.name}.json", json.dumps(asdict(machine)))

    def machines(self) -> list[Machine]:
        """Every machine that was started."""
        names = [HUB, STORAGE, *(path.stem for path in self.path.glob("*.json"))]
        found = (self.read_machine(name) for name in dict.fromkeys(names) if name != "shape")
        return [machine for machine in found if machine is not None]


def write_private(path: Path, text: str) -> None:
    """Writes a file whole, readable by its owner alone from the first byte on."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)
