"""Tables and figures of the comparison, from Parquet rows alone.

    python analysis/comparison/tables.py                      # of the committed rows
    python analysis/comparison/tables.py runs/compare         # of a run or a sweep
    python analysis/comparison/tables.py --add runs/methods   # keep its rows, then all tables
    python analysis/comparison/tables.py --tuning             # hyper-parameters, on validation
    python analysis/comparison/tables.py --markdown           # as they stand in README.md

Test accuracy is reported; whatever is chosen (the best static method, hyper-parameters) is
chosen by validation accuracy. A method that misses a budget is marked NO and is never the best.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from pictures import COSTS, error, figure, overview
from scipy import stats

from rlprune.training.catalogue import CATALOGUE

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE / "figures"
DATASETS = {
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "parquet": "CIFAR-10, JPEG copy",
    "digits": "digits",
}
TUNING, METHODS, MORE_SEEDS = "tuning", "methods", "more_seeds"
NETWORK = ["experiment", "dataset", "backbone", "width", "s", "variant"]
STATIC = [name for name, facts in CATALOGUE.items() if facts.kind == "static" and name != "dense"]
SEARCHES = ("legr", "amc")


def keep(folder: Path) -> None:
    """Copies a run's or a sweep's rows into ``results``, without the paths of the machine."""
    rows = pd.read_parquet(folder / "results").drop(columns="checkpoint_uri")
    for column in ("dataset", "backbone"):
        rows[column] = rows[column].astype(str)

    def without_paths(text: str) -> str:
        configuration = json.loads(text)
        configuration["data"]["root"] = configuration["backbone"]["weights"] = None
        return json.dumps(configuration)

    rows["configuration"] = rows["configuration"].map(without_paths)
    RESULTS.mkdir(exist_ok=True)
    for experiment, part in rows.groupby("experiment"):
        order = part.sort_values(["trial", "method", "tradeoff_rate"])
        order.to_parquet(RESULTS / f"{experiment}.parquet", index=False)


def read(folders: list[Path]) -> pd.DataFrame:
    """Rows of runs and sweeps (the committed ones if none are given) with their number s.

    Rows of ``rates`` (other R_r of ours) stand with those of ``methods``, whose seeds, images
    and budgets they share. Tries of ``tuning`` are left out.
    """
    paths = [folder / "results" for folder in folders] or sorted(RESULTS.glob("*.parquet"))
    if not paths:
        raise SystemExit(
            f"{RESULTS} holds no rows. Name the folder of a run: tables.py runs/compare"
        )
    rows = pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)
    rows = rows[~rows["experiment"].str.startswith(TUNING)].reset_index(drop=True)
    rows["experiment"] = rows["experiment"].str.replace("^rates", METHODS, regex=True)
    return _prepared(rows)


def _prepared(rows: pd.DataFrame) -> pd.DataFrame:
    """With the number s, and accuracies in percent."""
    budgets = [json.loads(text)["budgets"] for text in rows["configuration"]]
    told = [b["compute_mean"] or b["compute_max"] or b["storage_max"] for b in budgets]
    rows["s"] = rows["budget_s"].where(rows["budget_s"].notna(), pd.Series(told, rows.index))
    rows["dataset"] = rows["dataset"].astype(str).map(lambda name: DATASETS.get(name, name))
    rows["backbone"] = rows["backbone"].astype(str)
    rows["accuracy"] = 100 * rows["test_accuracy"]
    rows["chosen_by"] = 100 * rows["validation_accuracy"]
    times = ("pretrain", "importance", "agents", "finetune")
    rows["variant"] = rows["configuration"].map(_variant)
    tried = rows[["method", "rollouts", "configuration"]].itertuples(index=False)
    rows["searched_images"] = [_searched(*row) for row in tried]
    rows["seconds"] = sum(rows[f"seconds_{name}"] for name in times)
    rows["R_r"] = rows["tradeoff_rate"].map(lambda rate: "-" if pd.isna(rate) else f"{rate:g}")
    return rows


def _searched(method: str, tried: int, configuration: str) -> int:
    """Images that a search trained its candidates on; what they were measured on comes on top."""
    if method not in SEARCHES:
        return 0
    values = json.loads(configuration)
    steps = values["methods"].get("search_steps", 0)  # of a version without: none
    return int(tried * steps * values["training"]["batch_size"])


def _variant(configuration: str) -> str:
    """What ablations vary, in words; "" for the usual: projected caps, permanent deletion."""
    values = json.loads(configuration)
    budgets = values["budgets"]
    found = [budgets["rule"], values["pruning"]["tradeoff"]]
    found += ["mean"] if budgets["compute_max"] is None and budgets["compute_mean"] else []
    found += ["range"] if budgets["train_range"] else []
    return " ".join(part for part in found if part not in ("projected", "permanent"))


def methods_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per method and R_r of a network and budget: means over seeds."""
    dense = rows[rows["method"] == "dense"]["accuracy"].mean()
    found = []
    for (method, rate), part in rows.groupby(["method", "R_r"]):
        if part["seed"].duplicated().any():
            raise SystemExit(f"{method}, R_r = {rate}: several rows of one seed. Keep one version.")
        kind = CATALOGUE[method].kind if method in CATALOGUE else "both"
        met = "-" if method == "dense" else "yes" if part["budgets_met"].all() else "NO"
        found.append(
            {
                "method": method,
                "kind": "-" if method == "dense" else kind,
                "R_r": rate,
                "n": part["seed"].nunique(),
                "accuracy [%]": part["accuracy"].mean(),
                "+-": error(part["accuracy"]),
                "drop": dense - part["accuracy"].mean(),
                "MACs / dense": part["macs_mean_ratio"].mean(),
                "max MACs / budget": (part["macs_max"] / part["compute_max_budget_macs"]).mean(),
                "bytes": part["storage_bytes"].mean(),
                "bytes / dense": part["storage_ratio"].mean(),
                "latency / dense": part["latency_ratio"].mean(),
                "updates": part["rl_updates"].mean(),
                "tried": part["rollouts"].mean(),
                "search trained on": part["searched_images"].mean(),
                "fine-tuned on": part["finetune_images"].mean(),
                "seconds": part["seconds"].mean(),
                "budget met": met,
            }
        )
    table = pd.DataFrame(found)
    if table["latency / dense"].isna().all():  # not timed
        table = table.drop(columns="latency / dense")
    return _in_order(table)


