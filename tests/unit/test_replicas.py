"""Several processes train as one does: real processes, gloo, uneven shares of every batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as processes
from torch import Tensor, nn

from rlprune.data import augment
from rlprune.errors import BackboneError, ReplicaError
from rlprune.pruning.batch_norm import SynchronisedBatchNorm2d, batch_statistics
from rlprune.pruning.synchronised import synchronise
from rlprune.replicas import ALONE, Replicas, Share
from rlprune.training.group import Group
from tests.physical import ThreeLayers, gated
from tests.replica_cases import PHASES, Case, Outcome, train, work

CASES = [
    *(Case(phase) for phase in PHASES),
    Case("uniform", "resnet20"),
    Case("pretrain", "mobilenet_v2"),  # depthwise convolutions, elementwise dropout
    Case("pretrain", double=False),
    Case("uniform", double=False),
]


def run_together(size: int, cases: list[Case], folder: Path) -> list[list[Outcome]]:
    """The outcomes of ``size`` processes, process by process."""
    folder.mkdir()
    group = Group()
    place = group.open(None)
    try:
        processes.spawn(work, (size, place, cases, str(folder)), nprocs=size)
    finally:
        group.leave()
    found = [torch.load(folder / f"{rank}.pt") for rank in range(size)]
    return [[Outcome(*outcome) for outcome in outcomes] for outcomes in found]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[list[Outcome]]:
    return run_together(2, CASES, tmp_path_factory.mktemp("replicas") / "two")


def distance(one: Tensor, other: Tensor) -> float:
    """Largest difference, in units of the largest number (at least 1e-3)."""
    scale = max(1e-3, float(one.double().abs().max()))
    return float((one.double() - other.double()).abs().max()) / scale


@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda index: str(CASES[index]))
def test_an_epoch_of_two_processes_is_that_of_one(
    together: list[list[Outcome]], index: int
) -> None:
    case = CASES[index]
    alone, (first, second) = train(case), [found[index] for found in together]
    tolerance = 1e-9 if case.double else 2e-3
    for name, value in alone.state.items():
        assert torch.equal(first.state[name], second.state[name]), name  # to the bit
        assert distance(value, first.state[name]) < tolerance, name
    assert first.told == second.told
    assert np.allclose(first.told, alone.told, rtol=tolerance, atol=tolerance)
    assert len(alone.told) == 6 and np.isfinite(alone.told).all()
