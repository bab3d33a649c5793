"""A process that eats a node's memory is killed by Ray's memory monitor; the sweep ends well."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from fault_sweeps import PATIENT, SPEC, Sweep, ended, note, undisturbed, wait_until
from local_cluster import local_cluster

pytestmark = pytest.mark.slow

ROOM = 5 * 2**30
"""Bytes between what is in use before and the monitor's limit: nodes and trials need 3 GiB."""
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
    while psutil.virtual_memory().available > 2 * 2**30:
        HELD.append(np.ones(2**26, dtype=np.uint8))
        time.sleep(0.02)
    raise RuntimeError("nobody stopped it")
"""


def test_a_process_out_of_memory(tmp_path: Path) -> None:
    memory = psutil.virtual_memory()
    if memory.available < ROOM + 4 * 2**30:
        pytest.skip("needs 9 GiB of free memory")
    flag = tmp_path / "hungry"
    code = tmp_path / "code"
    code.mkdir()
    (code / "own_net.py").write_text(FACTORY.format(flag=str(flag)))
    trial = {**SPEC["trial"], "backbone": {"factory": "own_net:make"}}
    grid = {**SPEC["space"], "budgets.storage_max": {"grid": [0.4, 0.5, 0.6]}}  # one starts later
    spec: dict[str, Any] = {**SPEC, "trial": trial, "space": grid, "max_concurrent": 2}
    spec["stop"] = {"max_failures": 5}
    limit = (memory.total - memory.available + ROOM) / memory.total
    monitor = {
        "RAY_memory_usage_threshold": f"{limit:.3f}",
        "RAY_memory_monitor_refresh_ms": "100",
    }
    with local_cluster("testmemory", storage=True, cpus=4, **PATIENT, **monitor) as cluster:
        calm = undisturbed(Sweep(cluster, "calm", tmp_path), "--code", code, spec=spec)
        sweep = Sweep(cluster, "memory", tmp_path)
        with ended(sweep.submit("--no-preflight", "--code", code, spec=spec)) as job:
            sweep.until_two_have_saved(job)
            flag.touch()
            wait_until(lambda: not flag.exists(), job)
            seconds = sweep.recovery(set(sweep.states()), time.monotonic())
            note("out of memory", seconds)
            sweep.check(job, calm)
            reasons = [key for key in sweep.objects() if key.endswith("error.txt")]
            assert any("memory monitor" in sweep.text(key) for key in reasons)
