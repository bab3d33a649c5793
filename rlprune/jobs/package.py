"""What is shipped to the cluster with a job: code and the resolved specification, never data."""

from __future__ import annotations

import contextlib
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

import rlprune
from rlprune.errors import ConfigError, Problem
from rlprune.sweep.spec import SweepSpec, spec_to_dict

SPEC_FILE = "rlprune_sweep.yaml"
LIMIT_BYTES = 100 * 2**20
"""Ray's job server refuses larger uploads (HTTP 413; its warning names another number)."""

_PACKAGE = Path(rlprune.__file__).parent
_EPOCH = (1980, 1, 1, 0, 0, 0)  # equal code makes equal files: Ray uploads each once
_SHOWN = 5


@contextlib.contextmanager
def packed(
    spec: SweepSpec, code: Path | None, ship_rlprune: bool, limit: int = LIMIT_BYTES
) -> Iterator[Path]:
    """A zip file of the job's working folder, for as long as the context lasts.

    Args:
        spec: the sweep.
        code: folder whose modules the job can import (a backbone's factory); None: no own code.
        ship_rlprune: whether this installation of rlprune goes along; the nodes need only its
            dependencies then, and surely run the submitter's version.
        limit: most bytes.

    Raises:
        ConfigError: ``code`` is no folder, or there is too much; says what is large.
    """
    with tempfile.TemporaryDirectory(prefix="rlprune-job-") as folder:
        path = Path(folder, "working_dir.zip")
        own = {} if code is None else code_files(code)
        _check_size({name: file.stat().st_size for name, file in own.items()}, code, limit)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, file in own.items():
                _add(archive, name, file.read_bytes())
            # Somebody who works on rlprune itself may ship a checkout of it as own code.
            if ship_rlprune and not any(name.startswith("rlprune/") for name in own):
                for name, data in _installed_rlprune().items():
                    _add(archive, name, data)
            text = yaml.safe_dump(spec_to_dict(spec), sort_keys=False)
            _add(archive, SPEC_FILE, text.encode())
        yield path


def code_files(folder: Path) -> dict[str, Path]:
    """Relative name -> file of what is shipped from a folder, in order.

    As for ``ray job submit --working-dir``: neither what .gitignore and .rayignore name nor
    virtual environments and caches. Hidden files stay at home too: .env holds secrets.

    Raises:
        ConfigError: it is no folder.
    """
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import (  # the rules have no public name
        _dir_travel,
        _get_excludes,
    )

    if not folder.is_dir():
        remedy = "Give the folder that holds your module or package."
        raise ConfigError([Problem("--code", "must be a folder", str(folder), remedy)])
    root = folder.resolve()
    found: dict[str, Path] = {}

    def note(path: Path) -> None:
        if path.is_file():
            found[path.relative_to(root).as_posix()] = path

    def stays(path: Path) -> bool:
        hidden = path != root and path.name.startswith(".")
        return hidden or (path.is_symlink() and path.is_dir())

    excludes = [_get_excludes(root, get_runtime_env_default_excludes()), stays]
    _dir_travel(root, excludes, note, include_gitignore=True)
    if SPEC_FILE in found:
        remedy = "Rename it: the sweep's specification takes this name."
        raise ConfigError([Problem("--code", f"must not hold {SPEC_FILE}", str(folder), remedy)])
    return dict(sorted(found.items()))


def _check_size(sizes: Mapping[str, int], code: Path | None, limit: int) -> None:
    total = sum(sizes.values())
    if total <= limit:
        return
    largest = sorted(_by_part(sizes).items(), key=lambda item: -item[1])[:_SHOWN]
    listed = ", ".join(f"{name} {_mebibytes(size)}" for name, size in largest)
    raise ConfigError(
        [
            Problem(
                "--code",
                f"must hold at most {_mebibytes(limit)}: code, not data",
                f"{code}: {_mebibytes(total)}",
                f"Largest: {listed}. Name them in a .rayignore file there; images and weights "
                "belong into storage that all nodes reach.",
            )
        ]
    )


def _by_part(sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes of each file and folder at the top."""
    parts: dict[str, int] = {}
    for name, size in sizes.items():
        first, slash, _ = name.partition("/")
        parts[first + slash] = parts.get(first + slash, 0) + size
    return parts


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _installed_rlprune() -> dict[str, bytes]:
    """The package that is running, and its version where it is known (as pip --target does it)."""
    found = {
        f"rlprune/{file.relative_to(_PACKAGE).as_posix()}": file.read_bytes()
        for file in sorted(_PACKAGE.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }
    version = rlprune.__version__
    if not version.endswith("unknown"):
        text = f"Metadata-Version: 2.1\nName: rlprune\nVersion: {version}\n"
        found[f"rlprune-{version}.dist-info/METADATA"] = text.encode()
    return found


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    archive.writestr(info, data)
