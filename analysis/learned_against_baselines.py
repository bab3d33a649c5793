"""Learned minus baseline at equal budgets, paired by trial: mean, standard error and n.

python analysis/learned_against_baselines.py runs/sweep_digits [--out learned.png]
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

POINT = ["experiment", "trial", "config_hash", "budget_s", "tradeoff_rate"]

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder", type=Path, help="folder of a run or a sweep")
parser.add_argument("--out", type=Path, default=Path("learned_against_baselines.png"))
arguments = parser.parse_args()

rows = pd.read_parquet(arguments.folder / "results")
rows["backbone"] = rows["backbone"].astype(str)  # from the folders' names: a categorical
learned = rows[rows["method"] == "learned"]
others = rows[rows["method"].isin(["uniform", "random", "cascade"])]
pairs = others.merge(learned[[*POINT, "test_accuracy"]], on=POINT, suffixes=("", "_learned"))
pairs["gain"] = 100 * (pairs["test_accuracy_learned"] - pairs["test_accuracy"])
table = pairs.groupby(["backbone", "method", "tradeoff_rate"])["gain"].agg(["mean", "sem", "count"])
print(table.round(2).to_string())

labels = [f"{backbone}, {method}, $R_r$ = {rate:g}" for backbone, method, rate in table.index]
figure, axis = plt.subplots(figsize=(8, 1 + 0.35 * len(table)), layout="constrained")
axis.errorbar(table["mean"], labels, xerr=table["sem"].fillna(0), fmt="o", capsize=3)
axis.axvline(0, color="grey")
axis.set(xlabel="learned minus baseline, test accuracy [percentage points]")
figure.savefig(arguments.out)
print(arguments.out)
