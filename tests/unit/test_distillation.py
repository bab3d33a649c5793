"""Distillation from the pretrained network."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from physical import ThreeLayers, gated

from rlprune.data import ImageArrays, ImageSet
from rlprune.training.cnn import CnnSchedule, CnnTrainer, distillation_loss


def test_distillation_by_hand() -> None:
    """Teacher (1/2, 1/2), network (1/4, 3/4): KL = 1/2 ln 2 + 1/2 ln (2/3) = 1/2 ln (4/3)."""
    logits, teacher = torch.tensor([[0.0, math.log(3.0)]]), torch.zeros(1, 2)
    assert float(distillation_loss(logits, teacher, 1.0)) == pytest.approx(0.5 * math.log(4 / 3))
    # At temperature 2 the network says 1 : sqrt(3), and the square of 2 stands before it.
    p = 1.0 / (1.0 + math.sqrt(3.0))
    expected = 4.0 * (0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1.0 - p)))
    assert float(distillation_loss(logits, teacher, 2.0)) == pytest.approx(expected, rel=1e-5)
    assert float(distillation_loss(teacher, teacher, 2.0)) == pytest.approx(0.0, abs=1e-7)


def _images(label_seed: int) -> ImageSet:
    network = ThreeLayers()
    pixels = np.random.default_rng(0).integers(0, 256, (96, *network.shape), dtype=np.uint8)
    part = ImageArrays(pixels, np.random.default_rng(label_seed).integers(0, 2, 96))
    mean = (0.5,) * network.shape[0]
    return ImageSet("noise", part, part, part, ("a", "b"), mean, mean, "none")


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_at_weight_one_labels_do_not_matter_and_the_teacher_stays(weight: float) -> None:
    teacher = gated(ThreeLayers(), seed=1).requires_grad_(False)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    schedule = CnnSchedule(3e-3, 6, 32, 40.0, 0.0, distillation=weight, temperature=2.0)
    trained = []
    for label_seed in (1, 2):
        network = gated(ThreeLayers(), seed=2)
        CnnTrainer(network, _images(label_seed), schedule, [0], teacher=teacher).run(6, None)
        trained.append(network.layers[0].conv.weight.detach())
    assert torch.equal(*trained) == (weight == 1.0)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])
