"""How long the compared networks take on this machine, noted on their committed rows.

    python analysis/comparison/latency.py methods rates       # of results/methods.parquet, ...
    python analysis/comparison/tables.py                      # tables and figures with latency

Speed does not depend on weights: each row's network is built anew with arbitrary weights,
shipped (``rlprune.export``) and timed. Methods that store as many channels as they compute get
the row's own channels; ``learned``, ``uniform`` and ``fbs`` the budget's own ratio, and a row
whose channels differ from that by more than one in a layer is left out. All are timed as
shipped, compiled (``rlprune[fast]``) and not calibrated. The dense network is the fastest of
torch's two memory formats and of its shipped model. All networks of one backbone, budget and
image set take turns, whichever file they are from; each runs another image untimed first, since
what ran before it would leave its caches cold. One thread, one image per call. ``rnp`` cannot
be shipped and gets no latency. Run it on an idle computer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from rlprune.agents.networks import RuntimeAgent
from rlprune.config import config_from_dict
from rlprune.deploy import PrunedModel
from rlprune.deploy.bench import (
    Setting,
    batches,
    in_format,
    machine,
    take_turns,
    timed,
    torch_threads,
)
from rlprune.deploy.rivals import DENSE, Way, static_like, ways_to_run
from rlprune.export import Pixels, ship
from rlprune.pruning import GateDesign, GatedNetwork
from rlprune.results import SCHEMA
from rlprune.results.latency import Latency
from rlprune.results.schema import LATENCY
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
APART = 1.01
"""Channels by which a layer may differ from the row's mean over images."""


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
    if CATALOGUE.get(name) is not None and CATALOGUE[name].kind == "runtime":
        return RIVALS[name].make(setup, network, {})
    if name in ("learned", "uniform"):
        return methods.uniform(setup)
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
    s = None if pd.isna(row["budget_s"]) else float(row["budget_s"])
    budgets = method.book.episodes([setup.book.point(tradeoff_rate(row), s)])
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


def differs(row: pd.Series[Any], model: PrunedModel, images: Tensor) -> str:
    """In which layer a rebuilt network is not the row's; empty: in none."""
    model(images)
    computed = np.array([image.counts for image in model.last], dtype=np.float64).mean(0)
    for at, layer in enumerate(model.spec.layers):
        for name, found in (("keep_ratio_mean", computed[at]), ("stored_ratio", layer.stored)):
            wanted = float(row[name][at]) * layer.channels
            if abs(wanted - found) > APART:
                return f"{name} of {layer.name}: {found:g} channels for {wanted:g}"
    return ""


def rebuilt(rows: pd.DataFrame, images: Tensor) -> Iterator[Rebuilt]:
    """The networks of rows that share a backbone; says which ones it leaves out, and why."""
    for label, row in rows[rows["method"] != DENSE].iterrows():
        name = f"{row['trial']}, {row['method']}, R_r = {row['tradeoff_rate']}"
        if row["method"] == "rnp":
            print(f"left out: {name}: cannot be shipped")
            continue
        model = model_like(row)
        if why := differs(row, model, images):
            print(f"left out: {name}: {why}")
            continue
        yield Rebuilt(label, ways_to_run(model, images, []))


def dense_ways(model: PrunedModel, images: Tensor) -> list[Way]:
    """The ways to run a model's dense network: torch's two memory formats, and shipped."""
    ways = [way for way in ways_to_run(model, images, [DENSE]) if way.name == DENSE]
    shipped = static_like(model, [layer.channels for layer in model.spec.layers])
    return [*ways, Way(DENSE, shipped, None, False, ways[0].macs)]


def time_group(rows: pd.DataFrame, setting: Setting) -> dict[Any, Latency]:
    """Latencies of the rows of one network and budget, by label."""
    shape = SHAPES[str(rows["dataset"].iloc[0])]
    images = torch.randn(IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    found = list(rebuilt(rows, images))
    if not found:
        return {}
    plain = dense_ways(found[0].ways[0].model, images)
    parts = batches(images, setting.batch)
    with torch_threads(setting.threads), torch.no_grad():
        runs = [_warm(way, parts) for ways in (plain, *(n.ways for n in found)) for way in ways]
        seconds = take_turns(runs, len(parts), setting)[..., 0] / setting.batch
    dense = _faster(seconds[: len(plain)])
    best, at = {label: dense for label in rows.index[rows["method"] == DENSE]}, len(plain)
    for network in found:
        best[network.at] = _faster(seconds[at : at + len(network.ways)])
        at += len(network.ways)
    return {label: _latency(own, dense, setting) for label, own in best.items()}


def _warm(way: Way, parts: Sequence[Tensor]) -> Callable[[int], Sequence[float]]:
    """Runs another image first, untimed: what the network before has left behind is no matter."""
    before, run = in_format(parts, way.channels_last), timed(way, parts)

    def both(part: int) -> Sequence[float]:
        way(before[part - 1])
        return run(part)

    return both


def _faster(seconds: Any) -> Any:
    """Of several ways [ways, repeats] the one with the least median, [repeats]."""
    return seconds[np.median(seconds, axis=1).argmin()]


def _latency(own: Any, dense: Any, setting: Setting) -> Latency:
    """Seconds and, of the same turns, the ratio to the dense network."""
    low, median, high = map(float, np.quantile(own, [0.25, 0.5, 0.75]))
    return Latency(
        seconds=median,
        p25_seconds=low,
        p75_seconds=high,
        dense_seconds=float(np.median(dense)),
        ratio=float(np.median(own / dense)),
        batch=setting.batch,
        threads=setting.threads,
        machine=machine(),
        measured_at=datetime.now(timezone.utc),
    )


def note(paths: Sequence[Path], setting: Setting) -> int:
    """Times all rows of files and writes their latencies into them; returns how many."""
    files = {path: pd.read_parquet(path) for path in paths}
    rows = pd.concat(files, names=["file", "row"])
    for name in LATENCY:  # what an earlier version said of a row is no longer true
        rows[name] = pd.Series([None] * len(rows), rows.index, dtype=object)
    budgets = [json.loads(text)["budgets"] for text in rows["configuration"]]
    told = [str((b["compute_max"], b["storage_max"], b["compute_mean"])) for b in budgets]
    s = rows["budget_s"].fillna(-1.0)
    names = [rows[name].astype(str) for name in ("dataset", "backbone")]
    count = 0
    for key, part in rows.groupby([*names, rows["width"], told, s]):
        for label, latency in time_group(part, setting).items():
            for name, value in latency.columns().items():
                rows.at[label, name] = value
            count += 1
        print(f"{key}: {len(part)} rows, {count} of all timed so far", flush=True)
    for path in paths:
        _write(rows[rows.index.get_level_values("file") == path], path)
    return count


def _write(rows: pd.DataFrame, path: Path) -> None:
    """Types as in the schema; the old file stays until the new one is whole."""
    table = pa.Table.from_pandas(rows, preserve_index=False)
    for at, column in enumerate(table.schema):
        if column.name in LATENCY:
            wanted = SCHEMA.field(column.name)
            table = table.set_column(at, wanted.name, table[column.name].cast(wanted.type))
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial)
    partial.replace(path)


def main() -> None:
    """Times the rows of the named experiments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("experiments", nargs="+", help="files of results/, without .parquet")
    parser.add_argument("--repeats", type=int, default=40)
    arguments = parser.parse_args()
    paths = [RESULTS / f"{name}.parquet" for name in arguments.experiments]
    note(paths, Setting(repeats=arguments.repeats))


if __name__ == "__main__":
    main()
