"""What can be decided about a job without a cluster: ids, package, places, access, restarts."""

from __future__ import annotations

import http.server
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rlprune.errors import ClusterError, ConfigError
from rlprune.jobs import access, attempts, environment, supervise
from rlprune.jobs.entry import only_failed_left
from rlprune.jobs.package import LIMIT_BYTES, SPEC_FILE, code_files, packed
from rlprune.jobs.places import check_places
from rlprune.jobs.supervise import Patience, keep_going
from rlprune.jobs.watch import JobState, asked
from rlprune.sweep.spec import SweepSpec, spec_from_dict
from rlprune.sweep.status import FAILED, FINISHED, INTERRUPTED, RUNNING, SweepStatus


def spec_of(**values: Any) -> SweepSpec:
    space = {"seed": {"grid": [0, 1]}}
    base = {"name": "first", "space": space, "storage_path": "s3://bucket/sweeps"}
    return spec_from_dict({**base, **values}, Path.cwd())


# --- ids ------------------------------------------------------------------------------------


def test_ids_go_on_after_the_highest_of_the_same_sweep_and_kind() -> None:
    known = ["a-r1", "a-r9", "a-r10", "a-preflight3", "a-r", "a-rx", "b-r40", "a-r2-r77", "xa-r50"]
    assert attempts.next_id("a", attempts.SWEEP, known) == "a-r11"
    assert attempts.next_id("a", attempts.PREFLIGHT, known) == "a-preflight4"
    assert attempts.next_id("a-r2", attempts.SWEEP, known) == "a-r2-r78"
    assert attempts.next_id("c", attempts.SWEEP, known) == "c-r1"
    assert attempts.next_id("a.b", attempts.SWEEP, ["axb-r7"]) == "a.b-r1"


@given(st.sets(st.integers(1, 10**6)), st.booleans())
def test_an_id_is_never_one_that_exists(numbers: set[int], gap: bool) -> None:
    known = {f"s-r{number}" for number in numbers}
    assert attempts.next_id("s", attempts.SWEEP, known) not in known


# --- environment ----------------------------------------------------------------------------


def test_variables_are_passed_on_by_name() -> None:
    environ = {"A": "1", "B": "x=y", "C": "no"}
    assert environment.collect(["A", "B"], environ) == {"A": "1", "B": "x=y"}
    with pytest.raises(ConfigError) as caught:
        environment.collect(["A=geheim", "MISSING", "not-a-name"], environ)
    text = str(caught.value)
    assert "takes a name, never a value" in text and "MISSING" in text and "not-a-name" in text
    assert "geheim" not in text


@given(st.dictionaries(st.text(), st.text()))
def test_what_is_packed_comes_out_and_shows_nothing_at_its_start(values: dict[str, str]) -> None:
    data = environment.pack(values)
    assert environment.unpack(data) == values
    assert data[:15] == b"rlprune environ"  # what Ray quotes in messages


def test_an_emptied_mailbox_says_so() -> None:
    with pytest.raises(ClusterError, match="Submit it again"):
        environment.unpack(b"")


def test_without_a_mailbox_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(environment.MAILBOX, raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # would fail
    environment.install()
    environment.forget()


# --- package --------------------------------------------------------------------------------


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "net.py").write_text("x = 1\n")
    (folder / "top.py").write_text("y = 2\n")
    for hidden in (".git", ".venv", "venv", "__pycache__", ".cache", "ignored"):
        (folder / hidden).mkdir()
        (folder / hidden / "file.py").write_text("never")
    (folder / ".env").write_text("AWS_SECRET_ACCESS_KEY=geheim")
    (folder / "mine" / "notes.txt").write_text("left out")
    (folder / ".gitignore").write_text("ignored/\n")
    (folder / ".rayignore").write_text("*.txt\n")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    return folder


def test_only_code_is_shipped(code: Path) -> None:
    assert list(code_files(code)) == ["mine/net.py", "top.py"]


