"""Small networks for tests, and the physically smaller network that ``permanent`` promises.

:class:`SmallNetwork` is written without rlprune's masks and costs: it deletes tensors and
runs what is left, so that tests can hold the masked network and the cost model against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from rlprune.backbones import trace_backbone
from rlprune.pruning import PAPER, GatedConv, GateDesign, GatedNetwork
from rlprune.pruning.gated import FollowerConv

# --- networks -------------------------------------------------------------------------------


class ThreeLayers(nn.Module):
    """2x6x6 -> conv 3x3 (4, 6x6) -> conv 3x3 stride 2 (6, 3x3) -> conv 1x1 (5, 3x3) -> 3."""

    shape = (2, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(6, 5, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(5)
        self.classifier = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.relu(self.norm3(self.conv3(x)))
        return self.classifier(x.mean((2, 3)))


class InvertedResidual(nn.Module):
    """1x4x4 -> conv 3x3 (3); plus 1x1 (4) -> depthwise 3x3 -> 1x1 (3) on it -> linear 2."""

    shape = (1, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(3)
        self.widen = nn.Conv2d(3, 4, 1, bias=False)
        self.widen_norm = nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(4)
        self.narrow = nn.Conv2d(4, 3, 1, bias=False)
        self.narrow_norm = nn.BatchNorm2d(3)
        self.classifier = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        stream = F.relu(self.stem_norm(self.stem(x)))
        y = F.relu6(self.widen_norm(self.widen(stream)))
        y = F.relu6(self.depthwise_norm(self.depthwise(y)))
        stream = stream + self.narrow_norm(self.narrow(y))
        return self.classifier(stream.mean((2, 3)))


class Sequential(nn.Module):
    """3x3 convolutions of the given widths, BatchNorm, ReLU; the second has stride 2."""

    shape = (2, 5, 5)

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels = 2
        for index, width in enumerate(widths):
            stride = 2 if index == 1 else 1
            blocks.append(nn.Conv2d(channels, width, 3, stride, padding=1, bias=False))
            blocks += [nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Residual(nn.Module):
    """A stem of ``widths[0]`` channels, then one block per further width that adds into it.

    Even blocks widen with a 3x3 convolution; odd ones with a 1x1 convolution and a
    depthwise one, as MobileNet does. The classifier reads every pixel of the stream.
    """

    shape = (2, 4, 4)

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        stream = widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(2, stream, 3, padding=1, bias=False), nn.BatchNorm2d(stream), nn.ReLU()
        )
        self.branches = nn.ModuleList()
        for index, width in enumerate(widths[1:]):
            size = 1 if index % 2 else 3
            parts: list[nn.Module] = [
                nn.Conv2d(stream, width, size, padding=size // 2, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU6(),
            ]
            if index % 2:
                parts += [
                    nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU6(),
                ]
            parts += [nn.Conv2d(width, stream, 1, bias=False), nn.BatchNorm2d(stream)]
            self.branches.append(nn.Sequential(*parts))
        self.classifier = nn.Linear(stream * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.stem(x)
        for branch in self.branches:
            stream = F.relu(stream + branch(stream))
        return self.classifier(torch.flatten(stream, 1))


def gated(backbone: nn.Module, seed: int | None = None, design: GateDesign = PAPER) -> GatedNetwork:
    """The traced backbone in eval mode; with a seed everything in it is made arbitrary."""
    network = GatedNetwork(trace_backbone(backbone, backbone.shape), design).eval()
    if seed is not None:
        randomise(network, seed)
    return network


@torch.no_grad()
def randomise(network: GatedNetwork, seed: int) -> None:
    """Weights, BatchNorm statistics, predictors, u_s of both signs, shifts: all arbitrary."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor, mean: float, spread: float) -> Tensor:
        return mean + spread * torch.randn(like.shape, generator=generator)

    for name, parameter in network.named_parameters():
        if name.endswith("static_importance"):
            parameter.copy_(normal(parameter, 0.5, 0.7))
        elif name.endswith("runtime_predictor.bias"):
            parameter.copy_(normal(parameter, 0.7, 0.7))
        else:
            parameter.copy_(normal(parameter, 0.0, 0.4))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(normal(module.running_mean, 0.0, 0.3))
            module.running_var.uniform_(0.5, 2.0, generator=generator)


