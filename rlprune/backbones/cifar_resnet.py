"""ResNets for small images: He et al. 2016, Sec. 4.2, with option-A shortcuts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from rlprune.backbones.initialise import initialise, scaled


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut that has no parameters.

    Where the block strides or widens, the shortcut takes every ``stride``-th pixel and
    appends zero channels on both sides (option A).

    Args:
        in_channels, out_channels: channels before and after, in <= out.
        stride: of the first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.stride = stride
        self.added_channels = out_channels - in_channels

    def _shortcut(self, stream: torch.Tensor) -> torch.Tensor:
        if self.stride != 1:
            stream = stream[:, :, :: self.stride, :: self.stride]
        if self.added_channels:
            before = self.added_channels // 2
            stream = F.pad(stream, (0, 0, 0, 0, before, self.added_channels - before))
        return stream

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        """Map [B, in_channels, H, W] to [B, out_channels, ceil(H/stride), ceil(W/stride)]."""
        branch = self.relu(self.bn1(self.conv1(stream)))
        branch = self.bn2(self.conv2(branch))
        out: torch.Tensor = self.relu(branch + self._shortcut(stream))
        return out


class CifarResNet(nn.Module):
    """Stem, three stages of 16, 32 and 64 channels, global average pool, linear.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, Sec. 4.2.

    Args:
        blocks_per_stage: n; the network has 6n + 2 layers.
        num_classes: width of the output.
        in_channels: channels of the image.
        width: multiplies every layer's channels (rounded, at least 1).
    """

    def __init__(
        self,
        blocks_per_stage: int,
        num_classes: int = 10,
        in_channels: int = 3,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        channels = scaled(16, width)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        stages: list[nn.Module] = []
        for stage_channels, stride in ((16, 1), (32, 2), (64, 2)):
            out_channels = scaled(stage_channels, width)
            stage: list[nn.Module] = [BasicBlock(channels, out_channels, stride)]
            for _ in range(blocks_per_stage - 1):
                stage.append(BasicBlock(out_channels, out_channels, 1))
            stages.append(nn.Sequential(*stage))
            channels = out_channels
        self.layer1, self.layer2, self.layer3 = stages
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores [B, num_classes] of ``images`` [B, in_channels, H, W]."""
        stream = self.relu(self.bn1(self.conv1(images)))
        stream = self.layer3(self.layer2(self.layer1(stream)))
        scores: torch.Tensor = self.classifier(torch.flatten(self.pool(stream), 1))
        return scores


def resnet20(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> CifarResNet:
    """Build the 20-layer :class:`CifarResNet` (0.27 M parameters at width 1)."""
    return CifarResNet(3, num_classes, in_channels, width)


def resnet32(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> CifarResNet:
    """Build the 32-layer :class:`CifarResNet` (0.46 M parameters at width 1)."""
    return CifarResNet(5, num_classes, in_channels, width)


def resnet56(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> CifarResNet:
    """Build the 56-layer :class:`CifarResNet` (0.85 M parameters at width 1)."""
    return CifarResNet(9, num_classes, in_channels, width)
