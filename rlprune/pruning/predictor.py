"""The runtime importance predictor of one layer, whole or of low rank.

Legend: B images, C_in and C channels, r rank.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def rank_of(in_channels: int, out_channels: int, rank: int | None) -> int | None:
    """The rank r of a layer's predictor; None where the whole matrix is not larger."""
    if rank is None or rank * (in_channels + out_channels) >= in_channels * out_channels:
        return None
    return rank


class ImportancePredictor(nn.Module):
    """u_r = W p + b, or W (A p) + b with A [r, C_in], where p is the pooled input.

    W starts at zero and b where the caller sets it, so that u_r is b at first.

    Args:
        in_channels, out_channels: C_in, C.
        rank: most rows of A; None, or where it saves nothing: no A.
        device: of the parameters.

    Attributes:
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
        self.weight = nn.Parameter(torch.zeros(out_channels, width, device=device))
        self.bias = nn.Parameter(torch.ones(out_channels, device=device))
        if rank is None:
            self.register_parameter("code", None)
        else:
            self.code = nn.Parameter(torch.empty(rank, in_channels, device=device))
            nn.init.orthogonal_(self.code)

    def forward(self, pooled: Tensor) -> Tensor:
        """u_r [B, C] from the pooled input [B, C_in]."""
        code = cast(Tensor | None, self.code)
        return F.linear(pooled if code is None else F.linear(pooled, code), self.weight, self.bias)
