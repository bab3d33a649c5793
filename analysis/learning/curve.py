"""Target (e) of learning.md: how many PPO updates the learned policy needs.

    python analysis/learning/curve.py                            # table and picture of kept rows
    python analysis/learning/curve.py --add runs/learning_curve  # keep a sweep's curves first

The network stays as it is (no fine-tuning), so that only the agents change. After every round
the policy plays its mean on the validation images, at the budget it is told: accuracy and MACs
belong together, as the mean compute is met by bisection only when a point is measured.
Written: ``results/learning_curve.parquet`` and ``../figures/learning_curve.png``.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

HERE = Path(__file__).parent
KEPT = HERE / "results" / "learning_curve.parquet"
PICTURE = HERE.parent / "figures" / "learning_curve.png"
TOLERANCE = 0.2
"""Percentage points from the final result."""
LAST = 3
"""Rounds whose mean is called the final result: one is too noisy."""
COLUMNS = {
    "validation_accuracy_1": "accuracy",
    "validation_loss_1": "loss",
    "validation_macs_ratio_1": "macs_ratio",
}


def keep(folder: Path) -> None:
    """Copies the validated updates of a sweep's trials into ``results``."""
    parts = []
    for path in sorted((folder / "updates").glob("*.parquet")):
        frame = pd.read_parquet(path).dropna(subset=list(COLUMNS))
        found = re.search(r"seed=(\d+)", path.stem)
        if found is None:
            raise SystemExit(f"{path}: no seed in the trial's name; give the sweep a grid of seeds")
        frame = frame[["update", *COLUMNS]].rename(columns=COLUMNS)
        parts.append(frame.assign(seed=int(found[1])))
    if not parts:
        raise SystemExit(f"{folder}: no updates with validation (evaluation.every_round)")
    pd.concat(parts).to_parquet(KEPT, index=False)


def settled(curve: pd.DataFrame) -> float:
    """The first update from which the accuracy stays within the tolerance of the final one.

    Means over three neighbouring rounds are compared: one round's validation has an error
    of its own that is larger than the tolerance.

    Args:
        curve: one seed's rows, by update.
    """
    smooth = 100 * curve["accuracy"].rolling(LAST, min_periods=1).mean()
    outside = (smooth - smooth.iloc[-1]).abs() > TOLERANCE
    if not outside.any():
        return float(curve["update"].iloc[0])
    return float(curve["update"][outside[::-1].idxmax() + 1])


def draw(rows: pd.DataFrame) -> None:
    """Accuracy and MACs over the updates, one line per seed."""
    figure, axes = plt.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained")
    for seed, curve in rows.groupby("seed"):
        axes[0].plot(curve["update"], 100 * curve["accuracy"], marker=".", label=f"seed {seed}")
        axes[1].plot(curve["update"], curve["macs_ratio"], marker=".")
    axes[0].set(ylabel="validation accuracy [%]")
    axes[0].legend()
    axes[1].set(xlabel="PPO updates", ylabel="mean MACs / dense")
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    """Keeps curves where asked; prints when each seed settles, and draws all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--add", type=Path, help="folder of a sweep")
    folder = parser.parse_args().add
    if folder is not None:
        keep(folder)
    rows = pd.read_parquet(KEPT).sort_values(["seed", "update"]).reset_index(drop=True)
    groups = rows.groupby("seed")
    table = pd.DataFrame(
        {
            "first": 100 * groups["accuracy"].first(),
            "final": groups["accuracy"].apply(lambda a: 100 * a.tail(LAST).mean()),
            "final loss": groups["loss"].apply(lambda a: a.tail(LAST).mean()),
            "final MACs": groups["macs_ratio"].apply(lambda a: a.tail(LAST).mean()),
            "settled at": pd.Series({s: settled(c.reset_index(drop=True)) for s, c in groups}),
        }
    )
    print(table.round(3).to_string())
    mean, error = (float(part) for part in table["settled at"].agg(["mean", "sem"]))
    print(f"within {TOLERANCE} points after {mean:.0f} +- {error:.0f} updates, n = {len(table)}")
    draw(rows)
    print(PICTURE)


if __name__ == "__main__":
    main()
