"""A tiny real trial on scikit-learn's digits, and one Ray instance for all of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rlprune.config import TrialConfig, config_from_dict
from rlprune.training.cluster import private_ray

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"name": "digits", "max_train_images": 400},
    "backbone": {"width": 0.1},
    "agents": {"hidden": 8, "samples_per_image": 4},
    "rollouts": {"rollouts_per_update": 32},
    "training": {
        "pretrain_epochs": 2,
        "runtime_importance_epochs": 1,
        "static_importance_epochs": 1,
        "rounds": 2,
        "updates_per_round": 3,
        "finetune_epochs": 1,
        "batch_size": 64,
    },
    "evaluation": {
        "tradeoff_rates": [1.0, 0.5, 0.0],
        "random_candidates": 2,
        "batchnorm_images": 128,
    },
    "resources": {"cpus": 1},
}


def tiny_config(**changes: Any) -> TrialConfig:
    """The tiny trial with "part__key" settings changed."""
    values = copy.deepcopy(TINY)
    for name, value in changes.items():
        part, _, key = name.partition("__")
        if key:
            values.setdefault(part, {})[key] = value
        else:
            values[part] = value
    return config_from_dict(values)


@pytest.fixture
def tiny() -> Callable[..., TrialConfig]:
    return tiny_config


@pytest.fixture(scope="module")
def ray_instance() -> Iterator[None]:
    with private_ray(num_cpus=4, store_bytes=0):
        yield
