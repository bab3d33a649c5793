"""The gated network: a backbone whose convolutions are scaled and masked per image.

Legend: B images, C_in and C channels, H x W pixels, T prunable layers.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rlprune.backbones.graph import ChannelGraph, FollowerLayer, PrunableLayer, TracedBackbone
from rlprune.pruning.batch_channels import (
    batch_channels,
    convolve_part,
    normalize_part,
    put_back,
)
from rlprune.pruning.batch_norm import guard_statistics, put_aside, take_over
from rlprune.pruning.design import GateDesign, pruned_share
from rlprune.pruning.predictor import ImportancePredictor
from rlprune.replicas import ALONE, Replicas

PAPER = GateDesign()
"""Whole predictors, nothing else."""


def signed_product(runtime: Tensor, static: Tensor) -> Tensor:
    """u = u_r * u_s, negative where both are (two unimportant votes stay unimportant).

    Source: paper Sec. 3.1.
    """
    product = runtime * static
    return torch.where((runtime < 0) & (static < 0), -product, product)


class Gate:
    """Decides, layer by layer during one forward pass, which channels are computed.

    The base class keeps everything. One instance serves one pass at a time; the masks of
    the last pass stay readable.

    Attributes:
        keep: decided masks, layer index -> bool [B, C], or None for "all".
    """

    def __init__(self) -> None:
        self.keep: dict[int, Tensor | None] = {}

    def decide(self, layer: int, pooled: Tensor, importance: Tensor) -> Tensor | None:
        """Keep mask of one layer.

        Args:
            layer: index t.
            pooled: global average of the layer's input, [B, C_in].
            importance: u_r [B, C].

        Returns:
            bool [B, C], True = kept; None keeps all.
        """
        return None

    def penalty(self) -> Tensor | None:
        """Term that training adds to the loss of the last pass; None adds nothing."""
        return None

    def __call__(self, layer: int, pooled: Tensor, importance: Tensor) -> Tensor | None:
        """Calls :meth:`decide` and remembers the mask for depthwise followers."""
        self.keep[layer] = self.decide(layer, pooled, importance)
        return self.keep[layer]


def _folded(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(reciprocal standard deviation [C], mean [C]) of BatchNorm's running statistics."""
    variance, mean = cast(Tensor, norm.running_var), cast(Tensor, norm.running_mean)
    return torch.rsqrt(variance + norm.eps), mean


