"""What more workers and more trials would give: a small simulation with measured constants.

Nothing here was run on a large cluster. Seconds and bytes of the parts were measured on one
machine (benchmarks/scale_constants.json, each with its command); how they add up is simulated;
the network between nodes is an assumption and an option.

    python analysis/scale.py                                  # the tables of scale.md
    python analysis/scale.py --gigabits 1 --episodes 32       # another network, smaller chunks
    python analysis/scale.py --plot analysis/figures/scale.png
"""

from __future__ import annotations

import argparse
import heapq
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

CONSTANTS = Path(__file__).parent / "benchmarks" / "scale_constants.json"
WORKERS = (1, 2, 10, 30, 100, 300, 1000)
TOTAL_EPISODES = 4096
CORES_PER_NODE = 16
TRIALS = 10_000
RESULTS, TRIAL_SECONDS = 40, 1800.0
ROWS, CHECKPOINTS_KEPT = 11, 2


@dataclass(frozen=True)
class Cluster:
    """What is assumed.

    Attributes:
        constants: measured, by name.
        gigabits: per second, of each node's link.
        draws: updates that are simulated for each number of workers.
    """

    constants: dict[str, float]
    gigabits: float
    draws: int = 200

    def send(self, size: float) -> float:
        """Seconds that a node's link needs for so many bytes."""
        return size * 8.0 / (self.gigabits * 1e9)


def read_constants(path: Path = CONSTANTS) -> dict[str, float]:
    """The measured values by name."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return {name: entry["value"] for name, entry in document.items() if "value" in entry}


def update(cluster: Cluster, workers: int, episodes: int) -> dict[str, float]:
    """Mean seconds of one PPO update's parts.

    A request reaches the workers one after another; each node fetches the agents once; the
    slowest worker decides; answers pass the trial's link and are unpacked there; the learner
    works alone.

    Args:
        cluster: constants and network.
        workers: W, one core each.
        episodes: of each worker.
    """
    c, rng = cluster.constants, np.random.default_rng(0)
    nodes = -(-workers // CORES_PER_NODE)
    chunk = c["rollout_fixed_s"] + episodes * c["rollout_each_s"]
    factors = np.exp(rng.normal(0.0, c["rollout_spread"], (cluster.draws, workers)))
    total = workers * episodes
    return {
        "ask": c["call_fixed_s"]
        + workers * c["call_each_s"]
        + cluster.send(nodes * c["agents_bytes"]),
        "roll out": float(chunk * factors.max(1).mean()),
        "collect": cluster.send(total * c["chunk_bytes"]) + total * c["unpack_s"],
        "learn": c["learner_fixed_s"] + total * c["learner_each_s"],
    }


def workers_table(cluster: Cluster, episodes: int) -> pd.DataFrame:
    """Updates over numbers of workers: fixed episodes per worker, and fixed in all."""
    found = []
    for growing in (True, False):
        base = 0.0
        for workers in WORKERS:
            each = episodes if growing else max(1, TOTAL_EPISODES // workers)
            parts = update(cluster, workers, each)
            seconds = sum(parts.values())
            rate = workers * each / seconds
            base = base or rate
            found.append(
                {"episodes": f"{each} each" if growing else f"{TOTAL_EPISODES} in all"}
                | {"workers": workers, "seconds": seconds}
                | {name: value / seconds for name, value in parts.items()}
                | {"episodes / s": rate, "speed-up": rate / base}
                | {"efficiency": rate / base / workers}
            )
    return pd.DataFrame(found)


def sweep(cluster: Cluster, slots: int) -> dict[str, float]:
    """A sweep of :data:`TRIALS` trials, event by event.

    Trials report :data:`RESULTS` times in :data:`TRIAL_SECONDS` of work (half to twice that,
    log-normally); the sweep's process handles one result or one start at a time, and a trial
    that waits for it does not work. The status file may take a twentieth of its time.

    Args:
        cluster: constants.
        slots: trials at once.
    """
    c, rng = cluster.constants, np.random.default_rng(0)
    pace = np.exp(rng.normal(0.0, 0.35, TRIALS)) * TRIAL_SECONDS / RESULTS
    free, busy, clock, started = 0.0, 0.0, 0.0, 0
    events: list[tuple[float, int, int]] = [(0.0, -1, 0) for _ in range(slots)]
    heapq.heapify(events)
    while events:
        clock, trial, done = heapq.heappop(events)
        over = trial < 0 or done == RESULTS
        if over and started == TRIALS and trial < 0:
            continue
        cost = (c["trial_s"] if over else c["result_s"]) * 20.0 / 19.0
        free = max(free, clock) + cost
        busy += cost
        if not over:
            heapq.heappush(events, (free + pace[trial], trial, done + 1))
        elif started < TRIALS:
            heapq.heappush(events, (free + c["start_s"] + pace[started], started, 1))
            started += 1
    hours = max(clock, free) / 3600.0
    ideal = float(pace.sum()) * RESULTS / slots / 3600.0
    return {
        "trials at once": slots,
        "hours": hours,
        "hours, nothing lost": ideal,
        "efficiency": ideal / hours,
        "sweep's process busy": busy / 3600.0 / hours,
    }


def storage(cluster: Cluster) -> dict[str, float]:
    """Bytes and files of the sweep."""
    c = cluster.constants
    return {
        "checkpoints [GB]": TRIALS * CHECKPOINTS_KEPT * c["checkpoint_bytes"] / 1e9,
        "result files": float(TRIALS * ROWS),
        "writing rows [h of trials' time]": TRIALS * c["rows_s"] / 3600.0,
        "one status file [s]": TRIALS * c["status_each_s"],
        "trials at once that keep its process busy": TRIAL_SECONDS
        / (RESULTS * c["result_s"] + c["trial_s"])
        * 19.0
        / 20.0,
    }


def plot(tables: pd.DataFrame, path: Path) -> None:
    """Speed-up over workers, both ways of growing."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.0, 4.0), layout="constrained")
    growing = tables["episodes"].str.endswith("each")
    for name, part in (
        ("episodes per worker fixed", tables[growing]),
        ("in all", tables[~growing]),
    ):
        axis.loglog(part["workers"], part["speed-up"], "o-", label=name)
    axis.loglog(WORKERS, WORKERS, color="grey", linestyle=":", label="ideal")
    axis.set(xlabel="rollout workers, one core each", ylabel="speed-up (simulated)")
    axis.legend()
    figure.savefig(path)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabits", type=float, default=10.0, help="of a node's link, per second")
    parser.add_argument("--episodes", type=int, default=128, help="per worker and update")
    parser.add_argument("--plot", type=Path, help="a picture of the speed-ups")
    arguments = parser.parse_args()
    cluster = Cluster(read_constants(), arguments.gigabits)
    tables = workers_table(cluster, arguments.episodes)
    print(tables.round(3).to_string(index=False))
    sweeps = pd.DataFrame([sweep(cluster, slots) for slots in (10, 100, 1000)])
    print(f"\n{TRIALS:,} trials of {TRIAL_SECONDS:g} s with {RESULTS} results each:")
    print(sweeps.round(3).to_string(index=False))
    for name, value in storage(cluster).items():
        print(f"{name}: {value:,.3g}")
    if arguments.plot:
        plot(tables, arguments.plot)


if __name__ == "__main__":
    main()
