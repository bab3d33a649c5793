"""A network whose processes, each with its share of a batch, compute what one would.

Three things couple the images of a batch: BatchNorm's statistics, the channels that are left
out since no image needs them (:mod:`rlprune.pruning.batch_channels`), and the one stream of
random numbers from which dropout takes. Everything else is done image by image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from rlprune.backbones.flow import drops_branches
from rlprune.errors import BackboneError
from rlprune.pruning.batch_norm import (
    SynchronisedBatchNorm,
    SynchronisedBatchNorm1d,
    SynchronisedBatchNorm2d,
)
from rlprune.pruning.gated import GatedConv, GatedNetwork
from rlprune.replicas import Replicas

_SYNCHRONISED: dict[type[nn.Module], type[SynchronisedBatchNorm]] = {
    nn.BatchNorm1d: SynchronisedBatchNorm1d,
    nn.BatchNorm2d: SynchronisedBatchNorm2d,
}


class SharedDropout(nn.Module):
    """Dropout of this process's share, with the random numbers that the whole batch takes.

    Args:
        dropout: of any kind; run on a batch that is zero outside of the share.
        replicas: the processes, each of which draws all numbers and uses its own.
    """

    def __init__(self, dropout: nn.Module, replicas: Replicas) -> None:
        super().__init__()
        self.dropout = dropout
        self.replicas = replicas

    def forward(self, x: Tensor) -> Tensor:
        """[N, ...] -> [N, ...]."""
        if not self.training:
            return x
        share = self.replicas.batch
        before, behind = _zeros_like(x, share.start), _zeros_like(x, share.total - share.stop)
        dropped: Tensor = self.dropout(torch.cat([before, x, behind]))
        return dropped[share.part]


def _zeros_like(x: Tensor, count: int) -> Tensor:
    """``count`` images of zeros; in x's layout, in whose order dropout draws."""
    zeros = x.new_zeros((count, *x.shape[1:]))
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return zeros.contiguous(memory_format=torch.channels_last)
    return zeros


def synchronise(network: GatedNetwork, replicas: Replicas) -> None:
    """Makes a network train on this process's share as part of the whole batch, in place.

    Parameters, buffers and their names stay; eval mode is not touched. All processes must
    run it on the same batches in the same order.

    Raises:
        BackboneError: a normalisation over the batch that is of another kind than
            BatchNorm1d and BatchNorm2d.
    """
    if replicas.size == 1:
        return
    for name, module in list(network.named_modules()):
        if isinstance(module, GatedConv):
            module.replicas = replicas
        elif isinstance(module, _DropoutNd) or drops_branches(module):
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, SharedDropout(module, replicas))
        elif isinstance(module, _BatchNorm):
            kind = _SYNCHRONISED.get(type(module))
            if kind is None:
                raise BackboneError(
                    f"{name}: {type(module).__name__} cannot be trained by several processes, "
                    "only BatchNorm1d and BatchNorm2d can. Set resources.cnn_workers to 1."
                )
            module.__class__ = kind
            module.replicas = replicas  # type: ignore[assignment]
