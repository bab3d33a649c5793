"""How long the compared networks take on this machine, noted on their committed rows.

    python analysis/comparison/latency.py methods rates       # of results/methods.parquet, ...
    python analysis/comparison/tables.py                      # tables and figures with latency

Speed does not depend on weights: each row's network is built anew with arbitrary weights and
the channels that the row reports, shipped (``rlprune.export``) and timed. A network that is the
same for every image is timed both as a shipped model and as a plain narrow network, and the
faster counts. The dense network is the faster of both memory formats. All networks of one
budget take turns. One thread, one image per call. ``rnp`` cannot be shipped and gets none.
Run it on an idle computer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from rlprune.agents.networks import RuntimeAgent
from rlprune.config import config_from_dict
from rlprune.deploy import PrunedModel
from rlprune.deploy.bench import Setting, batches, in_format, machine, take_turns, torch_threads
from rlprune.deploy.rivals import DENSE, STATIC, Way, ways_to_run
from rlprune.export import Pixels, ship
from rlprune.pruning import GateDesign, GatedNetwork
from rlprune.results.latency import Latency
from rlprune.training import methods
from rlprune.training.catalogue import CATALOGUE
from rlprune.training.methods import Method
from rlprune.training.rivals import RIVALS
from rlprune.training.rivals.selection import selected
from rlprune.training.setup import TrialSetup, build_network, without_weights

RESULTS = Path(__file__).parent / "results"
SHAPES = {
    "digits": (1, 8, 8),
    "fashion_mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "parquet": (3, 32, 32),
}
CLASSES, IMAGES = 10, 32
SAME_MACS = 0.03
"""A network stands for a row if its MACs are within this share of the row's."""


@dataclass(frozen=True)
class Rebuilt:
    """A row's network once more.

    Attributes:
        at: the row's label.
        ways: how it can be run; the faster counts.
    """

    at: Any
    ways: list[Way]


def method_like(row: pd.Series[Any], setup: TrialSetup, network: GatedNetwork) -> Method:
    """The row's method, or one that computes and stores as many channels."""
    name = str(row["method"])
    if name in ("learned", "uniform"):
        return methods.uniform(setup)
    if CATALOGUE[name].kind == "runtime":
        return RIVALS[name].make(setup, network, {})
    channels = setup.costs.channels
    kept = torch.from_numpy(np.rint(np.array(row["stored_ratio"]) * channels.numpy())).long()
    scores = tuple(torch.arange(int(count), dtype=torch.float64) for count in channels)
    return selected(name, setup, scores, lambda limits: kept)


def tradeoff_rate(row: pd.Series[Any]) -> float:
    """R_r; of a method without one 1 if it chooses per image and deletes nothing, else 0."""
    if not pd.isna(row["tradeoff_rate"]):
        return float(row["tradeoff_rate"])
    return 1.0 if CATALOGUE[str(row["method"])].kind == "runtime" else 0.0


