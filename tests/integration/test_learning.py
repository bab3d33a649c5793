"""The agents find policies that are known to be best (real RLlib learner, real episodes)."""

from __future__ import annotations

from typing import Any

import pytest
import synthetic

from rlprune.config import TrialConfig, config_from_dict
from rlprune.data import ImageSet
from rlprune.training.algorithm import PruningAlgorithm
from rlprune.training.algorithm_config import PruningAlgorithmConfig
from rlprune.training.evaluate import Measurement

pytestmark = pytest.mark.usefixtures("ray_instance")


def synthetic_config(factory: str, **parts: Any) -> TrialConfig:
    """A trial in which the network is given and only the agents learn."""
    values: dict[str, Any] = {
        "name": "synthetic",
        "backbone": {"factory": f"synthetic:{factory}"},
        "agents": {"hidden": 8, "samples_per_image": 8},
        "rollouts": {"rollouts_per_update": 256},
        "training": {
            "ranked_start": False,  # the task ranks its channels itself
            "pretrain_epochs": 0,
            "runtime_importance_epochs": 0,
            "static_importance_epochs": 0,
            "rounds": 1,
            "updates_per_round": 100,
            "finetune_epochs": 0,
        },
        "pruning": {"alpha": 0.06},
        "resources": {"cpus": 1},
    }
    for name, part in parts.items():
        values[name] = {**values.get(name, {}), **part}
    return config_from_dict(values)


def trained(config: TrialConfig, images: ImageSet) -> dict[str, Measurement]:
    """What the learned policy and ``uniform`` reach, by method."""
    algorithm = PruningAlgorithm(PruningAlgorithmConfig.of(config), images=images)
    try:
        synthetic.rank_channels(algorithm.program.network)
        found = {}
        while not algorithm.program.finished:
            algorithm.train()
            found.update({measured.method: measured for measured in algorithm.measurements})
        return found
    finally:
        algorithm.stop()


def test_hard_images_get_all_channels_and_easy_ones_few() -> None:
    config = synthetic_config(
        "TwoLayers",
        budgets={"storage_max": None, "compute_max": None, "compute_mean": "45%"},
        evaluation={"tradeoff_rates": [1.0], "baselines": ["uniform"]},
    )
    images = synthetic.task(share_hard=0.25)
    found = trained(config, images)
    hard = synthetic.is_hard(images.test)
    ratios = found["learned"].test.computed / found["learned"].test.computed.new_tensor([8, 16])
    assert found["uniform"].test.accuracy < 0.95
    assert found["learned"].test.accuracy > 0.98
    assert (ratios[hard].mean(0) > 0.95).all()
    assert (ratios[~hard].mean(0) < 0.6).all()
    assert found["learned"].budgets_met


def test_the_vital_layer_is_kept_and_the_useless_one_pruned() -> None:
    config = synthetic_config(
        "narrow_second_layer",
        budgets={"storage_max": "50%", "compute_max": None},
        evaluation={"tradeoff_rates": [0.0], "baselines": ["uniform"]},
    )
    found = trained(config, synthetic.task(share_hard=1.0))
    stored = found["learned"].test.stored
    assert found["uniform"].test.accuracy < 0.7  # too little of the truth is left
    assert found["learned"].test.accuracy == 1.0
    assert int(stored[0]) == 8
    assert int(stored[1]) < 8
    assert found["learned"].budgets_met
