"""Tracing: who is prunable, who reads whom, at what cost; checked against the network itself."""

import copy
import logging
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torchvision.ops import StochasticDepth

from rlprune.backbones import (
    ChannelGraph,
    ChannelSource,
    FixedLayer,
    FollowerLayer,
    PrunableLayer,
    TracedBackbone,
    build_backbone,
    trace_backbone,
)
from rlprune.config import BackboneConfig
from rlprune.errors import BackboneError

NAMES = ("m_cifarnet", "resnet20", "resnet32", "vgg16_bn", "resnet18", "mobilenet_v2")
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]
Forward = Callable[[nn.Module, torch.Tensor], torch.Tensor]


def runs(*sources: tuple[int | None, int]) -> tuple[ChannelSource, ...]:
    return tuple(ChannelSource(layer, channels) for layer, channels in sources)


def built(name: str, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    return build_backbone(BackboneConfig(name=name, width=width), 10, (in_channels, 32, 32))


class Net(nn.Module):
    """A network made of named parts and a forward function."""

    def __init__(self, forward: Forward, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self._forward = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(self, x)


def conv(c_in: int, c_out: int, **settings: object) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1, **settings)


def traced(forward: Forward, shape: tuple[int, int, int] = (3, 8, 8), **parts: nn.Module):
    return trace_backbone(Net(forward, **parts), shape)


def pooled(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3))


# --- costs ----------------------------------------------------------------------------------


def conv_macs(layer: PrunableLayer) -> int:
    kernel = math.prod(layer.kernel_size) * math.prod(layer.out_size)
    return kernel * layer.in_channels * layer.out_channels


def dense_macs(graph: ChannelGraph) -> int:
    """Multiply-accumulates per image of the whole network, from the findings alone."""
    followers = (
        math.prod(f.kernel_size) * math.prod(f.out_size) * f.channels for f in graph.followers
    )
    fixed = (f.macs_per_channel * sum(s.channels for s in f.in_sources) for f in graph.fixed)
    return sum(map(conv_macs, graph.layers)) + sum(followers) + sum(fixed)


def dense_weights(graph: ChannelGraph) -> int:
    """Weights (no biases, no folded norms) from the findings alone."""
    prunable = (math.prod(x.kernel_size) * x.in_channels * x.out_channels for x in graph.layers)
    followers = (math.prod(f.kernel_size) * f.channels for f in graph.followers)
    fixed = (f.parameters_per_channel * sum(s.channels for s in f.in_sources) for f in graph.fixed)
    return sum(prunable) + sum(followers) + sum(fixed)


