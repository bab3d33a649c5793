"""Whole files by path or URI: local folders, S3 and every other pyarrow file system.

A local path is written as it is (``runs/first``). A URI (``s3://bucket/key``,
``file:///folder``) follows the rules of URIs: spaces and other signs are percent-encoded,
options may follow a ``?``. S3 finds keys, region and server as pyarrow does:
``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_DEFAULT_REGION``, ``AWS_ENDPOINT_URL``.

Files appear whole or not at all, and are never changed in place. Hidden names (a leading
``.`` or ``_``) are temporary files and notes that readers of data pass over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs

from rlprune.errors import FileAccessError

TEMPORARY_SUFFIX = ".tmp"
"""Ending of hidden files that are being written; what a killed writer leaves behind."""

_REMEDIES: tuple[tuple[str, str, str], ...] = (
    ("NO_SUCH_BUCKET", "no such bucket", "Create the bucket or correct its name."),
    (
        "ACCESS_DENIED",
        "permission denied",
        "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy.",
    ),
    (
        "NETWORK_CONNECTION",
        "no connection to the server",
        "Check the network, AWS_ENDPOINT_URL and AWS_DEFAULT_REGION.",
    ),
)
_ERRNO_REMEDIES = {
    errno.ENOSPC: "Free space or choose another place, then repeat the command.",
    errno.EDQUOT: "Free space or choose another place, then repeat the command.",
    errno.EACCES: "Change the permissions or choose another place.",
    errno.EPERM: "Change the permissions or choose another place.",
    errno.EROFS: "Choose a place that can be written.",
    errno.ENOENT: "Check the spelling.",
    errno.EEXIST: "A part of the path is a file: choose another place.",
    errno.ENOTDIR: "A part of the path is a file: choose another place.",
    errno.EISDIR: "It is a folder: choose another name.",
    errno.ENAMETOOLONG: "Choose shorter names.",
}


_READS = 20
_OUTAGES = ("NETWORK_CONNECTION", "SERVICE_UNAVAILABLE", "SLOW_DOWN", "REQUEST_TIMEOUT")
"""How S3 says that the server cannot answer now, but may do so later."""
_ASK_AGAIN_SECONDS = 1.0


@dataclass(frozen=True)
class FileEntry:
    """One file as a listing found it.

    Attributes:
        uri: local path or URI, for messages and for the functions of this module.
        path: path inside the file system that :func:`filesystem` gives.
        size: bytes.
        modified_ns: time of the last change, nanoseconds since 1970; object stores count
            whole seconds.
    """

    uri: str
    path: str
    size: int
    modified_ns: int


def filesystem(uri: str | Path) -> tuple[pafs.FileSystem, str]:
    """The pyarrow file system of a path or URI, and the path inside it.

    Raises:
        FileAccessError: an unknown scheme, a URI that is not well formed, or a server that
            cannot be reached.
    """
    text = os.fspath(uri)
    if not _is_uri(text):
        return pafs.LocalFileSystem(), os.path.abspath(text)
    try:
        found, path = _from_uri(text)
    except (pa.ArrowException, OSError, ValueError) as error:
        if "Unrecognized filesystem" in str(error):
            raise FileAccessError(
                f"{text}: unknown kind of storage {text.partition('://')[0]!r}. "
                "Give a local path, or a URI such as s3://bucket/folder."
            ) from error
        if isinstance(error, OSError) and not isinstance(error, pa.ArrowInvalid):
            raise access_error(text, "cannot be reached", error) from error
        raise FileAccessError(
            f"{text}: not a valid URI ({_first_line(error)}). Write %20 for a space, %25 for "
            "a percent sign; a local path needs no file://."
        ) from error
    return found, path


def _from_uri(text: str) -> tuple[pafs.FileSystem, str]:
    """With small S3 objects in one request: a killed writer leaves no unfinished upload."""
    if text.startswith("s3://") and "allow_delayed_open" not in text:
        with contextlib.suppress(pa.ArrowInvalid):  # pyarrow versions that lack the option
            return _resolved(f"{text}{'&' if '?' in text else '?'}allow_delayed_open=true")
    return _resolved(text)


def _resolved(text: str) -> tuple[pafs.FileSystem, str]:
    found, path = pafs.FileSystem.from_uri(text)
    return found, path.rstrip("/") or path


def join(uri: str | Path, *names: str) -> str:
    """A file or folder below a path or URI; ``names`` are plain names, never encoded."""
    text = os.fspath(uri)
    if not _is_uri(text):
        return os.path.join(text, *names)
    base, question, options = text.partition("?")
    quoted = [quote(name, safe="/=") for name in names]
    return "/".join([base.rstrip("/"), *quoted]) + question + options


def is_local(found: pafs.FileSystem) -> bool:
    """Whether files lie in the local file system (which has rename and folders)."""
    return isinstance(found, pafs.LocalFileSystem)


def exists(uri: str | Path) -> bool:
    """Whether there is a file or a folder (on object stores: anything below that name).

    Raises:
        FileAccessError: it cannot be found out; names URI, reason and remedy.
    """
    found, path = filesystem(uri)
    with _errors(uri, "cannot be looked up"):
        return bool(found.get_file_info(path).type != pafs.FileType.NotFound)


def wait_until_reachable(uri: str | Path, seconds: float) -> bool:
    """Waits while the server of a URI does not answer; any answer will do, also a refusal.

    Args:
        uri: local path (never waited for) or URI.
        seconds: the longest wait. A question that the server leaves unanswered takes as long
            as pyarrow's own time limits, so that the wait may end later.

    Returns:
        Whether it answers.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            found, path = filesystem(uri)
            found.get_file_info(path)
        except (FileAccessError, OSError, pa.ArrowException) as error:
            texts = (str(error), str(error.__cause__))
            if not any(sign in text for sign in _OUTAGES for text in texts):
                return True  # it has answered; what comes next will say what is wrong
        else:
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_ASK_AGAIN_SECONDS)


