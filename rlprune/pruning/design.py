"""How a gate is built: what beside the paper's gate it has, or has less of.

Legend: B images, C_in channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rlprune.backbones.graph import PrunableLayer
from rlprune.config import PruningConfig


@dataclass(frozen=True)
class GateDesign:
    """One definition for the network and for its costs.

    Attributes:
        predictor_rank: largest rank of the importance predictors, None: whole matrices.
        width_affine: whether scale and shift follow the share of pruned inputs.
    """

    predictor_rank: int | None = None
    width_affine: bool = False

    @classmethod
    def of(cls, config: PruningConfig) -> GateDesign:
        """The design that a configuration asks for."""
        return cls(config.predictor_rank, config.width_affine)

    def has_width_affine(self, layer: PrunableLayer) -> bool:
        """Whether a layer has the width-dependent part: some of its inputs can be pruned."""
        return self.width_affine and any(s.layer is not None for s in layer.in_sources)


def pruned_share(layer: PrunableLayer, kept: Mapping[int, Tensor | None]) -> Tensor | None:
    """Share of a layer's input channels that are pruned, [B, 1]; None: nothing is pruned.

    Args:
        layer: the layer.
        kept: masks of the layers before it, bool [B, C of that layer]; None: all kept.
    """
    pruned: Tensor | None = None
    for source in layer.in_sources:
        mask = None if source.layer is None else kept.get(source.layer)
        if mask is not None:
            count = (~mask).sum(1, keepdim=True)
            pruned = count if pruned is None else pruned + count
    return None if pruned is None else pruned.to(torch.float32) / layer.in_channels
