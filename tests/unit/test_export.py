"""Shipped models: what leaves training computes, costs and stores what training measured."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from result_rows import make_row
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.ops import StochasticDepth

from rlprune.backbones import build_backbone, m_cifarnet, trace_backbone
from rlprune.backbones.flow import drops_branches
from rlprune.capture import why_unshippable
from rlprune.config import BackboneConfig
from rlprune.deploy import PrunedModel
from rlprune.errors import ArtifactError, ConfigError
from rlprune.export.select import Limits, choose
from rlprune.pruning import GatedNetwork
from rlprune.training.setup import warn_if_unshippable
from tests.physical import InvertedResidual, Residual, Sequential, ThreeLayers
from tests.shipping import Case, Setting, assert_same

SETTINGS = {
    "default": Setting(),
    "paper": Setting(tradeoff="paper"),
    "low rank, width": Setting(rank=4, width_affine=True),
    "boosted": Setting(boosted=True),
    "boosted, width": Setting(rank=4, width_affine=True, boosted=True),
    "mean": Setting(compute_max=None, compute_mean=0.5),
    "mean and cap": Setting(compute_max=0.7, compute_mean=0.5),
    "constant": Setting(policy="constant"),
    "constant, paper, rank": Setting(policy="constant", tradeoff="paper", rank=2),
    "soft": Setting(projected=False),
    "no budgets": Setting(compute_max=None, storage_max=None),
}
SMALL: dict[str, Callable[[], nn.Module]] = {
    "three layers": ThreeLayers,
    "inverted residual": InvertedResidual,
    "sequential": lambda: Sequential((7, 5, 6)),
    "residual": lambda: Residual((6, 5, 7)),
}
LARGE = {"m_cifarnet": 0.25, "resnet20": 0.5, "vgg16_bn": 0.125, "mobilenet_v2": 0.25}
RATES = (0.0, 0.5, 1.0)


def built(name: str) -> nn.Module:
    return build_backbone(BackboneConfig(name=name, width=LARGE[name]), 10, (3, 32, 32))


def check(case: Case, file: Path, count: int = 6) -> PrunedModel:
    images = case.images(count)
    model, expected = case.model(file), case.expected(images)
    assert_same(model, images, expected)
    if find_spec("numba"):  # what is compiled has been tested; the same without it
        assert_same(PrunedModel.load(file, accelerate=False), images, expected)
    return model


def count_numbers(case: Case) -> int:
    """Numbers in the file but for the places of stored channels."""
    return sum(t.numel() for name, t in case.shipped.tensors.items() if "index" not in name)


# --- shipped = masked -----------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("network", SMALL)
def test_small_networks_equal_the_masked_ones(
    network: str, rate: float, setting: Setting, tmp_path: Path
) -> None:
    backbone = SMALL[network]()
    case = Case(backbone, backbone.shape, replace(setting, rate=rate), seed=3)
    check(case, tmp_path / "m.safetensors", 8)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("network", LARGE)
def test_backbones_equal_the_masked_ones(network: str, rate: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    check(Case(built(network), (3, 32, 32), Setting(rate=rate)), tmp_path / "m.safetensors")


@pytest.mark.parametrize("setting", list(SETTINGS)[1:])
@pytest.mark.parametrize("network", ["m_cifarnet", "resnet20"])
def test_backbones_under_other_rules(network: str, setting: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = Case(built(network), (3, 32, 32), replace(SETTINGS[setting], rate=0.25))
    check(case, tmp_path / "m.safetensors", 3)


@pytest.mark.parametrize("network", [*SMALL, *LARGE])
def test_static_l1_ships_a_plain_network(network: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = SMALL[network]() if network in SMALL else built(network)
    shape = getattr(backbone, "shape", (3, 32, 32))
    case = Case(backbone, shape, Setting(rate=0.0, policy="l1"))
    model = check(case, tmp_path / "m.safetensors")
    assert model.spec.policy.kind == "none"
    assert not [name for name in case.shipped.tensors if "predictor" in name or "agent" in name]
    with pytest.raises(ValueError, match="no runtime agent"):
        model(case.images(1), 0.5)


def test_images_differ_in_what_they_compute(tmp_path: Path) -> None:
    """Otherwise the comparisons above would say little."""
    case = Case(m_cifarnet(width=0.25), (3, 32, 32), Setting(compute_max=None, compute_mean=0.5))
    expected = case.expected(case.images(8))
    assert len(set(expected.macs.tolist())) > 4
    assert (expected.counts < expected.gate.stored.numpy()).mean() > 0.5
    assert (expected.gate.stored.numpy() < case.rules.costs.channels.numpy()).all()


# --- sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["agent", "constant", "l1"])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("network", [*SMALL, *LARGE])
def test_the_cost_model_counts_the_numbers_of_the_file(
    network: str, rate: float, policy: str
) -> None:
    """Exactly, but for the recurrence's two biases, of which the file holds the sum."""
    backbone = SMALL[network]() if network in SMALL else built(network)
    shape = getattr(backbone, "shape", (3, 32, 32))
    rank = 4 if rate == 0.5 else None
    case = Case(backbone, shape, Setting(rate=rate, policy=policy, rank=rank, width_affine=True))
    gate = case.expected(case.images(1)).gate
    assert count_numbers(case) == int(gate.parameters()[0]) - both_biases(case)


