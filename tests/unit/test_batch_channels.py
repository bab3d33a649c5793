"""Leaving out channels that no image of a batch needs changes nothing but the time."""

from __future__ import annotations

import copy

import pytest
import torch
from physical import InvertedResidual, Residual, ThreeLayers, gated
from torch import Tensor, nn

from rlprune.pruning import Gate, GatedNetwork, batch_channels


class FixedMasks(Gate):
    """Masks [B, C] given per layer."""

    def __init__(self, masks: list[Tensor]) -> None:
        super().__init__()
        self.masks = masks

    def decide(self, layer: int, pooled: Tensor, importance: Tensor) -> Tensor:
        return self.masks[layer]


def random_masks(network: GatedNetwork, images: int, seed: int) -> list[Tensor]:
    """About half of the channels are needed by nobody, the others by about half of the images."""
    generator = torch.Generator().manual_seed(seed)
    masks = []
    for layer in network.channels.layers:
        needed = torch.rand(layer.out_channels, generator=generator) < 0.5
        needed[0] = True
        mask = torch.rand(images, layer.out_channels, generator=generator) < 0.5
        masks.append((mask & needed) | (torch.arange(layer.out_channels) == 0))
    return masks


def everything(
    network: GatedNetwork, images: Tensor, masks: list[Tensor]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Logits, gradients and buffers after one pass forward and backward."""
    logits = network(images, FixedMasks(masks))
    logits.square().sum().backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in network.named_parameters()
    }
    return logits.detach(), gradients, dict(network.named_buffers())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "backbone",
    [ThreeLayers(), Residual([5, 6, 7]), InvertedResidual()],
    ids=lambda b: type(b).__name__,
)
def test_only_the_time_changes(
    backbone: nn.Module, seed: int, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = gated(copy.deepcopy(backbone), seed=seed).train(training)
    images = torch.randn(6, *backbone.shape, generator=torch.Generator().manual_seed(seed))
    masks = random_masks(network, 6, seed)
    found = []
    for worth_it in (-1.0, 2.0):  # never; always
        monkeypatch.setattr(batch_channels, "_WORTH_IT", worth_it)
        monkeypatch.setattr(batch_channels, "_LEAST_PIXELS", 0)
        found.append(everything(copy.deepcopy(network), images, masks))
    (logits, gradients, buffers), (logits2, gradients2, buffers2) = found
    scale = max(1.0, float(logits.abs().max()))
    assert float((logits - logits2).abs().max()) <= 1e-5 * scale
    for name, gradient in gradients.items():
        size = max(1.0, float(gradient.abs().max()))
        assert float((gradient - gradients2[name]).abs().max()) <= 1e-4 * size, name
    before = dict(network.named_buffers())
    for layer in network.channels.layers:
        if layer.norm is None:
            continue
        seen = masks[layer.index].any(0)
        for kind in ("running_mean", "running_var"):
            name = f"body.{layer.name}.norm.{kind}"
            torch.testing.assert_close(buffers2[name][seen], buffers[name][seen])
            assert torch.equal(buffers2[name][~seen], before[name][~seen])


@pytest.mark.parametrize("training", [False, True])
def test_edges_that_are_not_padded_with_zeros(
    training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Circular(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(2, 6, 3, padding=1, padding_mode="circular")
            self.second = nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular")
            self.classifier = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(self.second(self.first(x).relu()).relu().mean((2, 3)))

    Circular.shape = (2, 6, 6)
    network = gated(Circular()).train(training)
    images, masks = torch.randn(6, *Circular.shape), random_masks(network, 6, 0)
    found = []
    for worth_it in (-1.0, 2.0):  # never; wherever it can be
        monkeypatch.setattr(batch_channels, "_WORTH_IT", worth_it)
        monkeypatch.setattr(batch_channels, "_LEAST_PIXELS", 0)
        found.append(everything(copy.deepcopy(network), images, masks)[0])
    torch.testing.assert_close(*found)


def test_needed_channels_by_hand() -> None:
    layer = gated(ThreeLayers()).channels.layers[1]
    inputs = layer.in_channels
    kept = torch.zeros(2, inputs, dtype=torch.bool)
    kept[0, 0] = kept[1, 1] = True
    keep = torch.zeros(2, layer.out_channels, dtype=torch.bool)
    keep[:, 2] = True
    part = batch_channels.batch_channels(layer, {0: kept}, keep, 784)
    assert part is not None
    assert part.inputs.tolist() == [0, 1] and part.outputs.tolist() == [2]
    assert batch_channels.batch_channels(layer, {0: kept}, keep, 64) is None  # too small
    everything_kept = torch.ones_like(keep)
    assert (
        batch_channels.batch_channels(layer, {0: torch.ones_like(kept)}, everything_kept, 784)
        is None
    )
    assert batch_channels.batch_channels(layer, {}, everything_kept, 784) is None


def test_a_plain_average_of_statistics_sees_every_channel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """BatchNorm's plain average counts batches, so every batch must count for every channel."""
    monkeypatch.setattr(batch_channels, "_LEAST_PIXELS", 0)
    network = gated(ThreeLayers(), seed=0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.train()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    masks = [
        torch.arange(layer.out_channels).expand(4, -1) == 0 for layer in network.channels.layers
    ]
    network(torch.randn(4, *ThreeLayers().shape), FixedMasks(masks))
    for layer in network.channels.layers:
        name = f"body.{layer.name}.norm.running_var"
        assert (network.get_buffer(name) != before[name]).all()