def best_static(rows: pd.DataFrame) -> str | None:
    """The static method of largest mean validation accuracy among those within their budgets."""
    static = rows[rows["method"].isin(STATIC)]
    within = static.groupby("method")["budgets_met"].transform("all")
    scores = static[within].groupby("method")["chosen_by"].mean()
    return None if scores.empty else str(scores.idxmax())


def paired(rows: pd.DataFrame) -> pd.DataFrame:
    """Ours minus every other method, paired by seed: mean, standard error, n, p of a t-test.

    A method without R_r stands beside ours at every R_r; a rival with R_r beside the same.
    """
    ours, found = rows[rows["method"] == "learned"], []
    best = best_static(rows)
    for rate, own in ours.groupby("R_r"):
        for rival, other in rows[rows["method"] != "learned"].groupby("method"):
            if (other["R_r"] != "-").any():
                other = other[other["R_r"] == rate]
            pairs = own.merge(other, on="seed", suffixes=("", "_rival"))
            if pairs.empty:
                continue
            gain = pairs["accuracy"] - pairs["accuracy_rival"]
            p = stats.ttest_1samp(gain, 0.0).pvalue if len(gain) > 1 and gain.std() > 0 else np.nan
            found.append(
                {
                    "R_r": rate,
                    "rival": f"{best} (best static)" if rival == best else rival,
                    "ours - rival": gain.mean(),
                    "+-": error(gain),
                    "n": len(gain),
                    "p": p,
                    "MACs, ours / rival's": (pairs["macs_mean"] / pairs["macs_mean_rival"]).mean(),
                    "bytes, ours / rival's": (
                        pairs["storage_bytes"] / pairs["storage_bytes_rival"]
                    ).mean(),
                }
            )
    return pd.DataFrame(found)


def verdict(rows: pd.DataFrame) -> list[str]:
    """The targets of the comparison in words: ours against the best static method, and FBS."""
    table, lines = paired(rows), []
    best = best_static(rows)
    for rate, rival, wanted in (("0.5", f"{best} (best static)", 0.5), ("1", "fbs", 0.0)):
        line = table[(table["R_r"] == rate) & (table["rival"] == rival)] if len(table) else table
        if len(line) == 0:
            lines.append(f"R_r = {rate} against {rival}: not measured")
            continue
        gain, spread, n = (line[name].iloc[0] for name in ("ours - rival", "+-", "n"))
        spread_text = "one seed, no error" if n == 1 else f"+- {spread:.2f}"
        state = "reached" if gain >= wanted else "MISSED"
        if n == 1:
            state += " on one seed, which decides nothing"
        lines.append(
            f"R_r = {rate} against {rival}: {gain:+.2f} points ({spread_text}, n = {n}); "
            f"wanted {wanted:+.1f}: {state}"
        )
    return lines


