"""Reaching a cluster's job server: its address, the token, and whether others could do so too."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rlprune.errors import ClusterError

_TIMEOUT_SECONDS = 30.0
_VERSION = "/api/version"
_OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_PLACES = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH (a file), or the file ~/.ray/auth_token"


@dataclass(frozen=True)
class Token:
    """A token, and where it was found.

    Attributes:
        value: never shown.
        source: for messages.
    """

    value: str = field(repr=False)
    source: str


@dataclass(frozen=True)
class Cluster:
    """A job server that has let us in.

    Attributes:
        address: http(s)://host:port.
        token: None for a cluster without authentication.
        warnings: what the user should know.
    """

    address: str
    token: Token | None
    warnings: tuple[str, ...] = ()

    def client(self) -> Any:
        """Ray's client of the job server (ray.job_submission.JobSubmissionClient)."""
        from ray.job_submission import JobSubmissionClient

        for name in ("dashboard_sdk", "job.sdk"):  # their INFO is about packages and sockets
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.ERROR)
        with _unset(_OVERRIDES):  # Ray would talk to the cluster that they name
            return JobSubmissionClient(self.address, headers=_headers(self.token))

    def store(self, name: str, data: bytes) -> None:
        """Puts bytes under a name into the memory of the cluster's head.

        Raises:
            ClusterError: it did not take them.
        """
        status, text = _request(self.address, f"/api/packages/gcs/{name}", self.token, data)
        if status != 200:
            raise ClusterError(
                f"{self.address}: did not take the environment variables (HTTP {status}, "
                f"{_first_line(text)}). Look at the head's logs, or set them on the cluster."
            )


def connect(address: str, allow_unauthenticated: bool = False) -> Cluster:
    """Reaches a job server and makes sure that only those with its token can.

    Args:
        address: http(s)://host:port of Ray's dashboard.
        allow_unauthenticated: accept a server on loopback that asks for no token.

    Raises:
        ClusterError: no server there; it is open to all; no token, or not the right one.
    """
    url = check_address(address)
    status, _ = _request(url, _VERSION, None)
    if status == 200:
        if allow_unauthenticated and is_loopback(url):
            return Cluster(url, None)
        raise ClusterError(_open_to_all(url))
    if status != 401:
        raise ClusterError(
            f"{url}: no job server of Ray answers there (HTTP {status}). Give the address of the "
            "head's dashboard, for example http://127.0.0.1:8265."
        )
    token = find_token(os.environ)
    if token is None:
        raise ClusterError(f"{url}: asks for a token, and there is none. Looked for: {_PLACES}.")
    status, text = _request(url, _VERSION, token)
    if status != 200:
        raise ClusterError(
            f"{url}: refused the token from {token.source} (HTTP {status}, {_first_line(text)}). "
            f"It must be the one that the head was started with; it is taken from {_PLACES}."
        )
    return Cluster(url, token, _warnings(url, text))


def check_address(address: str) -> str:
    """The address of a job server without a trailing slash.

    Raises:
        ClusterError: it is no http or https URL of a host.
    """
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
        valid = valid and parts.path in ("", "/") and not parts.query and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ClusterError(
            f"--address {address}: must be the URL of Ray's dashboard, http://HOST:8265 "
            "(not the address of Ray itself, HOST:6379, nor ray://HOST:10001)."
        )
    if parts.username is not None:
        raise ClusterError(f"--address: must not hold a user or password. Use {_PLACES}.")
    return address.rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether only this machine can reach the address."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def find_token(environ: Mapping[str, str]) -> Token | None:
    """The token where Ray's own commands look for it, in the same order.

    Raises:
        ClusterError: the file that RAY_AUTH_TOKEN_PATH names cannot be read, is empty, or can
            be read by others.
    """
    if environ.get("RAY_AUTH_TOKEN"):
        return Token(environ["RAY_AUTH_TOKEN"].strip(), "RAY_AUTH_TOKEN")
    if environ.get("RAY_AUTH_TOKEN_PATH"):
        return _read_token(Path(environ["RAY_AUTH_TOKEN_PATH"]), "RAY_AUTH_TOKEN_PATH: ")
    default = Path.home() / ".ray" / "auth_token"
    return _read_token(default, "") if default.exists() else None


def _read_token(file: Path, named_by: str) -> Token:
    try:
        mode = file.stat().st_mode & 0o777
        value = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(
            f"{named_by}{file}: the token cannot be read ({error}). Copy it from the head."
        ) from None
    if mode & 0o077:
        raise ClusterError(
            f"{named_by}{file}: others can read the token (mode {mode:04o}). chmod 600 {file}"
        )
    if not value:
        raise ClusterError(f"{named_by}{file}: the token is empty. Copy it from the head.")
    return Token(value, f"{named_by}{file}")


def _headers(token: Token | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token.value}"}


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _request(
    url: str, path: str, token: Token | None, data: bytes | None = None
) -> tuple[int, str]:
    """HTTP status and text of a GET, or of a PUT of ``data``.

    Raises:
        ClusterError: nobody answers.
    """
    method = "GET" if data is None else "PUT"
    request = urllib.request.Request(url + path, data, _headers(token), method=method)
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=_TIMEOUT_SECONDS) as r:
            return int(r.status), r.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except (OSError, HTTPException) as error:
        reason = str(getattr(error, "reason", error))
        reason = reason if reason.isprintable() else "not in HTTP"
        raise ClusterError(
            f"{url}: no job server answers ({reason}). Check that the head runs and that its "
            "dashboard can be reached; to one on another machine lead "
            "`ssh -N -L 8265:127.0.0.1:8265 HEAD` and --address http://127.0.0.1:8265."
        ) from None


def _warnings(url: str, version: str) -> tuple[str, ...]:
    import ray

    found = []
    if url.startswith("http://") and not is_loopback(url):
        found.append(
            f"{url}: the token travels unencrypted. Use https, or a tunnel: "
            "ssh -N -L 8265:127.0.0.1:8265 HEAD"
        )
    try:
        theirs = str(json.loads(version)["ray_version"])
    except (ValueError, KeyError, TypeError):
        raise ClusterError(f"{url}: no job server of Ray answers there.") from None
    if theirs != ray.__version__:
        found.append(f"{url}: the cluster runs Ray {theirs}, here is {ray.__version__}.")
    return tuple(found)


def _open_to_all(url: str) -> str:
    local = ""
    if is_loopback(url):
        local = " If only you use this machine: --allow-unauthenticated."
    return (
        f"{url}: asks for no token, so everybody who reaches it can run programs there. Start the "
        "cluster with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE (a file of mode 0600, the "
        f"same on every node).{local}"
    )


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[0][:200]


@contextlib.contextmanager
def _unset(names: tuple[str, ...]) -> Iterator[None]:
    saved = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(saved)