# --- the smaller network --------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """The stored channels alone of what layer ``layer`` put out."""

    tensor: Tensor
    layer: int


class SmallNetwork(fx.Interpreter):
    """A gated network without its permanently pruned channels; eval mode.

    What is left of it, in numbers that a file would hold (:attr:`tensors`):

    - per gated convolution the stored filters over the stored input channels, with
      BatchNorm's reciprocal deviation folded in, and per stored channel: BatchNorm's
      (folded) mean, the gate's shift beta, u_s, the predictor's row over the stored input
      channels (or over its low-rank code, and the code's columns), the predictor's bias;
    - per depthwise follower the stored filters with BatchNorm folded in, and its shift;
    - per linear layer the columns of stored input channels, and the bias;
    - :attr:`indices`: where a layer's stored channels stand in a residual stream, for
      layers that add into one.

    Channels are read and written at their compact positions; before an addition they are
    put at their places in the whole stream (``index_add``).

    Args:
        network: gated network, left as it is.
        stored: bool [C] per layer.
    """

    def __init__(self, network: GatedNetwork, stored: Sequence[Tensor]) -> None:
        super().__init__(network.body)
        self.network = network
        self.stored = [mask.nonzero().squeeze(1) for mask in stored]
        self.tensors: dict[str, dict[str, Tensor]] = {}
        self.indices = [
            self.stored[layer.index] for layer in network.channels.layers if layer.joins_stream
        ]
        for layer in network.channels.layers:
            module = network.body.get_submodule(layer.name)
            self.tensors[layer.name] = self._slice_gated(module)
        for follower in network.channels.followers:
            module = network.body.get_submodule(follower.name)
            self.tensors[follower.name] = self._slice_follower(module)
        for fixed in network.channels.fixed:
            module = network.body.get_submodule(fixed.name)
            self.tensors[fixed.name] = {
                "weight": module.weight[:, self._columns(fixed.in_sources, module.in_features)],
                "bias": module.bias,
            }

    def numbers(self) -> int:
        """Elements of all tensors (without the indices)."""
        return sum(t.numel() for layer in self.tensors.values() for t in layer.values())

    def index_numbers(self) -> int:
        """Indices into residual streams."""
        return sum(len(index) for index in self.indices)

    @torch.no_grad()
    def __call__(self, images: Tensor, keep: Mapping[int, Tensor]) -> Tensor:
        """Logits under the masks ``keep`` (layer -> bool [B, C]) of the whole network."""
        self._keep = {layer: mask[:, self.stored[layer]] for layer, mask in keep.items()}
        return self.run(None, images)

    # --- deleting -----------------------------------------------------------------------

    def _columns(self, sources: Sequence[Any], features: int) -> Tensor:
        """Stored positions among a consumer's inputs (several per channel if flattened)."""
        total = sum(source.channels for source in sources)
        each = features // total
        columns, start = [], 0
        for source in sources:
            whole = torch.arange(source.channels)
            channels = whole if source.layer is None else self.stored[source.layer]
            columns.append(start + channels)
            start += source.channels
        flat = torch.cat(columns)
        return (flat.unsqueeze(1) * each + torch.arange(each)).flatten()

    def _slice_gated(self, module: GatedConv) -> dict[str, Tensor]:
        rows = self.stored[module.layer.index]
        columns = self._columns(module.layer.in_sources, module.layer.in_channels)
        tensors = {
            "filter": module.conv.weight[rows][:, columns].clone(),
            "beta": module.shift[rows],
            "static": module.static_importance[rows],
            "bias": module.runtime_predictor.bias[rows],
        }
        predictor = module.runtime_predictor
        if predictor.code is None:
            tensors["row"] = predictor.weight[rows][:, columns]
        else:
            tensors |= {"code": predictor.code[:, columns], "row": predictor.weight[rows]}
        if module.norm is not None:
            reciprocal = 1.0 / (module.norm.running_var[rows] + module.norm.eps).sqrt()
            tensors["filter"] *= reciprocal[:, None, None, None]
            tensors["mean"] = module.norm.running_mean[rows] * reciprocal
        if module.width_scale is not None:
            tensors |= {"width_scale": module.width_scale[rows]}
            tensors |= {"width_shift": module.width_shift[rows]}
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def _slice_follower(self, module: FollowerConv) -> dict[str, Tensor]:
        rows = self.stored[module.layer.producer]
        norm = module.norm
        assert norm is not None
        scale = norm.weight[rows] / (norm.running_var[rows] + norm.eps).sqrt()
        bias = 0.0 if module.conv.bias is None else module.conv.bias[rows]
        return {
            "filter": (module.conv.weight[rows] * scale[:, None, None, None]).detach(),
            "shift": (norm.bias[rows] + (bias - norm.running_mean[rows]) * scale).detach(),
        }

    # --- running ------------------------------------------------------------------------

    def _gated(self, module: GatedConv, x: Tensor) -> Tensor:
        t, conv = self.tensors[module.layer.name], module.conv
        seen = x.mean((2, 3))
        power = seen.square().sum(1, keepdim=True) / module.layer.in_channels
        seen = seen / (power + 1e-6).sqrt()
        seen = F.linear(seen, t["code"]) if "code" in t else seen
        runtime = F.linear(seen, t["row"], t["bias"])
        size = runtime.abs() * t["static"].abs()
        u = torch.where((runtime < 0) | (t["static"] < 0), -size, size)
        beta = t["beta"]
        if "width_scale" in t:
            share = self._pruned_share(module).unsqueeze(1)
            u, beta = u * (1 + share * t["width_scale"]), beta + share * t["width_shift"]
            beta = beta[:, :, None, None]
        else:
            beta = beta[:, None, None]
        y = F.conv2d(x, t["filter"], None, conv.stride, conv.padding, conv.dilation)
        if "mean" in t:
            y = y - t["mean"][:, None, None]
        y = u[:, :, None, None] * y + beta
        return y * self._keep[module.layer.index][:, :, None, None]

    def _pruned_share(self, module: GatedConv) -> Tensor:
        """Of the whole network's input channels, those neither stored nor kept; [B]."""
        kept: Any = 0
        for source in module.layer.in_sources:
            whole = source.layer is None
            kept = kept + (source.channels if whole else self._keep[source.layer].sum(1))
        return 1.0 - kept / module.layer.in_channels

    def _follower(self, module: FollowerConv, x: Tensor) -> Tensor:
        t, conv = self.tensors[module.layer.name], module.conv
        y = F.conv2d(x, t["filter"], t["shift"], conv.stride, conv.padding, groups=x.shape[1])
        return y * self._keep[module.layer.producer][:, :, None, None]

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.module.get_submodule(target)
        x = args[0]
        tensor = x.tensor if isinstance(x, _Part) else x
        if isinstance(module, GatedConv):
            return _Part(self._gated(module, tensor), module.layer.index)
        if isinstance(module, FollowerConv):
            return _Part(self._follower(module, tensor), module.layer.producer)
        if isinstance(module, nn.Linear):
            return F.linear(tensor, **self.tensors[target])
        return self._per_channel(x, module(tensor))

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) == 2 and all(isinstance(a, (_Part, Tensor)) for a in args):
            return target(*map(self._whole, args), **kwargs)
        return self._per_channel(args[0], target(*map(_tensor, args), **kwargs))

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensor, *rest = map(_tensor, args)
        return self._per_channel(args[0], getattr(tensor, target)(*rest, **kwargs))

    @staticmethod
    def _per_channel(x: Any, result: Tensor) -> Any:
        """Any other operation of these networks treats each channel alone."""
        return _Part(result, x.layer) if isinstance(x, _Part) else result

    def _whole(self, x: _Part | Tensor) -> Tensor:
        if isinstance(x, Tensor):
            return x
        channels = self.network.channels.layers[x.layer].out_channels
        stream = x.tensor.new_zeros(len(x.tensor), channels, *x.tensor.shape[2:])
        return stream.index_add(1, self.stored[x.layer], x.tensor)


def _tensor(value: Any) -> Any:
    return value.tensor if isinstance(value, _Part) else value
