"""Costs against sums written out by hand, on networks that are built and traced for real."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlprune.agents.networks import runtime_agent_size
from rlprune.backbones import trace_backbone
from rlprune.pruning import BilinearCost, CostModel, GateDesign
from tests.physical import (
    InvertedResidual,
    Residual,
    Sequential,
    SmallNetwork,
    ThreeLayers,
    gated,
)

# ThreeLayers: 2 -> 4 (3x3, 36 pixels) -> 6 (3x3, 9 pixels) -> 5 (1x1, 9 pixels) -> linear 3.
# Agent of hidden width h = 2: 5 context inputs, RNN, mean head.
AGENT = runtime_agent_size(2)


def model(predictors: bool = True, agent: bool = True) -> CostModel:
    graph = trace_backbone(ThreeLayers(), ThreeLayers.shape).channels
    return CostModel(graph, predictors=predictors, agent=AGENT if agent else None)


def row(*counts: int) -> torch.Tensor:
    return torch.tensor([counts])


def macs(
    costs: CostModel, computed: torch.Tensor, stored: torch.Tensor, runs: bool = True
) -> float:
    return costs.macs(stored, torch.tensor([runs])).total(computed).item()


# --- three layers ---------------------------------------------------------------------------


def test_dense_network_without_gates() -> None:
    costs = model(predictors=False, agent=False)
    # 9*36*2*4 + 9*9*4*6 + 9*6*5 + 5*3 = 2592 + 1944 + 270 + 15
    assert costs.dense_macs() == 4821
    # filters and a shift per channel: (72 + 4) + (216 + 6) + (30 + 5), linear 15 + 3
    assert costs.parameters().total(row(4, 6, 5)).item() == 351
    assert costs.dense_bytes() == 4 * 351


def test_dense_network_with_predictors_and_agent() -> None:
    # predictors: 2*4 + 4*6 + 6*5 = 62 multiplications and weights;
    # beta, u_s and the predictor's bias: 3 * (4 + 6 + 5) = 45 numbers
    with_predictors = model(agent=False)
    assert with_predictors.dense_macs() == 4821 + 62
    assert with_predictors.parameters().total(row(4, 6, 5)).item() == 351 + 62 + 45
    # encoder weights: 2 * ((2 + 4) + (4 + 6) + (6 + 5)) = 54, as many multiplications;
    # per layer 5*2 context + 2*2*2 recurrence + 2 head = 20 multiplications,
    # and 5*2 context weights + 2 biases = 12 numbers; shared: RNN 8 + 4, head 2 + 1 = 15
    complete = model()
    assert complete.dense_macs() == 4883 + 54 + 3 * 20
    assert complete.parameters().total(row(4, 6, 5)).item() == 458 + 54 + 3 * 12 + 15
    assert complete.dense_bytes() == 4 * 563


def test_macs_of_computed_and_stored_channels() -> None:
    computed, stored = row(2, 3, 4), row(3, 4, 5)
    # 9*36*2*2 + 9*9*2*3 + 9*3*4 + 4*3 = 1296 + 486 + 108 + 12
    assert macs(model(predictors=False, agent=False), computed, stored) == 1902
    # u_r of stored channels from computed inputs: 2*3 + 2*4 + 3*5 = 29
    assert macs(model(agent=False), computed, stored) == 1931
    # encoder on computed inputs and stored u_r: 2*((2+3) + (2+4) + (3+5)) = 38, and 3 * 20
    assert macs(model(), computed, stored) == 1931 + 38 + 60
    assert macs(model(), computed, stored, runs=False) == 1931


def test_parameters_and_bytes_of_stored_channels() -> None:
    stored = row(3, 4, 5)
    # (9*2*3 + 3) + (9*3*4 + 4) + (4*5 + 5), linear 5*3 + 3: 57 + 112 + 25 + 18
    assert model(predictors=False, agent=False).parameters().total(stored).item() == 212
    # rows 2*3 + 3*4 + 4*5 = 38 and 3 numbers for each of 12 channels
    assert model(agent=False).parameters().total(stored).item() == 212 + 74
    # encoder 2*((2+3) + (3+4) + (4+5)) = 42, then 36 + 15 as above
    assert model().parameters().total(stored).item() == 286 + 42 + 51
    assert model().parameters(agent_runs=False).total(stored).item() == 286
    assert model().storage_bytes().total(stored).item() == 4 * 379
    assert model().storage_bytes(agent_runs=False).total(stored).item() == 4 * 286


def test_small_predictors_and_width_dependent_scales() -> None:
    graph = trace_backbone(ThreeLayers(), ThreeLayers.shape).channels
    computed, stored = row(2, 3, 4), row(3, 4, 5)
    small = CostModel(graph, design=GateDesign(predictor_rank=1))
    # Rank 1 instead of rows 2*3 + 3*4 + 4*5 = 38: inputs and outputs (2+3) + (3+4) + (4+5) = 21
    assert small.parameters().total(stored).item() == 212 + 74 - 38 + 21
    # inputs computed, outputs stored: (2+3) + (2+4) + (3+5) = 19
    assert macs(small, computed, stored) == 1902 + 19
    assert small.static_macs().total(stored).item() == 3111 + 21
    # Rank 2 saves nothing in the first layer (2*(2+4) > 2*4), the others have 2*(4+6), 2*(6+5)
    full = row(4, 6, 5)
    other = CostModel(graph, design=GateDesign(predictor_rank=2))
    whole = CostModel(graph).parameters().total(full).item()
    assert other.parameters().total(full).item() == whole - 24 - 30 + 20 + 22
    # Two numbers and multiplications for each stored channel of the layers behind the first.
    wide = CostModel(graph, design=GateDesign(width_affine=True))
    assert wide.parameters().total(stored).item() == 286 + 2 * 9
    assert macs(wide, computed, stored) == 1931 + 2 * 9


def test_rows_of_a_batch_are_independent() -> None:
    costs = model()
    stored = torch.tensor([[4, 6, 5], [3, 4, 5], [3, 4, 5]])
    computed = torch.tensor([[4, 6, 5], [2, 3, 4], [2, 3, 4]])
    form = costs.macs(stored, torch.tensor([True, True, False]))
    assert form.total(computed).tolist() == [4997, 2029, 1931]


def test_static_macs_is_the_same_count_where_all_stored_channels_are_computed() -> None:
    costs = model()
    stored = row(3, 4, 5)
    # 9*36*2*3 + 9*9*3*4 + 9*4*5 + 5*3 = 1944 + 972 + 180 + 15; predictors 6 + 12 + 20
    assert costs.static_macs().total(stored).item() == 3111 + 38
    assert macs(costs, stored, stored, runs=False) == 3149


def test_counts_at_a_ratio() -> None:
    counts = model().counts_at(torch.tensor([0.5, 0.1, 1.0]))
    assert counts.tolist() == [[2, 3, 3], [1, 1, 1], [4, 6, 5]]


# --- a residual stream and a depthwise follower ---------------------------------------------


def test_residual_stream_stays_whole_and_depthwise_follows() -> None:
    graph = trace_backbone(InvertedResidual(), InvertedResidual.shape).channels
    plain = CostModel(graph, predictors=False)
    # stem 9*16*1*3, widen 16*3*4, depthwise 9*16*4, narrow 16*4*3, linear on the stream 3*2
    assert plain.dense_macs() == 432 + 192 + 576 + 192 + 6
    # 2 of 3, 3 of 4, 1 of 3 channels: 288 + 96 + 432 + 48, the linear layer still reads 3
    assert macs(plain, row(2, 3, 1), row(2, 3, 1)) == 870
    # stem 9*2 + 2, widen 2*3 + 3, depthwise (9 + 1)*3, narrow 3*1 + 1, linear 3*2 + 2
    assert plain.parameters().total(row(2, 3, 1)).item() == 20 + 9 + 30 + 4 + 8
    # stem and narrow write into the stream: an index of 4 bytes for their 2 + 1 channels
    assert plain.storage_bytes().total(row(2, 3, 1)).item() == 4 * 71 + 4 * 3
    # predictors: (1*2 + 3*2) + (2*3 + 3*3) + (3*1 + 3*1)
    complete = CostModel(graph)
    assert complete.parameters().total(row(2, 3, 1)).item() == 71 + 8 + 15 + 6
    # u_r: 1*2 + 1*3 + 2*1 for 1, 2, 1 computed of 2, 3, 1 stored channels;
    # stem 144, widen 16*1*2, depthwise 288, narrow 16*2*1, linear 6
    assert macs(complete, row(1, 2, 1), row(2, 3, 1)) == 144 + 32 + 288 + 32 + 6 + 7


# --- convolutions without BatchNorm ---------------------------------------------------------


class TwoConvolutions(nn.Module):
    """2 -> 4 (3x3) -> 3 (3x3) -> linear 2, with bias, with or without BatchNorm."""

    shape = (2, 5, 5)

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(4, 3, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.classifier = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        return self.classifier(F.relu(self.norm2(self.conv2(x))).mean((2, 3)))


@pytest.mark.parametrize(("norm", "numbers", "fewer"), [(False, 229, 98), (True, 236, 102)])
def test_a_gated_convolution_without_batch_norm_has_one_shift(
    norm: bool, numbers: int, fewer: int
) -> None:
    network = gated(TwoConvolutions(norm), seed=0)
    costs = CostModel(network.channels)
    # filters 9*2*4 + 9*4*3 = 180, predictors 8 + 12, beta, u_s and predictor's bias 3 * 7,
    # linear 3*2 + 2; with BatchNorm its folded shift as well: 7
    assert costs.parameters().total(row(4, 3)).item() == numbers
    # 2 and 2 channels: filters 36 + 36, predictors 4 + 4, 3 * 4, linear 2*2 + 2; shifts 4
    assert costs.parameters().total(row(2, 2)).item() == fewer
    plain = CostModel(network.channels, predictors=False)
    assert plain.parameters().total(row(4, 3)).item() == 180 + 7 + 8  # one shift either way
    for stored in ((4, 3), (2, 2), (1, 3)):
        masks = [torch.arange(c) < k for c, k in zip((4, 3), stored, strict=True)]
        small = SmallNetwork(network, masks)
        assert small.numbers() == costs.parameters().total(row(*stored)).item()


# --- the bilinear form ----------------------------------------------------------------------


def written_out(form: BilinearCost, counts: list[float]) -> float:
    """constant + sum_i linear_i x_i + sum_ij pairwise_ij x_i x_j, in Python floats."""
    total = float(form.constant.reshape(-1)[0])
    linear = form.linear.reshape(-1).tolist()
    for i, x in enumerate(counts):
        total += linear[i] * x
        for j, y in enumerate(counts):
            total += float(form.pairwise[i, j]) * x * y
    return total


def forms() -> list[tuple[BilinearCost, list[int]]]:
    """(form, channels) of sequential and residual networks: MACs and bytes."""
    found = []
    for backbone in (ThreeLayers(), InvertedResidual(), Residual([3, 4, 2])):
        costs = CostModel(trace_backbone(backbone, backbone.shape).channels, agent=AGENT)
        full = costs.channels.unsqueeze(0)
        for form in (costs.macs(full, torch.tensor([True])), costs.storage_bytes()):
            found.append((form, costs.channels.tolist()))
    return found


@pytest.mark.parametrize("case", range(6))
def test_largest_count_against_trying_every_count(case: int) -> None:
    form, channels = forms()[case]
    least = [1] * len(channels)
    smallest, largest = written_out(form, least), written_out(form, channels)
    for layer, part in itertools.product(range(len(channels)), (0.0, 0.2, 0.5, 0.8, 1.0)):
        budget = smallest + part * (largest - smallest)
        decided = [min(2, c) for c in channels[:layer]]

        def fits(
            count: int, decided: list[int] = decided, layer: int = layer, budget: float = budget
        ) -> bool:
            return written_out(form, [*decided, count, *least[layer + 1 :]]) <= budget

        tried = [count for count in range(1, 2 * channels[layer] + 40) if fits(count)]
        got = form.largest_count(
            torch.tensor([decided + [99] * (len(channels) - layer)]),  # the rest is ignored
            layer,
            torch.tensor(least),
            torch.tensor([budget]),
        )
        assert min(int(got), 2 * channels[layer] + 39) == max(tried, default=1)


@pytest.mark.parametrize("case", range(6))
def test_proportional_share_against_bisection(case: int) -> None:
    form, channels = forms()[case]
    smallest, largest = written_out(form, [0] * len(channels)), written_out(form, channels)
    for layer, part in itertools.product(range(len(channels)), (0.3, 0.6, 1.0)):
        budget = smallest + part * (largest - smallest)
        decided = [1] * layer
        low, high = 0.0, 8.0
        for _ in range(60):
            y = (low + high) / 2
            spent = written_out(form, [*decided, *(y * c for c in channels[layer:])])
            low, high = (y, high) if spent <= budget else (low, y)
        got = form.proportional_share(
            torch.tensor([decided + [7] * (len(channels) - layer)]),
            layer,
            torch.tensor(channels),
            torch.tensor([budget], dtype=torch.float64),
        )
        assert got.item() == pytest.approx(low, abs=1e-9) or low > 7.99


def test_proportional_share_is_zero_where_nothing_is_left() -> None:
    linear = torch.tensor([1.0, 2.0], dtype=torch.float64)
    form = BilinearCost(torch.tensor(10.0), linear, torch.zeros(2, 2, dtype=torch.float64))
    share = form.proportional_share(
        torch.tensor([[4, 0]]), 1, torch.tensor([4, 4]), torch.tensor([12.0])
    )
    assert share.tolist() == [0.0]  # 10 + 4 is above 12 already


def test_kept_channels_are_paid_for_only_where_they_are_read() -> None:
    """4 -> 3 channels of the middle layer of 3x3 convolutions 2 -> 3 -> 4 -> 2 on 5x5, 3x3."""
    graph = trace_backbone(Sequential([3, 4, 2]), Sequential.shape).channels
    costs = CostModel(graph, predictors=False)
    # its own filters 9*9*3 (9 pixels, 3 inputs), and 9*9*2 in the layer that reads it
    before, after = macs(costs, row(3, 4, 2), row(3, 4, 2)), macs(costs, row(3, 3, 2), row(3, 3, 2))
    assert before - after == 243 + 162