def executed_macs(module: nn.Module, shape: tuple[int, int, int]) -> int:
    """Independent count: hooks on the original network's convolutions and linear layers."""
    total = 0

    def count(part: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += part.weight[0].numel() * output[0].numel()

    hooks = [
        part.register_forward_hook(count)
        for part in module.modules()
        if isinstance(part, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        module.eval()(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return total


def test_m_cifarnet_costs_what_the_paper_says() -> None:
    graph = trace_backbone(built("m_cifarnet"), (3, 32, 32), 10).channels
    assert [conv_macs(layer) for layer in graph.layers] == [
        1_555_200,  # 27 * 64 * 30 * 30
        33_177_600,  # 9 * 64 * 64 * 30 * 30
        16_588_800,  # 9 * 64 * 128 * 15 * 15
        33_177_600,
        33_177_600,
        14_155_776,  # 9 * 128 * 192 * 8 * 8
        21_233_664,
        21_233_664,
    ]
    assert sum(map(conv_macs, graph.layers)) == 174_299_904
    assert dense_weights(graph) == 1_291_968 + 1_920
    assert graph.fixed == (FixedLayer("classifier", runs((7, 192)), 10, 10, 10),)
    assert (graph.input_shape, graph.num_classes, graph.followers) == ((3, 32, 32), 10, ())


def test_m_cifarnet_is_a_chain() -> None:
    graph = trace_backbone(built("m_cifarnet"), (3, 32, 32)).channels
    assert graph.layers[0].in_sources == runs((None, 3))
    for before, layer in zip(graph.layers, graph.layers[1:], strict=False):
        assert layer.in_sources == runs((before.index, before.out_channels))
    assert [layer.norm for layer in graph.layers] == [f"features.{t}.norm" for t in range(8)]
    assert not any(layer.joins_stream for layer in graph.layers)


@pytest.mark.parametrize(
    ("name", "shape", "macs"),
    [
        # 442,368 + 14,155,776 + 12,976,128 + 12,976,128, linear 640
        ("resnet20", (3, 32, 32), 40_551_040),
        ("resnet18", (3, 224, 224), 1_813_566_464),  # 1,814,073,344 with 1000 classes
        ("mobilenet_v2", (3, 224, 224), 299_507_072),  # 300,774,272 with 1000 classes
    ],
)
def test_macs_of_the_literature(name: str, shape: tuple[int, int, int], macs: int) -> None:
    assert dense_macs(trace_backbone(built(name), shape).channels) == macs


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_built_ins_keep_outputs_and_costs(name: str, shape: tuple[int, int, int]) -> None:
    module = built(name, shape[0], 1.0 if name == "resnet18" else 0.5)
    result = trace_backbone(module, shape, 10)
    images = torch.randn(3, *shape)
    with torch.no_grad():
        assert torch.equal(module.eval()(images), result.module.eval()(images))
    assert dense_macs(result.channels) == executed_macs(module, shape)
    weights = (m.weight for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert dense_weights(result.channels) == sum(weight.numel() for weight in weights)


# --- the built-ins' structure ---------------------------------------------------------------


def test_resnet20_streams() -> None:
    graph = trace_backbone(built("resnet20"), (3, 32, 32)).channels
    assert len(graph.layers) == 19
    joining = {layer.name for layer in graph.layers if layer.joins_stream}
    assert joining == {"conv1"} | {f"layer{s}.{b}.conv2" for s in (1, 2, 3) for b in (0, 1, 2)}
    by_name = {layer.name: layer for layer in graph.layers}
    assert by_name["layer1.0.conv1"].in_sources == runs((0, 16))  # still the stem alone
    assert by_name["layer1.1.conv1"].in_sources == runs((None, 16))
    assert by_name["layer2.0.conv1"].in_sources == runs((None, 16))
    second = by_name["layer3.2.conv2"]
    assert second.in_sources == runs((second.index - 1, 64))
    assert graph.fixed[0].in_sources == runs((None, 64))


@pytest.mark.parametrize(("name", "count"), [("resnet32", 31), ("resnet56", 55)])
def test_deeper_resnets(name: str, count: int) -> None:
    assert len(trace_backbone(built(name, width=0.25), (3, 32, 32)).channels.layers) == count


def test_resnet18_streams() -> None:
    graph = trace_backbone(built("resnet18"), (3, 32, 32)).channels
    assert len(graph.layers) == 20
    joining = {layer.name for layer in graph.layers if layer.joins_stream}
    expected = {"conv1"}
    expected |= {f"layer{stage}.{block}.conv2" for stage in (1, 2, 3, 4) for block in (0, 1)}
    expected |= {f"layer{stage}.0.downsample.0" for stage in (2, 3, 4)}
    assert joining == expected
    first = next(layer for layer in graph.layers if layer.name == "layer1.0.conv1")
    assert first.in_sources == runs((0, 64))  # behind the max-pool
    assert graph.layers[0].out_size == (16, 16)


def test_mobilenet_v2_followers() -> None:
    graph = trace_backbone(built("mobilenet_v2"), (3, 32, 32)).channels
    assert (len(graph.layers), len(graph.followers)) == (35, 17)
    by_name = {layer.name: layer for layer in graph.layers}
    first, *rest = graph.followers
    assert first == FollowerLayer(
        "features.1.conv.0.0", "features.1.conv.0.1", 0, 32, (3, 3), (16, 16)
    )
    for block, follower in enumerate(rest, start=2):
        expand = by_name[f"features.{block}.conv.0.0"]
        project = by_name[f"features.{block}.conv.2"]
        assert follower.name == f"features.{block}.conv.1.0"
        assert follower.norm == f"features.{block}.conv.1.1"
        assert follower.producer == expand.index
        assert follower.channels == expand.out_channels == 6 * expand.in_channels
        assert project.in_sources == runs((expand.index, expand.out_channels))
    projects = [by_name[f"features.{b}.conv.{1 if b == 1 else 2}"] for b in range(1, 18)]
    outside = [b for b, layer in enumerate(projects, start=1) if not layer.joins_stream]
    assert outside == [1, 17]  # all others add to the next block's output or their own input
    assert graph.fixed == (FixedLayer("classifier.1", runs((34, 1280)), 10, 10, 10),)


# --- hand-made networks ----------------------------------------------------------------------


def test_concatenation_keeps_the_runs_apart() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        left, right = F.relu(net.a(x)), net.norm(net.b(x))
        both = torch.cat([left, x, x, right], dim=1)
        return net.head(pooled(torch.relu(net.c(both))))

    graph = traced(
        forward,
        a=conv(3, 4),
        b=conv(3, 5),
        norm=nn.BatchNorm2d(5),
        c=conv(15, 6),
        head=nn.Linear(6, 2),
    ).channels
    assert [layer.norm for layer in graph.layers] == [None, "norm", None]
    assert graph.layers[2].in_sources == runs((0, 4), (None, 6), (1, 5))
    assert not any(layer.joins_stream for layer in graph.layers)


def test_two_adds_make_the_stream_whole() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        stem = F.relu(net.stem(x))
        stream = stem + net.b(F.relu(net.a(stem)))
        stream = torch.add(stream, net.d(F.relu(net.c(stream))))
        return net.head(torch.flatten(F.adaptive_avg_pool2d(stream, 1), 1))

    graph = traced(
        forward,
        stem=conv(3, 4),
        a=conv(4, 6),
        b=conv(6, 4),
        c=conv(4, 5),
        d=conv(5, 4),
        head=nn.Linear(4, 2),
    ).channels
    assert [layer.joins_stream for layer in graph.layers] == [True, False, True, False, True]
    sources = [layer.in_sources for layer in graph.layers]
    assert sources[1:] == [runs((0, 4)), runs((1, 6)), runs((None, 4)), runs((3, 5))]
    assert graph.fixed[0].in_sources == runs((None, 4))


def test_adding_a_tensor_to_its_own_activation_keeps_the_zeros() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a = net.a(x)
        return net.head(pooled(F.gelu(a) + 0.5 * a - a / 2))

    graph = traced(forward, a=conv(3, 4), head=nn.Linear(4, 2)).channels
    assert graph.fixed[0].in_sources == runs((0, 4))
    assert not graph.layers[0].joins_stream


def test_flattening_counts_the_features_of_a_channel() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(net.a(x)), 2)
        x = x.view(x.size(0), -1)
        return net.head(net.drop(x))

    graph = traced(forward, a=conv(3, 5), drop=nn.Dropout(), head=nn.Linear(5 * 4 * 4, 7)).channels
    assert graph.fixed == (FixedLayer("head", runs((0, 5)), 16 * 7, 16 * 7, 7),)


def test_a_module_that_is_called_twice_is_fixed() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(net.a(x))
        x = F.relu(net.shared(F.relu(net.shared(x))))
        return net.head(pooled(net.b(x)))

    graph = traced(
        forward, a=conv(3, 4), shared=conv(4, 4), b=conv(4, 5), head=nn.Linear(5, 2)
    ).channels
    assert [layer.name for layer in graph.layers] == ["a", "b"]
    assert graph.layers[1].in_sources == runs((None, 4))
    # 9 weights x 4 outputs per input channel, stored once, computed twice at 8x8
    assert graph.fixed[0] == FixedLayer("shared", runs((None, 4)), 2 * 36 * 64, 36, 4)


def test_tied_weights_are_fixed_and_stored_once() -> None:
    twin, other = conv(4, 4, bias=False), conv(4, 4, bias=False)
    other.weight = twin.weight

    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return net.head(pooled(F.relu(net.other(F.relu(net.twin(F.relu(net.a(x))))))))

    parts = {"a": conv(3, 4), "twin": twin, "other": other, "head": nn.Linear(4, 2)}
    graph = traced(forward, **parts).channels
    assert [layer.name for layer in graph.layers] == ["a"]
    assert graph.fixed[0] == FixedLayer("twin", runs((0, 4)), 36 * 64, 36, 0)
    assert graph.fixed[1] == FixedLayer("other", runs((None, 4)), 36 * 64, 0, 0)


def test_a_final_convolution_is_the_classifier() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = net.norm(net.head(F.relu(net.a(x))))
        return F.log_softmax(torch.flatten(net.pool(x), 1), dim=1)

    graph = traced(
        forward,
        a=conv(3, 4),
        head=conv(4, 6),
        norm=nn.BatchNorm2d(6),
        pool=nn.AdaptiveAvgPool2d(1),
    ).channels
    assert [layer.name for layer in graph.layers] == ["a"]
    assert graph.fixed == (FixedLayer("head", runs((0, 4)), 9 * 6 * 64, 9 * 6, 6),)
    assert graph.num_classes == 6


@pytest.mark.parametrize(
    "norm",
    [
        nn.GroupNorm(2, 4),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.InstanceNorm2d(4),
    ],
)
def test_a_convolution_before_another_norm_is_fixed(norm: nn.Module) -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return net.head(pooled(net.b(F.relu(net.norm(net.a(x))))))

    graph = traced(forward, a=conv(3, 4), norm=norm, b=conv(4, 5), head=nn.Linear(5, 2)).channels
    assert [(layer.name, layer.in_sources) for layer in graph.layers] == [("b", runs((None, 4)))]
    assert "a" in {layer.name for layer in graph.fixed}


def test_a_batch_norm_of_its_own_shifts_the_zeros() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return net.head(pooled(net.b(net.norm(F.relu(net.a(x))))))

    graph = traced(
        forward, a=conv(3, 4), norm=nn.BatchNorm2d(4), b=conv(4, 5), head=nn.Linear(5, 2)
    ).channels
    assert graph.layers[0].norm is None
    assert graph.layers[0].joins_stream
    assert graph.layers[1].in_sources == runs((None, 4))
    assert graph.fixed[0] == FixedLayer("norm", runs((None, 4)), 64, 2, 0)  # stored whole


def test_a_batch_norm_beside_another_reader_is_not_folded() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = net.a(x)
        return net.head(torch.cat((pooled(net.norm(x)), pooled(x)), 1))

    parts = {"a": conv(3, 4), "norm": nn.BatchNorm2d(4), "head": nn.Linear(8, 2)}
    graph = traced(forward, **parts).channels
    assert graph.layers[0].norm is None
    assert graph.fixed[1].in_sources == runs((None, 4), (0, 4))


@pytest.mark.parametrize(
    "spoil",
    [
        torch.sigmoid,
        lambda x: x + 1,
        lambda x: x * torch.sigmoid(x),
        lambda x: F.softmax(x, dim=1),
        lambda x: x.flip(1),
        lambda x: x.transpose(1, 1),
        lambda x: torch.cat(torch.chunk(x, 2, dim=1), dim=1),
        lambda x: x.add_(torch.ones(1)),
        nn.Hardtanh(0.5, 1.0),
        nn.PixelShuffle(1),
    ],
)
def test_other_operations_count_as_whole(spoil: Callable[[torch.Tensor], torch.Tensor]) -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return net.head(pooled(net.b(spoil(net.a(x)))))

    parts = {"a": conv(3, 4), "b": conv(4, 5), "head": nn.Linear(5, 2)}
    if isinstance(spoil, nn.Module):
        parts["spoil"] = spoil
    graph = traced(forward, **parts).channels
    assert graph.layers[1].in_sources == runs((None, 4))
    assert graph.layers[0].joins_stream


def test_an_in_place_change_reaches_later_readers() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = net.a(x)
        y = torch.relu_(x)
        y.add_(1.0)
        return net.head(pooled(net.b(x)))

    graph = traced(forward, a=conv(3, 4), b=conv(4, 5), head=nn.Linear(5, 2)).channels
    assert graph.layers[1].in_sources == runs((None, 4))


def test_grouped_convolutions_and_shared_followers() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(net.a(x))
        deep = net.depthwise(x)
        x = net.grouped(torch.cat((deep, x), 1))
        return net.head(pooled(F.relu(net.image(x))))

    graph = traced(
        forward,
        a=conv(3, 4),
        depthwise=conv(4, 4, groups=4),
        grouped=conv(8, 6, groups=2, bias=False),
        image=conv(6, 6, groups=6),
        head=nn.Linear(6, 2),
    ).channels
    assert [layer.name for layer in graph.layers] == ["a"]
    assert graph.followers == (FollowerLayer("depthwise", None, 0, 4, (3, 3), (8, 8)),)
    grouped, image, _ = graph.fixed
    assert grouped == FixedLayer("grouped", runs((None, 8)), 27 * 64, 27, 0)
    assert image == FixedLayer("image", runs((None, 6)), 9 * 64, 9, 6)  # reads no layer


def test_subclasses_that_compute_the_same_are_known() -> None:
    class MyConv(nn.Conv2d):
        pass

    class Centred(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return net.head(pooled(net.b(F.relu(net.a(x)))))

    graph = traced(forward, a=MyConv(3, 4, 3), b=Centred(4, 5, 3), head=nn.Linear(5, 2)).channels
    assert [layer.name for layer in graph.layers] == ["a"]
    assert graph.fixed[0].in_sources == runs((None, 5))


def test_uncounted_parameters_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return net.head(pooled(net.scaled(net.a(x))))

    with caplog.at_level(logging.WARNING, logger="rlprune"):
        graph = traced(forward, a=conv(3, 4), scaled=Scaled(), head=nn.Linear(4, 2)).channels
    assert "scaled.scale" in caplog.text
    assert graph.fixed[0].in_sources == runs((None, 4))


# --- what tracing leaves alone, and what it returns -------------------------------------------


def test_the_network_is_left_as_it_was() -> None:
    module = built("resnet20", width=0.25).train()
    module.layer2.eval()
    state = copy.deepcopy(module.state_dict())
    flags = {name: part.training for name, part in module.named_modules()}
    result = trace_backbone(module, (3, 16, 16))
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert {name: part.training for name, part in module.named_modules()} == flags
    assert result.module.training
    own = dict(module.named_parameters())
    assert all(own[name] is p for name, p in result.module.named_parameters())
    assert len(own) == len(list(result.module.parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_every_named_layer_is_one_node(name: str) -> None:
    result = trace_backbone(built(name, 1, 1.0 if name == "resnet18" else 0.25), (1, 8, 8))
    nodes = [node.target for node in result.module.graph.nodes if node.op == "call_module"]
    graph = result.channels
    named = [*graph.layers, *graph.followers, *graph.fixed]
    names = [x.name for x in named] + [x.norm for x in named if getattr(x, "norm", None)]
    assert len(set(names)) == len(names)
    assert all(nodes.count(name) == 1 for name in names)


def test_functional_dropout_still_follows_train_and_eval() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout2d(net.a(x), 0.5, net.training)
        return net.head(F.dropout(pooled(x), training=net.training))

    module = Net(forward, a=conv(3, 4), head=nn.Linear(4, 2)).train()
    result = trace_backbone(module, (3, 8, 8))
    images = torch.randn(4, 3, 8, 8)
    torch.manual_seed(1)
    expected = module(images)
    torch.manual_seed(1)
    assert torch.equal(result.module(images), expected)
    assert torch.equal(result.module.eval()(images), module.eval()(images))
    assert result.channels.fixed[0].in_sources == runs((0, 4))


def test_stochastic_depth_still_follows_train_and_eval() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(net.a(x))
        return net.head(pooled(x + net.drop(F.relu(net.b(x)))))

    parts = {"a": conv(3, 4), "b": conv(4, 4), "drop": StochasticDepth(0.5, "row")}
    module = Net(forward, **parts, head=nn.Linear(4, 2)).train()
    result = trace_backbone(module, (3, 8, 8))
    images = torch.randn(8, 3, 8, 8)
    torch.manual_seed(1)
    expected = module(images)
    torch.manual_seed(1)
    assert torch.equal(result.module(images), expected)
    assert torch.equal(result.module.eval()(images), module.eval()(images))
    assert not torch.equal(expected, module(images))


def test_optional_arguments_keep_their_defaults() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = conv(3, 4), nn.Linear(4, 2)

        def forward(
            self, x: torch.Tensor, features: bool = False, mask: torch.Tensor | None = None
        ) -> torch.Tensor:
            x = pooled(self.a(x))
            if mask is not None:
                x = x * mask
            return x if features else self.head(x)

    module = Optional()
    result = trace_backbone(module, (3, 8, 8), 2)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(result.module(images), module(images))
    assert [n.op for n in result.module.graph.nodes].count("placeholder") == 1


# --- refusals ----------------------------------------------------------------------------------


class DataDependent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.mean() > 0 else -x


def test_untraceable_code_is_located() -> None:
    stage = nn.Sequential(nn.ReLU(), DataDependent())
    module = nn.Sequential(conv(3, 4), stage, nn.Flatten(), nn.Linear(256, 2))
    with pytest.raises(BackboneError) as caught:
        trace_backbone(module, (3, 8, 8))
    message = str(caught.value)
    assert "Sequential: tracing failed in module '1.1' (DataDependent)" in message
    assert "no if, for, len() or int()" in message
    assert module.training


def test_untraceable_code_of_the_network_itself() -> None:
    with pytest.raises(BackboneError, match="DataDependent: tracing failed in its forward"):
        trace_backbone(DataDependent(), (3, 8, 8))


def test_a_network_without_convolutions_is_refused() -> None:
    class Perceptron(nn.Sequential):
        pass

    with pytest.raises(BackboneError, match="Perceptron: no convolution can be pruned"):
        trace_backbone(Perceptron(nn.Flatten(), nn.Linear(192, 2)), (3, 8, 8))


def test_a_classifier_alone_cannot_be_pruned() -> None:
    module = nn.Sequential(nn.Conv2d(3, 10, 8), nn.Flatten())
    with pytest.raises(BackboneError, match="no convolution can be pruned"):
        trace_backbone(module, (3, 8, 8), 10)


def test_other_outputs_are_refused() -> None:
    module = nn.Sequential(conv(3, 4), nn.Flatten(), nn.Linear(256, 5))
    with pytest.raises(BackboneError, match=r"class scores \[B, 10\] \(got \[B, 5\]\)"):
        trace_backbone(module, (3, 8, 8), 10)
    with pytest.raises(BackboneError, match=r"\[B, num_classes\] \(got \[B, 4, 8, 8\]\)"):
        trace_backbone(nn.Sequential(conv(3, 4)), (3, 8, 8))
    with pytest.raises(BackboneError, match="must return one tensor"):
        traced(lambda net, x: (net.a(x), x), a=conv(3, 4))


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(BackboneError, match=r"images of shape \(1, 8, 8\) failed at call_module"):
        trace_backbone(built("m_cifarnet"), (1, 8, 8))


# --- attribution: a silenced channel is zero exactly where the findings say ------------------


def check_attribution(result: TracedBackbone, seed: int = 0) -> int:
    """Silence one channel of every prunable layer; all its readers must read zeros there.

    Returns the number of (layer, reader) pairs checked.
    """
    graph, module = result.channels, result.module.eval()
    generator = torch.Generator().manual_seed(seed)
    silenced = [
        int(torch.randint(layer.out_channels, (1,), generator=generator)) for layer in graph.layers
    ]
    checked = 0

    def silence(channel: int):
        def hook(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[:, channel] = 0.0
            return output

        return hook

    def check(sources: tuple[ChannelSource, ...]):
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            nonlocal checked
            total = sum(run.channels for run in sources)
            assert inputs[0].shape[1] % total == 0
            channels = inputs[0].flatten(1).unflatten(1, (total, -1))
            start = 0
            for run in sources:
                if run.layer is not None:
                    assert run.channels == graph.layers[run.layer].out_channels
                    assert not channels[:, start + silenced[run.layer]].any()
                    checked += 1
                start += run.channels

        return hook

    hooks = []
    for follower in graph.followers:
        sources = runs((follower.producer, follower.channels))
        hooks.append(module.get_submodule(follower.name).register_forward_pre_hook(check(sources)))
    for reader in (*graph.layers, *graph.fixed):
        part = module.get_submodule(reader.name)
        hooks.append(part.register_forward_pre_hook(check(reader.in_sources)))
    for layer in (*graph.layers, *graph.followers):
        producer = layer.index if isinstance(layer, PrunableLayer) else layer.producer
        part = module.get_submodule(layer.norm or layer.name)
        hooks.append(part.register_forward_hook(silence(silenced[producer])))
    with torch.no_grad():
        module(torch.randn(2, *graph.input_shape, generator=generator))
    for hook in hooks:
        hook.remove()
    return checked


def randomise_norms(module: nn.Module) -> nn.Module:
    """Shifts that would uncover a mask applied at the wrong place."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d) and part.affine:
            nn.init.uniform_(part.bias, 0.5, 1.5)
    return module


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("m_cifarnet", 8),  # seven chain links, the classifier
        ("resnet20", 10),  # one inside each block, stem to first block
        ("vgg16_bn", 13),
        ("resnet18", 9),
        ("mobilenet_v2", 42),  # 17 depthwise, 17 project, 7 behind blocks without add, linear
    ],
)
def test_attribution_in_built_ins(name: str, pairs: int) -> None:
    module = randomise_norms(built(name, 1))
    assert check_attribution(trace_backbone(module, (1, 28, 28))) == pairs


class RandomNet(nn.Module):
    """Operations drawn from a list of numbers; each takes one or two earlier tensors."""

    def __init__(self, genes: list[tuple[int, int, int]]) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self.steps: list[tuple[str, int, int, int]] = []
        channels = [3]
        kinds = ("conv", "norm conv", "depthwise", "grouped", "norm", "relu", "gelu", "sigmoid")
        kinds += ("pool", "add", "cat", "scale", "mul", "prelu", "dropout", "pixel", "clone")
        for gene, left, right in genes:
            kind, a, b = kinds[gene % len(kinds)], left % len(channels), right % len(channels)
            if kind in ("add", "mul") and channels[a] != channels[b]:
                kind = "cat"
            part = self._part(kind, channels[a], 2 + right % 5)
            self.parts.append(part)
            self.steps.append((kind, a, b, len(self.parts) - 1))
            width = channels[a] + channels[b] if kind == "cat" else channels[a]
            channels.append(part[0].out_channels if "conv" in kind else width)
        self.flat = bool(genes[-1][2] % 2)
        self.head = nn.Linear(sum(channels) * (36 if self.flat else 1), 3)

    @staticmethod
    def _part(kind: str, c_in: int, c_out: int) -> nn.Module:
        single = {
            "depthwise": conv(c_in, c_in, groups=c_in),
            "grouped": conv(c_in, c_in, groups=2 if c_in % 2 == 0 else 1),
            "norm": nn.BatchNorm2d(c_in),
            "relu": nn.ReLU(inplace=False),
            "gelu": nn.GELU(),
            "sigmoid": nn.Sigmoid(),
            "pool": nn.MaxPool2d(3, 1, 1),
            "prelu": nn.PReLU(),
            "dropout": nn.Dropout2d(),
        }
        if kind == "conv":
            return nn.Sequential(conv(c_in, c_out))
        if kind == "norm conv":
            return nn.Sequential(conv(c_in, c_out, bias=False), nn.BatchNorm2d(c_out))
        return single.get(kind, nn.Identity())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tensors = [x]
        for kind, a, b, part in self.steps:
            left, right = tensors[a], tensors[b]
            binary = {
                "add": lambda x, y: x + y,
                "mul": lambda x, y: x * y,
                "cat": lambda x, y: torch.cat((x, y), dim=1),
                "scale": lambda x, y: x * -0.5,
                "pixel": lambda x, y: x - 1.0,
                "clone": lambda x, y: x.clone().add_(y.mean()),
            }.get(kind)
            tensors.append(self.parts[part](left) if binary is None else binary(left, right))
        both = torch.cat(tensors, dim=1)
        return self.head(torch.flatten(both if self.flat else F.avg_pool2d(both, 6), 1))


GENES = st.lists(st.tuples(*[st.integers(0, 10_000)] * 3), min_size=3, max_size=12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(genes=GENES)
def test_attribution_in_random_networks(genes: list[tuple[int, int, int]]) -> None:
    torch.manual_seed(0)
    module = randomise_norms(RandomNet([(1, 0, 7), *genes]))
    result = trace_backbone(module, (3, 6, 6), 3)
    graph = result.channels
    for layer in graph.layers:
        assert sum(run.channels for run in layer.in_sources) == layer.in_channels
    assert [layer.index for layer in graph.layers] == list(range(len(graph.layers)))
    check_attribution(result)
    convs = executed_macs(module, (3, 6, 6))
    norms = {layer.name for layer in graph.fixed} & {
        name for name, part in module.named_modules() if isinstance(part, nn.BatchNorm2d)
    }
    norm_macs = sum(36 * module.get_submodule(name).num_features for name in norms)
    assert dense_macs(graph) == convs + norm_macs


def test_the_attribution_check_notices_a_wrong_attribution() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return net.head(pooled(net.b(torch.sigmoid(net.a(x)))))

    result = traced(forward, a=conv(3, 4), b=conv(4, 5), head=nn.Linear(5, 2))
    wrong = result.channels.layers[1].__class__(
        **{**vars(result.channels.layers[1]), "in_sources": runs((0, 4))}
    )
    layers = (result.channels.layers[0], wrong)
    graph = ChannelGraph((3, 8, 8), 2, layers, (), result.channels.fixed)
    assert isinstance(result.module, fx.GraphModule)
    with pytest.raises(AssertionError):
        check_attribution(TracedBackbone(result.module, graph))
