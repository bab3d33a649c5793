"""A made-up sweep for tests of the report: rows and learning curves on the disk.

2 backbones x 3 budgets x 3 seeds, each trial with 3 tradeoff rates and all baselines. The
numbers follow simple rules, so that tests can say what a picture must show.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pandas as pd

from rlprune.results import ResultRow, write_rows

HOSTILE = '</script><img src=x onerror="document.title=1">$%{y}<b>'
BACKBONES = {"m_cifarnet": (0.90, 8), "resnet20": (0.93, 19)}
BUDGETS = (0.3, 0.5, 0.7)
RATES = (1.0, 0.5, 0.0)
SEEDS = (0, 1, 2)
BEHIND = {"learned": 0.0, "uniform": -0.02, "random": -0.03, "static_l1": -0.025, "dense": 0.0}
DENSE_BYTES = {"m_cifarnet": 326_184, "resnet20": 1_090_000}
DENSE_MACS = {"m_cifarnet": 517_152.0, "resnet20": 4_060_000.0}
LAYERS = 8

EXAMPLE = ResultRow(
    experiment="sweep_example",
    trial="trial",
    step=4,
    method="learned",
    seed=0,
    backbone="m_cifarnet",
    width=1.0,
    dataset="digits",
    tradeoff="permanent",
    tradeoff_rate=0.5,
    budget_s=None,
    storage_budget_bytes=60_000.0,
    compute_max_budget_macs=500.0,
    compute_mean_budget_macs=None,
    budget_rule="projected",
    budgets_met=True,
    validation_accuracy=0.9,
    test_accuracy=0.875,
    test_accuracy_top5=None,
    validation_loss=0.3,
    test_loss=0.4,
    macs_mean=250.0,
    macs_p5=200.0,
    macs_p50=250.0,
    macs_p95=300.0,
    macs_max=450.0,
    macs_dense=1000.0,
    macs_mean_ratio=0.25,
    parameters=10_000,
    storage_bytes=40_000,
    storage_dense_bytes=80_000,
    storage_ratio=0.5,
    layer_names=tuple(f"features.{layer}.conv" for layer in range(LAYERS)),
    keep_ratio_mean=(0.5,) * LAYERS,
    keep_ratio_std=(0.1,) * LAYERS,
    stored_ratio=(0.75,) * LAYERS,
    rl_updates=100,
    rollouts=25_600,
    training_images=50_000,
    finetune_images=6_000,
    seconds_pretrain=1.5,
    seconds_importance=0.5,
    seconds_agents=2.5,
    seconds_finetune=1.0,
    seconds_evaluate=0.25,
    checkpoint_uri="runs/sweep_example/trial",
    config_hash="abc",
    configuration="{}",
    versions='{"python": "3.11.7", "torch": "2.14.1", "ray": "2.60.0", "rlprune": "0.1.0"}',
    created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
)


def trial_name(backbone: str, budget: float, seed: int) -> str:
    """One of the trials has a name that no page may take for markup."""
    name = f"{backbone}_storage_max={budget}_seed={seed}"
    return HOSTILE if (backbone, budget, seed) == ("m_cifarnet", 0.3, 0) else name


def sweep_rows(
    seeds: Sequence[int] = SEEDS, backbones: Sequence[str] = tuple(BACKBONES)
) -> list[ResultRow]:
    """All rows of the sweep: 11 per trial."""
    return [
        row
        for backbone in backbones
        for budget in BUDGETS
        for seed in seeds
        for row in trial_rows(backbone, budget, seed)
    ]


def trial_rows(backbone: str, budget: float, seed: int) -> Iterator[ResultRow]:
    """Learned, uniform and random at each R_r, static_l1 and dense once."""
    config = {
        "name": trial_name(backbone, budget, seed),
        "seed": seed,
        "backbone": {"name": backbone, "width": 1.0},
        "data": {"name": "digits"},
        "budgets": {"storage_max": budget, "compute_max": budget},
        "agents": {"hidden": 16, "learning_rate": 0.003},
    }
    trial = dataclasses.replace(
        EXAMPLE,
        trial=trial_name(backbone, budget, seed),
        seed=seed,
        backbone=backbone,
        config_hash=f"{backbone}-{budget}-{seed}",
        configuration=json.dumps(config),
        checkpoint_uri=f"runs/sweep_example/{backbone}-{budget}-{seed}",
        macs_dense=DENSE_MACS[backbone],
        storage_dense_bytes=DENSE_BYTES[backbone],
    )
    for method in ("learned", "uniform", "random"):
        for rate in RATES:
            yield _point(trial, method, rate, budget)
    yield _point(trial, "static_l1", None, budget)
    yield _point(trial, "dense", None, 1.0)


def _point(trial: ResultRow, method: str, rate: float | None, budget: float) -> ResultRow:
    top, layers = BACKBONES[trial.backbone]
    kept = 1 - (1 - (rate or 0.0)) * (1 - budget)
    draw = np.random.default_rng(
        [trial.seed, layers, int(100 * budget), list(BEHIND).index(method)]
    )
    accuracy = top - 0.10 * (1 - budget) + 0.02 * (rate or 0.0) + BEHIND[method]
    validation, test = accuracy + draw.normal(0, 0.004, 2)
    size = int(trial.storage_dense_bytes * kept * (1 if method == "dense" else 0.98))
    limited = method != "dense"
    most = trial.macs_dense * budget**2
    mean = (0.97 if limited else 1) * most
    spread = 0.12 * (rate or 0.0) if method == "learned" else 0.0
    ratios = np.clip(budget + draw.normal(0, 0.08, layers), 0.1, 1) if limited else np.ones(layers)
    return dataclasses.replace(
        trial,
        method=method,
        tradeoff_rate=rate,
        storage_budget_bytes=trial.storage_dense_bytes * kept if limited else None,
        compute_max_budget_macs=1.05 * most if limited else None,
        budgets_met=not (method == "random" and budget == 0.3),
        validation_accuracy=float(validation),
        test_accuracy=float(test),
        storage_bytes=size,
        storage_ratio=size / trial.storage_dense_bytes,
        parameters=size // 4,
        macs_mean=mean,
        macs_max=most,
        macs_mean_ratio=mean / trial.macs_dense,
        layer_names=tuple(f"layer{layer}.conv" for layer in range(layers)),
        keep_ratio_mean=tuple(map(float, ratios)),
        keep_ratio_std=(spread,) * layers,
        stored_ratio=tuple(
            float(min(1.0, ratio + (rate or 0.0) * (1 - ratio))) for ratio in ratios
        ),
    )


def timed(rows: Sequence[ResultRow], machine: str = "EPYC, 2 cores") -> list[ResultRow]:
    """The same rows; learned and dense ones take 1 ms and 1 ns per MAC of the mean."""
    found = []
    for row in rows:
        seconds, dense = (0.001 + 1e-9 * macs for macs in (row.macs_mean, row.macs_dense))
        latency = {
            "latency_seconds": seconds,
            "latency_p25_seconds": 0.9 * seconds,
            "latency_p75_seconds": 1.2 * seconds,
            "latency_dense_seconds": dense,
            "latency_ratio": seconds / dense,
            "latency_batch": 1,
            "latency_threads": 1,
            "latency_machine": machine,
            "latency_measured_at": row.created_at,
        }
        known = row.method in ("learned", "dense")
        found.append(dataclasses.replace(row, **latency) if known else row)
    return found


def updates_frame(seed: int, updates: int = 120) -> pd.DataFrame:
    """What a trial's ``updates.parquet`` holds, of that many PPO updates."""
    noise = np.random.default_rng(seed)
    done = np.arange(1, updates + 1) / updates
    return pd.DataFrame(
        {
            "update": np.arange(1, updates + 1, dtype=float),
            "phase_round": np.floor(4 * (done - 1 / updates)),
            "reward_runtime": -1 + 0.6 * done + noise.normal(0, 0.05, updates),
            "reward_static": -0.9 + 0.4 * done + noise.normal(0, 0.05, updates),
            "loss": 0.9 - 0.5 * done + noise.normal(0, 0.03, updates),
            "accuracy": 0.7 + 0.2 * done,
            "macs_ratio": 0.3 - 0.05 * done,
            "storage_ratio": 0.7 - 0.1 * done,
            "keep_ratio_0": 0.5,
        }
    )


def write_sweep(
    folder: Path, seeds: Sequence[int] = SEEDS, backbones: Sequence[str] = tuple(BACKBONES)
) -> Path:
    """Rows, updates and specification, as ``rlprune sweep`` leaves them."""
    rows = sweep_rows(seeds, backbones)
    write_rows(folder / "results", rows)
    (folder / "updates").mkdir(parents=True)
    safe = sorted({row.trial for row in rows} - {HOSTILE})  # no file can have that name
    for number, trial in enumerate(safe):
        updates_frame(number).to_parquet(folder / "updates" / f"{trial}.parquet")
    (folder / "sweep.yaml").write_text("name: sweep_example\n")
    return folder
