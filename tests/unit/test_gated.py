"""The gated network: what it computes before, under and besides pruning."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlprune.backbones import build_backbone, trace_backbone
from rlprune.config import BackboneConfig
from rlprune.data import ImageArrays, ImageSet
from rlprune.pruning import Gate, GatedConv, GateDesign, GatedNetwork, signed_product
from rlprune.training.cnn import reestimate_batchnorm
from tests.physical import InvertedResidual, Residual, ThreeLayers, gated


class GivenMasks(Gate):
    """Keeps what it was given, layer -> bool [B, C]; records the pooled inputs."""

    def __init__(self, masks: dict[int, Tensor]) -> None:
        super().__init__()
        self.masks = masks
        self.pooled: dict[int, Tensor] = {}

    def decide(self, layer: int, pooled: Tensor, importance: Tensor) -> Tensor:
        self.pooled[layer] = pooled
        return self.masks[layer]


def random_masks(network: GatedNetwork, episodes: int, seed: int = 0) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for layer in network.channels.layers:
        mask = torch.rand(episodes, layer.out_channels, generator=generator) < 0.5
        mask[:, 0] |= ~mask.any(1)
        masks[layer.index] = mask
    return masks


@torch.no_grad()
def unsettle(module: nn.Module) -> nn.Module:
    """As if it had been trained: arbitrary BatchNorm scales, shifts and statistics."""
    torch.manual_seed(3)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.weight.copy_(torch.randn_like(part.weight))
            part.bias.copy_(torch.randn_like(part.bias))
            part.running_mean.copy_(0.5 * torch.randn_like(part.running_mean))
            part.running_var.copy_(0.5 + torch.rand_like(part.running_var))
    return module.eval()


class Plain(nn.Module):
    """Two convolutions, with or without bias and BatchNorm."""

    def __init__(self, bias: bool, norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=bias)
        self.norm1 = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(4, 3, 3, stride=2, bias=bias)
        self.norm2 = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.classifier = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return self.classifier(x.mean((2, 3)))


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# --- nothing pruned -------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_backbone_whatever_its_convolutions_carry(bias: bool, norm: bool) -> None:
    torch.manual_seed(0)
    backbone = unsettle(Plain(bias, norm))
    images = torch.randn(5, 2, 8, 8)
    expected = backbone(images)
    network = GatedNetwork(trace_backbone(copy.deepcopy(backbone), (2, 8, 8))).eval()
    assert len(network.layers) == 2
    assert_close(network(images), expected)
    everything = {0: torch.ones(5, 4, dtype=torch.bool), 1: torch.ones(5, 3, dtype=torch.bool)}
    assert_close(network(images, GivenMasks(everything)), expected)


@pytest.mark.parametrize("name", ["m_cifarnet", "resnet20", "vgg16_bn", "mobilenet_v2"])
def test_equals_built_in_backbones_with_trained_statistics(name: str) -> None:
    torch.manual_seed(0)
    shape = (3, 8, 8)
    backbone = unsettle(build_backbone(BackboneConfig(name=name, width=0.25), 5, shape))
    network = GatedNetwork(trace_backbone(copy.deepcopy(backbone), shape, 5)).eval()
    # mobilenet_v2: one depthwise convolution per inverted residual block
    assert len(network.channels.followers) == (17 if name == "mobilenet_v2" else 0)
    images = torch.randn(3, *shape)
    with torch.no_grad():
        expected, found = backbone(images), network(images)
    size = float(expected.abs().max())  # arbitrary statistics make some networks' scores huge
    torch.testing.assert_close(found / size, expected / size, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_backbone_while_both_train(bias: bool) -> None:
    """Batch statistics, and the running statistics that they leave behind."""
    torch.manual_seed(0)
    backbone = unsettle(Plain(bias, norm=True))
    network = GatedNetwork(trace_backbone(copy.deepcopy(backbone), (2, 8, 8)))
    images = torch.randn(6, 2, 8, 8)
    assert_close(network.train()(images), backbone.train()(images))
    assert_close(network.eval()(images), backbone.eval()(images))


def test_the_traced_parameters_are_taken_over_once() -> None:
    network = gated(ThreeLayers())
    names = {name for name, _ in network.named_parameters()}
    assert not any("norm" in name for name in names)  # scale and shift live in the gate
    # per layer: filter, predictor's weight and bias, u_s, beta; linear: weight and bias
    assert len(names) == 3 * 5 + 2


# --- one layer ------------------------------------------------------------------------------


def test_signed_product() -> None:
    runtime = torch.tensor([2.0, 2.0, -2.0, -2.0, 0.0])
    static = torch.tensor([3.0, -3.0, 3.0, -3.0, -3.0])
    assert signed_product(runtime, static).tolist() == [6.0, -6.0, -6.0, -6.0, 0.0]


@pytest.mark.parametrize("training", [False, True])
def test_output_of_a_layer_follows_the_formula(training: bool) -> None:
    """keep * (u_r u_s * norm(conv(x)) + beta) with u_r = W pool(x) / rms + b, written out."""
    network = gated(ThreeLayers(), seed=1).train(training)
    layer = copy.deepcopy(network.layers[0])
    x = torch.randn(4, 2, 6, 6)
    masks = random_masks(network, 4)
    found = layer(x, GivenMasks(masks))
    y = F.conv2d(x, layer.conv.weight, padding=1)
    before = network.layers[0].norm
    y = F.batch_norm(y, before.running_mean, before.running_var, training=training)
    for b in range(4):
        predictor, static = layer.runtime_predictor, layer.static_importance.detach()
        pooled = x[b].mean((1, 2))
        pooled = pooled / (pooled.square().mean() + 1e-6).sqrt()
        runtime = (predictor.weight @ pooled + predictor.bias).detach()
        for c in range(4):
            u = float(runtime[c]) * float(static[c])
            if float(runtime[c]) < 0 and float(static[c]) < 0:
                u = -u
            expected = (u * y[b, c] + layer.shift[c]) * float(masks[0][b, c])
            assert_close(found[b, c], expected)


def test_scale_and_shift_follow_the_share_of_pruned_inputs() -> None:
    """Of 4 inputs of the second layer an image keeps 4, 3, 2 or 1: m = 0, 1/4, 1/2, 3/4."""
    network = gated(ThreeLayers(), seed=1, design=GateDesign(width_affine=True))
    plain = gated(ThreeLayers(), seed=1)
    plain.load_state_dict(network.state_dict(), strict=False)
    assert network.layers[0].width_scale is None  # nobody prunes the image
    masks = random_masks(network, 4)
    masks[0] = torch.arange(4) < torch.tensor([[4], [3], [2], [1]])
    masks[1][:] = True
    x = torch.randn(4, 4, 6, 6)
    gates = [GivenMasks(masks), GivenMasks(masks)]
    for gate in gates:
        gate.keep[0] = masks[0]
    found, before = network.layers[1](x, gates[0]), plain.layers[1](x, gates[1])
    layer = plain.layers[1]
    share = torch.tensor([0.0, 0.25, 0.5, 0.75]).reshape(4, 1, 1, 1)
    scale, shift = network.layers[1].width_scale, network.layers[1].width_shift
    assert scale is not None and shift is not None
    beta = layer.shift[:, None, None]
    expected = (before - beta) * (1 + share * scale[:, None, None]) + beta
    assert_close(found, expected + share * shift[:, None, None])
    network.set_predictors(False)
    plain.set_predictors(False)
    assert_close(network.layers[1](x, gates[0]), plain.layers[1](x, gates[1]))


def test_without_predictor_the_bias_alone_is_the_importance() -> None:
    network = gated(ThreeLayers(), seed=1)
    images = torch.randn(2, 2, 6, 6)
    with_predictors = network(images)
    network.set_predictors(False)
    layer = network.layers[0]
    importance = layer.runtime_importance(torch.randn(2, 2))
    assert torch.equal(importance, layer.runtime_predictor.bias.expand(2, -1))
    without = network(images)
    assert not torch.allclose(without, with_predictors)
    for part in network.layers:
        nn.init.zeros_(part.runtime_predictor.weight)
    network.set_predictors(True)
    assert_close(network(images), without)


def test_gradients_reach_importances_of_kept_channels_only() -> None:
    network = gated(ThreeLayers(), seed=1)
    masks = random_masks(network, 4)
    masks[0][:] = torch.tensor([True, False, True, False])
    network(torch.randn(4, 2, 6, 6), GivenMasks(masks)).sum().backward()
    layer = network.layers[0]
    for gradient in (
        layer.static_importance.grad,
        layer.shift.grad,
        layer.runtime_predictor.bias.grad,
        layer.conv.weight.grad.abs().sum((1, 2, 3)),
    ):
        assert ((gradient != 0) == masks[0][0]).all()


# --- pruned channels ------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "backbone", [ThreeLayers(), InvertedResidual(), Residual([3, 4, 5])], ids=lambda b: str(b)[:8]
)
def test_masked_channels_are_exactly_zero_at_their_consumers(
    backbone: nn.Module, training: bool
) -> None:
    network = gated(copy.deepcopy(backbone), seed=2).train(training)
    masks = random_masks(network, 5)
    gate = GivenMasks(masks)
    seen: dict[str, Tensor] = {}

    def note(name: str):
        return lambda module, args: seen.__setitem__(name, args[0].detach())

    modules = dict(network.body.named_modules())
    graph = network.channels
    consumers = (*graph.layers, *graph.fixed)
    for consumer in consumers:
        modules[consumer.name].register_forward_pre_hook(note(consumer.name))
    network(torch.randn(5, *backbone.shape), gate)
    checked = 0
    for consumer in consumers:
        start = 0
        for source in consumer.in_sources:
            if source.layer is not None:
                entry = seen[consumer.name].flatten(2) if seen[consumer.name].dim() > 2 else None
                x = seen[consumer.name].unsqueeze(2) if entry is None else entry
                run = x[:, start : start + source.channels]
                assert (run[~masks[source.layer]] == 0.0).all()
                assert (run[masks[source.layer]] != 0.0).any()
                checked += 1
            start += source.channels
    assert checked >= 2


def test_followers_are_masked_behind_their_batch_norm() -> None:
    """A depthwise convolution's BatchNorm would turn a zero channel into its shift."""
    network = gated(InvertedResidual(), seed=4)
    masks = random_masks(network, 5)
    out: list[Tensor] = []
    follower = network.body.get_submodule("depthwise")
    follower.register_forward_hook(lambda module, args, y: out.append(y))
    network(torch.randn(5, 1, 4, 4), GivenMasks(masks))
    assert (follower.norm.bias != 0).all()
    assert (out[0][~masks[1]] == 0.0).all()