class GatedConv(nn.Module):
    """Convolution, normalisation, importance scaling and masking of one prunable layer.

    Output: keep * (u * norm(conv(x)) + shift), u = u_r * u_s,
    u_r = W pool(x) + b. With W = 0, b = BatchNorm's scale, u_s = 1 and shift =
    BatchNorm's shift (how it is built) this is exactly the original convolution and
    BatchNorm; a pruned channel is exactly zero.

    Args:
        conv: the convolution; its bias becomes part of the normalisation or the shift.
        norm: the BatchNorm2d behind it, or None.
        layer: its record in the channel graph.
        design: predictors of low rank; scale and shift that follow the inputs' width: with
            m the share of the input channels that are pruned for an image, u is multiplied
            by 1 + m * width_scale, and m * width_shift is added to the shift (both start
            at zero). Deviation: not in the paper. One network under many widths sees
            inputs of many sizes, and one BatchNorm cannot suit them all (Yu et al. 2019,
            "Slimmable Neural Networks", Sec. 3.3, keep a BatchNorm for each width).

    Attributes:
        replicas: the processes that have the images of a batch, see
            :mod:`rlprune.pruning.synchronised`.

    Source: paper Sec. 3.1, Eq. (1)-(3). Deviation: W starts at zero, so that building the
    gated network does not change what a pretrained network computes.
    """

    replicas: Replicas = ALONE

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: nn.BatchNorm2d | None,
        layer: PrunableLayer,
        design: GateDesign = PAPER,
    ) -> None:
        super().__init__()
        self.layer = layer
        channels, device = layer.out_channels, conv.weight.device
        scale = torch.ones(channels, device=device)
        shift = torch.zeros(channels, device=device)
        if norm is not None:
            if conv.bias is not None:  # BatchNorm subtracts it again
                cast(Tensor, norm.running_mean).sub_(conv.bias.detach())
            scale, shift = norm.weight.detach().clone(), norm.bias.detach().clone()
            norm.affine = False  # scale and shift live in the predictor's bias and in beta
            norm.register_parameter("weight", None)
            norm.register_parameter("bias", None)
        elif conv.bias is not None:
            shift = conv.bias.detach().clone()
        self.conv = conv
        self.norm = norm
        conv.bias = None
        self.runtime_predictor = ImportancePredictor(
            layer.in_channels, channels, design.predictor_rank, device
        )
        with torch.no_grad():
            self.runtime_predictor.bias.copy_(scale)
        self.static_importance = nn.Parameter(torch.ones(channels, device=device))
        self.shift = nn.Parameter(shift)
        self.width_scale: nn.Parameter | None = None
        self.width_shift: nn.Parameter | None = None
        if design.has_width_affine(layer):
            self.width_scale = nn.Parameter(torch.zeros(channels, device=device))
            self.width_shift = nn.Parameter(torch.zeros(channels, device=device))
        self.use_predictor = True
        self.boosted = False

    def runtime_importance(self, pooled: Tensor) -> Tensor:
        """u_r [B, C] from the pooled input [B, C_in]; without predictor, its bias alone."""
        bias = self.runtime_predictor.bias.expand(len(pooled), -1)
        found = cast(Tensor, self.runtime_predictor(pooled)) if self.use_predictor else bias
        return found.relu() if self.boosted else found

    def forward(self, x: Tensor, gate: Gate) -> Tensor:
        """[B, C_in, H, W] -> [B, C, H', W']."""
        pooled = x.mean((2, 3))
        runtime = self.runtime_importance(pooled)
        keep = gate(self.layer.index, pooled, runtime)
        scale = signed_product(runtime, self.static_importance)
        shift = scale * self.shift if self.boosted else self.shift.expand_as(scale)
        if self.width_scale is not None and self.width_shift is not None:
            pruned = pruned_share(self.layer, gate.keep) if self.use_predictor else None
            if pruned is not None:
                scale = scale * (1.0 + pruned * self.width_scale)
                shift = shift + pruned * self.width_shift
        if keep is None:
            return self._affine(self.conv(x), scale, shift)
        scale, shift = scale * keep, shift * keep
        pixels = x.shape[2] * x.shape[3]
        part = None
        if self._divisible:
            part = batch_channels(self.layer, gate.keep, keep, pixels, self.replicas)
        if part is None:
            return self._affine(self.conv(x), scale, shift)
        y = convolve_part(self.conv, x, part)
        y = self._affine(y, scale[:, part.outputs], shift[:, part.outputs], part.outputs)
        return put_back(y, part.outputs, self.layer.out_channels)

    @property
    def _divisible(self) -> bool:
        """Whether some channels can be computed without the others.

        Not where BatchNorm takes a plain average over batches (momentum None): it counts
        batches, not those in which a channel was seen.
        """
        averages = self.norm is not None and self.norm.training and self.norm.momentum is None
        padded = isinstance(self.conv.padding, tuple) and self.conv.padding_mode == "zeros"
        return self.conv.groups == 1 and not averages and padded

    def _affine(
        self, y: Tensor, scale: Tensor, shift: Tensor, channels: Tensor | None = None
    ) -> Tensor:
        """scale * norm(y) + shift with scale and shift [B, k], of all or given channels."""
        if self.norm is not None and not self.norm.training:
            # Fold the statistics into the scale: one pass over y instead of two.
            reciprocal, mean = _folded(self.norm)
            if channels is not None:
                reciprocal, mean = reciprocal[channels], mean[channels]
            scale = scale * reciprocal
            shift = shift - scale * mean
        elif self.norm is not None:
            y = self.norm(y) if channels is None else normalize_part(self.norm, y, channels)
        return torch.addcmul(shift[:, :, None, None], y, scale[:, :, None, None])


