"""Learning rates: over the steps of a phase, of a phase's followers, of the predictors."""

from __future__ import annotations

import math

import pytest
import torch
from physical import ThreeLayers, gated
from test_distillation import _images

from rlprune.config import config_from_dict
from rlprune.training.cnn import CnnSchedule, CnnTrainer
from rlprune.training.trainer import CnnJob


def test_the_rate_by_hand() -> None:
    falling = CnnSchedule(0.4, 8, 32, 40.0, 0.0)
    half = 0.2 * (1.0 + math.sqrt(0.5))  # a quarter of the way: cos(pi / 4)
    assert [falling.rate(step) for step in (0, 2, 4)] == pytest.approx([0.4, half, 0.2])
    assert falling.rate(8) == pytest.approx(0.0)
    assert CnnSchedule(0.4, 8, 32, 40.0, 0.0, decays=False).rate(7) == 0.4
    held = CnnSchedule(0.4, 12, 32, 40.0, 0.0, held=4)
    assert [held.rate(step) for step in (0, 3, 4, 6, 8)] == pytest.approx([0.4] * 3 + [half, 0.2])


def test_predictors_take_smaller_steps() -> None:
    """Adam's first step has the size of the rate wherever there is a gradient."""
    network = gated(ThreeLayers(), seed=2)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    schedule = CnnSchedule(1e-3, 6, 32, 1e9, 0.0, predictor_rate=0.1)
    CnnTrainer(network, _images(1), schedule, [0]).run(1, None)
    moved = {n: (p.detach() - before[n]).abs().max() for n, p in network.named_parameters()}
    predictors = [name for name in moved if name.endswith("runtime_predictor.weight")]
    assert len(predictors) == 3
    for name, step in moved.items():
        expected = 1e-4 if name in predictors else 1e-3
        torch.testing.assert_close(step, torch.tensor(expected), rtol=1e-2, atol=1e-6)


def test_an_interrupted_training_goes_on_at_the_same_rates() -> None:
    schedule = CnnSchedule(1e-2, 6, 32, 40.0, 0.0, predictor_rate=0.1)
    whole = gated(ThreeLayers(), seed=2)
    CnnTrainer(whole, _images(1), schedule, [0]).run(6, None)
    parts = gated(ThreeLayers(), seed=2)
    first = CnnTrainer(parts, _images(1), schedule, [0])
    first.run(2, None)
    second = CnnTrainer(parts, _images(1), schedule, [0])
    second.load_state_dict(first.state_dict())
    second.run(4, None)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


def test_every_method_sees_an_image_at_the_same_rate() -> None:
    """Ours: 1 + 2 epochs at a rate that stays, then 4 that fall; static_l1 in one phase."""
    importance = {"runtime_importance_epochs": 1, "static_importance_epochs": 2}
    training = {**importance, "rounds": 4, "finetune_epochs": 1.0, "batch_size": 100}
    config = config_from_dict({"training": training})
    rates = {}
    for name, phases in {
        "learned": ("runtime_importance", "static_importance", "alternate"),
        "uniform": ("runtime_importance", "static_importance", "uniform"),
        "slimming": ("slimming_sparse", "slimming"),
        "static_l1": ("static_l1",),
        "fbs": ("fbs",),
    }.items():
        jobs = [CnnJob.of(config, phase, 1000, None).schedule for phase in phases]
        rates[name] = [job.rate(step) for job in jobs for step in range(job.total_steps)]
        assert len(rates[name]) == 70
    assert all(found == pytest.approx(rates["learned"]) for found in rates.values())


@pytest.mark.parametrize(
    ("phase", "decays", "share"),
    [
        ("pretrain", True, 0.3),
        ("runtime_importance", False, 0.3),
        ("static_importance", False, 0.3),
        ("alternate", True, 0.3),
        ("uniform", True, 0.3),
        ("cascade", True, 0.3),
        ("fbs", True, 1.0),
        ("slimming_sparse", False, 1.0),
        ("slimming", True, 1.0),
    ],
)
def test_rates_of_the_phases(phase: str, decays: bool, share: float) -> None:
    config = config_from_dict({"training": {"predictor_rate": 0.3}})
    schedule = CnnJob.of(config, phase, 1000, None).schedule
    assert (schedule.decays, schedule.predictor_rate) == (decays, share)