class Preactivated(nn.Module):
    """A convolution, and a BatchNorm of its own before the next one (DenseNet)."""

    shape = (1, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 1)
        self.norm = nn.BatchNorm2d(4)
        self.classifier = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.relu(self.norm(F.relu(self.first(x)))))
        return self.classifier(x.mean((2, 3)))


class Shuffled(nn.Module):
    """A depthwise convolution behind channels that have changed places, and its BatchNorm."""

    shape = (1, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.last, self.classifier = nn.Conv2d(4, 3, 1), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = x.view(-1, 2, 2, 2, 2).transpose(1, 2).transpose(1, 2).reshape(-1, 4, 2, 2)
        x = self.last(F.relu(self.norm(self.depthwise(x))))
        return self.classifier(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("backbone", "producer", "norm"),
    [(InvertedResidual, 1, "depthwise"), (Preactivated, 0, "norm"), (Shuffled, 0, "norm")],
)
def test_statistics_of_a_channel_that_no_image_keeps_stay(
    backbone: type[nn.Module], producer: int, norm: str
) -> None:
    """They would fall to nothing, and the channel would be blown up when it is kept again."""
    torch.manual_seed(0)
    network = gated(backbone()).train()
    masks = {
        layer.index: torch.ones(5, layer.out_channels, dtype=torch.bool)
        for layer in network.channels.layers
    }
    masks[producer][:, 2] = False
    masks[producer][1:, 1] = False  # one image keeps it
    found = network.body.get_submodule(norm)
    batch_norm = found if isinstance(found, nn.BatchNorm2d) else found.norm
    for _ in range(100):
        network(torch.randn(5, *backbone.shape), GivenMasks(masks))
    assert batch_norm.running_mean[2] == 0.0 and batch_norm.running_var[2] == 1.0
    assert (batch_norm.running_var[[0, 1, 3]] < 0.9).all()
    assert (batch_norm.running_mean[[0, 1, 3]] != 0.0).all()
    assert int(batch_norm.num_batches_tracked) == 100


def test_a_constant_channel_comes_out_as_in_training() -> None:
    """Nothing is pruned; the first convolution is dead."""
    network = gated(Preactivated()).train()
    norm = network.body.get_submodule("norm")
    with torch.no_grad():
        network.layers[0].shift.fill_(-1e3)
        norm.running_mean.fill_(0.7)
        norm.bias.copy_(torch.arange(4.0))
    for _ in range(300):
        network(torch.randn(5, 1, 4, 4))
    assert (norm.running_mean.abs() < 1e-6).all() and (norm.running_var == 1.0).all()
    dead = torch.zeros(2, 4, 2, 2)
    assert_close(norm(dead), norm.eval()(dead))


@pytest.mark.parametrize(
    ("backbone", "producer", "norm"),
    [(InvertedResidual, 1, "depthwise"), (Preactivated, 0, "norm")],
)
def test_estimated_anew_a_channel_has_the_average_of_its_batches(
    backbone: type[nn.Module], producer: int, norm: str
) -> None:
    """Channel 2 is in no batch and keeps what was trained, channel 1 is in the last batch only."""
    torch.manual_seed(0)
    network = gated(backbone()).train()
    found = network.body.get_submodule(norm)
    batch_norm = found if isinstance(found, nn.BatchNorm2d) else found.norm
    for _ in range(50):
        network(torch.randn(5, *backbone.shape), GivenMasks(all_kept(network, 5)))
    trained = batch_norm.running_mean.clone(), batch_norm.running_var.clone()
    pixels = torch.rand(40, 4, 4)
    images = ImageArrays((255 * pixels[:, None]).to(torch.uint8).numpy(), np.zeros(40, np.int64))
    digits = ImageSet("d", images, images, images, ("a", "b"), (0.5,), (0.25,), "none")
    gates = []

    def gate(count: int) -> Gate:
        masks = all_kept(network, count)
        masks[producer][:, 2] = False
        masks[producer][:, 1] = len(gates) == 3
        gates.append(GivenMasks(masks))
        return gates[-1]

    reestimate_batchnorm(network, digits, gate, 40, 10, [0])
    assert len(gates) == 4
    every = batch_norm.running_var.clone()
    assert batch_norm.running_mean[2] == trained[0][2]
    assert batch_norm.running_var[2] == trained[1][2]
    network.eval()
    reestimate_batchnorm(
        network, digits, lambda count: GivenMasks(all_kept(network, count)), 40, 10, [0]
    )
    assert 0.3 < float(every[1] / batch_norm.running_var[1]) < 3.0  # one batch, not a quarter of it
    assert torch.equal(every[[0, 3]], batch_norm.running_var[[0, 3]])
    assert batch_norm.momentum == 0.1 and not batch_norm.training


def all_kept(network: GatedNetwork, count: int) -> dict[int, Tensor]:
    return {
        layer.index: torch.ones(count, layer.out_channels, dtype=torch.bool)
        for layer in network.channels.layers
    }


def test_each_image_has_masks_of_its_own() -> None:
    """A batch under masks gives what its images give alone."""
    network = gated(Residual([4, 5, 3]), seed=5)
    masks = random_masks(network, 4)
    images = torch.randn(4, *Residual.shape)
    together = network(images, GivenMasks(masks))
    for b in range(4):
        alone = GivenMasks({layer: mask[b : b + 1] for layer, mask in masks.items()})
        assert_close(network(images[b : b + 1], alone), together[b : b + 1])


def test_the_pooled_input_that_the_gate_sees() -> None:
    network = gated(ThreeLayers(), seed=1)
    gate = GivenMasks(random_masks(network, 3))
    images = torch.randn(3, 2, 6, 6)
    network(images, gate)
    assert_close(gate.pooled[0], images.sum((2, 3)) / 36)
    assert (gate.pooled[1][~gate.masks[0]] == 0.0).all()


@pytest.mark.parametrize("backbone", [ThreeLayers(), InvertedResidual()], ids=["plain", "residual"])
def test_evaluation_equals_training_at_the_same_statistics(backbone: nn.Module) -> None:
    """Running statistics set to those of one batch under the same masks."""
    network = gated(copy.deepcopy(backbone), seed=6).train()
    images, masks = torch.randn(8, *backbone.shape), random_masks(network, 8)
    inputs: dict[nn.Module, Tensor] = {}
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_pre_hook(lambda module, args: inputs.__setitem__(module, args[0]))
    with torch.no_grad():
        trained = network(images, GivenMasks(masks))
        for norm in norms:
            norm.running_mean.copy_(inputs[norm].mean((0, 2, 3)))
            norm.running_var.copy_(inputs[norm].var((0, 2, 3), unbiased=False))
        evaluated = network.eval()(images, GivenMasks(masks))
    assert len(inputs) == len(norms) >= 3
    assert_close(evaluated, trained)


def test_the_gate_remembers_its_masks() -> None:
    network = gated(ThreeLayers())
    gate = Gate()
    network(torch.randn(1, 2, 6, 6), gate)
    assert gate.keep == {0: None, 1: None, 2: None}
    given = GivenMasks(random_masks(network, 1))
    network(torch.randn(1, 2, 6, 6), given)
    assert all(torch.equal(given.keep[layer], mask) for layer, mask in given.masks.items())


def test_layers_are_in_execution_order() -> None:
    network = gated(Residual([3, 4, 2]))
    assert all(isinstance(layer, GatedConv) for layer in network.layers)
    assert [layer.layer.index for layer in network.layers] == list(range(5))
