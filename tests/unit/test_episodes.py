"""Budgets of training episodes: what a batch of fine-tuning and a batch of rollouts draw."""

from __future__ import annotations

import numpy as np
import torch

from rlprune.config import config_from_dict
from rlprune.training.setup import TrialSetup, build_network


def make_setup(**budgets: object) -> TrialSetup:
    config = config_from_dict(
        {
            "backbone": {"name": "m_cifarnet", "width": 0.1},
            "budgets": {"storage_max": 0.5, "compute_max": 0.5, **budgets},
            "evaluation": {"tradeoff_rates": [1.0, 0.5, 0.0]},
        }
    )
    network = build_network(config.backbone, 10, (1, 16, 16), 0)
    return TrialSetup.of(config, network.channels)


def test_a_batch_of_fine_tuning_has_one_point() -> None:
    setup = make_setup(train_range=[0.3, 0.9])
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        drawn = setup.sample_episodes(setup.book, 16, rng, one_point=True)
        assert len(drawn.rows().unique(dim=0)) == 1
        seen.add((float(drawn.rate[0]), float(drawn.compute_dial[0])))
    assert {rate for rate, _ in seen} == {1.0, 0.5, 0.0}
    assert len({dial for _, dial in seen}) > 12  # of 33 numbers in the range


def test_rollouts_mix_points() -> None:
    setup = make_setup(train_range=[0.3, 0.9])
    drawn = setup.sample_episodes(setup.book, 64, np.random.default_rng(0))
    assert len(drawn.rows().unique(dim=0)) > 30


def test_without_a_range_the_draws_are_those_of_r_r_alone() -> None:
    setup = make_setup()
    rng, other = np.random.default_rng(3), np.random.default_rng(3)
    drawn = setup.sample_episodes(setup.book, 8, rng, one_point=True)
    rate = (1.0, 0.5, 0.0)[int(other.integers(3, size=1)[0])]
    assert torch.equal(drawn.rate, torch.full((8,), rate, dtype=torch.float64))
    assert rng.random() == other.random()


def test_narrow_networks_are_drawn_more_often() -> None:
    setup = make_setup(train_range=[0.3, 0.9])
    drawn = setup.sample_episodes(setup.book, 20_000, np.random.default_rng(0))
    ratios = setup.book.table(
        tuple(setup.book.point(1.0, s) for s in (0.4, 0.6))
    ).compute_dial.tolist()
    below = (drawn.compute_dial < ratios[0]).double().mean()
    above = (drawn.compute_dial > ratios[1]).double().mean()
    # of 1 / s^2 over [0.3, 0.9]: (1/0.3 - 1/0.4) / (1/0.3 - 1/0.9), (1/0.6 - 1/0.9) / (...)
    assert abs(float(below) - 0.375) < 0.05
    assert abs(float(above) - 0.25) < 0.05
