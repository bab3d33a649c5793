"""A process eats the nodes' memory, Ray's memory monitors kill workers; the sweep ends well."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from fault_sweeps import PATIENT, SPEC, Sweep, ended, note, undisturbed, wait_until
from local_cluster import RunningCluster, local_cluster

from cluster.local import service

pytestmark = pytest.mark.slow

ROOM = 7 * 2**30
"""Bytes between what is in use before and the monitor's limit: nodes and trials need 4 GiB."""
FACTORY = """
import os
import pathlib
import sys
import time

import numpy as np
import psutil
from rlprune.backbones import build_backbone
from rlprune.config import BackboneConfig

FLAG = {flag!r}
LEAVE = {leave!r}
HELD = []


def make(num_classes, in_channels):
    if "default_worker" in sys.argv[0]:
        try:
            os.remove(FLAG)  # one process takes it, once
        except FileNotFoundError:
            pass
        else:
            eat()
    return build_backbone(BackboneConfig(width=0.1), num_classes, (in_channels, 8, 8))


def eat():
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        while psutil.virtual_memory().available > LEAVE:
            HELD.append(np.ones(2**26, dtype=np.uint8))
        time.sleep(0.1)
    raise RuntimeError("nobody stopped it")
"""


def watch(milliseconds: int, limit: float) -> dict[str, str]:
    """Variables of Ray's memory monitor; 0 milliseconds: it is off."""
    return {
        "RAY_memory_usage_threshold": f"{limit:.3f}",
        "RAY_memory_monitor_refresh_ms": f"{milliseconds}",
    }


def watch_workers(cluster: RunningCluster, limit: float) -> None:
    """Starts the workers anew, with the monitor.

    The machines have one memory in truth: a monitor on the head would see it full as well, and
    kill Ray's supervisor of the job.
    """
    for name in cluster.shape.names()[1:]:
        service.kill_one(cluster.folder, name)
    environment = {**cluster.shape.environment, **watch(100, limit)}
    watched = dataclasses.replace(cluster.shape, environment=environment)
    cluster.folder.write_shape(watched)
    service.up(cluster.folder, watched, lambda _: None)


def test_a_process_out_of_memory(tmp_path: Path) -> None:
    memory = psutil.virtual_memory()
    if memory.available < ROOM + 4 * 2**30:
        pytest.skip("needs 11 GiB of free memory")
    flag = tmp_path / "hungry"
    code = tmp_path / "code"
    code.mkdir()
    trial = {**SPEC["trial"], "backbone": {"factory": "own_net:make"}}
    grid = {**SPEC["space"], "budgets.storage_max": {"grid": [0.4, 0.5, 0.6]}}  # one starts later
    spec: dict[str, Any] = {**SPEC, "trial": trial, "space": grid, "max_concurrent": 2}
    spec["stop"] = {"max_failures": 5}
    leave = memory.available - ROOM - 2**29  # half a GiB beyond the limit: no danger to others
    (code / "own_net.py").write_text(FACTORY.format(flag=str(flag), leave=leave))
    limit = (memory.total - memory.available + ROOM) / memory.total
    with local_cluster("testmemory", storage=True, cpus=4, **PATIENT, **watch(0, limit)) as cluster:
        watch_workers(cluster, limit)
        calm = undisturbed(Sweep(cluster, "calm", tmp_path), "--code", code, spec=spec)
        sweep = Sweep(cluster, "memory", tmp_path)
        with ended(sweep.submit("--no-preflight", "--code", code, spec=spec)) as job:
            sweep.until_two_have_saved(job)
            flag.touch()
            wait_until(lambda: not flag.exists(), job)
            began = time.monotonic()
            wait_until(lambda: sweep.failures() > 0, job)  # what is saved until then does not count
            note("out of memory", sweep.recovery(set(sweep.states()), began, job))
            sweep.check(job, calm)
            reasons = [key for key in sweep.objects() if key.endswith("error.txt")]
            assert any("memory monitor" in sweep.text(key) for key in reasons)
