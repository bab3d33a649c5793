"""The measured targets of learning.md: differences paired by seed, mean, standard error and n.

    python analysis/learning/targets.py                       # tables of the committed rows
    python analysis/learning/targets.py --add runs/tradeoff   # keep a sweep's rows, then tables

Test accuracy decides here; nothing is chosen by it. Rows are kept as
``results/<experiment>.parquet``, without the paths of the machine that measured them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

RESULTS = Path(__file__).parent / "results"
POINT = ["backbone", "s", "tradeoff_rate"]
RIVALS = ("uniform", "static_l1", "cascade")


def keep(folder: Path) -> None:
    """Copies a sweep's rows into ``results``, without paths."""
    rows = pd.read_parquet(folder / "results").drop(columns="checkpoint_uri")
    rows["configuration"] = [_without_paths(text) for text in rows["configuration"]]
    for column in ("dataset", "backbone"):
        rows[column] = rows[column].astype(str)
    for experiment, part in rows.groupby("experiment"):
        order = part.sort_values(["trial", "method", "tradeoff_rate"])
        order.to_parquet(RESULTS / f"{experiment}.parquet", index=False)


def _without_paths(text: str) -> str:
    configuration = json.loads(text)
    configuration["data"]["root"] = None
    return json.dumps(configuration)


def read(experiment: str) -> pd.DataFrame | None:
    """Rows of an experiment with the number s of its budgets; None where there are none."""
    path = RESULTS / f"{experiment}.parquet"
    if not path.exists():
        return None
    rows = pd.read_parquet(path)
    budgets = [json.loads(text)["budgets"] for text in rows["configuration"]]
    told = [b["compute_mean"] or b["storage_max"] or b["compute_max"] for b in budgets]
    rows["s"] = rows["budget_s"].where(rows["budget_s"].notna(), pd.Series(told, rows.index))
    return rows


def against(rows: pd.DataFrame) -> pd.DataFrame:
    """Learned beside its rivals, paired by seed: test accuracies in percent.

    A rival that knows no R_r (``static_l1``) stands beside the learned policy at every R_r.
    """
    learned = rows[rows["method"] == "learned"]
    found = []
    for rival in RIVALS:
        other = rows[rows["method"] == rival]
        on = ["seed", *POINT]
        if other["tradeoff_rate"].isna().all():
            on.remove("tradeoff_rate")
            other = other.drop(columns="tradeoff_rate")
        pairs = learned.merge(other, on=on, suffixes=("", "_rival"))
        for point, part in pairs.groupby(POINT):
            gain = 100 * (part["test_accuracy"] - part["test_accuracy_rival"])
            found.append(
                dict(zip(POINT, point, strict=True))
                | {
                    "rival": rival,
                    "learned": 100 * part["test_accuracy"].mean(),
                    "rival's": 100 * part["test_accuracy_rival"].mean(),
                    "gain": gain.mean(),
                    "error": gain.sem(),
                    "n": len(part),
                    "MACs": part["macs_mean_ratio"].mean(),
                    "rival's MACs": part["macs_mean_ratio_rival"].mean(),
                    "bytes": part["storage_bytes"].mean(),
                    "rival's bytes": part["storage_bytes_rival"].mean(),
                    "deviation over images": part["keep_ratio_std"].map(max).mean(),
                    "deviation over layers": part["keep_ratio_mean"].map(np.std).mean(),
                }
            )
    return pd.DataFrame(found)


def one_front() -> pd.DataFrame | None:
    """One training over a range of budgets against a training for each budget (target d)."""
    shared, single = read("one_front"), read("single_budgets")
    if shared is None or single is None:
        return None
    on = ["seed", "s", "tradeoff_rate"]
    shared, single = (rows[rows["method"] == "learned"] for rows in (shared, single))
    pairs = shared.merge(single, on=on, suffixes=("", "_single"))
    pairs["gain"] = 100 * (pairs["test_accuracy"] - pairs["test_accuracy_single"])
    for name in ("test_accuracy", "test_accuracy_single"):
        pairs[name] *= 100
    groups = pairs.groupby("s")
    table = groups[["test_accuracy", "test_accuracy_single", "gain"]].mean()
    table["error"], table["n"] = groups["gain"].sem(), groups.size()
    return table


def starts(experiment: str) -> pd.DataFrame | None:
    """What an order of the channels at the start and slower predictors add, without agents.

    Gains are over the same seed's training with neither (at R_r = 0, where nothing is predicted,
    without the order at whatever rate was measured).
    """
    rows = read(experiment)
    if rows is None:
        return None
    training = [json.loads(text)["training"] for text in rows["configuration"]]
    rows["predictor_rate"] = [part["predictor_rate"] for part in training]
    rows["ranked_start"] = [part["ranked_start"] for part in training]
    rows["accuracy"] = 100 * rows["test_accuracy"]
    plain = rows[~rows["ranked_start"]]
    fastest = plain.groupby("tradeoff_rate")["predictor_rate"].transform("max")
    neither = plain[plain["predictor_rate"] == fastest]
    pairs = rows.merge(
        neither[["seed", "tradeoff_rate", "accuracy"]],
        on=["seed", "tradeoff_rate"],
        suffixes=("", "_neither"),
    )
    pairs["gain"] = pairs["accuracy"] - pairs["accuracy_neither"]
    groups = pairs.groupby(["tradeoff_rate", "ranked_start", "predictor_rate"])
    table = groups[["accuracy", "gain"]].mean()
    table["error of gain"], table["n"] = groups["gain"].sem(), groups.size()
    return table


def main() -> None:
    """Keeps rows where asked, and prints every table that has rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--add", type=Path, nargs="+", default=[], help="folders of sweeps")
    for folder in parser.parse_args().add:
        keep(folder)
    titles = {
        "mean_compute": "(a) mean compute, Fashion-MNIST",
        "mean_compute_colour": "(a) mean compute, colour images",
        "tradeoff": "(b) caps and storage over R_r",
        "uneven_layers": "(c) uneven layers, VGG-16",
        "uneven_resnet20": "(c) uneven layers, ResNet-20",
    }
    for experiment, title in titles.items():
        rows = read(experiment)
        print(f"\n{title}: " + ("not measured" if rows is None else ""))
        if rows is not None:
            print(against(rows).round(3).to_string(index=False))
    front = one_front()
    print("\n(d) one training, eight budgets: " + ("not measured" if front is None else ""))
    if front is not None:
        print(front.round(2).to_string())
    order = starts("ranked_start")
    print("\nAn order of the channels at the start: " + ("not measured" if order is None else ""))
    if order is not None:
        print(order.round(2).to_string())


if __name__ == "__main__":
    main()
