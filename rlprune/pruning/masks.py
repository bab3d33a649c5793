"""Keep masks: from importances and keep ratios to the channels that an image computes.

Masks are ``keep_*``, True = kept. Legend: B images, C channels of one layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

TradeoffRule = Literal["permanent", "paper"]

# Products such as 0.3 * 10 are not exact in binary; counts are rounded after this margin.
_MARGIN = 1e-4


def kept_count(keep_ratio: Tensor, channels: int | Tensor) -> Tensor:
    """Channels kept at a keep ratio: ceil(a * C), at least 1, at most C.

    Args:
        keep_ratio: a, any shape.
        channels: C, an int or a tensor that broadcasts with it.

    Returns:
        int64 tensor of the broadcast shape.

    Source: paper Sec. 3.2.
    """
    total = torch.as_tensor(channels, dtype=torch.float64, device=keep_ratio.device)
    count = torch.ceil(keep_ratio.double() * total - _MARGIN)
    return torch.minimum(count.clamp(min=1.0), total).long()


def share(rate: Tensor, count: Tensor) -> Tensor:
    """floor(rate * count), robust against binary rounding; int64."""
    return torch.floor(rate.double() * count.double() + _MARGIN).long()


def importance_order(importance: Tensor) -> Tensor:
    """Channel indices from least to most important, [B, C] -> [B, C]; ties by index."""
    return importance.argsort(dim=-1, stable=True)


def lowest_members(order: Tensor, members: Tensor, count: Tensor) -> Tensor:
    """The ``count`` least important channels among ``members``.

    Args:
        order: channel indices from least to most important, [B, C].
        members: bool [B, C].
        count: int64 [B]; where it exceeds the number of members, all are taken.

    Returns:
        bool [B, C].
    """
    sorted_members = members.gather(1, order)
    taken = sorted_members & (sorted_members.cumsum(1) <= count.unsqueeze(1))
    return torch.zeros_like(members).scatter_(1, order, taken)


def _lowest(order: Tensor, count: Tensor) -> Tensor:
    positions = torch.arange(order.shape[1], device=order.device)
    taken = positions.unsqueeze(0) < count.unsqueeze(1)
    return torch.zeros_like(taken).scatter_(1, order, taken)


@dataclass(frozen=True)
class TradeoffKeep:
    """Outcome of the trade-off pruner for one layer.

    Attributes:
        keep: channels that are computed, bool [B, C].
        keep_stored: channels that are not deleted for good, bool [B, C]; a superset.
    """

    keep: Tensor
    keep_stored: Tensor


def permanent_count(rate: Tensor, static_kept: Tensor, channels: int) -> Tensor:
    """Channels deleted for good under the ``permanent`` rule: floor((1 - R_r) |M_s|), [B].

    Deviation: the paper claims this number for its own rule, which does not give it.
    """
    return share(1.0 - rate.double(), channels - static_kept)


def permanent_mask(
    static_importance: Tensor, static_kept: Tensor, rate: Tensor, rule: TradeoffRule
) -> Tensor:
    """Channels deleted for good, bool [B, C].

    P under ``permanent``; under ``paper`` all of M_s where R_r = 0 and nothing elsewhere.
    Arguments as for :func:`tradeoff_keep`.
    """
    order = importance_order(static_importance)
    if order.dim() == 1:
        order = order.expand(len(static_kept), -1)
    channels = order.shape[1]
    if rule == "permanent":
        return _lowest(order, permanent_count(rate, static_kept, channels))
    return _lowest(order, channels - static_kept) & (rate <= 0.0).unsqueeze(1)


def tradeoff_keep(
    runtime_importance: Tensor,
    static_importance: Tensor,
    runtime_kept: Tensor,
    static_kept: Tensor,
    rate: Tensor,
    rule: TradeoffRule = "permanent",
    permanent: Tensor | None = None,
) -> TradeoffKeep:
    """Combines the votes of the two agents at tradeoff rate R_r.

    M_r (M_s) are the C - kept channels of least runtime (static) importance and
    M_o = M_r AND M_s. Pruned are, under ``paper``, M_o, the least important
    floor(R_r |M_r - M_o|) other runtime votes and the least important
    floor((1 - R_r) |M_s - M_o|) other static votes; under ``permanent``, P (the lowest
    floor((1 - R_r) |M_s|) channels by static importance, the same for every input), M_o
    and the same runtime votes.

    Args:
        runtime_importance: u_r [B, C].
        static_importance: u_s [C] or [B, C].
        runtime_kept, static_kept: int64 [B], 1..C.
        rate: R_r [B], 0 (static only) to 1 (runtime only).
        rule: see above.
        permanent: :func:`permanent_mask` of the same arguments, where it is known already.

    Returns:
        The masks; at least one channel is kept. What ``paper`` stores is what some input
        could keep: every channel, unless R_r = 0 (for R_r > 0 an input whose M_r covers
        the static votes above a channel lets that channel survive).

    Source: paper Sec. 3.3, Eq. (4)-(6). Deviation: ``permanent`` is ours and the default.
    """
    channels = runtime_importance.shape[1]
    if permanent is None:
        permanent = permanent_mask(static_importance, static_kept, rate, rule)
    # A model without P has no u_r of P either: P counts as the least important at run time.
    runtime_order = importance_order(runtime_importance.masked_fill(permanent, -torch.inf))
    static_order = importance_order(static_importance)
    if static_order.dim() == 1:
        static_order = static_order.expand(len(runtime_order), channels)
    votes_runtime = _lowest(runtime_order, channels - runtime_kept)
    votes_static = _lowest(static_order, channels - static_kept)
    both = votes_runtime & votes_static
    only_runtime = votes_runtime & ~both
    pruned = both | lowest_members(runtime_order, only_runtime, share(rate, only_runtime.sum(1)))
    if rule == "permanent":
        pruned = pruned | permanent
    else:
        only_static = votes_static & ~both
        count = share(1.0 - rate.double(), only_static.sum(1))
        pruned = pruned | lowest_members(static_order, only_static, count)
    return TradeoffKeep(keep=~pruned, keep_stored=~permanent)


def cap_keep(keep: Tensor, runtime_importance: Tensor, cap: Tensor) -> Tensor:
    """Drops the least important kept channels until at most ``cap`` remain.

    Args:
        keep: bool [B, C].
        runtime_importance: u_r [B, C].
        cap: int64 [B].

    Returns:
        bool [B, C], a subset of ``keep``.
    """
    excess = keep.sum(1) - cap
    if not bool((excess > 0).any()):
        return keep
    order = importance_order(runtime_importance)
    return keep & ~lowest_members(order, keep, excess.clamp(min=0))
