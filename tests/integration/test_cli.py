"""The ``rlprune`` command as a user runs it: real processes, real signals."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import TINY
from processes import comparable, finish, kill_tree, start

from rlprune.results import load_rows


@pytest.fixture
def config(tmp_path: Path) -> Path:
    values: dict[str, Any] = {
        **TINY,
        "evaluation": {**TINY["evaluation"], "baselines": ["uniform"]},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_help_and_presets_answer_fast(tmp_path: Path) -> None:
    started = time.monotonic()
    code, out, _ = finish(start("--help", cwd=tmp_path))
    assert code == 0 and "quickstart" in out and "evaluate" in out
    assert time.monotonic() - started < 5.0  # well under a second when the machine is idle
    modules = "import sys, rlprune.cli.main; print('torch' in sys.modules, 'ray' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", modules], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split() == ["False", "False"]


def test_bad_input_is_refused_at_once_and_completely(tmp_path: Path, config: Path) -> None:
    code, _, err = finish(
        start(
            "train", config, "--out", "run", "--set", "traning.rounds=3",
            "--set", "training.rounds=-1", "--set", "evaluation.tradeoff_rates=[1.5]",
            "--set", "budgets.compute_max=5Q", cwd=tmp_path,
        )
    )  # fmt: skip
    assert code == 2
    assert "4 problems found, nothing was started" in err
    assert "traning: unknown key" in err and "Did you mean 'training'?" in err
    assert "training.rounds: must be greater than or equal to 0" in err
    assert "tradeoff_rates" in err and "less than or equal to 1" in err
    assert "budgets.compute_max" in err and "5Q" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_unreachable_budgets_say_what_can_be_reached(tmp_path: Path, config: Path) -> None:
    code, _, err = finish(
        start("train", config, "--out", "run", "--set", "budgets.storage_max=100", cwd=tmp_path)
    )
    assert code == 2
    assert err.count("can reach") == 3 and "bytes at best" in err  # R_r = 1, 0.5 and 0
    assert not (tmp_path / "run").exists()


def test_killed_at_random_moments_and_resumed(tmp_path: Path, config: Path) -> None:
    """SIGKILL of the whole process tree, three times; the rows equal an undisturbed run's."""
    code, _, err = finish(start("train", config, "--out", "calm", cwd=tmp_path))
    assert code == 0, err
    moments = random.Random(7)
    resume: list[str] = []
    for _ in range(3):
        process = start("train", config, "--out", "hit", *resume, cwd=tmp_path, hash_seed=1)
        before = sorted((tmp_path / "hit" / "checkpoints").glob("checkpoint_*"))
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            now = sorted((tmp_path / "hit" / "checkpoints").glob("checkpoint_*"))
            if now != before:
                break
            time.sleep(0.02)
        time.sleep(moments.uniform(0.0, 1.5))
        kill_tree(process)
        resume = ["--resume"]
    code, out, err = finish(start("train", config, "--out", "hit", "--resume", cwd=tmp_path))
    assert code == 0, err
    pd.testing.assert_frame_equal(
        comparable(tmp_path / "hit" / "results"), comparable(tmp_path / "calm" / "results")
    )
    assert "learned" in out and "uniform" in out
    assert (tmp_path / "hit" / "tradeoff.png").stat().st_size > 10_000
    assert (tmp_path / "hit" / "training.png").stat().st_size > 10_000
    assert list((tmp_path / "hit" / "tensorboard").glob("events.out.tfevents.*"))
    found = [pd.read_parquet(tmp_path / run / "difficulty.parquet") for run in ("calm", "hit")]
    pd.testing.assert_frame_equal(*found)
    rows = load_rows(tmp_path / "calm").query("method == 'learned'").set_index("tradeoff_rate")
    for rate, deciles in found[0].groupby("tradeoff_rate"):  # the pass that was measured
        accuracy = (deciles["accuracy"] * deciles["images"]).sum() / deciles["images"].sum()
        assert accuracy == pytest.approx(rows["test_accuracy"][rate])
        assert len(deciles) == 10


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path: Path, config: Path) -> None:
    process = start(
        "train", config, "--out", "run", "--set", "training.pretrain_epochs=400", cwd=tmp_path
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints" / "checkpoint_000001").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: Ray's processes get it too
    code, _, err = finish(process)
    assert code == 130
    assert "rlprune train" in err and "--resume" in err and "pretrain_epochs=400" in err
    assert "Traceback" not in err
    assert list((tmp_path / "run" / "checkpoints").glob("checkpoint_*"))
    code, _, err = finish(start("train", config, "--out", "run", "--resume", cwd=tmp_path))
    assert code == 2 and "training.pretrain_epochs (400 there, 2 here)" in err


def test_a_run_is_not_overwritten_and_can_be_evaluated_again(tmp_path: Path, config: Path) -> None:
    quick = ["--set", "evaluation.baselines=[]", "--set", "training.rounds=1"]
    code, _, err = finish(start("train", config, "--out", "run", *quick, cwd=tmp_path))
    assert code == 0, err
    first = pd.read_parquet(tmp_path / "run" / "results")
    code, _, err = finish(start("train", config, "--out", "run", *quick, cwd=tmp_path))
    assert code == 2 and "already holds a run" in err
    code, _, err = finish(start("evaluate", "run", "--ratio", "0.7", cwd=tmp_path))
    assert code == 0, err
    again = load_rows(tmp_path / "run")
    assert len(again) == 2 * len(first)  # the same points replaced, those at 0.7 added
    measured = again[again["budget_s"].isna()].sort_values("tradeoff_rate")
    expected = first.sort_values("tradeoff_rate")
    assert measured["test_accuracy"].tolist() == expected["test_accuracy"].tolist()
    assert measured["macs_mean"].tolist() == expected["macs_mean"].tolist()
    assert again["budgets_met"].all()
    code, _, err = finish(start("evaluate", "run", "--ratio", "1.7", cwd=tmp_path))
    assert code == 2 and "--ratio" in err
