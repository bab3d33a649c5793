"""M-CifarNet, the CIFAR-10 network of the paper (Sec. 5) and of FBS before it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from rlprune.backbones.initialise import initialise, scaled

_DROPOUT = 0.1
"""Probability that a channel is dropped, after the 4th and the 7th convolution.

Deviation: the paper only says that there is channel dropout. We keep it small because the
width is a setting (at width 0.125 a layer has 16 channels, and half of them gone is not
regularisation any more), and because in the later phases the pruning mask itself removes
channels in training.
"""


@dataclass(frozen=True)
class _Stage:
    channels: int
    stride: int = 1
    padding: int = 1
    dropout: bool = False


_STAGES = (
    _Stage(64, padding=0),
    _Stage(64),
    _Stage(128, stride=2),
    _Stage(128, dropout=True),
    _Stage(128),
    _Stage(192, stride=2),
    _Stage(192, dropout=True),
    _Stage(192),
)


class MCifarNet(nn.Module):
    """Eight 3x3 convolutions with BatchNorm and ReLU, global average pool, linear.

    At 3x32x32 and width 1 its convolutions cost 174.3 M multiply-accumulates per image and
    hold 1.292 M parameters.

    Source: paper Sec. 5.

    Args:
        num_classes: width of the output.
        in_channels: channels of the image.
        width: multiplies every layer's channels (rounded, at least 1).
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels = in_channels
        for stage in _STAGES:
            out_channels = scaled(stage.channels, width)
            blocks.append(_block(channels, out_channels, stage))
            channels = out_channels
        self.features = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores [B, num_classes] of ``images`` [B, in_channels, H, W], H and W >= 3."""
        pooled = self.pool(self.features(images))
        scores: torch.Tensor = self.classifier(torch.flatten(pooled, 1))
        return scores


def _block(in_channels: int, out_channels: int, stage: _Stage) -> nn.Sequential:
    block = nn.Sequential()
    conv = nn.Conv2d(
        in_channels, out_channels, 3, stride=stage.stride, padding=stage.padding, bias=False
    )
    block.add_module("conv", conv)
    block.add_module("norm", nn.BatchNorm2d(out_channels))
    block.add_module("relu", nn.ReLU(inplace=True))
    if stage.dropout:
        block.add_module("dropout", nn.Dropout2d(_DROPOUT))
    return block


def m_cifarnet(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> MCifarNet:
    """Build :class:`MCifarNet` with fresh weights.

    Args:
        num_classes: width of the output.
        in_channels: channels of the image.
        width: multiplies every layer's channels (rounded, at least 1).

    Returns:
        The network, in training mode.
    """
    return MCifarNet(num_classes, in_channels, width)