def test_the_package_holds_the_resolved_specification_and_rlprune(code: Path) -> None:
    spec = spec_of(base="quickstart")
    with packed(spec, code, ship_rlprune=True) as path:
        first = path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            shipped = yaml.safe_load(archive.read(SPEC_FILE))
    assert spec_from_dict(shipped, Path("/nowhere")) == spec
    assert shipped["trial"]["backbone"]["width"] == 0.25  # of quickstart: nothing to look up
    assert {"mine/net.py", "top.py", "rlprune/__init__.py", "rlprune/jobs/entry.py"} <= set(names)
    assert not [name for name in names if "__pycache__" in name or "tests" in name]
    time.sleep(1.1)  # file times count seconds
    with packed(spec, code, ship_rlprune=True) as path:
        assert path.read_bytes() == first  # Ray uploads equal packages once
    assert not path.exists()
    with packed(spec, None, ship_rlprune=False) as path, zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [SPEC_FILE]


def test_a_checkout_of_rlprune_as_own_code_replaces_the_installed_one(code: Path) -> None:
    (code / "rlprune").mkdir()
    (code / "rlprune" / "__init__.py").write_text("mine = True\n")
    with packed(spec_of(), code, ship_rlprune=True) as path, zipfile.ZipFile(path) as archive:
        ours = [name for name in archive.namelist() if name.startswith("rlprune/")]
    assert ours == ["rlprune/__init__.py"]


def test_too_much_code_is_refused_and_the_largest_parts_are_named(code: Path) -> None:
    (code / "images").mkdir()
    for name, mebibytes in (("images/a.bin", 60), ("images/b.bin", 30), ("weights.pth", 11)):
        with (code / name).open("wb") as file:
            file.truncate(mebibytes * 2**20)  # sparse: takes no room
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught, packed(spec_of(), code, True):
        pass
    assert time.monotonic() - started < 2  # refused before anything is read
    text = str(caught.value)
    assert "at most 100.0 MiB" in text and "101.0 MiB" in text
    assert "images/ 90.0 MiB, weights.pth 11.0 MiB" in text and ".rayignore" in text
    (code / "weights.pth").unlink()
    with packed(spec_of(), code, False) as path:
        assert path.stat().st_size < LIMIT_BYTES


def test_a_code_folder_must_be_one(code: Path) -> None:
    with pytest.raises(ConfigError, match="must be a folder"):
        code_files(code / "top.py")
    (code / SPEC_FILE).touch()
    with pytest.raises(ConfigError, match="Rename it"):
        code_files(code)


# --- places ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["s3://bucket/a", "/mnt/shared", "gs://anonymous@bucket/a"])
def test_places_that_other_machines_can_know(path: str) -> None:
    check_places(
        spec_of(storage_path=path, trial={"data": {"name": "cifar10", "root": "~/c"}}), False
    )


def test_relative_paths_mean_nothing_on_other_machines() -> None:
    trial = {"data": {"name": "imagefolder", "root": "images"}}
    space = {"backbone.weights": {"grid": ["/shared/a.pth", "b.pth"]}}
    spec = spec_of(storage_path="runs", trial=trial, space=space)
    with pytest.raises(ConfigError) as caught:
        check_places(spec, own_code=False)
    fields = [problem.field for problem in caught.value.problems]
    assert fields == ["storage_path", "trial.data.root", "trial.backbone.weights"]
    assert "got 'b.pth'" in str(caught.value) and "a.pth" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        check_places(spec, own_code=True)
    assert "weights" not in str(caught.value)