def both_biases(case: Case) -> int:
    return case.shipped.spec.policy.hidden


def test_file_bytes_are_what_the_cost_model_says(tmp_path: Path) -> None:
    sizes = []
    for rate in RATES:
        torch.manual_seed(0)
        case = Case(m_cifarnet(width=0.25), (3, 32, 32), Setting(rate=rate))
        file = tmp_path / f"{rate}.safetensors"
        written = case.shipped.write(file)
        counted = float(case.expected(case.images(1)).gate.storage_bytes()[0])
        assert written == file.stat().st_size == pytest.approx(counted, rel=0.03)
        sizes.append(written)
    assert sizes[0] < 0.75 * sizes[1] and sizes[1] < 0.9 * sizes[2]


@pytest.mark.parametrize(
    ("dtype", "of_float32", "apart"),
    [("float16", 0.5, 2e-3), ("bfloat16", 0.5, 2e-2), ("int8", 0.25, 4e-2)],
)
def test_smaller_numbers_give_close_scores(
    dtype: str, of_float32: float, apart: float, tmp_path: Path
) -> None:
    """R_r = 0: nothing is decided, so that rounding cannot choose other channels."""
    torch.manual_seed(0)
    case = Case(m_cifarnet(width=0.25), (3, 32, 32), Setting(rate=0.0))
    images = case.images(8)
    full = case.shipped.write(tmp_path / "full.safetensors")
    file = tmp_path / "small.safetensors"
    model = case.model(file, dtype)
    assert file.stat().st_size < (of_float32 + 0.06) * full
    scores, expected = model(images), case.expected(images).scores
    found = float((scores - expected).abs().max() / expected.abs().max())
    assert 0.0 < found < apart
    assert model.spec.dtype == dtype
    counts = [image.counts for image in model.last]
    assert counts == case.expected(images).counts.tolist()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_smaller_numbers_with_an_agent(dtype: str, seed: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = Case(m_cifarnet(width=0.25), (3, 32, 32), Setting(compute_max=0.7), seed)
    images = case.images(8)
    model, expected = case.model(tmp_path / "m.safetensors", dtype), case.expected(images)
    scores = model(images)
    assert torch.isfinite(scores).all()
    assert (model.macs() <= case.book.macs_at(0.7)).all()
    assert model.macs().mean() == pytest.approx(expected.macs.mean(), rel=0.1)
    # Rounding can turn a decision; that image is another network's then, and there are few.
    counts = torch.tensor([image.counts for image in model.last])
    decided_alike = (counts == expected.counts).all(1)
    likeness = F.cosine_similarity(scores, expected.scores)
    assert float(likeness[decided_alike].min()) > 0.95
    assert int((~decided_alike).sum()) <= (0 if dtype == "float16" else 2)


def test_noted_numbers_travel_with_the_file(tmp_path: Path) -> None:
    case = Case(ThreeLayers(), ThreeLayers.shape, Setting())
    shipped = case.shipped.noting(test_accuracy=0.5).noting(macs_mean=3.0, test_accuracy=0.25)
    shipped.write(tmp_path / "m.safetensors")
    model = PrunedModel.load(tmp_path / "m.safetensors")
    assert model.spec.measured == {"test_accuracy": 0.25, "macs_mean": 3.0}
    assert model.classes == ("class 0", "class 1", "class 2")
    assert case.shipped.spec.measured == {}


# --- budgets at call time -------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [
        Setting(compute_max=0.8),
        Setting(compute_max=0.8, tradeoff="paper"),
        Setting(compute_max=0.8, rate=1.0, policy="constant"),
        Setting(compute_max=0.8, projected=False),
        Setting(compute_max=None, compute_mean=0.5),
    ],
)
@pytest.mark.parametrize("number", [0.25, 0.5, 0.83, 1.0])
def test_a_budget_of_a_call_is_that_of_training(
    setting: Setting, number: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    case = Case(m_cifarnet(width=0.25), (3, 32, 32), setting)
    model, images = case.model(tmp_path / "m.safetensors"), case.images(4)
    expected = case.expected(images, case.told(number))
    assert_same(model, images, expected, number)
    if setting.projected and setting.compute_max is not None:
        assert (model.macs() <= case.book.macs_at(number)).all()
    # The next call has the file's own budget again.
    assert_same(model, images, case.expected(images))


@pytest.mark.parametrize("number", [0.0, 0.099, 1.01, -1.0, float("nan"), float("inf")])
def test_budgets_out_of_range_are_refused(number: float, tmp_path: Path) -> None:
    case = Case(ThreeLayers(), ThreeLayers.shape, Setting())
    model = case.model(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"budget must be from 0\.1 to 1"):
        model(case.images(1), number)


# --- explain --------------------------------------------------------------------------------


def test_explained_channels_and_macs_by_hand(tmp_path: Path) -> None:
    """ThreeLayers: 3x3 at 6x6 over 2; 3x3 at 3x3; 1x1 at 3x3; everything but u_s by hand."""
    case = Case(ThreeLayers(), ThreeLayers.shape, Setting(rate=0.0, compute_max=None))
    model = case.model(tmp_path / "m.safetensors")
    told = model.explain(case.images(2))
    kept = told[0].kept
    for layer, positions in zip(case.network.layers, kept, strict=True):
        strongest = layer.static_importance.detach().argsort(descending=True)
        assert list(positions) == sorted(strongest[: len(positions)].tolist())
        assert len(positions) < layer.layer.out_channels
    first, second, third = map(len, kept)
    assert told[0].layer_macs == (
        2 * first * 9 * 36,
        first * second * 9 * 9,
        second * third * 9,
    )
    # plus predictors (u_r = W p in each layer) and the linear layer
    predictors = 2 * first + first * second + second * third
    assert told[0].macs == sum(told[0].layer_macs) + predictors + 3 * third
    assert told[0].layer_names == ("conv1", "conv2", "conv3")
    assert told[0].channels == (4, 6, 5)
    assert told[0].dense_macs == 2 * 4 * 9 * 36 + 4 * 6 * 9 * 9 + 6 * 5 * 9 + 3 * 5
    torch.testing.assert_close(told[1].scores, model(case.images(2))[1])


@pytest.mark.parametrize("rate", [0.5, 1.0])
@pytest.mark.parametrize("network", ["three layers", "residual"])
def test_explained_channels_are_those_of_the_original_network(
    network: str, rate: float, tmp_path: Path
) -> None:
    """Running the original network with exactly these masks gives the same scores."""
    backbone = SMALL[network]()
    case = Case(backbone, backbone.shape, Setting(rate=rate, compute_max=0.6), seed=5)
    images = case.images(4)
    told = case.model(tmp_path / "m.safetensors").explain(images)
    gate = case.expected(images).gate
    masks: list[Tensor] = []
    for layer in case.network.channels.layers:
        mask = torch.zeros(len(images), layer.out_channels, dtype=torch.bool)
        for row, image in enumerate(told):
            mask[row, list(image.kept[layer.index])] = True
        masks.append(mask)

    def given(layer: int, pooled: Tensor, importance: Tensor) -> Tensor:
        return masks[layer]

    gate.decide = given  # type: ignore[method-assign]
    with torch.no_grad():
        scores = case.network(images, gate)
    torch.testing.assert_close(
        torch.stack([image.scores for image in told]), scores, rtol=1e-4, atol=1e-5
    )


# --- networks of other builds ---------------------------------------------------------------


class Net(nn.Module):
    """A stem of 6 channels, something given, and a classifier."""

    shape = (2, 8, 8)

    def __init__(self, middle: nn.Module, features: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.middle = middle
        self.classifier = nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.middle(self.stem(x)), 1))


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class Dense(nn.Module):
    """As DenseNet: each convolution reads all before it, BatchNorm and ReLU stand first."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv(6, 4)
        self.norm = nn.BatchNorm2d(10)
        self.second = conv(10, 5)
        self.last = conv(15, 4, 1)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, F.relu(self.first(x))], 1)
        x = torch.cat([x, F.relu(self.second(F.relu(self.norm(x))))], dim=1)
        return self.pool(F.relu(self.last(x)))


class PlainCat(nn.Module):
    """Two branches and their concatenation, read by a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = conv(6, 4), conv(6, 5, 1), conv(15, 4)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat((F.relu(self.left(x)), x, F.leaky_relu(self.right(x), 0.1)), 1)
        return F.relu(self.last(F.max_pool2d(both, 2)))


