"""Processes that train one network together, each on its share of every batch (no Ray here).

Whoever starts the processes has them join a group (:mod:`rlprune.training.group`); here is what
they tell each other. A process that is alone tells nobody anything and computes what it
would compute without this module, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from rlprune.errors import ReplicaError


@dataclass(frozen=True)
class Share:
    """The part of a batch that one process trains on: positions start .. stop - 1 of total.

    Everything random about an image follows from its position in the whole batch, so that
    it does not matter which process trains on it.
    """

    start: int
    stop: int
    total: int

    @classmethod
    def whole(cls, total: int) -> Share:
        """All of a batch."""
        return cls(0, total, total)

    def __len__(self) -> int:
        """Images in the share."""
        return self.stop - self.start

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the batch."""
        return len(self) == self.total

    @property
    def part(self) -> slice:
        """The share's positions in the batch."""
        return slice(self.start, self.stop)

    @property
    def weight(self) -> float:
        """Of the share's mean in the batch's mean."""
        return len(self) / self.total


class Replicas:
    """This process among those that train together.

    Args:
        rank: of this process, 0 .. size - 1.
        size: processes; more than one: all are in torch's default process group.
        device: on which the group's tensors must be ("cuda" for NCCL).

    Attributes:
        batch: this process's share of the batch at hand.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: str = "cpu") -> None:
        self.rank = rank
        self.size = size
        self.device = device
        self.batch = Share.whole(0)

    def begin(self, total: int) -> Share:
        """This process's share of the next batch, which layers will see as ``batch``."""
        self.batch = self.share(total)
        return self.batch

    def share(self, total: int) -> Share:
        """This process's part of a batch; the first ones have one image more than others.

        Raises:
            ReplicaError: there are fewer images than processes.
        """
        if total < self.size:
            raise ReplicaError(
                f"A batch of {total} images cannot be shared by {self.size} processes. Lower "
                "resources.cnn_workers, or train with larger batches (and enough images)."
            )
        small, more = divmod(total, self.size)
        start = self.rank * small + min(self.rank, more)
        return Share(start, start + small + (self.rank < more), total)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in the shape given; every process gets the same bits."""
        if self.size == 1:
            return values
        total = values.to(self.device, copy=True).contiguous()
        dist.all_reduce(total)
        return total.to(values.device)

    def any(self, flags: Tensor) -> Tensor:
        """Where any process has True, bool in the shape given."""
        if self.size == 1:
            return flags
        found = flags.to(self.device, torch.uint8)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return found.to(flags.device, torch.bool)

    def gather(self, values: Tensor) -> Tensor:
        """What every process has, in the order of their ranks, [size, *shape]."""
        own = values.to(self.device).contiguous()
        if self.size == 1:
            return own.unsqueeze(0).to(values.device)
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own)
        return torch.stack(found).to(values.device)

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replaces every gradient by its sum over all processes.

        A parameter keeps the gradient None where no process has one: optimizers leave it
        alone then, and would not if the gradient were zero.
        """
        if self.size == 1:
            return
        used = torch.tensor([parameter.grad is not None for parameter in parameters])
        used = self.any(used)
        chosen = [p for p, needed in zip(parameters, used.tolist(), strict=True) if needed]
        for parameter in chosen:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in chosen if p.grad is not None]
        if not gradients:
            return
        flat = self.sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, summed in zip(gradients, torch.split(flat, sizes), strict=True):
            gradient.copy_(summed.view(gradient.shape))


ALONE = Replicas()
"""One process that trains by itself."""
