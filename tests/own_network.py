"""A network of our own: Ray opens its ports on every interface, so tests give it only loopback.

Linux and root are needed; elsewhere the tests that ask for it are skipped.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET of linux/sched.h


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """Puts this thread, and all processes that it starts meanwhile, into a new network."""
    if os.geteuid() != 0 or not all(shutil.which(name) for name in ("unshare", "ip", "mount")):
        pytest.skip("needs Linux, root, and the commands unshare, ip and mount")
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(_NEW_NETWORK) != 0:
            pytest.skip(f"no new network here: {os.strerror(ctypes.get_errno())}")
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            if libc.setns(before, _NEW_NETWORK) != 0:
                raise OSError(ctypes.get_errno(), "cannot return to the network of before")
    finally:
        os.close(before)