@pytest.mark.parametrize(
    "path",
    ["s3://AKIA:geheim@bucket/a", "s3://bucket/a?secret_key=geheim", "abfs://c/a?sig=geheim"],
)
def test_keys_do_not_belong_into_a_storage_path(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_places(spec_of(storage_path=path), False)
    assert "must not hold keys" in str(caught.value) and "geheim" not in str(caught.value)


# --- access ---------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Callable[[Callable[[str | None], tuple[int, str]]], str]]:
    """Starts an HTTP server on loopback that answers by the Authorization header; its URL."""
    running: list[http.server.HTTPServer] = []

    def start(answer: Callable[[str | None], tuple[int, str]]) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, text = answer(self.headers.get("Authorization"))
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", text)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        running.append(http.server.HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_port}"

    yield start
    for one in running:
        one.shutdown()
        one.server_close()


def ray_version() -> str:
    import ray

    return ray.__version__


def guarded(header: str | None) -> tuple[int, str]:
    """As Ray's dashboard with RAY_AUTH_MODE=token answers (the status codes were measured)."""
    if header is None:
        return 401, "Unauthorized: Missing authentication token"
    if header != "Bearer right":
        return 403, "Forbidden: Invalid authentication token"
    return 200, f'{{"ray_version": "{ray_version()}"}}'


@pytest.fixture
def no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a token, and none in the environment."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write_token(path: Path, value: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value)
    path.chmod(mode)
    return path


def test_the_token_is_taken_from_where_ray_looks_for_it(no_token: Path) -> None:
    assert access.find_token({}) is None
    write_token(no_token / ".ray" / "auth_token", "default\n")
    file = write_token(no_token / "mine", "of the file\n")
    both = {"RAY_AUTH_TOKEN_PATH": str(file), "RAY_AUTH_TOKEN": "of the variable"}
    found = [access.find_token(e) for e in ({}, {"RAY_AUTH_TOKEN_PATH": str(file)}, both)]
    assert [token and token.value for token in found] == [
        "default", "of the file", "of the variable",
    ]  # fmt: skip
    assert "of the file" not in repr(found[1]) and str(file) in repr(found[1])


@pytest.mark.parametrize(
    ("value", "mode", "words"), [("t", 0o644, "chmod 600"), ("", 0o600, "empty"), (None, 0, "read")]
)
def test_a_token_file_that_does_not_do(
    no_token: Path, value: str | None, mode: int, words: str
) -> None:
    file = no_token / "token"
    if value is not None:
        write_token(file, value, mode)
    with pytest.raises(ClusterError, match=words) as caught:
        access.find_token({"RAY_AUTH_TOKEN_PATH": str(file)})
    assert str(file) in str(caught.value) and caught.value.exit_status == 2


def test_the_right_token_opens(
    no_token: Path, monkeypatch: pytest.MonkeyPatch, server: Callable[..., str]
) -> None:
    url = server(guarded)
    with pytest.raises(ClusterError, match="asks for a token, and there is none") as caught:
        access.connect(url)
    assert "RAY_AUTH_TOKEN_PATH" in str(caught.value)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    with pytest.raises(ClusterError, match="refused the token from RAY_AUTH_TOKEN") as caught:
        access.connect(url)
    assert "HTTP 403" in str(caught.value)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    cluster = access.connect(f"{url}/")
    assert cluster.address == url and cluster.warnings == ()
    assert "right" not in repr(cluster)


def test_an_open_cluster_is_refused_unless_it_is_ours_alone(
    no_token: Path, monkeypatch: pytest.MonkeyPatch, server: Callable[..., str]
) -> None:
    url = server(lambda header: (200, f'{{"ray_version": "{ray_version()}"}}'))
    with pytest.raises(ClusterError, match="everybody who reaches it") as caught:
        access.connect(url)
    assert "--allow-unauthenticated" in str(caught.value)
    assert access.connect(url, allow_unauthenticated=True).token is None
    monkeypatch.setattr(access, "is_loopback", lambda url: False)  # as if it were elsewhere
    with pytest.raises(ClusterError) as caught:
        access.connect(url, allow_unauthenticated=True)
    assert "--allow-unauthenticated" not in str(caught.value)


def test_a_token_is_not_carried_elsewhere_by_a_redirect(
    no_token: Path, monkeypatch: pytest.MonkeyPatch, server: Callable[..., str]
) -> None:
    seen: list[str | None] = []

    def elsewhere(header: str | None) -> tuple[int, str]:
        seen.append(header)
        return 200, "{}"

    other = server(elsewhere)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    with pytest.raises(ClusterError, match="HTTP 302"):
        access.connect(server(lambda header: (302, other)))
    assert seen == []


def test_another_version_of_ray_is_mentioned(
    no_token: Path, monkeypatch: pytest.MonkeyPatch, server: Callable[..., str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    old = server(lambda header: (401, "") if header is None else (200, '{"ray_version": "2.1.0"}'))
    assert "the cluster runs Ray 2.1.0" in access.connect(old).warnings[0]
    other = server(lambda header: (401, "") if header is None else (200, "<html>"))
    with pytest.raises(ClusterError, match="no job server of Ray"):
        access.connect(other)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8265", "ray://head:10001", "http://", "http://a:x", "http://a/b", "x"]
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ClusterError, match="must be the URL of Ray's dashboard"):
        access.check_address(address)
    with pytest.raises(ClusterError, match="must not hold a user") as caught:
        access.check_address("https://me:geheim@head:8265")
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "ours"),
    [("http://127.0.0.1:1", True), ("http://localhost:1", True), ("http://[::1]:1", True),
     ("http://127.9.9.9:1", True), ("http://10.0.0.1:1", False), ("http://localhost.a:1", False)],
)  # fmt: skip
def test_loopback(url: str, ours: bool) -> None:
    assert access.is_loopback(url) is ours


