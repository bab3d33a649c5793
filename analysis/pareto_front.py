"""The front of accuracy against storage with plain pandas: nothing of rlprune is needed.

    python analysis/pareto_front.py FOLDER [front.png]

FOLDER holds Parquet files of result rows (``runs/NAME/results``). Validation accuracy
chooses, test accuracy is shown; equal points are shown once. ``rlprune pareto`` does this for
any objectives and groups, takes each trial's last step only, and checks the files.
"""

from __future__ import annotations

import sys

import matplotlib.pyplot as plt
import pandas as pd


def main() -> None:
    """Prints the front; draws it if a second argument names a picture."""
    rows = pd.read_parquet(sys.argv[1])
    rows = rows.sort_values("created_at").drop_duplicates("row_id", keep="last")

    # smallest first: a point is on the front if it is more accurate than all smaller ones
    rows = rows.sort_values(["storage_bytes", "validation_accuracy"], ascending=[True, False])
    best_so_far = rows["validation_accuracy"].cummax()
    front = rows[rows["validation_accuracy"] > best_so_far.shift(fill_value=-1.0)]

    shown = ["trial", "method", "tradeoff_rate", "storage_bytes", "test_accuracy"]
    print(front[shown].to_string(index=False))

    if len(sys.argv) > 2:
        figure, axes = plt.subplots()
        axes.scatter(rows["storage_bytes"], rows["test_accuracy"], alpha=0.3)
        axes.step(front["storage_bytes"], front["test_accuracy"], where="post", marker="o")
        axes.set(xlabel="storage_bytes", ylabel="test_accuracy")
        figure.savefig(sys.argv[2])


if __name__ == "__main__":
    main()