class InPlace(nn.Module):
    """The ReLU changes the stream that the addition reads afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.before = conv(6, 6), nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)  # of both signs
        y = self.branch(self.relu(x))
        y += x
        return F.avg_pool2d(y.relu_(), 4)


class InPlaceOnLayer(nn.Module):
    """The same directly behind a prunable convolution, read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch = conv(6, 7), conv(7, 7)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.branch(self.relu(x))
        return F.adaptive_avg_pool2d(x + y, 2)


class Sliced(nn.Module):
    """A shortcut of every second pixel, padded with empty channels, as CIFAR ResNets have."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv(6, 10, stride=2), nn.ReLU(), conv(10, 10))

    def forward(self, x: Tensor) -> Tensor:
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return F.relu(self.branch(x) + short).mean((2, 3))


class Scaled(nn.Module):
    """Numbers, views, activations with settings, a grouped convolution in the whole stream."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(6, 6), conv(6, 5)
        self.grouped = nn.Conv2d(6, 4, 1, groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.act, self.pad = nn.ELU(0.7), nn.ZeroPad2d((1, 0, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * F.gelu(self.first(x) / 2.0)
        x = self.norm(self.grouped(x))
        x = self.pad(self.act(x))
        return F.hardswish(x).reshape(x.size(0), -1)


class Calls(nn.Module):
    """A function of the stream and of convolutions."""

    def __init__(self, forward: Callable[..., Tensor], *convs: nn.Module) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.convs)


def calls(features: int, forward: Callable[..., Tensor], *convs: nn.Module) -> Net:
    return Net(Calls(forward, *convs), features)


def squeezed(x: Tensor, a: nn.Module, down: nn.Module, up: nn.Module) -> Tensor:
    """Squeeze and excitation."""
    y = F.relu(a(x))
    return (y * torch.sigmoid(up(F.relu(down(y.mean((2, 3), True)))))).amax((2, 3))


def chained(x: Tensor, a: nn.Module) -> Tensor:
    """In place upon in place, on the value that the shortcut reads."""
    y = a(x)
    return y.add_(x).mul_(2).mean((2, 3)) + x.mean((2, 3))


def twice(x: Tensor, before: nn.Module, shared: nn.Module) -> Tensor:
    return shared(F.relu(shared(before(x)))).mean((2, 3))


def shuffled(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    """One half passes, the other is convolved, channels change places (Ma et al. 2018)."""
    left, right = F.relu(a(x)).chunk(2, dim=1)
    x = torch.cat((torch.cat((left, left), 1), F.relu(b(right))), dim=1)
    count, channels, height, width = x.size()
    x = x.view(count, 2, channels // 2, height, width).transpose(1, 2).contiguous()
    return x.view(count, channels, height, width).mean((2, 3))


LINES: dict[str, Callable[[], nn.Module]] = {
    "shape": lambda: calls(320, lambda x, a: F.relu(a(x)).view(x.shape[0], -1), conv(6, 5)),
    "shape, three dimensions": lambda: calls(
        5, lambda x, a: F.relu(a(x)).view(x.shape[0], x.shape[1] - 1, -1).mean(2), conv(6, 5)
    ),
    "permute": lambda: calls(
        320, lambda x, a: a(x).relu().permute(0, 2, 3, 1).reshape(x.size(0), -1), conv(6, 5)
    ),
    "transpose": lambda: calls(
        320, lambda x, a: a(x).relu().flatten(2).transpose(1, 2).flatten(1), conv(6, 5)
    ),
    "by name": lambda: calls(
        5, lambda x, a: torch.mean(input=F.relu(a(x)), dim=(2, 3)), conv(6, 5)
    ),
    "cat by name": lambda: calls(
        9, lambda x, a, b: torch.cat(tensors=(a(x), b(x)), dim=-3).mean((2, 3)),
        conv(6, 5), conv(6, 4),
    ),
    "numbers first": lambda: calls(
        5, lambda x, a: 1.0 - 2 / (1 + F.relu(a(x)).mean((2, 3))), conv(6, 5)
    ),
    "squeeze and excitation": lambda: calls(
        5, squeezed, conv(6, 5), nn.Conv2d(5, 2, 1), nn.Conv2d(2, 5, 1)
    ),
    "squeeze": lambda: calls(
        5, lambda x, a: F.adaptive_avg_pool2d(F.relu(a(x)), 1).squeeze(), conv(6, 5)
    ),
    "called twice": lambda: calls(6, twice, conv(6, 6), conv(6, 6)),
    "in place twice": lambda: calls(6, chained, conv(6, 6)),
    "scaled sum": lambda: calls(
        6, lambda x, a: torch.add(x, a(x), alpha=2).mean((2, 3)), conv(6, 6)
    ),
    "concatenated features": lambda: calls(
        9 * 64, lambda x, a, b: torch.cat([a(x).flatten(1), b(x).relu().flatten(1)], -1),
        conv(6, 5), conv(6, 4),
    ),
    "part of the channels": lambda: calls(
        3, lambda x, a: F.relu(a(x))[:, 1:4, 2:].mean((2, 3)), conv(6, 5)
    ),
    "settings in order": lambda: calls(
        5, lambda x, a: F.avg_pool2d(F.hardtanh(a(x), -1.0, 2.0, True), 3, 2, 1, True, False)
        .sum((2, 3)), conv(6, 5),
    ),
    "kernels of two sizes": lambda: calls(
        5, lambda x, a: F.relu(a(x)).mean((2, 3)),
        nn.Conv2d(6, 5, (3, 1), stride=(2, 1), padding=(2, 0), dilation=2),
    ),
    "depthwise, bias, no norm": lambda: calls(
        5, lambda x, a, b: F.relu(b(F.relu(a(x)))).mean((2, 3)), conv(6, 5),
        nn.Conv2d(5, 5, 3, stride=2, padding=2, dilation=2, groups=5),
    ),
    "halves, shuffled": lambda: calls(12, shuffled, conv(6, 6), conv(3, 6)),
    "split in two sizes": lambda: calls(
        4, lambda x, a: torch.split(tensor=F.relu(a(x)), split_size_or_sections=[4, 2], dim=1)[0]
        .mean((2, 3)), conv(6, 6),
    ),
    "split by a method": lambda: calls(
        4, lambda x, a: F.relu(a(x)).split(split_size=4, dim=1)[0].mean((2, 3)), conv(6, 6)
    ),
    "layers by name": lambda: calls(
        5, lambda x, a, drop: drop(input=F.relu(a(input=x))).mean((2, 3)), conv(6, 5),
        nn.Dropout(0.5),
    ),
    "grouped behind a layer": lambda: calls(
        4, lambda x, a, b: F.relu(b(F.relu(a(x)))).mean((2, 3)),
        conv(6, 6), nn.Conv2d(6, 4, 3, groups=2),
    ),
    "padding by name": lambda: calls(
        4, lambda x, a, b, c: F.relu(c(F.relu(b(F.relu(a(x)))))).mean((2, 3)),
        nn.Conv2d(6, 5, (3, 5), padding="same", dilation=(2, 1)),
        nn.Conv2d(5, 5, 3, padding="same", groups=5), nn.Conv2d(5, 4, 3, padding="valid"),
    ),
    "stochastic depth": lambda: calls(
        6, lambda x, a, drop: (x + drop(F.relu(a(x)))).mean((2, 3)),
        conv(6, 6), StochasticDepth(0.5, "row"),
    ),
    "no norm": lambda: calls(
        4, lambda x, a, b: F.relu(b(F.relu(a(x)))).mean((2, 3)),
        nn.Conv2d(6, 5, 3), nn.Conv2d(5, 4, 3, bias=False),
    ),
}  # fmt: skip
OTHERS: dict[str, Callable[[], nn.Module]] = {
    **LINES,
    "dense": lambda: Net(Dense(), 4 * 16),
    "cat": lambda: Net(PlainCat(), 4 * 16),
    "in place": lambda: Net(InPlace(), 6 * 4),
    "in place on a layer": lambda: Net(InPlaceOnLayer(), 7 * 4),
    "sliced": lambda: Net(Sliced(), 10),
    "scaled": lambda: Net(Scaled(), 4 * 81),
    "flatten": lambda: Net(nn.Sequential(conv(6, 5), nn.AvgPool2d(2)), 5 * 16),
}


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("network", OTHERS)
def test_other_networks_equal_the_masked_ones(network: str, rate: float, tmp_path: Path) -> None:
    case = Case(OTHERS[network](), Net.shape, Setting(rate=rate, compute_max=0.6), seed=2)
    model = check(case, tmp_path / "m.safetensors")
    assert why_unshippable(case.network) is None
    if rate < 1.0:
        assert sum(layer.stored < layer.channels for layer in model.spec.layers) >= 1


TORCHVISION = (
    "efficientnet_b0", "mobilenet_v3_small", "regnet_y_400mf", "shufflenet_v2_x0_5", "squeezenet1_1"
)  # fmt: skip


@pytest.mark.parametrize("network", TORCHVISION)
def test_torchvisions_networks(network: str, tmp_path: Path) -> None:
    """Squeeze and excitation, stochastic depth, groups, shuffled channels, fire modules."""
    torch.manual_seed(0)  # of some weights one image in some thousands rounds to another count
    setting = Setting(rank=4, width_affine=True, boosted=True, compute_max=0.6)
    case = Case(get_model(network, num_classes=10), (3, 64, 64), setting)
    images = case.images(3)
    assert_same(case.model(tmp_path / "m.safetensors"), images, case.expected(images))
    gate = case.expected(images[:1]).gate
    assert count_numbers(case) == int(gate.parameters()[0]) - both_biases(case)


@pytest.mark.parametrize("network", ["efficientnet_b0", "mobilenetv4_conv_small", "regnetx_002"])
def test_timms_networks(network: str, tmp_path: Path) -> None:
    """BatchNorms with activations, layers of its own, stochastic depth; training included."""
    timm = pytest.importorskip("timm", reason="needs: pip install timm")
    torch.manual_seed(0)
    drops = {"drop_path_rate": 0.3, "drop_rate": 0.3} if network == "efficientnet_b0" else {}
    own = timm.create_model(network, num_classes=10, **drops).train()
    frozen = next(m for m in own.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    images = torch.randn(4, 3, 64, 64)
    traced = trace_backbone(copy.deepcopy(own), (3, 64, 64)).module
    name = next(name for name, module in own.named_modules() if module is frozen)
    assert sum(map(drops_branches, traced.modules())) == (9 if drops else 0)
    assert [traced.get_submodule(name).training, traced.training] == [False, True]
    torch.manual_seed(1)
    expected = own(images)
    torch.manual_seed(1)
    assert torch.equal(traced(images), expected)
    statistics, found = dict(own.named_buffers()), dict(traced.named_buffers())
    assert set(found) == set(statistics)
    assert all(torch.equal(value, statistics[name]) for name, value in found.items())
    case = Case(own, (3, 64, 64), Setting(rank=4, compute_max=0.6))
    images = case.images(3)
    assert_same(case.model(tmp_path / "m.safetensors"), images, case.expected(images))
    gate = case.expected(images[:1]).gate
    assert count_numbers(case) == int(gate.parameters()[0]) - both_biases(case)


class Normed(nn.Module):
    def __init__(self, what: nn.Module) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.what(x), 1)


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        return F.scaled_dot_product_attention(flat, flat, flat)


def overwritten(x: Tensor, a: nn.Module) -> Tensor:
    """The view shows what was written through the other."""
    y = a(x)
    return y.flatten(2).relu_().mean(2) + y.mean((2, 3))


def overwritten_half(x: Tensor, a: nn.Module) -> Tensor:
    y = a(x)
    left, _ = torch.chunk(input=y, chunks=2, dim=1)
    left.add_(1.0)
    return y.mean((2, 3))


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x * self.weight, 1)


@pytest.mark.parametrize(
    ("middle", "named"),
    [
        (Normed(nn.GroupNorm(2, 6)), r"middle\.what, a GroupNorm"),
        (Normed(nn.PReLU()), r"middle\.what, a PReLU"),
        (Normed(nn.Softplus()), r"middle\.what, a Softplus"),
        (Normed(nn.BatchNorm2d(6, track_running_stats=False)), r"middle\.what, a BatchNorm2d"),
        (Attention(), "scaled_dot_product_attention"),
        (Weighted(), r"weight"),
        (Calls(overwritten, conv(6, 6)), "relu_, which overwrites what .* still shows"),
        (Calls(overwritten_half, conv(6, 6)), "add_, which overwrites what .* still shows"),
        (Normed(Calls(lambda x, a: a(x).unbind(2)[0].unsqueeze(2), conv(6, 6))), "unbind"),
        (Normed(Calls(lambda x, a: a(x)[..., :1], conv(6, 6))), "the argument Ellipsis"),
        (Normed(nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular")), r"middle\.what: padding"),
        (Normed(nn.Conv2d(6, 6, 2, padding="same")), r"middle\.what: padding 'same'"),
    ],
)
def test_what_cannot_be_shipped_is_named(middle: nn.Module, named: str) -> None:
    features = 384 if isinstance(middle, Attention) else 6
    reason = why_unshippable(GatedNetwork(trace_backbone(Net(middle, features), Net.shape)))
    assert reason is not None and re.search(named, reason)
    with pytest.raises(ArtifactError, match=f"{named}.*(does not know|cannot be shipped)"):
        Case(Net(middle, features), Net.shape, Setting())


def test_it_is_said_before_anything_is_trained(caplog: pytest.LogCaptureFixture) -> None:
    net = Net(Normed(nn.GroupNorm(2, 6)), 6)
    warn_if_unshippable(GatedNetwork(trace_backbone(net, Net.shape)))
    warn_if_unshippable(GatedNetwork(trace_backbone(Net(PlainCat(), 64), Net.shape)))
    (record,) = caplog.records
    assert record.message.startswith("Net can be trained and measured")
    assert "`rlprune export` will refuse it: the network uses middle.what" in record.message


# --- which point ships ----------------------------------------------------------------------


def frame(*rows: dict[str, object]) -> pd.DataFrame:
    return pd.DataFrame([vars(make_row(**row)) for row in rows])  # type: ignore[arg-type]


POINTS = frame(
    {"trial": "one", "tradeoff_rate": 1.0, "validation_accuracy": 0.95, "storage_bytes": 80_000,
     "macs_mean": 500.0},
    {"trial": "one", "tradeoff_rate": 0.5, "validation_accuracy": 0.9, "storage_bytes": 40_000,
     "macs_mean": 250.0},
    {"trial": "two", "tradeoff_rate": 0.5, "validation_accuracy": 0.85, "storage_bytes": 30_000,
     "macs_mean": 400.0},
    {"trial": "two", "tradeoff_rate": 0.0, "validation_accuracy": 0.8, "storage_bytes": 20_000,
     "macs_mean": 200.0, "test_accuracy": 1.0},
    {"trial": "two", "method": "uniform", "tradeoff_rate": 0.0, "validation_accuracy": 0.99,
     "storage_bytes": 10_000, "macs_mean": 100.0},
)  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "accuracy"),
    [
        (Limits(), 0.95),  # not the uniform network, however good; not the best on test
        (Limits(trial="two"), 0.85),
        (Limits(rate=0.5), 0.9),
        (Limits(rate=0.0), 0.8),
        (Limits(max_storage="40KB"), 0.9),  # the limit itself fits
        (Limits(max_storage="39999"), 0.85),
        (Limits(max_storage="50%"), 0.9),  # of 80 000
        (Limits(max_storage="0.4"), 0.85),
        (Limits(max_macs="0.3"), 0.9),  # of 1000
        (Limits(max_macs="249"), 0.8),
        (Limits(max_storage="0.4", max_macs="25%"), 0.8),
        (Limits(min_accuracy=0.8), 0.8),  # the smallest
        (Limits(min_accuracy=0.81), 0.85),
        (Limits(min_accuracy=0.81, max_macs="300"), 0.9),
        (Limits(trial="one", rate=0.5, max_storage="1MB", max_macs="1", min_accuracy=0.5), 0.9),
    ],
)
def test_the_point_that_keeps_the_limits(limits: Limits, accuracy: float) -> None:
    assert choose(POINTS, limits)["validation_accuracy"] == accuracy


def test_ties_go_to_less_storage_then_fewer_macs() -> None:
    rows = frame(
        {"storage_bytes": 3, "macs_mean": 1.0, "trial": "a"},
        {"storage_bytes": 2, "macs_mean": 5.0, "trial": "b"},
        {"storage_bytes": 2, "macs_mean": 4.0, "trial": "c"},
        {"storage_bytes": 2, "macs_mean": 4.0, "trial": "d", "validation_accuracy": 0.95},
    )
    assert choose(rows[:3], Limits())["trial"] == "c"
    assert choose(rows, Limits(min_accuracy=0.1))["trial"] == "d"
    assert choose(rows[:3], Limits(min_accuracy=0.1))["trial"] == "c"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(trial="three"), r"keeps --trial three\. There are: one, two\."),
        (Limits(rate=0.75), r"keeps --rate 0\.75\. Measured are R_r = 0, 0\.5, 1\."),
        (
            Limits(max_storage="10KB"),
            r"keeps --max-storage 10KB\. The nearest: trial two at R_r = 0 with 20,000 bytes, "
            r"0\.200 of the dense MACs and a validation accuracy of 0\.8000\.",
        ),
        (Limits(max_macs="0.1"), r"keeps --max-macs 0\.1\. The nearest: trial two at R_r = 0 with"),
        (
            Limits(min_accuracy=0.96),
            r"keeps --min-accuracy 0\.96\. The nearest: trial one at R_r = 1 with 80,000 bytes",
        ),
        (Limits(trial="one", rate=0.0), r"keeps --rate 0\. Measured are R_r = 0\.5, 1\.$"),
        (Limits(trial="three", max_macs="0.1"), r"keeps --trial three\. There are: one, two\.$"),
    ],
)
def test_the_nearest_point_is_named(limits: Limits, message: str) -> None:
    with pytest.raises(ArtifactError, match=f"Nothing to export: no measured point {message}"):
        choose(POINTS, limits)


