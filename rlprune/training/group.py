"""How processes that train together find and reach each other (no Ray here).

Neither torch's meeting place nor gloo's and NCCL's connections know passwords. Processes of
one machine therefore meet in a file that only this user can open and talk over the loopback
interface; nobody outside the machine can reach them. Those of several machines meet at an
address of the first one, and the network between the machines must be private.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, Store, TCPStore

from rlprune.replicas import ALONE, Replicas

_PATIENCE = timedelta(minutes=5)
"""How long a process waits for another that neither answers nor ends."""

_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@dataclass(frozen=True)
class Place:
    """Where processes meet.

    Attributes:
        file: path in a folder of this user's; None where machines differ.
        host, port: of the first process; not used with a file.
    """

    file: str | None = None
    host: str = ""
    port: int = 0


class Group:
    """This process's membership in torch's default process group, one at a time."""

    def __init__(self) -> None:
        self.replicas = ALONE
        self._folder: Path | None = None
        self._listener: socket.socket | None = None

    def open(self, host: str | None) -> Place:
        """Opens a place to meet at; the process of rank 0 does.

        Args:
            host: address of this machine; None: all processes are on this machine.
        """
        if host is None:
            self._folder = Path(tempfile.mkdtemp(prefix="rlprune-group-"))  # mode 0700
            return Place(file=str(self._folder / "store"))
        self._listener = socket.create_server((host, 0))
        return Place(host=host, port=self._listener.getsockname()[1])

    def join(self, place: Place, rank: int, size: int, device: str) -> Replicas:
        """Waits for the others at a place and forms the group, in the place of any other.

        Args:
            place: from :meth:`open`.
            rank, size: this process's number, and how many there are.
            device: "cpu" (gloo) or "cuda" (NCCL, each process with a GPU of its own).

        Raises:
            RuntimeError: the others do not come.
        """
        if place.file is not None:
            for name in _INTERFACES:
                os.environ.setdefault(name, _loopback())
        if dist.is_initialized():
            dist.destroy_process_group()
        if device == "cuda":
            torch.cuda.set_device(0)  # Ray shows each process its own GPU only
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            store=self._store(place, rank, size),
            rank=rank,
            world_size=size,
            timeout=_PATIENCE,
        )
        self.replicas = Replicas(rank, size, device)
        return self.replicas

    def _store(self, place: Place, rank: int, size: int) -> Store:
        if place.file is not None:
            return FileStore(place.file, size)
        listener = None if self._listener is None else self._listener.detach()
        self._listener = None
        return TCPStore(
            place.host,
            place.port,
            size,
            is_master=rank == 0,
            timeout=_PATIENCE,
            wait_for_workers=False,
            # torch would listen on every interface
            master_listen_fd=listener,
        )

    def leave(self) -> None:
        """Ends the group; others that wait for this process get an error at once."""
        if dist.is_initialized():
            dist.destroy_process_group()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        self.replicas = ALONE


def _loopback() -> str:
    """Name of the loopback interface."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name.startswith("lo")), names[0])
