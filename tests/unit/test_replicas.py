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
from tests.replica_cases import BATCH, PHASES, STEPS, Case, Outcome, train, work

CASES = [
    *(Case(phase) for phase in PHASES),
    Case("uniform", "resnet20"),
    Case("pretrain", "mobilenet_v2"),  # depthwise convolutions, elementwise dropout
    Case("uniform", "mobilenet_v2"),
    Case("pretrain", "tests.replica_cases:Branches"),
    Case("uniform", "tests.replica_cases:Branches"),
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


def relative(one: Outcome, other: Outcome) -> float:
    """Norm of the difference of all weights and statistics over their norm."""
    names = [name for name, value in one.state.items() if value.is_floating_point()]
    left = torch.cat([one.state[name].double().flatten() for name in names])
    right = torch.cat([other.state[name].double().flatten() for name in names])
    return float((left - right).norm() / right.norm())


@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda index: str(CASES[index]))
def test_an_epoch_of_two_processes_is_that_of_one(
    together: list[list[Outcome]], index: int
) -> None:
    """In float64 to 1e-9 of each tensor's largest number; all processes to the bit.

    Not so near: MobileNet (1e-5), whose deep layers normalise 33 numbers per channel; one
    process differs as much from itself in another memory format. In float32 a ReLU or a
    channel near its threshold falls to the other side now and then, and Adam's first steps
    are as large for a tiny gradient as for a large one: the loss stays within 0.5 %, all
    weights together within 5 %.
    """
    case = CASES[index]
    alone, (first, second) = train(case), [found[index] for found in together]
    assert all(torch.equal(first.state[name], second.state[name]) for name in alone.state)
    assert first.told == second.told
    assert len(alone.told) == STEPS and np.isfinite(alone.told).all()
    if case.double:
        tolerance = 1e-5 if case.backbone == "mobilenet_v2" else 1e-9
        worst = {name: distance(alone.state[name], first.state[name]) for name in alone.state}
        assert max(worst.values()) < tolerance, max(worst, key=lambda name: worst[name])
        assert np.allclose(first.told, alone.told, rtol=1e-9)
    else:
        assert relative(first, alone) < 0.05
        assert np.allclose(first.told, alone.told, rtol=5e-3, atol=1.5 / BATCH)


def test_three_processes_do_what_two_and_one_do(
    together: list[list[Outcome]], tmp_path: Path
) -> None:
    three = run_together(3, CASES[1:2], tmp_path / "three")
    for name, value in together[0][1].state.items():
        assert distance(value, three[0][0].state[name]) < 1e-9, name
        assert torch.equal(three[0][0].state[name], three[2][0].state[name])


# ------------------------------------------------------------------------------- shares


def test_shares_cover_a_batch_and_the_first_have_one_more() -> None:
    shares = [Replicas(rank, 3).share(11) for rank in range(3)]
    assert [(share.start, share.stop) for share in shares] == [(0, 4), (4, 8), (8, 11)]
    assert sum(share.weight for share in shares) == pytest.approx(1.0)
    assert [len(share) for share in shares] == [4, 4, 3] and not shares[0].is_whole
    assert Share.whole(5) == ALONE.share(5) and ALONE.share(5).weight == 1.0


def test_a_batch_of_fewer_images_than_processes_is_refused() -> None:
    with pytest.raises(ReplicaError, match=r"2 images cannot be shared by 3 .*cnn_workers"):
        Replicas(0, 3).share(2)


@pytest.mark.parametrize("augmentation", ["none", "shift", "crop_flip"])
def test_shares_are_augmented_like_the_whole_batch(augmentation: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (11, 3, 16, 16), dtype=np.uint8)
    whole = augment(images, augmentation, np.random.default_rng(4))
    shares = [Replicas(rank, 3).share(11) for rank in range(3)]
    parts = [augment(images[s.part], augmentation, np.random.default_rng(4), s) for s in shares]
    assert np.array_equal(np.concatenate(parts), whole)
    if augmentation != "none":  # drawn for each share by itself, they are others
        alone = augment(images[shares[1].part], augmentation, np.random.default_rng(4))
        assert not np.array_equal(alone, parts[1])


