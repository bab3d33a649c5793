"""Ray on one machine: started privately for a run, or the cluster one is already in."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import secrets
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlprune.errors import ClusterError

_STORE_HEADROOM = 256 * 1024**2
_STARTS = 3
"""Ray waits 30 s for its own processes, which is too short where the machine is busy (seen at a
load of 12 on two cores), and gives up."""
_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def private_ray(num_cpus: int, store_bytes: int, log_to_driver: bool = True) -> Iterator[None]:
    """A Ray instance for this run alone, or the cluster that RAY_ADDRESS names.

    Ray 2.60 listens on every interface even when bound to loopback, so the instance gets a
    random token (kept in a folder that only this user can read) without which nothing
    can connect. It is shut down at the end.

    Args:
        num_cpus: logical CPUs of the instance.
        store_bytes: what the object store must hold (the images); headroom is added.
        log_to_driver: whether what workers print is shown here as well as in Ray's logs.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_ADDRESS"):
        with _quiet_ray() as ray:
            ray.init(logging_level=logging.ERROR, log_to_driver=log_to_driver)
            try:
                yield
            finally:
                ray.shutdown()
        return
    _use_private_token()
    with _quiet_ray() as ray:
        start = functools.partial(
            ray.init,
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=store_bytes + _STORE_HEADROOM,
            logging_level=logging.ERROR,
            log_to_driver=log_to_driver,
            _node_ip_address="127.0.0.1",
        )
        start_patiently(start, ray.shutdown)
        try:
            yield
        finally:
            ray.shutdown()


def start_patiently(start: Callable[[], object], stop: Callable[[], object]) -> None:
    """Starts Ray; where its processes are too slow for it, again.

    Args:
        start: starts it.
        stop: ends what a start in vain has left.

    Raises:
        ClusterError: it was too slow every time.
    """
    for left in reversed(range(_STARTS)):
        try:
            start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            stop()
            if left == 0:
                raise ClusterError(
                    f"Ray did not start: {_STARTS} times its processes took more than 30 s. Is "
                    f"the machine out of memory or very busy (load {os.getloadavg()[0]:.0f} on "
                    f"{os.cpu_count()} cores)? Nothing is lost; try again when it is quieter."
                ) from error
            _logger.warning("Ray was too slow to start; trying again.")
        else:
            return


@functools.cache
def _use_private_token() -> None:
    """Makes this process and its children use a random token; once per process.

    The folder is removed when the process ends, not before: Ray's threads may read the
    token until then.
    """
    folder = Path(tempfile.mkdtemp(prefix="rlprune-ray-"))  # mode 0700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="ascii")
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
    if "ray" in sys.modules:  # Ray has read the environment already: make it read again
        from ray._raylet import (  # type: ignore[attr-defined]
            AuthenticationTokenLoader,
            Config,
        )

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


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
