"""Accuracy and storage against the tradeoff rate R_r, with pandas and matplotlib alone.

python analysis/accuracy_against_tradeoff.py runs/sweep_digits [--backbone resnet20] [--out x.png]
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd


def budgets(configuration: str) -> str:
    """The budgets that a trial was given, as text."""
    given = json.loads(configuration)["budgets"]
    return ", ".join(f"{name} {value}" for name, value in given.items() if value and name != "rule")


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder", type=Path, help="folder of a run or a sweep")
parser.add_argument("--backbone", help="default: the first one")
parser.add_argument("--out", type=Path, default=Path("accuracy_against_tradeoff.png"))
arguments = parser.parse_args()

rows = pd.read_parquet(arguments.folder / "results")
rows["backbone"] = rows["backbone"].astype(str)  # from the folders' names: a categorical
backbone = arguments.backbone or rows["backbone"].iloc[0]
rows = rows[
    (rows["backbone"] == backbone) & rows["tradeoff_rate"].notna() & rows["budget_s"].isna()
]
rows["budget"] = rows["configuration"].map(budgets)

figure, (accuracy, storage) = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
for (method, budget), group in rows.groupby(["method", "budget"]):
    mean = group.groupby("tradeoff_rate")[["test_accuracy", "storage_bytes"]].mean()
    label = f"{method}, {budget}"
    accuracy.plot(mean.index, 100 * mean["test_accuracy"], marker="o", label=label)
    storage.plot(mean.index, mean["storage_bytes"] / 1000, marker="o", label=label)
accuracy.set(xlabel="$R_r$", ylabel="test accuracy [%]", title=backbone)
storage.set(xlabel="$R_r$", ylabel="storage [KB]")
figure.legend(*accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=2)
figure.savefig(arguments.out)
print(arguments.out)