# ------------------------------------------------------------- what couples a batch's images


class Pretended(Replicas):
    """One process to which others' tensors are given, instead of a group."""

    def __init__(self, rank: int, others: list[Tensor]) -> None:
        super().__init__(rank, 1 + len(others))
        self.others = others

    def gather(self, values: Tensor) -> Tensor:
        rows = list(self.others)
        rows.insert(self.rank, values)
        return torch.stack(rows)


def test_statistics_of_uneven_parts_by_hand() -> None:
    """1, 2 | 3, 4, 8: mean 18/5; squares 94/5 - (18/5)^2 = 146/25; with a large mean as well."""
    for offset, tolerance in ((0.0, 1e-6), (1e5, 1e-2)):
        x = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1) + offset
        other = torch.tensor([3.0, 5.0 + offset, 14.0 / 3.0], dtype=torch.float64)
        mean, variance, count = batch_statistics(x, Pretended(0, [other]))
        assert count == 5
        assert float(mean - offset) == pytest.approx(3.6, abs=tolerance)
        assert float(variance) == pytest.approx(5.84, abs=tolerance)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
def test_alone_it_is_torchs_batch_norm(momentum: float | None, affine: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.BatchNorm2d(3, momentum=momentum, affine=affine).double()
    ours = SynchronisedBatchNorm2d(3, momentum=momentum, affine=affine).double()
    if affine:
        for norm in (theirs, ours):
            nn.init.constant_(norm.weight, 1.5)
            nn.init.constant_(norm.bias, -0.5)
    weights = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    for _ in range(2):
        x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [norm(y) for norm, y in zip((theirs, ours), inputs, strict=True)]
        for output in outputs:
            (output * weights).sum().backward()
        assert torch.allclose(*outputs, atol=1e-12)
        assert torch.allclose(inputs[0].grad, inputs[1].grad, atol=1e-12)
    for name, value in theirs.state_dict().items():
        assert torch.allclose(value, ours.state_dict()[name], atol=1e-12), name
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert torch.allclose(theirs.eval()(x), ours.eval()(x), atol=1e-12)


def test_gradients_of_the_synchronised_norm_are_those_of_finite_differences() -> None:
    norm = SynchronisedBatchNorm2d(2, track_running_stats=False).double()
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))


def test_synchronising_keeps_names_and_what_one_process_computes() -> None:
    network = gated(ThreeLayers(), seed=0)
    names = list(network.state_dict())
    synchronise(network, ALONE)
    assert type(network.layers[0].norm) is nn.BatchNorm2d  # one process: nothing to do
    synchronise(network, Replicas(0, 2))
    assert all(type(layer.norm) is SynchronisedBatchNorm2d for layer in network.layers)
    assert list(network.state_dict()) == names


def test_other_norms_over_the_batch_are_refused() -> None:
    network = gated(ThreeLayers(), seed=0)
    network.layers[1].norm = nn.SyncBatchNorm(6)
    with pytest.raises(BackboneError, match=r"conv2.norm: SyncBatchNorm .*cnn_workers to 1"):
        synchronise(network, Replicas(0, 2))


def test_processes_of_one_machine_meet_where_nobody_else_can(tmp_path: Path) -> None:
    group = Group()
    place = group.open(None)
    assert place.file is not None and Path(place.file).parent.stat().st_mode & 0o077 == 0
    group.leave()
    assert not Path(place.file).parent.exists()


def test_processes_of_several_machines_meet_at_one_address(tmp_path: Path) -> None:
    group = Group()
    place = group.open("127.0.0.1")
    assert place.file is None and place.host == "127.0.0.1" and place.port > 0
    listener = group._listener
    assert listener is not None and listener.getsockname()[0] == "127.0.0.1"
    listener.close()
