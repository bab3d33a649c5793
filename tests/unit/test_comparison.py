"""The comparison's script and its files: what is averaged, paired, chosen and said."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch

from rlprune.config import config_from_dict, config_to_dict, load_config
from rlprune.results import write_rows
from rlprune.sweep.space import trial_config, trial_points
from rlprune.sweep.spec import load_spec
from rlprune.training.catalogue import CATALOGUE
from tests.result_rows import make_row

FOLDER = Path(__file__).resolve().parents[2] / "analysis" / "comparison"
CONFIG = config_to_dict(config_from_dict({"data": {"root": "/somewhere"}}))
SWEEPS = {
    "methods": 18,
    "rates": 72,
    "more_seeds": 6,
    "equal_storage": 3,
    "ablations": 12,
    "ablation_mean": 6,
    "ablation_range": 3,
    "tuning": 4,
    "gpu": 18,
}


def script(name: str) -> ModuleType:
    """A script of ``analysis/comparison``, which is no package."""
    if str(FOLDER) not in sys.path:  # where Python looks when the script is run
        sys.path.append(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"comparison_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return script("tables")


@pytest.fixture(scope="module")
def latency() -> ModuleType:
    return script("latency")


def rows_of(*points: tuple[str, int, float | None, float, float], **changes: Any) -> list[Any]:
    """(method, seed, R_r, validation, test) -> rows."""
    return [
        make_row(
            experiment="some",
            trial=f"{method}{seed}",
            method=method,
            seed=seed,
            tradeoff_rate=rate,
            validation_accuracy=validation,
            test_accuracy=test,
            configuration=json.dumps(CONFIG),
            **changes,
        )
        for method, seed, rate, validation, test in points
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rows = rows_of(
        ("dense", 0, None, 0.95, 0.95),
        ("dense", 1, None, 0.95, 0.93),
        ("learned", 0, 0.5, 0.9, 0.90),
        ("learned", 1, 0.5, 0.9, 0.88),
        ("learned", 0, 1.0, 0.9, 0.91),
        ("static_l1", 0, None, 0.88, 0.85),
        ("static_l1", 1, None, 0.88, 0.87),
        ("legr", 0, None, 0.87, 0.99),  # better on test: must not be chosen for it
        ("uniform", 0, 1.0, 0.9, 0.80),
        ("uniform", 0, 0.5, 0.9, 0.86),
        ("fbs", 0, None, 0.9, 0.92),
    )
    rows += rows_of(("amc", 0, None, 0.99, 0.97), budgets_met=False)
    write_rows(tmp_path / "results", rows)
    return tmp_path


def test_means_errors_and_missed_budgets_by_hand(tables: ModuleType, run: Path) -> None:
    table = tables.methods_table(tables.read([run])).set_index(["method", "R_r"])
    ours = table.loc[("learned", "0.5")]
    assert ours["n"] == 2
    assert ours["accuracy [%]"] == pytest.approx(89)
    assert ours["+-"] == pytest.approx(1)  # deviation sqrt 2, over the root of 2
    assert ours["drop"] == pytest.approx(94 - 89)
    assert ours["seconds"] == pytest.approx(5.5)
    assert pd.isna(table.loc[("fbs", "-"), "+-"])
    assert table["budget met"].to_dict() | {("amc", "-"): "NO"} == table["budget met"].to_dict()
    assert table.loc[("dense", "-"), "budget met"] == "-"
    assert (table["budget met"] == "NO").sum() == 1
    assert list(table.index)[:3] == [("learned", "1"), ("learned", "0.5"), ("dense", "-")]


def test_the_best_static_method_is_chosen_on_validation_within_budgets(
    tables: ModuleType, run: Path
) -> None:
    rows = tables.read([run])
    assert tables.best_static(rows) == "static_l1"
    assert tables.best_static(rows[rows["method"] == "amc"]) is None


def test_variants_stand_apart_and_a_seed_counts_once(tables: ModuleType, tmp_path: Path) -> None:
    rows = rows_of(("learned", 0, 0.5, 0.9, 0.9))
    for part, key, value in (("budgets", "rule", "soft"), ("pruning", "tradeoff", "paper")):
        changed = {**CONFIG, part: {**CONFIG[part], key: value}}
        more = dataclasses.replace(rows[0], trial=value, configuration=json.dumps(changed))
        rows.append(more)
    write_rows(tmp_path / "results", rows)
    found = tables.read([tmp_path])
    assert sorted(found["variant"]) == ["", "paper", "soft"]
    with pytest.raises(SystemExit, match="several rows of one seed"):
        tables.methods_table(found)


def test_differences_are_paired_by_seed_and_rate(tables: ModuleType, run: Path) -> None:
    table = tables.paired(tables.read([run])).set_index(["R_r", "rival"])
    static = table.loc[("0.5", "static_l1 (best static)")]
    assert static["ours - rival"] == pytest.approx(3)  # 5 and 1
    assert static["+-"] == pytest.approx(2) and static["n"] == 2
    assert static["p"] == pytest.approx(0.3743, abs=1e-4)  # t = 1.5, one degree of freedom
    assert table.loc[("1", "uniform"), "ours - rival"] == pytest.approx(11)
    assert table.loc[("0.5", "uniform"), "ours - rival"] == pytest.approx(4)
    assert table.loc[("1", "fbs"), "n"] == 1 and pd.isna(table.loc[("1", "fbs"), "p"])


def test_more_seeds_join_those_of_the_methods_that_they_have(
    tables: ModuleType, tmp_path: Path
) -> None:
    first = rows_of(
        ("learned", 3, 0.5, 0.9, 0.9), ("fpgm", 3, None, 0.9, 0.88), ("amc", 3, None, 0.9, 0.9)
    )
    more = rows_of(("learned", 9, 0.5, 0.9, 0.9), ("fpgm", 9, None, 0.9, 0.86))
    for name, rows in (("methods", first), ("more_seeds", more)):
        write_rows(tmp_path / "results", [dataclasses.replace(r, experiment=name) for r in rows])
    ((title, both),) = tables.pooled(tables.read([tmp_path])).items()
    assert title.endswith("budget 0.5") and set(both["method"]) == {"learned", "fpgm"}
    table = tables.paired(both).set_index("rival").loc["fpgm (best static)"]
    assert table["n"] == 2 and table["ours - rival"] == pytest.approx(3)  # 2 and 4
    assert tables.pooled(tables.read([tmp_path]).query("experiment == 'methods'")) == {}


def test_targets_are_stated_plainly(tables: ModuleType, run: Path) -> None:
    static, fbs = tables.verdict(tables.read([run]))
    assert "R_r = 0.5 against static_l1 (best static): +3.00 points (+- 2.00, n = 2)" in static
    assert static.endswith("reached")
    assert "-1.00 points (one seed, no error, n = 1)" in fbs
    assert "MISSED on one seed, which decides nothing" in fbs
    nothing = tables.read([run])
    nothing = nothing[nothing["method"] != "learned"]
    assert all(line.endswith("not measured") for line in tables.verdict(nothing))


def test_kept_rows_name_no_paths(
    tables: ModuleType, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "kept")
    tables.keep(run)
    kept = pd.read_parquet(tmp_path / "kept" / "some.parquet")
    assert len(kept) == 12 and "checkpoint_uri" not in kept
    assert not kept["configuration"].str.contains("somewhere").any()
    assert len(tables.read([])) == 12


def test_the_table_in_markdown(tables: ModuleType, run: Path) -> None:
    lines = tables.markdown(tables.read([run])).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert any(line.startswith("| **learned** | 0.5 | 89.0 +- 1.0 | 5.0 |") for line in lines)
    assert any(line.startswith("| static_l1 (best static on validation) | - |") for line in lines)
    assert any(line.startswith("| fbs | - | 92.0 | 2.0 |") for line in lines)


def test_other_rates_join_their_methods_and_tries_stay_out(
    tables: ModuleType, run: Path, tmp_path: Path
) -> None:
    folders = [run, tmp_path / "rates", tmp_path / "tuning"]
    for name, folder in zip(("rates_colour", "tuning_colour"), folders[1:], strict=True):
        rows = [
            dataclasses.replace(row, experiment=name)
            for row in rows_of(("learned", 0, 1.0, 0.5, 0.5))
        ]
        write_rows(folder / "results", rows)
    found = tables.read(folders)
    assert sorted(found["experiment"].unique()) == ["methods_colour", "some"]
    tries = tables.tuning(folders[2] / "results")
    assert tries[["method", "setting", "chosen"]].to_numpy().tolist() == [
        ["learned", "training.importance_penalty", "*"]
    ]


def test_a_picture_for_every_cost(tables: ModuleType, run: Path, tmp_path: Path) -> None:
    tables.figure(tables.read([run]), "title", tmp_path / "pictures" / "some.png")
    assert (tmp_path / "pictures" / "some.png").stat().st_size > 10_000


def test_one_more_picture_over_several_budgets(
    tables: ModuleType, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables.show_overviews(tables.read([run]), tmp_path)
    assert capsys.readouterr().out == ""  # one budget
    tighter = {**CONFIG, "budgets": {**CONFIG["budgets"], "compute_max": 0.3, "storage_max": 0.3}}
    rows = rows_of(("learned", 0, 0.5, 0.8, 0.8), ("fbs", 0, None, 0.8, 0.8))
    rows = [
        dataclasses.replace(row, trial="tight", configuration=json.dumps(tighter)) for row in rows
    ]
    write_rows(run / "results", rows)
    tables.show_overviews(tables.read([run]), tmp_path)
    assert "some_m_cifarnet_x0.25_budgets.png" in capsys.readouterr().out
    assert (tmp_path / "some_m_cifarnet_x0.25_budgets.png").stat().st_size > 10_000


def test_a_summary_over_budgets(tables: ModuleType, run: Path) -> None:
    tighter = {**CONFIG, "budgets": {**CONFIG["budgets"], "compute_max": 0.3, "storage_max": 0.3}}
    rows = rows_of(("learned", 0, 0.5, 0.8, 0.7), ("fpgm", 0, None, 0.8, 0.6))
    rows = [
        dataclasses.replace(
            row,
            trial="tight",
            configuration=json.dumps(tighter),
            budgets_met=row.method != "fpgm",
        )
        for row in rows
    ]
    write_rows(run / "results", rows)
    lines = tables.summary(tables.read([run])).splitlines()
    assert lines[0].startswith("| method | R_r | budget 0.3 | budget 0.5 | MACs / dense, 0.5 |")
    assert lines[2].startswith("| **learned** | 1 | - | 91.0 |")
    assert lines[3].startswith("| **learned** | 0.5 | 70.0 | 89.0 +- 1.0 | 0.250 |")
    assert any(line.startswith("| static_l1 | - | - | 86.0 +- 1.0 (*) |") for line in lines)
    assert any(line.startswith("| fpgm | - | 60.0 **NO** | - | - | - |") for line in lines)


@pytest.mark.parametrize(
    ("budget", "ratio"), [(0.3, 0.3), ("60%", 0.6), ("300KB", math.inf), (0.5, 0.5)]
)
def test_budgets_are_ordered_by_what_they_are(
    tables: ModuleType, budget: object, ratio: float
) -> None:
    assert tables._as_ratio(budget) == ratio


def test_what_a_search_has_seen(tables: ModuleType) -> None:
    config = {"methods": {"search_steps": 20}, "training": {"batch_size": 64}}
    assert tables._searched("legr", 40, json.dumps(config)) == 40 * 20 * 64
    assert tables._searched("learned", 40, json.dumps(config)) == 0
    assert tables._searched("amc", 40, json.dumps({**config, "methods": {}})) == 0


# --- files ----------------------------------------------------------------------------------


def test_the_small_comparison_has_every_method_of_a_cap() -> None:
    config = load_config(FOLDER / "small.yaml")
    assert {*config.evaluation.baselines, "random", "cascade"} == set(CATALOGUE)
    assert config.budgets.compute_max == config.budgets.storage_max == 0.5
    assert set(config.evaluation.tradeoff_rates) == {1.0, 0.75, 0.5, 0.25, 0.0}


@pytest.mark.parametrize(("name", "count"), SWEEPS.items())
def test_sweeps_have_the_trials_that_they_say(name: str, count: int) -> None:
    spec = load_spec(FOLDER / f"{name}.yaml")
    points = trial_points(spec)
    assert len(points) == count
    configs = [trial_config(spec, point.values, point.name) for point in points]
    assert len({config.seed for config in configs}) == {"tuning": 1, "more_seeds": 6}.get(name, 3)
    if name == "tuning":
        for part, key in (("training", "importance_penalty"), ("methods", "fbs_penalty")):
            assert len({getattr(getattr(config, part), key) for config in configs}) == 4
    if name == "ablation_mean":
        budgets = {(c.budgets.compute_max, c.budgets.compute_mean) for c in configs}
        assert budgets == {(0.5, None), (None, 0.5)}


def test_latencies_of_all_rows_but_those_that_cannot_be_rebuilt(
    latency: ModuleType, tables: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On committed rows, as ``latency.py`` is used; of two files, one without dense rows."""
    rows = pd.read_parquet(FOLDER / "results" / "comparison_small.parquet")
    strange = rows["method"] == "uniform"  # as many channels in all, but of other layers
    rows.loc[strange, "keep_ratio_mean"] = rows.loc[strange, "keep_ratio_mean"].map(
        lambda ratios: [ratios[0] + 0.2, *ratios[1:-1], ratios[-1] - 0.2]
    )
    rows["latency_seconds"] = 99.0  # from before
    first = rows["method"].isin(["dense", "uniform", "rnp", "fbs", "amc"])
    paths = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    rows[first].to_parquet(paths[0])
    rows[~first].to_parquet(paths[1])
    latency.note(paths, latency.Setting(repeats=3, warmup=1))
    said = capsys.readouterr().out
    assert "uniform, R_r = 0.5: keep_ratio_mean of" in said and "rnp" in said
    found = pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)
    assert len(found) == len(rows)
    untimed = found["latency_seconds"].isna()
    assert {"uniform", "rnp"} <= set(found["method"][untimed]) <= {"uniform", "rnp", "learned"}
    timed = found[~untimed]
    assert timed["latency_seconds"].between(1e-6, 10).all() and set(timed["latency_batch"]) == {1}
    assert timed["latency_ratio"].notna().all()
    assert timed["latency_dense_seconds"].nunique() == 1  # all took turns
    prepared = tables._prepared(found)
    assert "latency / dense" in tables.methods_table(prepared)
    assert "| latency / dense |" in tables.markdown(prepared)