def test_nobody_there(no_token: Path) -> None:
    with pytest.raises(ClusterError, match="no job server answers"):
        access.connect("http://127.0.0.1:1")


# --- restarts -------------------------------------------------------------------------------


def going(statuses: list[int], left: bool = False, **limits: Any) -> tuple[int, list[float], int]:
    """Exit status, pauses and the number of attempts of a job whose attempts end so."""
    rest, pauses, told = list(statuses), [], []
    status = keep_going(
        lambda: rest.pop(0),
        lambda: left,
        told.append,
        lambda seconds: bool(pauses.append(seconds)),
        Patience(**limits),
    )
    assert len(told) >= len(pauses)
    return status, pauses, len(statuses) - len(rest)


@pytest.mark.parametrize("status", [0, 2, 130])
def test_the_first_attempt_may_have_the_last_word(status: int) -> None:
    assert going([status]) == (status, [], 1)


def test_failed_trials_end_the_job_and_crashes_do_not() -> None:
    assert going([1], left=True) == (1, [], 1)
    assert going([1, 0], left=False) == (0, [5.0], 2)  # status 1 of Python itself


def test_driver_failures_are_survived_with_longer_and_longer_pauses() -> None:
    assert going([75, -9, -6, 75, 75, 0]) == (0, [5.0, 10.0, 20.0, 40.0, 60.0], 6)


def test_what_was_accepted_once_is_tried_again_when_it_is_refused_later() -> None:
    assert going([-9, 2, 0]) == (0, [5.0, 10.0], 3)


@pytest.mark.parametrize(("last", "expected"), [(75, 75), (-9, 75), (1, 1)])
def test_there_is_a_limit(last: int, expected: int) -> None:
    status, pauses, count = going([last] * 9)
    assert (status, len(pauses), count) == (expected, 5, 6)


def test_a_long_calm_makes_the_count_start_anew() -> None:
    assert going([75] * 20 + [0], calm=-1.0, restarts=1)[0] == 0


def test_a_job_that_is_stopped_while_it_waits_ends() -> None:
    told: list[str] = []
    status = keep_going(lambda: 75, lambda: False, told.append, lambda seconds: True)
    assert status == supervise.INTERRUPTED and len(told) == 1


@pytest.mark.parametrize(
    ("states", "left"),
    [
        ([FINISHED, FAILED], True),
        ([FINISHED, FINISHED], False),
        ([FAILED, INTERRUPTED], False),
        ([FAILED, RUNNING], False),
    ],
)
def test_whether_only_failed_trials_are_left(tmp_path: Path, states: list[str], left: bool) -> None:
    status = SweepStatus(total=len(states))
    for number, state in enumerate(states):
        status.trial(str(number)).state = state
    status.write(str(tmp_path))
    assert only_failed_left(str(tmp_path)) is left
    assert only_failed_left(str(tmp_path / "none")) is False


# --- a job's state --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", None, 1), ("STOPPED", None, 130)],
)
def test_the_exit_status_of_following(status: str, code: int | None, expected: int) -> None:
    details = SimpleNamespace(
        submission_id="a-r1", metadata=None, status=status, start_time=1500, end_time=None,
        driver_exit_code=code, message="first\nlast\n",
    )  # fmt: skip
    state = JobState.of(details)
    assert state.command_status == expected and state.over
    assert (state.started, state.ended, state.message) == (1.5, None, "last")


def test_a_job_server_that_is_gone_is_told_in_words() -> None:
    def ask() -> None:
        raise requests.exceptions.ConnectionError(
            "HTTPConnectionPool(host='10.0.0.2', port=8265): Max retries exceeded with url: "
            "/api/jobs/small-r1 (Caused by NewConnectionError(\"HTTPConnection(host='10.0.0.2', "
            'port=8265): Failed to establish a new connection: [Errno 113] No route to host"))'
        )

    with pytest.raises(ClusterError) as caught:
        asked(access.Cluster("http://10.0.0.2:8265", None), ask)
    text = str(caught.value)
    assert "the job server does not answer ([Errno 113] No route to host)" in text
    assert "submit again to a new cluster" in text and "Max retries" not in text
