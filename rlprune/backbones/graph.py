"""What tracing finds in a backbone: who is prunable, and who reads whose channels.

These records are the whole interface between ``rlprune.backbones`` (which finds them)
and ``rlprune.pruning`` (which masks channels and counts costs). They hold plain numbers
and module paths, no tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.fx


@dataclass(frozen=True)
class ChannelSource:
    """A run of consecutive channels that a consumer reads.

    Attributes:
        layer: index of the prunable layer whose mask silences these channels (a masked
            channel is exactly zero here), or None where they are always whole: the
            image, a residual stream, anything behind an operation that does not keep
            zeros at zero.
        channels: number of channels in the run.
    """

    layer: int | None
    channels: int


@dataclass(frozen=True)
class PrunableLayer:
    """A convolution (groups = 1) whose output channels can be masked.

    Attributes:
        index: position t in execution order, 0-based.
        name: module path of the convolution.
        norm: module path of the BatchNorm2d that alone reads its output, or None.
        in_sources: who provides its input channels, in channel order.
        in_channels, out_channels: C_in and C.
        kernel_size, stride: (height, width).
        out_size: (H', W') at the traced input size.
        joins_stream: True where some consumer needs every channel at its place (it adds the
            output to another tensor, is a grouped convolution or a BatchNorm of its own),
            so that all C channels are there behind and a stored channel needs an index.
    """

    index: int
    name: str
    norm: str | None
    in_sources: tuple[ChannelSource, ...]
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    out_size: tuple[int, int]
    joins_stream: bool


@dataclass(frozen=True)
class FollowerLayer:
    """A depthwise convolution: its channel c exists exactly if its producer's channel c does.

    Attributes:
        name, norm: module paths as for :class:`PrunableLayer`.
        producer: index of the prunable layer that it follows.
        channels: C (channel multiplier 1).
        kernel_size, out_size: (height, width).
    """

    name: str
    norm: str | None
    producer: int
    channels: int
    kernel_size: tuple[int, int]
    out_size: tuple[int, int]


@dataclass(frozen=True)
class FixedLayer:
    """A layer that is never pruned itself but whose cost depends on what it reads.

    The classifier, grouped convolutions, convolutions that are called twice, stand-alone
    BatchNorms.

    Attributes:
        name: module path.
        in_sources: who provides its input channels.
        macs_per_channel: multiply-accumulates per image for each input channel read.
        parameters_per_channel: stored numbers for each input channel read.
        extra_parameters: stored numbers that do not depend on the input (bias, BatchNorm).
    """

    name: str
    in_sources: tuple[ChannelSource, ...]
    macs_per_channel: int
    parameters_per_channel: int
    extra_parameters: int


@dataclass(frozen=True)
class ChannelGraph:
    """Everything about a backbone that pruning needs to know, at one input size.

    Attributes:
        input_shape: (C, H, W) of one image.
        num_classes: width of the output.
        layers: prunable layers in execution order.
        followers, fixed: see the classes.
    """

    input_shape: tuple[int, int, int]
    num_classes: int
    layers: tuple[PrunableLayer, ...]
    followers: tuple[FollowerLayer, ...]
    fixed: tuple[FixedLayer, ...]


@dataclass(frozen=True)
class TracedBackbone:
    """A backbone as an fx graph plus what was found in it.

    Attributes:
        module: GraphModule that computes what the original computed and shares its
            parameters; each layer named in ``channels`` is one ``call_module`` node.
        channels: the findings.
    """

    module: torch.fx.GraphModule
    channels: ChannelGraph
