"""Importances that rank channels before anything has been trained.

A network that was pretrained without gates says little about its channels: u_s is 1
everywhere and u_r is BatchNorm's scale, which hardly differs between channels. The first
masks would then drop channels almost at random. What a channel contributes to the next
layer is known, though: how large it is behind its ReLU, times how large the weights are that
read it. :func:`rank_importances` moves that number into u_r and u_s and leaves what the
network computes as it is. Measured in analysis/learning.md.

Deviation: not in the paper, which trains the importances from where they happen to be.

Legend: C channels of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from rlprune.pruning.gated import GatedConv, GatedNetwork

_LEAST = 1e-3  # of the mean: a channel that contributes nothing must stay trainable
_LEAST_STATIC = 0.05

# Operations f with f(a x) = a f(x) for every a > 0, channel by channel.
_MODULES = (
    *(nn.Identity, nn.ReLU, nn.LeakyReLU, nn.Dropout, nn.Dropout2d, nn.Flatten),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)
_FUNCTIONS: tuple[Any, ...] = (
    *(torch.relu, F.relu, F.leaky_relu, F.dropout, F.dropout2d, torch.flatten),
    *(F.max_pool2d, torch.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean),
)
_METHODS = ("relu", "relu_", "mean", "flatten", "view", "reshape", "contiguous", "clone")
_SHAPES = ("size", "dim")  # read no values


@torch.no_grad()
def rank_importances(network: GatedNetwork) -> None:
    """Rewrites a network so that u_r and u_s rank its channels by what they contribute.

    A channel's contribution is the root mean square of relu(scale * z + shift), z standard
    normal (what BatchNorm gives), times the norm of the weights that read it. Where the way
    to those weights is positively homogeneous (ReLU, pooling, ...) scale and shift are
    multiplied by a number and the weights are divided by it, so that the scale becomes the
    contribution. Elsewhere (a residual stream, depthwise convolutions, ReLU6) the scale
    ranks alone. Half of it, as its root, goes to u_s and the rest to u_r.

    Args:
        network: whose predictors do not read their input yet (W = 0). What it computes
            without pruning stays the same up to rounding; with all importances positive.

    Raises:
        ValueError: a predictor has been trained.
    """
    if any(bool(layer.runtime_predictor.weight.any()) for layer in network.layers):
        raise ValueError("Importances can be ranked only before their predictors are trained.")
    for layer in network.layers:
        _make_positive(layer)
    readers = [_readers(network, layer) for layer in network.layers]
    factors = [
        None if found is None else _relative(_activation(layer) * _norms(found), layer)
        for layer, found in zip(network.layers, readers, strict=True)
    ]
    for layer, found, factor in zip(network.layers, readers, factors, strict=True):
        if found is not None and factor is not None:
            layer.runtime_predictor.bias.mul_(factor)
            layer.shift.mul_(factor)
            for reader in found:
                reader.divide(factor)
        _split(layer)


def _make_positive(layer: GatedConv) -> None:
    """A negative scale turns its filter round; without BatchNorm the filter's norm is scale."""
    scale, weight = layer.runtime_predictor.bias, layer.conv.weight
    sign = torch.where(scale < 0, -1.0, 1.0).to(scale)
    weight.mul_(sign.view(-1, 1, 1, 1))
    scale.mul_(sign)
    if layer.norm is not None:
        cast(Tensor, layer.norm.running_mean).mul_(sign)
        return
    size = weight.flatten(1).norm(dim=1).clamp(min=1e-12)
    weight.div_(size.view(-1, 1, 1, 1))
    scale.mul_(size)


def _activation(layer: GatedConv) -> Tensor:
    """Root mean square of relu(scale * z + shift), z standard normal, [C]."""
    scale, shift = layer.runtime_predictor.bias, layer.shift
    if layer.norm is None:
        return scale.clone()
    ratio = (shift / scale.clamp(min=1e-12)).clamp(-30.0, 30.0)
    below = 0.5 * (1.0 + torch.erf(ratio / math.sqrt(2.0)))
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2.0 * math.pi)
    square = (scale.square() + shift.square()) * below + scale * shift * density
    return square.clamp(min=0.0).sqrt()


