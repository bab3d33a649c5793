"""One made-up result row, and others that differ from it."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from rlprune.results import ResultRow

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc)
EXAMPLE: dict[str, Any] = {
    "experiment": "quickstart",
    "trial": "trial",
    "step": 4,
    "method": "learned",
    "seed": 0,
    "backbone": "m_cifarnet",
    "width": 0.25,
    "dataset": "digits",
    "tradeoff": "permanent",
    "tradeoff_rate": 0.5,
    "budget_s": None,
    "storage_budget_bytes": 60_000.0,
    "compute_max_budget_macs": 500.0,
    "compute_mean_budget_macs": None,
    "budget_rule": "projected",
    "budgets_met": True,
    "validation_accuracy": 0.9,
    "test_accuracy": 0.875,
    "test_accuracy_top5": None,
    "validation_loss": 0.3,
    "test_loss": 0.4,
    "macs_mean": 250.0,
    "macs_p5": 200.0,
    "macs_p50": 250.0,
    "macs_p95": 300.0,
    "macs_max": 450.0,
    "macs_dense": 1000.0,
    "macs_mean_ratio": 0.25,
    "parameters": 10_000,
    "storage_bytes": 40_000,
    "storage_dense_bytes": 80_000,
    "storage_ratio": 0.5,
    "layer_names": ("features.0", "features.3"),
    "keep_ratio_mean": (0.5, 0.25),
    "keep_ratio_std": (0.0, 0.125),
    "image_dependent_ratio": (0.0, 0.5),
    "stored_ratio": (0.75, 1.0),
    "rl_updates": 100,
    "rollouts": 25_600,
    "training_images": 50_000,
    "finetune_images": 6_000,
    "seconds_pretrain": 1.5,
    "seconds_importance": 0.5,
    "seconds_agents": 2.5,
    "seconds_finetune": 1.0,
    "seconds_evaluate": 0.25,
    "checkpoint_uri": None,
    "config_hash": "abc123",
    "configuration": '{"seed": 0}',
    "versions": "{}",
    "created_at": NOW,
}


def make_row(**changes: Any) -> ResultRow:
    return ResultRow(**{**EXAMPLE, **changes})