def tuning(path: Path) -> pd.DataFrame:
    """Validation accuracy of every try of every method that has a hyper-parameter.

    Args:
        path: rows, a file or a folder.
    """
    rows = _prepared(pd.read_parquet(path))
    fields = {
        "slimming": ("methods", "slimming_penalty"),
        "fbs": ("methods", "fbs_penalty"),
        "rnp": ("methods", "rnp_price"),
        "learned": ("training", "importance_penalty"),
    }
    found = []
    for method, (part, key) in fields.items():
        for _, row in rows[rows["method"] == method].iterrows():
            value = json.loads(row["configuration"])[part].get(key)
            if value is None:  # of a version without that setting
                continue
            found.append([method, f"{part}.{key}", value, row["chosen_by"], row["budgets_met"]])
    columns = ["method", "setting", "value", "validation accuracy [%]", "budget met"]
    table = pd.DataFrame(found, columns=columns).sort_values(["method", "value"])
    best = table.groupby("method")["validation accuracy [%]"].transform("max")
    table["chosen"] = np.where(table["validation accuracy [%]"] == best, "*", "")
    return table


def markdown(rows: pd.DataFrame) -> str:
    """The table of one network and budget in Markdown, means and standard errors."""
    best = best_static(rows)
    table = methods_table(rows)
    costs = [name for name in COSTS.values() if name in table]
    titles = ["method", "R_r", "test accuracy [%]", "drop", *costs, "n", "budget met"]
    lines = [f"| {' | '.join(titles)} |", "|" + " --- |" * len(titles)]
    for _, row in table.iterrows():
        name = f"**{row['method']}**" if row["method"] == "learned" else row["method"]
        name += " (best static on validation)" if row["method"] == best else ""
        spread = "" if pd.isna(row["+-"]) else f" +- {row['+-']:.1f}"
        cells = [
            name,
            row["R_r"],
            f"{row['accuracy [%]']:.1f}{spread}",
            "-" if pd.isna(row["drop"]) else f"{row['drop']:.1f}",
            *("-" if pd.isna(row[name]) else f"{row[name]:.3f}" for name in costs),
            str(row["n"]),
            row["budget met"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(rows: pd.DataFrame) -> str:
    """One network's accuracies at every budget in Markdown, and its costs at one of them.

    The costs are those at the budget 0.5, or the one nearest to it. (*): the best static method
    on validation; **NO**: a budget is missed.
    """
    budgets = sorted(rows["s"].unique(), key=str)
    middle = min(budgets, key=lambda s: abs(_as_ratio(s) - 0.5))
    tables = {s: methods_table(rows[rows["s"] == s]) for s in budgets}
    best = {s: best_static(rows[rows["s"] == s]) for s in budgets}
    costs = [name for name in COSTS.values() if name in tables[middle]]
    at = "" if len(budgets) == 1 else f", {middle}"
    titles = ["method", "R_r", *(f"budget {s}" for s in budgets), *(f"{c}{at}" for c in costs)]
    lines = [f"| {' | '.join(titles)} |", "|" + " --- |" * len(titles)]
    every = _in_order(pd.concat(tables.values())[["method", "R_r"]].drop_duplicates())
    for method, rate in every.itertuples(index=False):
        found = {
            s: table[(table["method"] == method) & (table["R_r"] == rate)]
            for s, table in tables.items()
        }
        cells = [f"**{method}**" if method == "learned" else method, rate]
        cells += [_accuracy(line, method == best[s]) for s, line in found.items()]
        for cost in costs:
            value = found[middle][cost].mean()  # of one line or none
            cells.append("-" if pd.isna(value) else f"{value:.3f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _as_ratio(budget: object) -> float:
    """A number s or a percentage as a ratio; an amount in bytes or MACs is far from any."""
    text = str(budget)
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return float("inf")


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Lines of methods: ours first, then as in the catalogue; larger R_r first."""
    order = {name: rank for rank, name in enumerate(["learned", *CATALOGUE])}
    table = table.assign(_order=table["method"].map(order))
    table = table.sort_values(["_order", "R_r"], ascending=[True, False])
    return table.drop(columns="_order").reset_index(drop=True)


def _accuracy(line: pd.DataFrame, best: bool) -> str:
    """Mean and standard error; marked where a budget is missed, or the best static method."""
    if line.empty:
        return "-"
    row = line.iloc[0]
    text = f"{row['accuracy [%]']:.1f}"
    text += "" if pd.isna(row["+-"]) else f" +- {row['+-']:.1f}"
    text += " **NO**" if row["budget met"] == "NO" else ""
    return text + (" (*)" if best else "")


def show(rows: pd.DataFrame, figures: Path) -> None:
    """Prints the tables of every network and budget, and draws their figures."""
    pd.set_option("display.width", 250)
    for key, part in rows.groupby(NETWORK):
        experiment, dataset, backbone, width, s, variant = map(str, key)
        title = f"{dataset}, {backbone} at width {width}, budget {s} {variant}".rstrip()
        print(f"\n== {experiment}: {title}\n")
        print(methods_table(part).round(3).to_string(index=False, na_rep="-"))
        pairs = paired(part)
        if len(pairs):
            print("\nOurs minus the others, points of test accuracy, paired by seed:\n")
            print(pairs.round(3).to_string(index=False, na_rep="-"))
        print("\nTargets:", *verdict(part), sep="\n  ")
        path = figures / f"{experiment}_{backbone}_{s.rstrip('%')}{variant.replace(' ', '_')}.png"
        figure(part, title, path)
        print(f"\nFigure: {path}")


def pooled(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows of ``methods`` and ``more_seeds`` of one network and budget together, by its title.

    Of the methods that both have, so that every method has the same seeds.
    """
    found = {}
    kind = rows["experiment"].str.extract(f"^({METHODS}|{MORE_SEEDS})", expand=False)
    for key, part in rows[kind.notna()].groupby(NETWORK[1:-1]):
        more = part[part["experiment"].str.startswith(MORE_SEEDS)]
        points = set(zip(more["method"], more["R_r"], strict=True))
        both = [point in points for point in zip(part["method"], part["R_r"], strict=True)]
        if points:
            dataset, backbone, width, s = map(str, key)
            found[f"{dataset}, {backbone} at width {width}, budget {s}"] = part[both]
    return found


def show_pooled(rows: pd.DataFrame) -> None:
    """Prints what all seeds together say of the targets."""
    for title, part in pooled(rows).items():
        print(f"\n== {METHODS} and {MORE_SEEDS} together: {title}\n")
        print(methods_table(part).round(3).to_string(index=False, na_rep="-"))
        print("\n" + paired(part).round(3).to_string(index=False, na_rep="-"))
        print("\nTargets:", *verdict(part), sep="\n  ")


def show_overviews(rows: pd.DataFrame, figures: Path) -> None:
    """Draws every network that was measured at several budgets; ablations are left out."""
    for key, part in rows[rows["method"] != "dense"].groupby([n for n in NETWORK if n != "s"]):
        experiment, dataset, backbone, width, variant = key
        if part["s"].nunique() > 1 and not variant:
            path = figures / f"{experiment}_{backbone}_x{width:g}_budgets.png"
            overview(part, f"{dataset}, {backbone} at width {width:g}", path)
            print(f"\nFigure: {path}")


def main() -> None:
    """Keeps rows where asked, and prints every table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="*", help="runs or sweeps; none: results/")
    parser.add_argument("--add", type=Path, nargs="+", default=[], help="keep these rows")
    parser.add_argument("--tuning", action="store_true", help="the table of hyper-parameters")
    parser.add_argument("--markdown", action="store_true", help="print Markdown, draw nothing")
    parser.add_argument("--figures", type=Path, help="where figures go")
    arguments = parser.parse_args()
    for folder in arguments.add:
        keep(folder)
    if arguments.tuning:
        files = [folder / "results" for folder in arguments.folders]
        for path in files or sorted(RESULTS.glob(f"{TUNING}*.parquet")):
            print(tuning(path).to_string(index=False))
        return
    if arguments.markdown:
        rows = read(arguments.folders)
        for key, part in rows.groupby([name for name in NETWORK if name != "s"]):
            print(f"summary {key}\n\n{summary(part)}\n")
        for key, part in rows.groupby(NETWORK):
            print(f"{key}\n\n{markdown(part)}\n", *verdict(part), "", sep="\n")
        return
    default = arguments.folders[0] if arguments.folders else FIGURES
    rows, figures = read(arguments.folders), arguments.figures or default
    show(rows, figures)
    show_pooled(rows)
    show_overviews(rows, figures)


if __name__ == "__main__":
    main()
