"""Which channels depend on the image, as the evaluator counts them."""

from __future__ import annotations

from dataclasses import replace

import torch

from rlprune.mdp import PruningGate
from rlprune.training import methods
from rlprune.training.evaluate import Passes
from tests.rival_trial import RivalTrial


def test_a_channel_of_few_images_or_of_all_but_few_is_the_same_for_all() -> None:
    images = 200
    passes = Passes(
        losses=torch.zeros(images, dtype=torch.float64),
        hits=torch.zeros(images, 2, dtype=torch.bool),
        confidence=torch.zeros(images, dtype=torch.float64),
        macs=torch.zeros(images, dtype=torch.float64),
        computed=torch.zeros(images, 2, dtype=torch.float64),
        stored=torch.zeros(2, dtype=torch.float64),
        parameters=0,
        storage_bytes=0,
        users=(torch.tensor([0, 1, 2, 100]), torch.tensor([198, 199, 200])),
    )
    varying = passes.result(10).varying
    assert varying is not None and varying.tolist() == [2.0, 1.0]  # 2, 100; 198
    assert replace(passes, users=None).result(10).varying is None


def test_the_evaluator_counts_what_the_gates_keep() -> None:
    trial = RivalTrial(compute_max=0.5)
    with torch.no_grad():
        for layer in trial.network.layers:  # importances that differ between images
            layer.runtime_predictor.weight.normal_(0.0, 3.0, generator=torch.manual_seed(2))
    method = methods.uniform(trial.setup)
    trial.network.set_predictors(method.predictors, method.boosted)
    budgets = method.book.episodes([trial.setup.book.point(1.0)])
    trial.evaluator.prepare(trial.network, method, budgets)
    arrays = trial.images.test
    passes = trial.evaluator.passes(trial.network, method, budgets, arrays)

    count = len(arrays)
    gate = method.gate(trial.network, budgets.select(torch.zeros(count, dtype=torch.int64)))
    assert isinstance(gate, PruningGate)
    pixels = torch.from_numpy(arrays.take(list(range(count))).images)
    pixels = (pixels.float() / 255 - 0.5) / 0.25  # their mean and standard deviation
    with torch.no_grad():
        trial.network(pixels, gate)
    kept = [gate.keep[layer] for layer in range(len(trial.network.layers))]
    assert passes.users is not None
    for found, keep in zip(passes.users, kept, strict=True):
        assert keep is not None
        assert found.tolist() == keep.sum(0).tolist()
    varying = passes.result(10).varying
    assert varying is not None and float(varying.max()) > 0