def test_of_several_limits_each_says_what_the_others_leave() -> None:
    """Of dense 80,000 bytes and 1000 MACs; the points by hand, see POINTS."""
    limits = Limits(max_storage="30KB", max_macs="0.3", min_accuracy=0.82)
    with pytest.raises(ArtifactError) as raised:
        choose(POINTS, limits)
    head, *offers, nearest = str(raised.value).splitlines()
    assert raised.value.exit_status == 2
    assert head.rstrip() == (
        "Nothing to export: no measured point keeps --max-storage 30KB, --max-macs 0.3 and "
        "--min-accuracy 0.82 together."
    )
    assert offers == [
        "  --max-storage 30KB: with the others kept, at least 40,000 bytes, 0.500 of dense (trial "
        "one at R_r = 0.5).",
        "  --max-macs 0.3: with the others kept, at least 400 MACs, 0.400 of dense (trial two at "
        "R_r = 0.5).",
        "  --min-accuracy 0.82: with the others kept, at most 0.8000 (trial two at R_r = 0).",
    ]
    # misses by 10/30, by 0.1/0.3, by 0.02/0.82 of the limit: the last is nearest
    assert nearest == (
        "The nearest to all: trial two at R_r = 0 with 20,000 bytes, 0.200 of the dense MACs and "
        "a validation accuracy of 0.8000. It misses --min-accuracy 0.82 by 2.4%."
    )


