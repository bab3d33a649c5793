"""BatchNorm in pruned networks, and over a batch of which every process has only its share.

Running statistics: a channel that no image of a batch keeps is zero, and its variance would
fall to nothing while others are trained. The first image that keeps it would then be
multiplied by 1 / sqrt(eps) = 316 in every layer.

torch's own SyncBatchNorm refuses tensors that are not on an accelerator; here are the same
formulas for any device.

Legend: N images of this process, C channels, n numbers per channel in the whole batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rlprune.replicas import ALONE, Replicas


def _shape(x: Tensor) -> tuple[int, ...]:
    """Of numbers per channel that are to meet x [N, C, ...]."""
    return (1, -1, *(1 for _ in x.shape[2:]))


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


class Statistics(NamedTuple):
    """Running statistics of a BatchNorm, put aside during a batch.

    Attributes:
        mean, variance: [C].
        seen: bool [C], channels that some image of the batch has.
    """

    mean: Tensor
    variance: Tensor
    seen: Tensor


def put_aside(norm: _BatchNorm, seen: Tensor) -> Statistics | None:
    """Has the next call in training change copies of the statistics; None: it changes none.

    Copies, since the gradient's pass needs what the call has left behind as it was.

    Args:
        norm: will be called once before :func:`take_over`.
        seen: bool [C], channels that some image of the whole batch has.
    """
    if not norm.training or norm.running_mean is None or norm.running_var is None:
        return None
    aside = Statistics(norm.running_mean, norm.running_var, seen)
    norm.running_mean, norm.running_var = aside.mean.clone(), aside.variance.clone()
    return aside


@torch.no_grad()
def take_over(norm: _BatchNorm, aside: Statistics | None, mean_as_well: bool = True) -> None:
    """The new statistics of all channels but those that no image had.

    Args:
        norm: has been called.
        aside: from :func:`put_aside`.
        mean_as_well: whether the means of those stay, too (where batches are averaged, they do).
    """
    if aside is None:
        return
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    if norm.momentum is None:  # a plain average: of the batches that a channel was seen in
        mean, variance = _averages(norm, aside, (mean, variance))
        mean_as_well = True
    new = torch.where(aside.seen, mean, aside.mean) if mean_as_well else mean
    norm.running_mean = aside.mean.copy_(new)
    norm.running_var = aside.variance.copy_(torch.where(aside.seen, variance, aside.variance))


def _averages(norm: Any, aside: Statistics, found: tuple[Tensor, Tensor]) -> list[Tensor]:
    """BatchNorm has moved by 1 / batches; a channel moves by 1 / (batches that it was in)."""
    batches = int(norm.num_batches_tracked)
    if batches == 1 or getattr(norm, "seen_batches", None) is None:
        norm.seen_batches = torch.zeros_like(aside.mean)
    norm.seen_batches += aside.seen
    farther = batches / norm.seen_batches.clamp(min=1.0)
    before = (aside.mean, aside.variance)
    return [
        torch.where(farther == 1.0, new, old + (new - old) * farther)
        for old, new in zip(before, found, strict=True)
    ]


class Trained(NamedTuple):
    """Statistics of a BatchNorm before they are estimated anew.

    Attributes:
        mean, variance: [C]; None: it has none.
    """

    mean: Tensor | None
    variance: Tensor | None


def begin_estimate(norm: Any) -> Trained:
    """Forgets the statistics; the next batches are averaged."""
    kept = [value if value is None else value.clone() for value in _statistics_of(norm)]
    norm.reset_running_stats()
    norm.momentum, norm.seen_batches = None, None
    return Trained(*kept)


@torch.no_grad()
def end_estimate(norm: Any, trained: Trained, momentum: float | None) -> None:
    """A channel that was in no batch has the statistics of before."""
    norm.momentum = momentum
    if norm.seen_batches is None or trained.mean is None or trained.variance is None:
        return
    unseen = norm.seen_batches == 0
    norm.running_mean.copy_(torch.where(unseen, trained.mean, norm.running_mean))
    norm.running_var.copy_(torch.where(unseen, trained.variance, norm.running_var))


def _statistics_of(norm: Any) -> tuple[Tensor | None, Tensor | None]:
    return norm.running_mean, norm.running_var


def guard_statistics(norm: _BatchNorm) -> None:
    """Keeps the variance of a channel that is constant over a batch, as pruned ones are.

    For norms that do not know the masks. The mean moves: a channel may be constant without
    being pruned, and must then come out as in training.
    """
    norm.register_forward_pre_hook(_put_aside)
    norm.register_forward_hook(_take_over)


@torch.no_grad()
def _put_aside(norm: Any, given: tuple[Tensor, ...]) -> None:
    if norm.training:
        low, high = given[0].transpose(0, 1).flatten(1).aminmax(dim=1)
        found = getattr(norm, "replicas", ALONE).gather(torch.stack([low, -high]))
        low, high = found.amin(0)
        norm.statistics_aside = put_aside(norm, low < -high)


def _take_over(norm: Any, given: tuple[Tensor, ...], value: Tensor) -> None:
    if norm.training:
        take_over(norm, norm.statistics_aside, mean_as_well=False)
        norm.statistics_aside = None


def batch_statistics(x: Tensor, replicas: Replicas) -> tuple[Tensor, Tensor, int]:
    """Mean [C] and biased variance [C] of x [N, C, ...] over all processes, and n.

    Every process measures its own; means and squared deviations are then merged in double
    precision, which loses nothing where the mean is large against the deviation.

    Source: Chan, Golub and LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances", Eq. 2.1.
    """
    variance, mean = torch.var_mean(x, _all_but_channels(x), correction=0)
    count = torch.full((1,), x.numel() // x.shape[1], dtype=torch.float64, device=x.device)
    own = torch.cat([count, mean.double(), variance.double()])
    found = replicas.gather(own)
    counts = found[:, :1]
    means, variances = found[:, 1:].chunk(2, dim=1)
    total = counts.sum()
    merged = (counts * means).sum(0) / total
    squares = (counts * (variances + (means - merged).square())).sum(0)
    return merged.to(x.dtype), (squares / total).to(x.dtype), int(total)


class _Normalise(torch.autograd.Function):
    """(x - mean) / std, with the gradient through the whole batch's mean and std.

    Source: Ioffe and Szegedy 2015, "Batch Normalization", Algorithm 1 and the gradients
    below it; its sums over the batch are sums over all processes here.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, reciprocal: Tensor, count: int, replicas: Replicas
    ) -> Tensor:
        ctx.save_for_backward(x, mean, reciprocal)
        ctx.count, ctx.replicas = count, replicas
        shape = _shape(x)
        return torch.addcmul((-mean * reciprocal).view(shape), x, reciprocal.view(shape))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, mean, reciprocal = ctx.saved_tensors
        shape, rest = _shape(x), _all_but_channels(x)
        normalised = (x - mean.view(shape)) * reciprocal.view(shape)
        own = torch.stack([gradient.sum(rest), (gradient * normalised).sum(rest)])
        shift, slope = ctx.replicas.sum(own) / ctx.count
        centred = gradient - shift.view(shape) - normalised * slope.view(shape)
        return centred * reciprocal.view(shape), None, None, None, None


class SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """What a BatchNorm becomes where several processes train: see :func:`synchronised`.

    Attributes:
        replicas: the processes.
    """

    replicas: Replicas = ALONE

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] -> the same shape; in eval mode as any BatchNorm."""
        if not self.training:
            return super().forward(x)
        if self.running_mean is None or self.running_var is None:
            y = self.normalise(x, None, None, 0.0)
        else:
            cast(Tensor, self.num_batches_tracked).add_(1)
            momentum = self.momentum
            if momentum is None:  # a plain average over the batches
                momentum = 1.0 / float(cast(Tensor, self.num_batches_tracked))
            y = self.normalise(x, self.running_mean, self.running_var, momentum)
        if self.weight is not None:
            y = y * self.weight.view(_shape(x))
        return y if self.bias is None else y + self.bias.view(_shape(x))

    def normalise(
        self, x: Tensor, mean: Tensor | None, variance: Tensor | None, momentum: float
    ) -> Tensor:
        """x [N, C, ...] at mean 0 and deviation 1 over the whole batch, without affine part.

        Args:
            x: this process's images.
            mean, variance: running statistics [C], moved in place; None: there are none.
            momentum: how far.
        """
        found, spread, count = batch_statistics(x.detach(), self.replicas)
        if mean is not None and variance is not None:
            unbiased = spread * (count / max(1, count - 1))
            mean.mul_(1.0 - momentum).add_(found, alpha=momentum)
            variance.mul_(1.0 - momentum).add_(unbiased, alpha=momentum)
        reciprocal = torch.rsqrt(spread + self.eps)
        return cast(Tensor, _Normalise.apply(x, found, reciprocal, count, self.replicas))


class SynchronisedBatchNorm1d(SynchronisedBatchNorm, nn.BatchNorm1d):
    """Of [N, C] or [N, C, L]."""


class SynchronisedBatchNorm2d(SynchronisedBatchNorm, nn.BatchNorm2d):
    """Of [N, C, H, W]."""
