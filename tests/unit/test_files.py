"""Whole files by path or URI: local, S3 (a real server on loopback), and what goes wrong."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
from s3_server import BUCKET, s3_server

from rlprune import files
from rlprune.errors import FileAccessError


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A folder in a bucket."""
    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield f"s3://{BUCKET}/some%20folder"


@pytest.fixture(params=["path", "string", "file://", "s3://"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """An empty folder (or one that is not there yet) in every kind of storage."""
    if request.param == "s3://":
        return files.join(request.getfixturevalue("s3"), request.node.name.partition("[")[0])
    folder = tmp_path / "a folder"
    kinds: dict[str, Any] = {"path": folder, "string": str(folder), "file://": folder.as_uri()}
    return kinds[request.param]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_an_outage_is_waited_for(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = _free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    assert not files.wait_until_reachable(s3, 0.0)  # nobody listens there
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(files.wait_until_reachable(s3, 60)))
    waiting.start()
    time.sleep(1.0)
    assert waiting.is_alive()
    with s3_server(port):
        waiting.join(60)
        assert answers == [True]


def test_only_an_outage_is_waited_for(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waits"))
    for place in (s3, f"{s3}/absent", "s3://no-such-bucket-at-all/x", tmp_path / "absent"):
        assert files.wait_until_reachable(place, 60.0)


def test_what_is_written_is_read_listed_and_deleted(place: Any) -> None:
    first = files.join(place, "sub", "name=a%3Ab c", "x.txt")
    second = files.join(place, "y.txt")
    assert not files.exists(first)
    assert files.list_files(place) == []
    files.write_whole(first, b"one")
    files.write_whole(second, b"")
    files.write_whole(first, b"three")
    assert files.read_whole(first) == b"three"
    assert files.exists(first) and files.exists(place) and files.exists(files.join(place, "sub"))
    entries = files.list_files(place, ".txt")
    assert [entry.uri for entry in entries] == [first, second]
    assert [entry.size for entry in entries] == [5, 0]
    assert entries[0].path.endswith("/sub/name=a%3Ab c/x.txt")
    assert files.list_files(place, ".parquet") == []
    assert [entry.size for entry in files.list_files(first)] == [5]
    files.delete(first)
    files.delete(first)  # is gone already
    assert not files.exists(first)
    with pytest.raises(FileAccessError, match="cannot be read"):
        files.read_whole(first)


def test_hidden_files_are_listed_apart(place: Any) -> None:
    for names in (["x.tmp"], [".y.tmp"], ["_deep", "z.tmp"]):
        files.write_whole(files.join(place, *names), b"x")
    assert [e.uri for e in files.list_files(place)] == [files.join(place, "x.tmp")]
    hidden = {entry.uri for entry in files.list_files(place, hidden=True)}
    assert hidden == {files.join(place, ".y.tmp"), files.join(place, "_deep", "z.tmp")}


def test_large_objects_arrive_whole(s3: str) -> None:
    data = os.urandom(11 << 20)  # S3 takes them in parts of 5 MiB
    uri = files.join(s3, "large")
    files.write_whole(uri, data)
    assert files.read_whole(uri) == data


def test_join_encodes_names_in_uris_only_and_keeps_options() -> None:
    assert files.join("runs/first", "a b%", "c") == "runs/first/a b%/c"
    assert files.join(Path("runs"), "x=1") == "runs/x=1"
    uri = files.join("s3://bucket/runs/?region=eu-west-1", "a b%", "x=1")
    assert uri == "s3://bucket/runs/a%20b%25/x=1?region=eu-west-1"
    found, path = files.filesystem(uri)
    assert isinstance(found, pafs.S3FileSystem) and found.region == "eu-west-1"
    assert path == "bucket/runs/a b%/x=1"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("ftp://host/file", "unknown kind of storage 'ftp'. Give a local path, or a URI such as"),
        ("s3://bucket/a b", "not a valid URI .* Write %20 for a space"),
        ("file://relative", "not a valid URI .* a local path needs no file://"),
    ],
)
def test_uris_that_cannot_be(uri: str, message: str) -> None:
    for function in (files.exists, files.read_whole, files.list_files, files.delete):
        with pytest.raises(FileAccessError, match=message) as caught:
            function(uri)
        assert str(caught.value).startswith(uri)
        assert caught.value.exit_status == 2


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(FileAccessError, match=r"file/x: cannot be written .*choose another place"):
        files.write_whole(tmp_path / "file" / "x", b"new")
    assert (tmp_path / "file").read_text() == "old"
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileAccessError, match=r"folder: cannot be written"):
        files.write_whole(tmp_path / "folder", b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_bucket_that_is_not_there(s3: str) -> None:
    with pytest.raises(FileAccessError, match=r"s3://none-such/x: cannot be written \(no such"):
        files.write_whole("s3://none-such/x", b"x")
    assert not files.exists("s3://none-such/x")


def test_a_folder_without_permission(tmp_path: Path) -> None:
    """Permissions do not bind root: a process without root's rights tries."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.geteuid() != 0:
        with pytest.raises(FileAccessError, match="Permission denied"):
            files.write_whole(closed / "x", b"x")
        return
    code = """
import os, sys
from rlprune import files
from rlprune.errors import FileAccessError
os.setuid(65534)
try:
    files.write_whole(sys.argv[1], b"x")
except FileAccessError as error:
    print(error)
"""
    for folder in closed.parents:  # pytest lets nobody else into its folders
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    run = subprocess.run(
        [sys.executable, "-c", code, str(closed / "x")], capture_output=True, text=True
    )
    assert f"{closed / 'x'}: cannot be written (Permission denied). Change the perm" in run.stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(["mount", *options], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted ({mounted.stderr.strip()})")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_named_and_the_old_file_stays(small_disk: Path) -> None:
    path = small_disk / "x"
    files.write_whole(path, b"old")
    with pytest.raises(FileAccessError, match=r"x: cannot be written \(No space left on device\)"):
        files.write_whole(path, bytes(1 << 20))
    assert path.read_bytes() == b"old"
    assert list(small_disk.iterdir()) == [path]  # nothing that fills the disk is left