def test_limits_that_the_others_break_already() -> None:
    limits = Limits(max_storage="10KB", max_macs="0.1", min_accuracy=0.5)
    with pytest.raises(ArtifactError) as raised:
        choose(POINTS, limits)
    _, storage, macs, accuracy, nearest = str(raised.value).splitlines()
    least, alone = "(trial two at R_r = 0).", "no point keeps the others; alone, at"
    assert storage == (f"  --max-storage 10KB: {alone} least 20,000 bytes, 0.250 of dense {least}")
    assert macs == f"  --max-macs 0.1: {alone} least 200 MACs, 0.200 of dense {least}"
    assert accuracy == f"  --min-accuracy 0.5: {alone} most 0.9500 (trial one at R_r = 1)."
    assert "trial two at R_r = 0 with" in nearest
    assert nearest.endswith("It misses --max-storage 10KB by 100.0% and --max-macs 0.1 by 100.0%.")


def test_a_trial_and_a_limit_that_only_another_trial_keeps() -> None:
    with pytest.raises(ArtifactError) as raised:
        choose(POINTS, Limits(trial="one", max_storage="30KB"))
    head, trial, storage, nearest = str(raised.value).splitlines()
    assert "keeps --trial one and --max-storage 30KB together." in head
    assert trial == (
        "  --trial one: the others are kept by trial two at R_r = 0.5, trial two at R_r = 0."
    )
    assert "with the others kept, at least 40,000 bytes" in storage
    assert "trial one at R_r = 0.5 with" in nearest and "30KB by 33.3%" in nearest
    with pytest.raises(ArtifactError, match=r"--rate 1: .* two at R_r = 0\.5 and 1 more\."):
        extra = frame({"trial": "zero", "tradeoff_rate": 0.25, "storage_bytes": 5})
        also = frame({"trial": "zero", "tradeoff_rate": 0.75, "storage_bytes": 5})
        rows = pd.concat([extra, also, POINTS])  # the index repeats
        choose(rows, Limits(rate=1.0, max_storage="30KB"))


