"""The runtime importance predictor of one layer, whole or of low rank.

Legend: B images, C_in and C channels, r rank.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_EPSILON = 1e-6


def rank_of(in_channels: int, out_channels: int, rank: int | None) -> int | None:
    """The rank r of a layer's predictor; None where the whole matrix is not larger."""
    if rank is None or rank * (in_channels + out_channels) >= in_channels * out_channels:
        return None
    return rank


def unit_scale(pooled: Tensor, channels: int) -> Tensor:
    """Pooled input [B, C] divided by its root mean square over ``channels`` channels.

    Channels that are zero may be left out of ``pooled``: a network without its deleted
    channels gives the number of channels before that.
    """
    return pooled * torch.rsqrt(pooled.square().sum(1, keepdim=True) / channels + _EPSILON)


class ImportancePredictor(nn.Module):
    """u_r = W p + b, or W (A p) + b with A [r, C_in]; p is the pooled input at unit scale.

    W starts at zero and b where the caller sets it, so that u_r is b at first.

    Deviation: the paper predicts from the pooled input as it is. A layer's output is then
    quadratic in the size of its input, and narrow deep networks overflow: VGG-16 at an
    eighth of its width had losses of 1,269 and infinity.

    Args:
        in_channels, out_channels: C_in, C.
        rank: most rows of A; None, or where it saves nothing: no A.
        device: of the parameters.

    Attributes:
        channels: C_in.
        weight: W, [C, C_in] or [C, r].
        bias: b, [C].
        code: A, or None.

    Source: paper Sec. 3.1, Eq. (1). Deviation: the paper's predictors are whole matrices,
    an eighth to a ninth of a 3x3 convolution each; rank 16 stores a fraction of that.
    """

    def __init__(
        self, in_channels: int, out_channels: int, rank: int | None, device: torch.device
    ) -> None:
        super().__init__()
        rank = rank_of(in_channels, out_channels, rank)
        width = in_channels if rank is None else rank
        self.channels = in_channels
        self.weight = nn.Parameter(torch.zeros(out_channels, width, device=device))
        self.bias = nn.Parameter(torch.ones(out_channels, device=device))
        if rank is None:
            self.register_parameter("code", None)
        else:
            self.code = nn.Parameter(torch.empty(rank, in_channels, device=device))
            nn.init.orthogonal_(self.code)

    def forward(self, pooled: Tensor) -> Tensor:
        """u_r [B, C] from the pooled input [B, C_in]."""
        code, pooled = cast(Tensor | None, self.code), unit_scale(pooled, self.channels)
        return F.linear(pooled if code is None else F.linear(pooled, code), self.weight, self.bias)
