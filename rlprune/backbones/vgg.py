"""VGG-16 with BatchNorm for small images: 13 convolutions, one linear layer."""

from __future__ import annotations

import torch
from torch import nn

from rlprune.backbones.initialise import initialise, scaled

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""(channels, convolutions) before each max-pool."""


class VGG(nn.Module):
    """Five stages of 3x3 convolutions with BatchNorm and ReLU, a max-pool after each.

    The max-pools round sizes up, so that images of 8x8 or 28x28 pixels work as well. A
    global average pool and one linear layer replace the three large linear layers of
    Simonyan & Zisserman (2015), as is usual for CIFAR.

    Args:
        num_classes: width of the output.
        in_channels: channels of the image.
        width: multiplies every layer's channels (rounded, at least 1).
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for stage_channels, convolutions in _STAGES:
            out_channels = scaled(stage_channels, width)
            for _ in range(convolutions):
                layers.append(nn.Conv2d(channels, out_channels, 3, padding=1, bias=False))
                layers.append(nn.BatchNorm2d(out_channels))
                layers.append(nn.ReLU(inplace=True))
                channels = out_channels
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores [B, num_classes] of ``images`` [B, in_channels, H, W]."""
        pooled = self.pool(self.features(images))
        scores: torch.Tensor = self.classifier(torch.flatten(pooled, 1))
        return scores


def vgg16_bn(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> VGG:
    """Build :class:`VGG` with fresh weights (14.7 M convolution parameters at width 1)."""
    return VGG(num_classes, in_channels, width)