@torch.no_grad()
def model_like(row: pd.Series[Any]) -> PrunedModel:
    """A shipped model that costs what the row's network costs, with arbitrary weights."""
    config = config_from_dict(json.loads(str(row["configuration"])))
    shape = SHAPES[config.data.name]
    design = GateDesign.of(config.pruning)
    network = build_network(without_weights(config.backbone), CLASSES, shape, 0, design).eval()
    for layer in network.layers:
        nn.init.normal_(layer.runtime_predictor.weight, 0.0, 0.05)
    setup = TrialSetup.of(config, network.channels)
    method, agent = method_like(row, setup, network), None
    if row["method"] == "learned":  # untrained, it answers the budget's own ratio
        method = replace(method, rules=setup.rules, book=setup.book)
        agent = RuntimeAgent(network.channels, config.agents)
    network.set_predictors(method.predictors, method.boosted)
    budgets = method.book.episodes([method.book.point(tradeoff_rate(row))])
    made = ship(
        network,
        method.rules,
        method.make_plan(budgets),
        agent,
        Pixels((0.5,) * shape[0], (0.25,) * shape[0], tuple(map(str, range(CLASSES)))),
        (setup.book.dense_macs, setup.book.dense_bytes),
        method.static_scores,
        method.predictors,
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.safetensors")
        made.write(file)
        return PrunedModel.load(file)


def rebuilt(rows: pd.DataFrame, images: Tensor) -> Iterator[Rebuilt]:
    """The networks of rows that share a backbone; says which ones it leaves out, and why."""
    for label, row in rows.iterrows():
        name = f"{row['trial']}, {row['method']}, R_r = {row['tradeoff_rate']}"
        if row["method"] == "rnp":
            continue
        if row["method"] == DENSE:
            model = model_like(row)
            ways = [way for way in ways_to_run(model, images, [DENSE]) if way.name == DENSE]
            yield Rebuilt(label, ways)
            continue
        model = model_like(row)
        ways = ways_to_run(model, images, [STATIC] if tradeoff_rate(row) == 0.0 else [])
        apart = ways[0].macs / float(row["macs_mean"]) - 1
        if abs(apart) > SAME_MACS:
            print(f"left out: {name}: its MACs differ by {apart:+.1%} from what can be rebuilt")
            continue
        yield Rebuilt(label, ways)


def time_group(rows: pd.DataFrame, setting: Setting) -> dict[Any, Latency]:
    """Latencies of the rows of one network and budget, by label."""
    config = json.loads(str(rows["configuration"].iloc[0]))
    shape = SHAPES[config["data"]["name"]]
    images = torch.randn(IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    found = list(rebuilt(rows, images))
    parts = batches(images, setting.batch)
    with torch_threads(setting.threads), torch.no_grad():
        runs = [_timed(way, parts) for network in found for way in network.ways]
        seconds = take_turns(runs, len(parts), setting)[..., 0] / setting.batch
    best, at = {}, 0
    for network in found:
        own = seconds[at : at + len(network.ways)]
        best[network.at] = own[np.median(own, axis=1).argmin()]
        at += len(network.ways)
    plain = [best[label] for label in best if rows.loc[label, "method"] == DENSE]
    dense = np.median(plain, axis=0) if plain else None
    return {label: _latency(own, dense, setting) for label, own in best.items()}


def _timed(way: Way, parts: Sequence[Tensor]) -> Callable[[int], Sequence[float]]:
    lying = in_format(parts, way.channels_last)

    def run(part: int) -> Sequence[float]:
        started = time.perf_counter()
        way(lying[part])
        return (time.perf_counter() - started,)

    return run


def _latency(own: Any, dense: Any, setting: Setting) -> Latency:
    low, median, high = map(float, np.quantile(own, [0.25, 0.5, 0.75]))
    return Latency(
        seconds=median,
        p25_seconds=low,
        p75_seconds=high,
        dense_seconds=None if dense is None else float(np.median(dense)),
        ratio=None if dense is None else float(np.median(own / dense)),
        batch=setting.batch,
        threads=setting.threads,
        machine=machine(),
        measured_at=datetime.now(timezone.utc),
    )


def note(path: Path, setting: Setting) -> int:
    """Times all rows of a file and writes their latencies into it; returns how many."""
    rows = pd.read_parquet(path)
    budgets = [json.loads(text)["budgets"] for text in rows["configuration"]]
    told = [str((b["compute_max"], b["storage_max"], b["compute_mean"])) for b in budgets]
    count = 0
    for key, part in rows.groupby([rows["backbone"].astype(str), rows["width"], told]):
        latencies = time_group(part, setting)
        for label, latency in latencies.items():
            for name, value in latency.columns().items():
                rows.loc[label, name] = value
        count += len(latencies)
        rows = rows.astype({"latency_batch": "Int64", "latency_threads": "Int64"})
        print(f"{path.stem}: {key}: {len(latencies)} of {len(part)} rows timed", flush=True)
    rows.to_parquet(path, index=False)
    return count


def main() -> None:
    """Times the rows of the named experiments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("experiments", nargs="+", help="files of results/, without .parquet")
    parser.add_argument("--repeats", type=int, default=40)
    arguments = parser.parse_args()
    for name in arguments.experiments:
        note(RESULTS / f"{name}.parquet", Setting(repeats=arguments.repeats))


if __name__ == "__main__":
    main()
