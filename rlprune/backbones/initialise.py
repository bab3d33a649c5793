"""What our own backbones share: scaled widths and He initialisation."""

from __future__ import annotations

from torch import nn


def scaled(channels: int, width: float) -> int:
    """``channels * width``, rounded, at least 1."""
    return max(1, round(channels * width))


def initialise(module: nn.Module) -> None:
    """Draw every convolution of ``module`` from He's normal distribution (fan out, ReLU).

    BatchNorm and linear layers keep torch's defaults.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
