"""Rollouts on one and on two nodes of one core each: how many images a second.

Starts a cluster of cluster/local (a head without CPUs, two workers), pins each worker machine
to a core of its own, and has one rollout worker on each. An update's rollouts of m_cifarnet at
full width on 3x32x32 images, with the weights of network and agents sent anew, are collected
from both nodes, and from either of them alone, in turn.

    python -m analysis.benchmarks.rollout_nodes [--repeats N] [--json OUT]

Linux and root (see cluster/README.md); both cores must be idle. It is a benchmark, not a test: a
missed target is printed, the exit status is 0. README.md beside this file has the last numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import ray

from analysis.benchmarks import rl_iteration
from cluster.local import machines, network, service
from cluster.local.state import HEAD, Shape, StateFolder
from rlprune.training.algorithm import PruningAlgorithm, _sample_or_say_why
from rlprune.training.cluster import private_ray

NAME = "rolloutnodes"
LEAST_SPEEDUP = 1.8
IMAGES = 3 * rl_iteration.ROLLOUTS
"""Rollouts of an update, however many nodes share them: as the presets of this network have."""


def pin(cluster: StateFolder, name: str, core: int) -> None:
    """Gives a machine one core: all its threads, and those that they will start."""
    machine = cluster.read_machine(name)
    assert machine is not None
    home = network.namespace(machine.pid)
    for process in psutil.process_iter():
        if network.namespace(process.pid) == home:
            for thread in Path(f"/proc/{process.pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {core})


def collect(algorithm: PruningAlgorithm, workers: list[int]) -> None:
    """One update's rollouts from some of the rollout workers."""
    algorithm.program.counters.rl_updates += 1
    algorithm._network_ref = None
    request = dataclasses.replace(algorithm._request(), episodes=IMAGES // len(workers))
    answers = algorithm.env_runner_group.foreach_env_runner(
        functools.partial(_sample_or_say_why, request=request),
        local_env_runner=False,
        remote_worker_ids=workers,
    )
    chunks = [chunk for answer in answers for chunk in answer]
    if sum(len(chunk.rollout.loss) for chunk in chunks) != IMAGES:
        raise RuntimeError(f"not all rollouts came: {answers}")


def _node(_: Any) -> tuple[str, int]:
    cores = len(os.sched_getaffinity(0))
    return ray.get_runtime_context().get_node_id(), cores


def measure(repeats: int) -> dict[str, Any]:
    """Images per second; runs on the head."""
    with private_ray(0, 0), tempfile.TemporaryDirectory() as scratch:
        rl_iteration.write_digits(Path(scratch))
        algorithm = rl_iteration.build(Path(scratch), runners=2)
        try:
            homes = algorithm.env_runner_group.foreach_env_runner(_node, local_env_runner=False)
            if len({node for node, _ in homes}) != 2 or {cores for _, cores in homes} != {1}:
                raise RuntimeError(f"the rollout workers are not on two nodes of one core: {homes}")
            actions = [functools.partial(collect, algorithm, ids) for ids in ([1], [2], [1, 2])]
            first, second, both = rl_iteration.in_turn(repeats, *actions)
        finally:
            algorithm.stop()
    one = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    return {
        "first": IMAGES / statistics.median(first),
        "second": IMAGES / statistics.median(second),
        "one": IMAGES / statistics.median(one),
        "two": IMAGES / statistics.median(both),
        "speedup": statistics.median(one) / statistics.median(both),
        "paired_speedups": rl_iteration.quartiles([a / b for a, b in zip(one, both, strict=True)]),
    }


def show(result: dict[str, Any]) -> None:
    """Prints what was measured."""
    low, _, high = result["paired_speedups"]
    verdict = "met" if result["speedup"] >= LEAST_SPEEDUP else "MISSED"
    print(f"\nRollouts, {IMAGES} an update, weights sent (images per second)")
    print(f"  one node of one core    {result['one']:8.1f}", end="")
    print(f"   (first {result['first']:.1f}, second {result['second']:.1f})")
    print(f"  two nodes of one core   {result['two']:8.1f}")
    print(
        f"  times                   {result['speedup']:8.2f}   (pairs: {low:.2f}-{high:.2f}); "
        f"target >= {LEAST_SPEEDUP}: {verdict}"
    )


def on_cluster(repeats: int) -> dict[str, Any]:
    """Starts the cluster, measures on its head, takes it down."""
    network.check_permitted()
    folder = StateFolder(NAME)
    service.down(folder)
    shape = Shape(
        network=network.choose_network(NAME),
        workers=2,
        cpus=1,
        head_cpus=0,
        store_mb=150,
        memory_gb=4.0,
        storage=False,
        environment={"RAY_worker_niceness": "0"},
    )
    try:
        service.up(folder, shape, print)
        for name, core in zip(shape.names()[1:], sorted(os.sched_getaffinity(0)), strict=False):
            pin(folder, name, core)
        head = folder.read_machine(HEAD)
        assert head is not None
        environment = machines.node_environment(folder, shape)
        environment["RAY_ADDRESS"] = f"{shape.address(HEAD)}:{machines.GCS_PORT}"
        command = [sys.executable, "-m", "analysis.benchmarks.rollout_nodes", "--on-head"]
        command += ["--repeats", str(repeats)]
        done = subprocess.run(
            [*machines.enter(head), *command],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    finally:
        service.down(folder)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=15, help="runs per median (default 15)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the numbers here")
    parser.add_argument("--on-head", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.getLogger("ray").setLevel(logging.ERROR)
    if arguments.on_head:
        print(json.dumps(measure(arguments.repeats)))
        return
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("needs two cores")
    numbers = rl_iteration.surroundings()
    print(", ".join(f"{name} {value}" for name, value in numbers.items()))
    result = on_cluster(arguments.repeats)
    show(result)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({**numbers, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