class FollowerConv(nn.Module):
    """Depthwise convolution and its BatchNorm, masked like the layer that it follows."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, layer: FollowerLayer) -> None:
        super().__init__()
        self.layer = layer
        self.conv = conv
        self.norm = norm

    def forward(self, x: Tensor, gate: Gate) -> Tensor:
        """[B, C, H, W] -> [B, C, H', W']; masked channels are exactly zero."""
        y: Tensor = self.conv(x)
        keep = gate.keep.get(self.layer.producer)
        if keep is None:
            return y if self.norm is None else self.norm(y)
        return self._normalised(y, keep) * keep[:, :, None, None]

    def _normalised(self, y: Tensor, keep: Tensor) -> Tensor:
        if self.norm is None:
            return y
        aside = None
        if self.norm.training:
            replicas: Replicas = getattr(self.norm, "replicas", ALONE)
            aside = put_aside(self.norm, replicas.any(keep.any(0)))
        y = self.norm(y)
        take_over(self.norm, aside)
        return y


class GatedNetwork(nn.Module):
    """A traced backbone with a gate in front of every prunable convolution.

    Takes over the backbone's modules (trained weights included); the backbone itself must
    not be used afterwards.

    Args:
        traced: from :func:`rlprune.backbones.trace_backbone`.
        design: how the gates are built.

    Attributes:
        channels: the channel graph (costs are computed from it).
        layers: the T gated convolutions in execution order.

    Example:
        >>> network = GatedNetwork(trace_backbone(m_cifarnet(), (3, 32, 32)))
        >>> logits = network(images)                     # nothing pruned
        >>> logits = network(images, KeepRatioGate(...))  # see rlprune.mdp
    """

    def __init__(self, traced: TracedBackbone, design: GateDesign = PAPER) -> None:
        super().__init__()
        self.design = design
        self.channels: ChannelGraph = traced.channels
        self.body = traced.module
        gated: list[nn.Module] = []
        graph = self.body.graph
        first = next(iter(graph.nodes))
        with graph.inserting_before(first):
            gate_node = graph.placeholder("gate")
        for layer in traced.channels.layers:
            gated.append(self._replace(layer, GatedConv, gate_node))
        for follower in traced.channels.followers:
            self._replace(follower, FollowerConv, gate_node)
        called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
        for name in sorted(called):
            norm = self.body.get_submodule(name)
            if isinstance(norm, _BatchNorm):  # those of gates are called by their gates
                guard_statistics(norm)
        graph.lint()
        self.body.delete_all_unused_submodules()
        self.body.recompile()
        self.layers = [cast(GatedConv, module) for module in gated]

    def _replace(
        self,
        layer: PrunableLayer | FollowerLayer,
        kind: type[GatedConv] | type[FollowerConv],
        gate_node: torch.fx.Node,
    ) -> nn.Module:
        """Puts ``kind`` in the place of the layer's convolution; removes its BatchNorm."""
        conv = self.body.get_submodule(layer.name)
        norm = None if layer.norm is None else self.body.get_submodule(layer.norm)
        extra = (self.design,) if kind is GatedConv else ()
        module = kind(conv, norm, layer, *extra)  # type: ignore[arg-type]
        parent, _, leaf = layer.name.rpartition(".")
        setattr(self.body.get_submodule(parent), leaf, module)
        for node in list(self.body.graph.nodes):
            if node.op != "call_module":
                continue
            if node.target == layer.name:
                node.args = (*node.args, gate_node)
            elif node.target == layer.norm:
                node.replace_all_uses_with(node.args[0])
                self.body.graph.erase_node(node)
        return module

    def forward(self, images: Tensor, gate: Gate | None = None) -> Tensor:
        """Class logits of images [B, C, H, W] -> [B, K] under the gate's decisions."""
        return cast(Tensor, self.body(Gate() if gate is None else gate, images))

    def set_predictors(self, enabled: bool, boosted: bool = False) -> None:
        """Switches predictors and width-dependent parts on or off (off: plain BatchNorm).

        Args:
            enabled: on or off.
            boosted: u_r is cut at zero and scales the shift as well: keep * u * (norm(conv(x))
                + shift), the layer of Gao et al. 2019 (:func:`~rlprune.pruning.boost_gates`).
        """
        for layer in self.layers:
            layer.use_predictor, layer.boosted = enabled, boosted
