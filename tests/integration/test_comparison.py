"""Every published method in miniature, through Ray, the results' files and the tables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_config

from rlprune.results import load_rows
from rlprune.training.catalogue import CATALOGUE
from rlprune.training.session import run_trial

ROOT = Path(__file__).resolve().parents[2]
METHODS = [name for name in CATALOGUE if name not in ("random", "cascade")]


@pytest.mark.slow
def test_all_methods_stand_in_one_table(tmp_path: Path) -> None:
    config = tiny_config(
        evaluation__baselines=METHODS,
        evaluation__tradeoff_rates=[1.0, 0.5, 0.0],
        methods__search_candidates=4,
    )
    run_trial(config, tmp_path)
    rows = load_rows(tmp_path / "results")
    assert set(rows["method"]) == {"learned", *METHODS}
    assert rows["budgets_met"].all()
    pruned = rows[rows["method"] != "dense"]
    assert (pruned["macs_max"] <= pruned["compute_max_budget_macs"]).all()
    assert (pruned["storage_bytes"] <= pruned["storage_budget_bytes"]).all()
    static = [name for name in METHODS if CATALOGUE[name].kind == "static" and name != "dense"]
    budgets = pruned.set_index("method").loc[static, ["compute_max_budget_macs"]]
    assert budgets.nunique().tolist() == [1]  # one budget for all

    script = ROOT / "analysis" / "comparison" / "tables.py"
    shown = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ).stdout
    for name in METHODS:
        assert f"{name} " in shown
    assert "(best static)" in shown and "one seed, no error, n = 1" in shown
    assert (tmp_path / "tiny_m_cifarnet_0.5.png").stat().st_size > 10_000
