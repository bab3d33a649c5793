"""AMC: an agent walks over the layers and chooses how much of each to keep, within the budget.

Legend: T layers, one transition per layer.

Source: He et al. 2018, "AMC: AutoML for Model Compression and Acceleration on Mobile Devices".
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rlprune.pruning import GatedNetwork, kept_count
from rlprune.training.rivals.bench import Bench, Fitted
from rlprune.training.rivals.ddpg import DDPG, Transition
from rlprune.training.rivals.filters import filters_of
from rlprune.training.rivals.selection import (
    Limits,
    SelectedMethod,
    scaled_ratios,
    selected,
    static_limits,
)
from rlprune.training.setup import TrialSetup

_FEATURES = 11


def layer_features(setup: TrialSetup) -> Tensor:
    """What does not change over episodes, each column scaled to [0, 1]: float64 [T, 8].

    Index, output and input channels, height and width, stride, kernel size, MACs.

    Source: He et al. 2018, Sec. 3.1, the state s_t.
    """
    rows = []
    for layer in setup.graph.layers:
        macs = layer.in_channels * layer.out_channels * np.prod(layer.kernel_size + layer.out_size)
        rows.append(
            [
                layer.index,
                layer.out_channels,
                layer.in_channels,
                *layer.out_size,
                layer.stride[0],
                layer.kernel_size[0],
                float(macs),
            ]
        )
    table = torch.tensor(rows, dtype=torch.float64)
    return table / table.amax(0).clamp(min=1.0)


def state_of(
    fixed: Tensor, layer: int, counts: Tensor, limits: Limits, last_action: float
) -> Tensor:
    """s_t: the fixed features, MACs saved so far, MACs of the layers to come, a_{t-1}.

    Args:
        fixed: :func:`layer_features`.
        layer: t.
        counts: channels [T]; those from ``layer`` on are still whole.
        limits: have the costs.
        last_action: a_{t-1}; 1 at the first layer.
    """
    form, channels = limits.costs.static_macs(), limits.costs.channels
    dense, now = float(form.total(channels[None])), float(form.total(counts[None]))
    rest = float(fixed[layer + 1 :, -1].sum() / fixed[:, -1].sum())
    dynamic = torch.tensor([1.0 - now / dense, rest, last_action], dtype=torch.float64)
    return torch.cat([fixed[layer], dynamic]).float()


def bounded_count(layer: int, action: float, counts: Tensor, limits: Limits) -> int:
    """Channels of layer t at keep ratio ``action``, as many as still let the rest fit.

    The rest fits if it fits with every later layer at its least: the hard budget.

    Source: He et al. 2018, Algorithm 1. Deviation: exact in channels and for MACs and bytes
    both; theirs is a bound on the ratio, for MACs.
    """
    channels = int(limits.costs.channels[layer])
    wanted = int(kept_count(torch.tensor(action), channels))
    forms = (
        (limits.costs.static_macs(), limits.macs),
        (limits.costs.storage_bytes(agent_runs=False), limits.size),
    )
    for form, budget in forms:
        if np.isfinite(budget):
            bound = torch.tensor([budget], dtype=torch.float64)
            wanted = min(wanted, int(form.largest_count(counts[None], layer, limits.least, bound)))
    return max(wanted, int(limits.least[layer]))


def fit(bench: Bench) -> Fitted:
    """DDPG; the reward of all an episode's layers is its network's validation accuracy.

    The first quarter of the episodes is random (the paper: 100 of 400). The best network of
    all episodes is taken.

    Source: He et al. 2018, Sec. 3.3-3.4 (R_err). Deviations: filters are ranked by their L1
    norm; a few tens of episodes (``methods.search_candidates``), each network fine-tuned for
    ``methods.search_steps`` steps (theirs is measured as it is: 40 episodes are too few for
    so weak a signal). RLlib's new API stack has no DDPG, so the agent is a small one of torch
    (:mod:`rlprune.training.rivals.ddpg`).
    """
    macs = [m for m in (bench.point.compute_max, bench.point.compute_mean) if m is not None]
    limits = static_limits(bench.setup, min(macs, default=None), bench.point.storage_bytes)
    scores = tuple(part.abs().sum(1).cpu() for part in filters_of(bench.network))
    fixed, alpha = layer_features(bench.setup), bench.setup.config.pruning.alpha
    agent = DDPG(_FEATURES, alpha, bench.generator(2))
    warmup = max(1, bench.candidates // 4)
    best: tuple[float, Tensor] | None = None
    updates = 0
    for episode in range(bench.candidates):
        counts, action = limits.costs.channels.clone(), 1.0
        states, actions = [], []
        for layer in range(len(counts)):
            states.append(state_of(fixed, layer, counts, limits, action))
            wanted = agent.act(states[-1], episode - warmup)
            counts[layer] = bounded_count(layer, wanted, counts, limits)
            action = float(counts[layer]) / float(limits.costs.channels[layer])
            actions.append(action)
        ratios = counts.double() / limits.costs.channels
        accuracy = bench.accuracy(_method(bench.setup, scores, ratios))
        ends = [*states[1:], None]
        agent.remember(
            [Transition(*step, accuracy) for step in zip(states, actions, ends, strict=True)]
        )
        if episode >= warmup:
            for _ in range(len(counts)):
                agent.learn()
                updates += 1
        if best is None or accuracy > best[0]:
            best = (accuracy, ratios)
    assert best is not None
    return {"scores": list(scores), "ratios": best[1], "updates": updates}


def make(setup: TrialSetup, network: GatedNetwork, fitted: Fitted) -> SelectedMethod:
    """The best episode's ratios; what the budget leaves over goes to all layers alike.

    At other budgets than the one that was searched for, the ratios are scaled to fit.
    """
    return _method(setup, tuple(fitted["scores"]), fitted["ratios"])


def _method(setup: TrialSetup, scores: tuple[Tensor, ...], ratios: Tensor) -> SelectedMethod:
    return selected("amc", setup, scores, scaled_ratios(ratios))
