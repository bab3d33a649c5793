"""Gates that scale whole channels: keep * u * (norm(conv(x)) + shift), u_r cut at zero.

Source: Gao et al. 2019, "Dynamic Channel Pruning: Feature Boosting and Suppression", Sec. 3.

Legend: C channels of a layer.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from rlprune.pruning.gated import GatedNetwork, signed_product

_LEAST_SCALE = 1e-3


@torch.no_grad()
def boost_gates(network: GatedNetwork) -> None:
    """Rewrites a network whose predictors read nothing yet (W = 0) for boosted gates.

    A negative scale turns its filter round (norm has no affine part of its own); the shift is
    divided by the scale, which boosted gates apply to both. What the network computes stays,
    but for channels whose scale is all but zero. Switch the gates over with
    ``network.set_predictors(..., boosted=True)``.

    Raises:
        ValueError: a predictor has been trained.
    """
    if any(bool(layer.runtime_predictor.weight.any()) for layer in network.layers):
        raise ValueError("Gates can be rewritten only before their predictors are trained.")
    for layer in network.layers:
        bias, static = layer.runtime_predictor.bias, layer.static_importance
        sign = torch.where(signed_product(bias, static) < 0, -1.0, 1.0).to(bias)
        layer.conv.weight.mul_(sign.view(-1, 1, 1, 1))
        if layer.norm is not None:
            cast(Tensor, layer.norm.running_mean).mul_(sign)
        for part in (bias, static):
            part.abs_().clamp_(min=_LEAST_SCALE)
        layer.shift.div_(bias * static)
