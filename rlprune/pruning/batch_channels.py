"""Which channels any image of a batch needs: the others are not computed at all.

Legend: B images, C_in and C channels, k_in and k of them needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlprune.backbones.graph import PrunableLayer
from rlprune.pruning.batch_norm import SynchronisedBatchNorm
from rlprune.replicas import ALONE, Replicas

_WORTH_IT = 0.26
_LEAST_PIXELS = 100
"""Slicing and putting back cost time as well, and odd channel counts are slow: done where at most
half of the inputs and half of the outputs are left, and where the layer's input is not too small.

Measured, training steps of m_cifarnet at width 0.25 on one thread, new time over old: static_l1
at 0.5 on 28x28 images 0.85 (n = 4 interleaved pairs), on 8x8 images 1.1; uniform at 0.5, where
the images' masks begin to differ, 1.2 with a limit of 0.35.
"""


class BatchChannels(NamedTuple):
    """Needed channels of a layer, as indices.

    Attributes:
        inputs: int64 [k_in].
        outputs: int64 [k].
    """

    inputs: Tensor
    outputs: Tensor


def batch_channels(
    layer: PrunableLayer,
    kept: Mapping[int, Tensor | None],
    keep: Tensor,
    pixels: int,
    replicas: Replicas = ALONE,
) -> BatchChannels | None:
    """What a batch needs of one layer; None where leaving out the rest saves no time.

    Args:
        layer: the layer.
        kept: masks of the layers before it, bool [B, C_in of a source]; None: all.
        keep: its own masks, bool [B, C].
        pixels: of the layer's input.
        replicas: the processes that have the batch's images.
    """
    if pixels < _LEAST_PIXELS:
        return None
    outputs = keep.any(0)
    parts = []
    for source in layer.in_sources:
        mask = None if source.layer is None else kept.get(source.layer)
        parts.append(outputs.new_ones(source.channels) if mask is None else mask.any(0))
    needed = replicas.any(torch.cat([outputs, *parts]))
    outputs, inputs = needed[: len(outputs)], needed[len(outputs) :]
    work = inputs.sum() * outputs.sum()
    if bool(work > _WORTH_IT * inputs.numel() * outputs.numel()) or not bool(inputs.any()):
        return None
    return BatchChannels(inputs.nonzero().squeeze(1), outputs.nonzero().squeeze(1))


def convolve_part(conv: nn.Conv2d, x: Tensor, part: BatchChannels) -> Tensor:
    """The needed outputs of ``conv`` from the needed inputs, [B, C_in, ..] -> [B, k, ..]."""
    weight = conv.weight[part.outputs][:, part.inputs]
    inputs = x[:, part.inputs]
    return F.conv2d(inputs, weight, None, conv.stride, conv.padding, conv.dilation)


def normalize_part(norm: nn.BatchNorm2d, y: Tensor, outputs: Tensor) -> Tensor:
    """BatchNorm (without affine part) in training mode of the needed channels [B, k, H, W].

    Running statistics of the other channels stay as they are: nobody saw them.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.momentum is not None
    mean, variance = norm.running_mean[outputs], norm.running_var[outputs]
    if isinstance(norm, SynchronisedBatchNorm):
        y = norm.normalise(y, mean, variance, norm.momentum)
    else:
        y = F.batch_norm(y, mean, variance, None, None, True, norm.momentum, norm.eps)
    with torch.no_grad():
        norm.running_mean[outputs] = mean
        norm.running_var[outputs] = variance
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked += 1
    return y


def put_back(y: Tensor, outputs: Tensor, channels: int) -> Tensor:
    """[B, k, H, W] -> [B, C, H, W], zero in the other channels."""
    whole = torch.zeros(
        (y.shape[0], channels, *y.shape[2:]),
        dtype=y.dtype,
        device=y.device,
    ).contiguous(memory_format=torch.channels_last)
    return whole.index_copy_(1, outputs, y)
