"""Environment variables of a job that nobody may see: a mailbox in the cluster's memory.

Ray 2.60 writes ``runtime_env.env_vars`` in clear text into ``runtime_env_agent.log`` on every
node, onto the command line of every worker that it starts, and into the job's description (all
measured). What a user passes on by name therefore goes another way: the values are put into the
key-value store of Ray's head (in its memory, behind the token) under a random name, and only
that name travels in ``env_vars``. The job's own process and (by ``worker_process_setup_hook``)
each of its workers fetch them from there; the job removes them when it ends.

Whoever has the cluster's token can still read them, as can programs of the same user there.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from rlprune.errors import ClusterError, ConfigError, Problem

MAILBOX = "RLPRUNE_ENVIRONMENT"
"""Environment variable of a job with the name of its mailbox."""
HOOK = "rlprune.jobs.environment.install"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Ray's message about a failed upload quotes the first 15 bytes.
_HEAD = b"rlprune environment 1\n"
_TIMEOUT_SECONDS = 30.0


def collect(names: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The values of the variables that a user wants to pass on.

    Raises:
        ConfigError: names that are none, or not set; values are never shown.
    """
    problems = []
    for given in names:
        name, equals, _ = given.partition("=")
        if not _NAME.fullmatch(name):
            remedy = "Write --env AWS_ACCESS_KEY_ID."
            problems.append(Problem("--env", "must be a variable's name", name, remedy))
        elif equals:
            remedy = f"Set {name} in your shell and write --env {name}: others can see commands."
            problems.append(Problem("--env", "takes a name, never a value", f"{name}=...", remedy))
        elif name not in environ:
            remedy = "Set it, or leave it out where the cluster's nodes have it already."
            problems.append(Problem("--env", "must be set here", name, remedy))
    if problems:
        raise ConfigError(problems)
    return {name: environ[name] for name in names}


def new_mailbox() -> str:
    """A random name; Ray takes names of zip files only."""
    return f"rlprune-environment-{uuid.uuid4().hex}.zip"


def pack(values: Mapping[str, str]) -> bytes:
    """What lies in the mailbox."""
    return _HEAD + json.dumps(dict(values)).encode()


def unpack(data: bytes) -> dict[str, str]:
    """The values in a mailbox.

    Raises:
        ClusterError: they were removed, or are no such values.
    """
    if not data.startswith(_HEAD):
        raise ClusterError(
            "The environment variables that were passed on with --env are gone from the cluster: "
            "the job that they belong to has ended. Submit it again."
        )
    values: dict[str, str] = json.loads(data[len(_HEAD) :])
    return values


def install() -> None:
    """Takes the values out of the job's mailbox into this process; nothing without one.

    Ray calls it in each worker process of the job before anything else.

    Raises:
        ClusterError: there are none any more.
    """
    name = os.environ.get(MAILBOX)
    if name:
        found = _store().internal_kv_get(_key(name), None, timeout=_TIMEOUT_SECONDS)
        os.environ.update(unpack(found or b""))


def forget() -> None:
    """Removes the values from the cluster."""
    name = os.environ.get(MAILBOX)
    if name:
        _store().internal_kv_del(_key(name), False, None, timeout=_TIMEOUT_SECONDS)


def _key(name: str) -> bytes:
    return f"gcs://{name}".encode()


def _store() -> Any:
    """A client of the head's key-value store: a worker's own, or one for a process without Ray."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.experimental import internal_kv

    found = internal_kv.internal_kv_get_gcs_client()
    return found if found is not None else GcsClient(address=os.environ["RAY_ADDRESS"])