def read_whole(uri: str | Path) -> bytes:
    """All bytes of a file, of one version of it: also while it is replaced.

    Raises:
        FileAccessError: it is not there or cannot be read; names URI, reason and remedy.
    """
    found, path = filesystem(uri)
    with _errors(uri, "cannot be read"):
        for _ in range(_READS):
            before = found.get_file_info(path)
            with found.open_input_stream(path) as stream:
                data: bytes = stream.read()
            # Locally an open file stays what it was. An object store is asked twice, for the
            # size and for the bytes, and may answer for two versions.
            after = before if is_local(found) else found.get_file_info(path)
            if (after.size, after.mtime_ns) == (before.size, before.mtime_ns) and (
                is_local(found) or len(data) == before.size
            ):
                return data
    raise FileAccessError(f"{os.fspath(uri)}: cannot be read (it keeps changing). Try later.")


def write_whole(uri: str | Path, data: bytes | pa.Buffer) -> None:
    """Writes a file so that a reader sees the old one or the new one, never a part.

    Locally a hidden temporary file is written, synced and renamed, in folders that are made
    if absent; object stores get one whole object. When this returns, the file is stored.

    Raises:
        FileAccessError: disk full, no permission, no such bucket, ...; the old file (if any)
            is as it was. Names URI, reason and remedy.
    """
    found, path = filesystem(uri)
    with _errors(uri, "cannot be written"):
        if is_local(found):
            _write_local(Path(path), data)
            return
        # All bytes are in one call: were it to fail, closing the stream reports the same
        # failure and publishes nothing.
        with found.open_output_stream(path) as stream:
            stream.write(data)


def list_files(uri: str | Path, suffix: str = "", hidden: bool = False) -> list[FileEntry]:
    """The files below a folder (at any depth) or the one file itself, sorted by path.

    Args:
        uri: folder or file; one that does not exist has no files.
        suffix: only names that end so, for example ``.parquet``.
        hidden: only hidden files (a name or a folder with a leading ``.`` or ``_``) instead
            of only visible ones.

    Raises:
        FileAccessError: the folder cannot be listed; names URI, reason and remedy.
    """
    found, path = filesystem(uri)
    text = os.fspath(uri)
    with _errors(uri, "cannot be listed"):
        top = found.get_file_info(path)
        if top.type == pafs.FileType.File:
            return [FileEntry(text, path, top.size, top.mtime_ns)]
        infos = found.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=True))
    entries = []
    for info in infos:
        names = info.path[len(path) :].strip("/").split("/")
        if info.type != pafs.FileType.File or not info.path.endswith(suffix):
            continue
        if any(name.startswith((".", "_")) for name in names) == hidden:
            entries.append(FileEntry(join(text, *names), info.path, info.size, info.mtime_ns))
    return sorted(entries, key=lambda entry: entry.path)


def delete(uri: str | Path) -> None:
    """Removes a file; one that is not there is fine.

    Raises:
        FileAccessError: it cannot be removed; names URI, reason and remedy.
    """
    found, path = filesystem(uri)
    with _errors(uri, "cannot be removed"), contextlib.suppress(FileNotFoundError):
        found.delete_file(path)


def list_folders(uri: str | Path) -> list[str]:
    """Names of the folders directly inside a folder, sorted; none if it does not exist.

    Raises:
        FileAccessError: it cannot be listed; names URI, reason and remedy.
    """
    found, path = filesystem(uri)
    with _errors(uri, "cannot be listed"):
        infos = found.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)


def delete_folder(uri: str | Path) -> None:
    """Removes a folder with all that is in it; one that is not there is fine.

    Raises:
        FileAccessError: it cannot be removed; names URI, reason and remedy.
    """
    found, path = filesystem(uri)
    with _errors(uri, "cannot be removed"), contextlib.suppress(FileNotFoundError):
        found.delete_dir(path)


@contextlib.contextmanager
def local_copy(uri: str | Path) -> Iterator[Path]:
    """A local folder with the files of a folder: itself, or a temporary copy of a remote one.

    Raises:
        FileAccessError: it cannot be read; names URI, reason and remedy.
    """
    found, path = filesystem(uri)
    if is_local(found):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="rlprune-") as folder:
        for entry in list_files(uri):
            target = Path(folder, entry.path[len(path) :].strip("/"))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(read_whole(entry.uri))
        yield Path(folder)


def access_error(uri: str | Path, what: str, error: BaseException) -> FileAccessError:
    """What went wrong with a file, in words: URI, ``what`` failed, the reason, the remedy."""
    number = error.errno if isinstance(error, OSError) else None
    reason, remedy = _first_line(error), "Check the place and its permissions."
    for sign, words, advice in _REMEDIES:
        if sign in str(error):
            reason, remedy = words, advice
    if number in _ERRNO_REMEDIES:
        reason, remedy = os.strerror(number), _ERRNO_REMEDIES[number]
    return FileAccessError(f"{os.fspath(uri)}: {what} ({reason}). {remedy}")


@contextlib.contextmanager
def _errors(uri: str | Path, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise access_error(uri, what, error) from error


def _is_uri(text: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return re.sub(r" \(Request ID: .*", "", lines[0]) if lines else type(error).__name__


def _write_local(path: Path, data: bytes | pa.Buffer) -> None:
    _make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    _sync_folder(path.parent)


def _make_folder(folder: Path) -> None:
    """Makes a folder and those above it, each entry synced to the disk."""
    if not folder.is_dir():
        if folder.parent != folder:
            _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