def test_a_part_of_the_dense_network_is_a_part_of_each_rows_own() -> None:
    """20 of 100 misses 0.1 by as much as 200 of 1000: fewer MACs are not nearer."""
    rows = frame(
        {"trial": "small", "macs_mean": 20.0, "macs_dense": 100.0},
        {"trial": "large", "macs_mean": 150.0, "macs_dense": 1000.0},
    )
    with pytest.raises(ArtifactError, match="The nearest: trial large"):
        choose(rows, Limits(max_macs="10%"))
    with pytest.raises(ArtifactError, match="The nearest: trial small"):
        choose(rows, Limits(max_macs="10 macs"))


@pytest.mark.parametrize("value", [-0.1, 1.01, 90.0, float("nan")])
def test_an_accuracy_that_is_no_fraction_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="--min-accuracy: must be from 0 to 1"):
        choose(POINTS, Limits(min_accuracy=value))


def test_without_a_learned_network_there_is_nothing() -> None:
    with pytest.raises(ArtifactError, match="no learned network has been measured"):
        choose(POINTS[POINTS["method"] != "learned"], Limits())


@pytest.mark.parametrize("text", ["", "much", "5Q", "0", "-3"])
@pytest.mark.parametrize("field", ["max_storage", "max_macs"])
def test_amounts_that_cannot_be_read_are_refused(field: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"--{field.replace('_', '-')}: must be an amount"):
        choose(POINTS, Limits(**{field: text}))  # type: ignore[arg-type]
