"""What a run's network computes in training, to hold exported models against."""

from __future__ import annotations

import torch
from torch import Tensor

from rlprune.data import iterate_batches
from rlprune.training.methods import with_dial
from rlprune.training.restore import LearnedRun


def all_test_images(learned: LearnedRun) -> tuple[Tensor, Tensor]:
    """Normalised test images and labels, all at once."""
    images = learned.images
    batches = iterate_batches(images.test, len(images.test), None, images.mean, images.std)
    return next(iter(batches))


@torch.no_grad()
def masked_scores(learned: LearnedRun, rate: float, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [N, K] and MACs [N] of the network in training, measured at the point again."""
    point = learned.setup.book.point(rate)
    measured = learned.program.evaluator.measure(learned.network, learned.method, point)
    budgets = with_dial(learned.method.book.episodes([point]), measured.dial)
    one = torch.zeros(len(pixels), dtype=torch.int64)
    gate = learned.method.gate(learned.network, budgets.select(one))
    return learned.network(pixels, gate), measured.test.macs