def _relative(contribution: Tensor, layer: GatedConv) -> Tensor:
    """What makes the scale proportional to the contribution; the scales' mean stays, [C]."""
    scale = layer.runtime_predictor.bias
    wanted = contribution / contribution.mean().clamp(min=1e-12) * scale.mean()
    least = _LEAST * scale.mean().clamp(min=1e-12)
    return wanted.clamp(min=float(least)) / scale.clamp(min=float(least))


def _split(layer: GatedConv) -> None:
    """u = u_r * u_s: both get the root of the scale, u_s with mean 1 over the channels."""
    scale = layer.runtime_predictor.bias
    share = (scale / scale.mean().clamp(min=1e-12)).clamp(min=_LEAST_STATIC).sqrt()
    layer.static_importance.mul_(share)
    scale.div_(share)


@dataclass(frozen=True)
class _Reader:
    """Weights that read all channels of one layer.

    Attributes:
        weight: [C', inputs, ...] of a convolution or a linear layer.
        first: position of the layer's first channel among the inputs.
        channels: C.
        each: inputs for each channel (more than one behind a flattening).
    """

    weight: Tensor
    first: int
    channels: int
    each: int

    def columns(self) -> Tensor:
        """The part of the weights, a view [C', C * each, ...]."""
        return self.weight[:, self.first * self.each : (self.first + self.channels) * self.each]

    def squares(self) -> Tensor:
        """Sum of squares for each channel, [C]."""
        squares = self.columns().square().transpose(0, 1).flatten(1).sum(1)
        return squares.view(-1, self.each).sum(1)

    def divide(self, factor: Tensor) -> None:
        """Divides what reads channel c by factor[c]."""
        shape = (1, -1) + (1,) * (self.weight.dim() - 2)
        self.columns().div_(factor.repeat_interleave(self.each).view(shape))


def _norms(readers: list[_Reader]) -> Tensor:
    total = readers[0].squares()
    for reader in readers[1:]:
        total = total + reader.squares()
    return total.sqrt()


def _readers(network: GatedNetwork, layer: GatedConv) -> list[_Reader] | None:
    """All weights that read a layer's output; None where it cannot be scaled by itself.

    Weights that also serve elsewhere (called twice, or shared) cannot be divided.
    """
    graph, index = network.channels, layer.layer.index
    calls = [str(node.target) for node in network.body.graph.nodes if node.op == "call_module"]
    names = [id(part) for _, part in network.named_parameters(remove_duplicate=False)]
    if layer.layer.joins_stream:
        return None
    sources = {part.name: part.in_sources for part in graph.layers}
    sources |= {part.name: part.in_sources for part in graph.fixed}
    found = []
    for name in _reached(network, layer):
        module = None if name is None else network.body.get_submodule(name)
        runs = sources.get(name or "", ())
        places = [place for place, run in enumerate(runs) if run.layer == index]
        weight = _weight(module)
        if weight is None or len(places) != 1:
            return None
        if calls.count(str(name)) > 1 or names.count(id(weight)) > 1:
            return None
        total = sum(run.channels for run in runs)
        first = sum(run.channels for run in runs[: places[0]])
        found.append(_Reader(weight, first, layer.layer.out_channels, weight.shape[1] // total))
    return found or None


def _weight(module: nn.Module | None) -> Tensor | None:
    if isinstance(module, GatedConv):
        return module.conv.weight
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
        return module.weight
    return None


def _reached(network: GatedNetwork, layer: GatedConv) -> Iterator[str | None]:
    """Modules that read a layer's output; None for anything that cannot be looked behind."""
    body = network.body
    calls = {
        n: body.get_submodule(str(n.target)) for n in body.graph.nodes if n.op == "call_module"
    }
    waiting = [node for node, module in calls.items() if module is layer]
    seen: set[fx.Node] = set(waiting)
    while waiting:
        for user in waiting.pop().users:
            if user in seen:
                continue
            seen.add(user)
            if user.op == "call_module" and _weight(calls[user]) is not None:
                yield str(user.target)
            elif _passes(user, calls.get(user)):
                waiting.append(user)
            elif not (user.op == "call_method" and user.target in _SHAPES):
                yield None


def _passes(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return type(module) in _MODULES
    if node.op == "call_method":
        return node.target in _METHODS
    return node.op == "call_function" and node.target in _FUNCTIONS
