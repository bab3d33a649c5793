"""One batch of episodes: images in, trajectories, rewards and measurements out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rlprune.agents.networks import AgentPolicy, Trajectory
from rlprune.mdp.environment import PruningGate, PruningRules, StaticPlan
from rlprune.mdp.reward import (
    PriceCurve,
    accuracy_term,
    compute_term,
    leave_one_out,
    mean_compute_term,
    storage_term,
)
from rlprune.pruning import EpisodeBudgets, GatedNetwork


@dataclass(frozen=True)
class RewardScales:
    """What turns costs and losses into rewards.

    Attributes:
        average_loss: moving average of the cross-entropy loss.
        dense_macs, dense_bytes: costs of the dense network.
        price: price of compute where a mean budget is set.
        group: episodes per image (baseline of leave_one_out).
    """

    average_loss: float
    dense_macs: float
    dense_bytes: float
    price: PriceCurve | None
    group: int


@dataclass(frozen=True)
class Rollout:
    """B finished episodes.

    Attributes:
        runtime, static: trajectories of the two agents.
        runtime_reward, static_reward: raw rewards [B].
        runtime_signal, static_signal: the same minus the image's baseline [B]: what PPO
            learns from.
        loss: cross-entropy [B].
        correct: bool [B].
        macs: fraction of the dense network's MACs [B].
        storage: fraction of the dense network's bytes [B].
        rate: R_r [B].
        mean_target: mean-compute budget, fraction of dense MACs [B], infinity = none.
        compute_cap: budget of any image's MACs, likewise [B].
        storage_cap: storage budget, fraction of the dense network's bytes [B], likewise.
        computed_ratio: kept channels over channels [B, T].
        stored_ratio: likewise, stored [B, T].
    """

    runtime: Trajectory
    static: Trajectory
    runtime_reward: Tensor
    static_reward: Tensor
    runtime_signal: Tensor
    static_signal: Tensor
    loss: Tensor
    correct: Tensor
    macs: Tensor
    storage: Tensor
    rate: Tensor
    mean_target: Tensor
    compute_cap: Tensor
    storage_cap: Tensor
    computed_ratio: Tensor
    stored_ratio: Tensor


@torch.no_grad()
def roll_out(
    network: GatedNetwork,
    rules: PruningRules,
    runtime_policy: AgentPolicy,
    static_policy: AgentPolicy,
    images: Tensor,
    labels: Tensor,
    budgets: EpisodeBudgets,
    scales: RewardScales,
) -> Rollout:
    """Plays one episode per image, walking the network once.

    Args:
        network: in eval mode.
        rules: of the decision process.
        runtime_policy, static_policy: sampling policies.
        images: normalised [B, C, H, W]; ``scales.group`` consecutive rows hold the same image.
        labels: int64 [B].
        budgets: of the B episodes.
        scales: see :class:`RewardScales`.
    """
    plan = StaticPlan(rules, budgets, static_policy)
    gate = PruningGate(rules, network, plan, runtime_policy)
    logits = network(images, gate)
    loss = F.cross_entropy(logits, labels, reduction="none").double().cpu()
    macs = gate.macs() / scales.dense_macs
    storage = gate.storage_bytes() / scales.dense_bytes
    accuracy = accuracy_term(loss, scales.average_loss)
    # At R_r = 0 the static plan keeps the mean budget by itself: the price is not at work.
    target = torch.where(budgets.rate > 0, budgets.compute_mean / scales.dense_macs, torch.inf)
    compute_cap = budgets.compute_max / scales.dense_macs
    storage_cap = budgets.storage_bytes / scales.dense_bytes
    runtime_reward = accuracy + compute_term(macs, compute_cap)
    if scales.price is not None:
        price = scales.price.price(target)
        runtime_reward = runtime_reward + mean_compute_term(macs, target, price)
    static_reward = accuracy + storage_term(storage, storage_cap)
    channels = rules.costs.channels
    return Rollout(
        runtime=runtime_policy.trajectory(),
        static=static_policy.trajectory(),
        runtime_reward=runtime_reward,
        static_reward=static_reward,
        runtime_signal=leave_one_out(runtime_reward, scales.group),
        static_signal=leave_one_out(static_reward, scales.group),
        loss=loss,
        correct=(logits.argmax(1) == labels).cpu(),
        macs=macs,
        storage=storage,
        rate=budgets.rate,
        mean_target=target,
        compute_cap=compute_cap,
        storage_cap=storage_cap,
        computed_ratio=gate.computed / channels,
        stored_ratio=gate.stored / channels,
    )
