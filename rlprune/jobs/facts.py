"""What one node tells about itself; runs on that node, so it imports little and never raises."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlprune import files
from rlprune.config import DataConfig
from rlprune.errors import RlpruneError
from rlprune.source import source_digest

_SHARED_MEMORY = "/dev/shm"
_DOWNLOADED = ("fashion_mnist", "cifar10")


@dataclass(frozen=True)
class NodeFacts:
    """A node's software, memory and view of the outside.

    Attributes:
        versions: "python", "ray", "torch", "rlprune" -> version ("-": not installed).
        cuda: whether torch was built for GPUs.
        shm_bytes: size of /dev/shm; 0 where there is none.
        token_mode: whether Ray asks for a token (RAY_AUTH_MODE=token).
        token_file: the token file and its mode, if others can read it; "" otherwise.
        storage: what is wrong with the storage as seen from here; "" if nothing.
        data: what is wrong with the images' files; "" if nothing.
        data_names: a digest of the names in the images' folders: equal where they are the same.
    """

    versions: dict[str, str]
    cuda: bool
    shm_bytes: int
    token_mode: bool
    token_file: str
    storage: str
    data: str
    data_names: str


def node_facts(node: str, probe: str, data: Sequence[DataConfig]) -> NodeFacts:
    """Looks around on this node.

    Args:
        node: its id.
        probe: folder or URI in the storage: holds what :func:`write_probe` of one node wrote;
            this node adds a file of its own.
        data: the image sets of the sweep.
    """
    problems, names = [], hashlib.sha256()
    for config in data:
        problem, listed = look_at_data(config)
        problems += [problem] if problem else []
        names.update("\n".join(listed).encode())
    return NodeFacts(
        versions={name: _version(name) for name in ("python", "ray", "torch", "rlprune")},
        cuda=_has_cuda(),
        shm_bytes=_size_of(_SHARED_MEMORY),
        token_mode=os.environ.get("RAY_AUTH_MODE", "").lower() == "token",
        token_file=_open_token_file(),
        storage=_attempted(lambda: _use_probe(node, probe)),
        data=" ".join(problems),
        data_names=names.hexdigest()[:12],
    )


def write_probe(node: str, probe: str) -> str:
    """Writes the first file into the probe's folder; what is wrong, or ""."""
    return _attempted(lambda: files.write_whole(files.join(probe, "first"), _content(probe)))


def read_probes(probe: str, nodes: Sequence[str]) -> list[str]:
    """Those of ``nodes`` whose files are not seen from here."""
    found = {Path(entry.path).name for entry in files.list_files(probe)}
    return [node for node in nodes if node not in found]


def drop_probe(probe: str) -> str:
    """Removes the probe's folder; what is wrong, or ""."""
    return _attempted(lambda: files.delete_folder(probe))


def look_at_data(config: DataConfig) -> tuple[str, list[str]]:
    """What is wrong with an image set's files ("" if nothing), and the names in its folder.

    Reads one byte of the first file that it finds; whether all images can be decoded is found
    out by planning the sweep, on one node.
    """
    if config.name == "digits" or (config.root is None and config.name in _DOWNLOADED):
        return "", []  # part of scikit-learn; downloaded by each node that lacks it
    root = "" if config.root is None else str(config.root)
    folder = root if "://" in root else os.path.expanduser(root)
    try:
        names = _names(folder)
        file = _first_file(folder)
    except RlpruneError as error:
        return str(error), []
    if not names:
        return f"{folder}: there is no such folder, or it is empty.", []
    return ("" if file is not None else f"{folder}: holds no file that can be read."), names


def _names(folder: str) -> list[str]:
    found, path = files.filesystem(folder)
    from pyarrow import fs

    infos = found.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos)


def _first_file(folder: str) -> str | None:
    """The first file below a folder of which a byte can be read."""
    from pyarrow import fs

    found, path = files.filesystem(folder)
    for info in sorted(
        found.get_file_info(fs.FileSelector(path, allow_not_found=True)),
        key=lambda info: (info.type != fs.FileType.File, info.path),
    ):
        if info.type == fs.FileType.File:
            try:
                with found.open_input_stream(info.path) as stream:
                    stream.read(1)
                return str(info.path)
            except OSError:
                continue
        below = _first_file(files.join(folder, info.base_name))
        if below is not None:
            return below
    return None


def _use_probe(node: str, probe: str) -> None:
    content = files.read_whole(files.join(probe, "first"))
    if content != _content(probe):
        raise OSError(f"{probe}: another file than the one that was written")
    files.write_whole(files.join(probe, node), content)


def _content(probe: str) -> bytes:
    return probe.partition("?")[0].encode()


def _attempted(action: Callable[[], object]) -> str:
    try:
        action()
    except (RlpruneError, OSError) as error:
        return " ".join(str(error).split())
    return ""


def _version(name: str) -> str:
    if name == "python":
        return platform.python_version()
    try:
        version = str(importlib.import_module(name).__version__)
    except ImportError:
        return "-"
    return f"{version} ({source_digest()})" if name == "rlprune" else version


def _has_cuda() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.version.cuda is not None


def _size_of(folder: str) -> int:
    try:
        sizes = os.statvfs(folder)
    except OSError:
        return 0
    return sizes.f_frsize * sizes.f_blocks


def _open_token_file() -> str:
    name = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    try:
        mode = os.stat(name).st_mode & 0o777
    except OSError:
        return ""
    return f"{name} (mode {mode:04o})" if mode & 0o077 else ""
