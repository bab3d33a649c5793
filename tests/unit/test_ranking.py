"""Importances that rank channels by what they contribute, without changing the network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlprune.backbones import trace_backbone
from rlprune.backbones.registry import m_cifarnet, resnet20, vgg16_bn
from rlprune.pruning import GatedConv, GatedNetwork
from rlprune.pruning.ranking import rank_importances
from tests.physical import InvertedResidual, Residual, Sequential, ThreeLayers


class CalledTwice(nn.Module):
    """The second convolution is called on two inputs: its weights cannot be divided."""

    shape = (2, 5, 5)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.other, self.other_norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 3, 1)
        self.classifier = nn.Linear(3 * 25, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.second(F.relu(self.norm(self.first(x))))
        b = self.second(F.relu(self.other_norm(self.other(x))))
        return self.classifier(torch.flatten(a + b, 1))


class Plain(nn.Module):
    """No BatchNorm, a flattened picture, concatenated channels, two readers of one layer."""

    shape = (2, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(4, 5, 1)
        self.last = nn.Conv2d(8, 6, 3, stride=2, padding=1)
        self.classifier = nn.Linear(6 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)
        return self.classifier(torch.flatten(F.max_pool2d(F.relu(self.last(x)), 1), 1))


def trained(backbone: nn.Module, shape: tuple[int, int, int]) -> GatedNetwork:
    """As if trained: scales of both signs, statistics and shifts of any size."""
    generator = torch.Generator().manual_seed(7)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.add_(0.8 * noise(module.weight))
                module.bias.add_(0.5 * noise(module.bias))
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.add_(0.3 * noise(module.running_mean))
                module.running_var.mul_((0.5 * noise(module.running_var)).exp())
    return GatedNetwork(trace_backbone(backbone, shape))


def cifar(make: object) -> nn.Module:
    return make(num_classes=10, width=0.25)  # type: ignore[operator]


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize(
    ("backbone", "shape"),
    [
        (lambda: ThreeLayers(), ThreeLayers.shape),
        (lambda: Sequential([4, 6, 5]), Sequential.shape),
        (lambda: Residual([4, 6, 5]), Residual.shape),
        (lambda: InvertedResidual(), InvertedResidual.shape),
        (lambda: CalledTwice(), CalledTwice.shape),
        (lambda: Plain(), Plain.shape),
        (lambda: cifar(m_cifarnet), (3, 32, 32)),
        (lambda: cifar(resnet20), (3, 32, 32)),
        (lambda: cifar(vgg16_bn), (3, 32, 32)),
    ],
    ids=["three", "chain", "residual", "inverted", "twice", "plain", "m_cifarnet", "resnet", "vgg"],
)
def test_what_the_network_computes_stays(backbone, shape, mode: str) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    network = trained(backbone(), shape)
    for module in network.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    network.train(mode == "train")
    images = torch.randn(6, *shape)
    with torch.no_grad():
        before = network(images)
        statistics = {k: v.clone() for k, v in network.state_dict().items() if "running" in k}
        rank_importances(network)
        for name, value in network.state_dict().items():
            if name in statistics and "running_var" in name:
                torch.testing.assert_close(value, statistics[name], rtol=1e-4, atol=1e-5)
        after = network(images)
    scale = before.abs().max()
    assert (after - before).abs().max() < 1e-3 * scale
    for layer in network.layers:
        assert (layer.runtime_predictor.bias >= 0).all() and (layer.static_importance > 0).all()


def contributions(network: GatedNetwork) -> list[Tensor]:
    """By the definition, from samples: for a chain of convolutions and a linear layer."""
    z = torch.randn(200_000, generator=torch.Generator().manual_seed(1))
    found = []
    linear = [part for part in network.body.modules() if isinstance(part, nn.Linear)]
    readers = [layer.conv.weight for layer in network.layers[1:]] + [linear[-1].weight]
    for layer, reader in zip(network.layers, readers, strict=True):
        scale, shift = layer.runtime_predictor.bias, layer.shift
        sizes = [
            F.relu(a * z + b).square().mean().sqrt() for a, b in zip(scale, shift, strict=True)
        ]
        norms = [reader[:, c].norm() for c in range(len(scale))]
        found.append(torch.stack(sizes) * torch.stack(norms))
    return found


def test_both_importances_rank_channels_by_their_contribution() -> None:
    torch.manual_seed(3)
    network = trained(Sequential([6, 8, 7]), Sequential.shape)
    with torch.no_grad():
        expected = contributions(network)
        rank_importances(network)
        for layer, contribution in zip(network.layers, expected, strict=True):
            product = layer.runtime_predictor.bias * layer.static_importance
            relative = contribution / contribution.mean()
            torch.testing.assert_close(product / product.mean(), relative, rtol=0.02, atol=0.01)
            order = product.argsort()
            for importance in (layer.runtime_predictor.bias, layer.static_importance):
                assert (importance[order].diff() >= -1e-6).all()


def test_a_contribution_by_hand() -> None:
    """Scales 1 and 2 (one negative), shifts 0: rms of relu(scale z) is |scale| / sqrt(2)."""
    network = trained(Sequential([2]), Sequential.shape)
    layer = network.layers[0]
    linear = next(part for part in network.body.modules() if isinstance(part, nn.Linear))
    with torch.no_grad():
        layer.runtime_predictor.bias.copy_(torch.tensor([1.0, -2.0]))
        layer.shift.zero_()
        linear.weight.copy_(torch.tensor([[3.0, 0.0], [4.0, 0.5], [0.0, 0.0]]))  # norms 5, 0.5
        rank_importances(network)
    # Contributions 5 / sqrt(2) and 1 / sqrt(2), and the mean scale (1 + 2) / 2 stays.
    wanted = torch.tensor([5.0, 1.0]) / 3.0 * 1.5
    share = (wanted / 1.5).sqrt()
    torch.testing.assert_close(layer.static_importance.data, share)
    torch.testing.assert_close(layer.runtime_predictor.bias.data, wanted / share)
    divided = torch.tensor([[3.0 / 2.5, 0.0], [4.0 / 2.5, 0.5 / 0.25], [0.0, 0.0]])
    torch.testing.assert_close(linear.weight.data, divided)


def test_a_residual_stream_is_ranked_by_its_scales_alone() -> None:
    network = trained(Residual([4, 6, 5]), Residual.shape)
    streams = [layer for layer in network.layers if layer.layer.joins_stream]
    sizes = [layer.runtime_predictor.bias.abs() for layer in streams]
    rank_importances(network)
    for layer, size in zip(streams, sizes, strict=True):
        product = layer.runtime_predictor.bias * layer.static_importance
        torch.testing.assert_close(product, size)


def test_trained_predictors_are_refused() -> None:
    network = trained(ThreeLayers(), ThreeLayers.shape)
    layer = network.layers[1]
    assert isinstance(layer, GatedConv)
    nn.init.constant_(layer.runtime_predictor.weight, math.pi)
    with pytest.raises(ValueError, match="before their predictors are trained"):
        rank_importances(network)
