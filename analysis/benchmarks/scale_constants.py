"""Measures what analysis/scale.py computes with: seconds and bytes of trials and sweeps.

Real parts at work: RLlib's learner, Ray's object store and actors, Tune, our files. The
network is full-width m_cifarnet on 3x32x32 images, as in rl_iteration.py; one torch thread.

    python analysis/benchmarks/scale_constants.py            # two or three minutes
    python analysis/benchmarks/scale_constants.py --print    # measures, writes nothing

Writes ``scale_constants.json`` beside this file: for every constant its value, its unit,
what was done, and (at the end) the machine. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import tune
from ray.rllib.utils.actor_manager import FaultAwareApply, FaultTolerantActorManager
from rl_iteration import ROLLOUTS, STORE_BYTES, build, write_digits

from rlprune.results import ResultRow
from rlprune.results.store import write_rows
from rlprune.sweep.status import SweepStatus
from rlprune.training.algorithm import PruningAlgorithm
from rlprune.training.checkpoint import write_checkpoint
from rlprune.training.cluster import private_ray

OUT = Path(__file__).with_name("scale_constants.json")
FEW, MANY = 8, 512
Found = dict[str, tuple[float, str, str]]
"""name -> (value, unit, what was measured)."""


def median_seconds(action: Callable[[], Any], repeats: int = 9) -> float:
    """Median of repeats after two that do not count."""
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def line(seconds: Sequence[float], at: tuple[int, int]) -> tuple[float, float]:
    """(fixed, each) of the line through two measurements; neither below zero."""
    few, many = seconds
    each = max(0.0, (many - few) / (at[1] - at[0]))
    return max(0.0, few - each * at[0]), each


def rollouts(algorithm: PruningAlgorithm) -> Found:
    """One rollout worker in this process, and what it sends and receives."""
    worker = algorithm.env_runner_group.local_env_runner
    request = algorithm._request()

    def play(episodes: int) -> Any:
        return worker.sample(request=replace(request, episodes=episodes))

    times = [median_seconds(lambda n=n: play(n)) for n in (FEW, ROLLOUTS)]  # type: ignore[misc]
    fixed, each = line(times, (FEW, ROLLOUTS))
    spread = [median_seconds(lambda: play(ROLLOUTS), 1) for _ in range(12)]
    chunk = play(ROLLOUTS)[0]
    packed = pickle.dumps(chunk, protocol=5)
    state = algorithm.program.network.state_dict()
    network = sum(t.numel() * t.element_size() for t in state.values())
    modules = len(pickle.dumps(ray.get(request.modules)))
    versions = iter(range(10**6, 2 * 10**6))

    def load() -> None:
        worker._refresh(replace(request, network_version=next(versions)))

    deviation = float(np.std(np.log(spread)))
    return {
        "rollout_fixed_s": (fixed, "s", "a worker's chunk, beside its episodes"),
        "rollout_each_s": (each, "s / episode", f"{FEW} and {ROLLOUTS} episodes per chunk"),
        "rollout_spread": (deviation, "std of log s", "12 chunks of the same worker"),
        "chunk_bytes": (len(packed) / ROLLOUTS, "bytes / episode", "a pickled chunk"),
        "unpack_s": (
            median_seconds(lambda: pickle.loads(packed)) / ROLLOUTS,
            "s / episode",
            "unpickling a chunk",
        ),
        "network_bytes": (float(network), "bytes", "CNN weights, sent once per round"),
        "agents_bytes": (float(modules), "bytes", "agents' weights, sent with every update"),
        "network_load_s": (median_seconds(load), "s", "a worker takes over new CNN weights"),
    }


def learner(algorithm: PruningAlgorithm) -> Found:
    """RLlib's PPO update for few and many episodes."""
    worker = algorithm.env_runner_group.local_env_runner
    request = algorithm._request()
    size = algorithm.config.trial.agents.samples_per_image * FEW
    chunk = worker.sample(request=replace(request, episodes=size))[0]

    def update(count: int) -> None:
        chunks = [replace(chunk, worker_index=index) for index in range(count)]
        algorithm.learner_group.update(
            episodes=chunks,
            timesteps={"num_env_steps_sampled_lifetime": 0},
            num_epochs=1,
            minibatch_size=None,
        )

    counts = (1, MANY // size)
    times = [median_seconds(lambda n=n: update(n)) for n in counts]  # type: ignore[misc]
    fixed, each = line(times, (size * counts[0], size * counts[1]))
    return {
        "learner_fixed_s": (fixed, "s", "connector and PPO, one pass"),
        "learner_each_s": (each, "s / episode", f"{size} and {MANY} episodes per update"),
    }


class Idle(FaultAwareApply):  # type: ignore[misc]  # Ray has no types
    """A worker that has nothing to do."""


def calls() -> Found:
    """What asking a worker costs the trial's process, with RLlib's own manager."""
    times = []
    for count in (2, 6):
        actors = [ray.remote(Idle).options(num_cpus=0).remote() for _ in range(count)]
        manager = FaultTolerantActorManager(actors, max_remote_requests_in_flight_per_actor=2)
        ask = partial(manager.foreach_actor, lambda worker: None)
        times.append(median_seconds(ask, 40))
        manager.clear()
    fixed, each = line(times, (2, 6))
    return {
        "call_fixed_s": (fixed, "s", "asking all workers and waiting, no work"),
        "call_each_s": (each, "s / worker", "2 and 6 workers"),
    }


def storing(algorithm: PruningAlgorithm, folder: Path) -> Found:
    """Checkpoints, result rows, the sweep's status."""
    trial, state = algorithm.config.trial, algorithm.get_state()

    def save() -> None:
        write_checkpoint(folder / "checkpoint", trial, algorithm.get_state())

    (folder / "checkpoint").mkdir()
    write_checkpoint(folder / "checkpoint", trial, state)
    size = sum(path.stat().st_size for path in (folder / "checkpoint").iterdir())
    rows = [_row(step) for step in range(11)]
    status = SweepStatus()
    status.begin((f"{i:05d}_backbone_storage_max=0.5_seed=0" for i in range(10_000)), 10_000)
    return {
        "checkpoint_bytes": (float(size), "bytes", "one checkpoint of a trial"),
        "checkpoint_s": (median_seconds(save, 5), "s", "making and writing it, local disk"),
        "rows_s": (
            median_seconds(lambda: write_rows(folder / "results", rows), 5),
            "s / trial",
            "11 points of a trial into Parquet files, local disk",
        ),
        "status_each_s": (
            median_seconds(lambda: status.write(str(folder)), 5) / 10_000,
            "s / trial",
            "status.json of 10,000 trials, local disk",
        ),
    }


def _row(step: int) -> ResultRow:
    path = Path(__file__).parents[2]
    sys.path.insert(0, str(path))
    from tests.result_rows import EXAMPLE

    return ResultRow(**{**EXAMPLE, "step": step})


class Reports(tune.Trainable):  # type: ignore[misc]  # as above
    """A trial that is nothing but its results."""

    def step(self) -> dict[str, Any]:
        """One result."""
        return {"done": self.iteration + 1 >= self.config["results"]}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load."""


def scheduling(folder: Path) -> Found:
    """Tune's own work per result and per trial, with trials that do nothing."""

    def run(results: int, trials: int) -> float:
        space = {"results": results, "index": tune.grid_search(list(range(trials)))}
        config = tune.RunConfig(storage_path=str(folder), name=f"r{results}", verbose=0)
        trainable = tune.with_resources(Reports, {"cpu": 1})
        started = time.perf_counter()
        tune.Tuner(trainable, param_space=space, run_config=config).fit()
        return time.perf_counter() - started

    run(1, 2)
    few, many = run(2, 8), run(202, 8)
    each = (many - few) / (8 * 200)
    return {
        "result_s": (each, "s / result", "Tune's loop, 8 trials, 2 and 202 results each"),
        "trial_s": (few / 8, "s / trial", "Tune starts and ends a trial that does nothing"),
    }


def starting(build_seconds: float) -> Found:
    """A trial's own process until its first step."""
    command = [sys.executable, "-c", "import rlprune.training.algorithm"]
    seconds = median_seconds(lambda: subprocess.run(command, check=True), 3)
    return {"start_s": (seconds + build_seconds, "s", "imports, images loaded, workers built")}


def measure() -> Found:
    """All constants."""
    torch.set_num_threads(1)
    found: Found = {}
    with tempfile.TemporaryDirectory() as name, private_ray(2, STORE_BYTES, log_to_driver=False):
        folder = Path(name)
        write_digits(folder)
        started = time.perf_counter()
        algorithm = build(folder, runners=0)
        built = time.perf_counter() - started
        try:
            for part in (rollouts, learner):
                found |= part(algorithm)
            found |= storing(algorithm, folder)
        finally:
            algorithm.stop()
        found |= calls() | scheduling(folder / "tune") | starting(built)
    return found


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--print", action="store_true", help="write no file")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    found = measure()
    command = "python analysis/benchmarks/scale_constants.py"
    document: dict[str, Any] = {
        name: {"value": float(f"{value:.4g}"), "unit": unit, "measured": what, "command": command}
        for name, (value, unit, what) in found.items()
    }
    for name, constant in document.items():
        print(f"{name:18} {constant['value']:12g} {constant['unit']:14} {constant['measured']}")
    document["machine"] = {
        "cores": os.cpu_count(),
        "load": round(load, 1),
        "torch": torch.__version__,
        "ray": ray.__version__,
        "system": platform.machine(),
    }
    if not arguments.print:
        OUT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