@pytest.mark.parametrize(
    ("method", "rate"),
    [("learned", 0.5), ("learned", 1.0), ("uniform", 0.0), ("uniform", 0.25), ("uniform", 0.75)]
    + [(name, None) for name in ("fbs", "static_l1", "torch_pruning", "legr", "amc")],
)
def test_a_rebuilt_network_has_the_channels_of_its_row(
    latency: ModuleType, method: str, rate: float | None
) -> None:
    rows = pd.read_parquet(FOLDER / "results" / "comparison_small.parquet")
    rows = rows[rows["method"] == method]
    row = (rows if rate is None else rows[rows["tradeoff_rate"] == rate]).iloc[0]
    model = latency.model_like(row)
    channels = [layer.channels for layer in model.spec.layers]
    near = 1 / min(channels) if method == "learned" else 1e-6  # agents chose a little otherwise
    stored = [layer.stored / layer.channels for layer in model.spec.layers]
    assert stored == pytest.approx(list(row["stored_ratio"]), abs=near)
    model(torch.randn(2, *model.spec.input_shape))
    computed = [n / c for n, c in zip(model.last[0].counts, channels, strict=True)]
    assert computed == pytest.approx(list(row["keep_ratio_mean"]), abs=1 / min(channels))
    if rate is None:
        assert model.macs()[0] == pytest.approx(row["macs_mean"])


def test_a_network_is_rebuilt_at_the_budget_of_its_row(latency: ModuleType) -> None:
    """One training measured at several budgets: ``budget_s`` replaces the configured one."""
    rows = pd.read_parquet(FOLDER / "results" / "comparison_small.parquet")
    row = rows[(rows["method"] == "uniform") & (rows["tradeoff_rate"] == 1.0)].iloc[0]
    model = latency.model_like(row)
    row["budget_s"] = 0.25
    half = latency.model_like(row)
    for network in (model, half):
        network(torch.zeros(1, *network.spec.input_shape))
    assert float(half.macs()[0]) < 0.4 * float(model.macs()[0])
