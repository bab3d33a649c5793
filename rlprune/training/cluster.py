"""Ray on one machine: started privately for a run, or the cluster one is already in."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_STORE_HEADROOM = 256 * 1024**2


@contextlib.contextmanager
def private_ray(num_cpus: int, store_bytes: int) -> Iterator[None]:
    """A Ray instance for this run alone, or the cluster that RAY_ADDRESS names.

    Ray 2.60 listens on every interface even when bound to loopback, so the instance gets a
    random token (kept in a folder that only this user can read) without which nothing
    can connect. Everything is shut down and deleted at the end.

    Args:
        num_cpus: logical CPUs of the instance.
        store_bytes: what the object store must hold (the images); headroom is added.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_ADDRESS"):
        with _quiet_ray() as ray:
            ray.init(logging_level=logging.ERROR)
            yield
            ray.shutdown()
        return
    folder = Path(tempfile.mkdtemp(prefix="rlprune-ray-"))  # mode 0700
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="ascii")
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
    try:
        with _quiet_ray() as ray:
            ray.init(
                num_cpus=num_cpus,
                include_dashboard=False,
                object_store_memory=store_bytes + _STORE_HEADROOM,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
            )
            try:
                yield
            finally:
                ray.shutdown()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _quiet_ray() -> Iterator[Any]:
    """Imports Ray with its deprecation chatter switched off (ours is what users read)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        import ray

        for name in ("ray", "ray.rllib", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)
        yield ray
