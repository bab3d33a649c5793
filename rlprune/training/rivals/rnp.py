"""Runtime neural pruning: per image and layer one of four widths, chosen by Q-learning.

Channels are in four groups of fixed order; action i computes the first i + 1 of them.

Legend: B images, T layers, C channels, h width of the decision network, A = 4 actions.

Source: Lin et al. 2017, "Runtime Neural Pruning".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlprune.backbones.graph import ChannelGraph
from rlprune.data import augment, normalize
from rlprune.mdp import PruningGate, PruningRules, StaticPlan
from rlprune.mdp.policy import AnchoredRatios
from rlprune.pruning import (
    AgentSize,
    BudgetBook,
    CostModel,
    EpisodeBudgets,
    Gate,
    GatedNetwork,
    kept_count,
)
from rlprune.replicas import Share
from rlprune.training.methods import Method
from rlprune.training.rivals.bench import Bench, Fitted
from rlprune.training.setup import TrialSetup

RANDOM = "rnp_random"
ACTIONS = 4
_LARGEST_LOSS = 5.0
_LEAST_EXPLORATION = 0.1


class DecisionNetwork(nn.Module):
    """Encoder per layer, one recurrent cell over the layers, Q-values of the four actions.

    Args:
        graph: the backbone's channels.
        hidden: h (the paper: 128; here the same as of our agents, whose bytes count too).

    Source: Lin et al. 2017, Sec. 3.3.
    """

    def __init__(self, graph: ChannelGraph, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.encoders = nn.ModuleList(nn.Linear(p.in_channels, hidden) for p in graph.layers)
        self.cell = nn.RNNCell(hidden, hidden)
        self.head = nn.Linear(hidden, ACTIONS)

    def step(self, layer: int, pooled: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, C_in] of layer t and the state [B, h] -> Q-values [B, A], state."""
        state = self.cell(F.relu(self.encoders[layer](pooled)), state)
        return cast(Tensor, self.head(state)), cast(Tensor, state)

    def values(self, pooled: Sequence[Tensor]) -> Tensor:
        """Q-values of whole episodes from the pooled input of every layer, [B, T, A]."""
        found, state = [], None
        for layer, part in enumerate(pooled):
            value, state = self.step(layer, part, state)
            found.append(value)
        return torch.stack(found, 1)


def decision_size(hidden: int) -> AgentSize:
    """What a :class:`DecisionNetwork` of width h stores and computes beside its encoders."""
    recurrent, head = 2 * hidden * hidden, hidden * ACTIONS
    return AgentSize(
        encoder_width=hidden,
        parameters=recurrent + 2 * hidden + head + ACTIONS,
        parameters_per_layer=hidden,
        macs_per_layer=recurrent + head,
        reads_importance=False,
    )


Chooser = Callable[[int, Tensor], Tensor]
"""(layer, pooled input [B, C_in]) -> actions 0..3, int64 [B]."""


class GroupGate(PruningGate):
    """Computes the first groups of channels, as many as a chooser says and the cap allows.

    Args:
        rules, network, plan: see :class:`~rlprune.mdp.PruningGate`.
        choose: the actions.

    Attributes:
        pooled: input of every layer, averaged over pixels; complete after the pass.
        actions: int64 [B] per layer.

    Deviation: a cap on the MACs of any image is kept by computing fewer channels than chosen;
    the paper knows only an average, set by its penalty.
    """

    def __init__(
        self, rules: PruningRules, network: GatedNetwork, plan: StaticPlan, choose: Chooser
    ) -> None:
        super().__init__(rules, network, plan, AnchoredRatios())
        self._choose = choose
        self.pooled: list[Tensor] = []
        self.actions: list[Tensor] = []

    def decide(self, layer: int, pooled: Tensor, importance: Tensor) -> Tensor:
        """Keep mask [B, C] of layer t."""
        channels = importance.shape[1]
        actions = self._choose(layer, pooled.detach())
        self.pooled.append(pooled.detach())
        self.actions.append(actions)
        cap, _ = self._room(layer, channels)
        kept = torch.minimum(group_count(actions.cpu(), channels), cap)
        self.computed[:, layer] = kept
        order = torch.arange(channels, device=importance.device)
        return order < kept.to(importance.device).unsqueeze(1)


def group_count(actions: Tensor, channels: int) -> Tensor:
    """Channels of the first i + 1 of four groups, int64 [B]."""
    return kept_count((actions.double() + 1.0) / ACTIONS, channels)


def _rules(setup: TrialSetup) -> tuple[PruningRules, BudgetBook]:
    config = setup.config
    size = decision_size(config.agents.hidden)
    costs = CostModel(setup.graph, predictors=False, agent=size)
    rules = PruningRules(costs, config.pruning, projected=True)
    return rules, BudgetBook(costs, config.budgets, config.pruning)


@dataclass(frozen=True)
class GroupMethod(Method):
    """RNP.

    Attributes:
        decisions: the decision network.
    """

    decisions: DecisionNetwork | None = None

    def gate(self, network: GatedNetwork, budgets: EpisodeBudgets) -> Gate:
        """The gate of one forward pass: the action of largest Q-value."""
        return self.exploring_gate(network, budgets, lambda _, best: best)

    def exploring_gate(
        self,
        network: GatedNetwork,
        budgets: EpisodeBudgets,
        explore: Callable[[int, Tensor], Tensor],
    ) -> GroupGate:
        """A gate whose best actions go through ``explore(layer, best)`` before they are taken."""
        decisions = self.decisions
        if decisions is None:
            raise ValueError("GroupMethod needs a decision network.")
        state: list[Tensor | None] = [None]

        @torch.no_grad()
        def choose(layer: int, pooled: Tensor) -> Tensor:
            values, state[0] = decisions.step(layer, pooled, None if layer == 0 else state[0])
            return explore(layer, values.argmax(1))

        plan = self._known_plan(self.told(budgets))
        return GroupGate(self.rules, network, plan, choose)


def prepare(
    setup: TrialSetup, network: GatedNetwork, share: Share, rng: np.random.Generator
) -> Gate:
    """Random groups for each image and layer, no budgets: the first groups come to matter most."""
    rules, book = _rules(setup)
    drawn = rng.integers(ACTIONS, size=(share.total, rules.num_layers))[share.part]
    actions = torch.from_numpy(drawn).to(network.layers[0].shift.device)
    budgets = book.episodes([setup.book.point(1.0)]).select(
        torch.zeros(len(share), dtype=torch.int64)
    )
    unlimited = torch.full_like(budgets.compute_max, float("inf"))
    budgets = EpisodeBudgets(
        budgets.rate, unlimited, unlimited, unlimited, *(torch.ones_like(unlimited),) * 3
    )
    plan = StaticPlan(rules, budgets, AnchoredRatios())
    return GroupGate(rules, network, plan, lambda layer, _: actions[:, layer])


def _decisions(setup: TrialSetup, found: Mapping[str, Any], device: torch.device) -> Any:
    network = DecisionNetwork(setup.graph, setup.config.agents.hidden)
    network.load_state_dict(found["network"])
    return network.to(device)


def fit(bench: Bench) -> Fitted:
    """An untrained decision network; it learns before each round of fine-tuning."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(bench.generator(3).integers(2**31)))
        network = DecisionNetwork(bench.setup.graph, bench.setup.config.agents.hidden)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    return {"network": state, "optimizer": {}, "updates": 0, "rollouts": 0}


def make(setup: TrialSetup, network: GatedNetwork, fitted: Fitted) -> GroupMethod:
    """The decision network, always taking the action of largest Q-value."""
    rules, book = _rules(setup)
    return GroupMethod(
        "rnp",
        rules,
        book,
        AnchoredRatios,
        AnchoredRatios,
        predictors=False,
        decisions=_decisions(setup, fitted, network.layers[0].shift.device),
    )


def targets(values: Tensor, actions: Tensor, losses: Tensor, price: float) -> Tensor:
    """r_t + max_a Q(s_{t+1}, a), and r_t alone at the last layer, [B, T].

    r_t = -price * i for action i (the groups beyond the first), at the last layer minus the
    image's loss as well.

    Args:
        values: Q [B, T, A].
        actions: int64 [B, T].
        losses: cross-entropy [B].
        price: what a group costs, in nats (the paper's -p, with alpha = 1).

    Source: Lin et al. 2017, Sec. 3.2-3.3, the reward and the target of Q-learning. Deviation:
    gamma is 1, as the loss is known at the last layer alone; losses are cut at 5 nats.
    """
    rewards = -price * actions.to(values.dtype)
    cut = torch.nan_to_num(losses, nan=_LARGEST_LOSS).clamp(max=_LARGEST_LOSS)
    following = torch.cat([values[:, 1:].amax(2), -cut.unsqueeze(1)], 1)
    return (rewards + following).detach()


def exploration(update: int, total: int) -> float:
    """Share of random actions: from 1 to 0.1 over the first half of the updates, then 0.1."""
    return max(_LEAST_EXPLORATION, 1.0 - 2.0 * update / max(1, total))


class _Learner:
    """Q-learning of one round, update after update."""

    def __init__(self, bench: Bench, fitted: Fitted) -> None:
        self.bench = bench
        self.method = make(bench.setup, bench.network, fitted)
        assert self.method.decisions is not None
        self.decisions = self.method.decisions
        self.optimizer = torch.optim.Adam(self.decisions.parameters(), lr=1e-3)
        if fitted["optimizer"]:
            self.optimizer.load_state_dict(fitted["optimizer"])

    def update(self, number: int, total: int) -> float:
        """Plays one batch of images and takes one step; returns the Q-loss."""
        bench, config = self.bench, self.bench.setup.config
        rng = np.random.default_rng([config.seed, 9, number])
        count, images = config.rollouts.rollouts_per_update, bench.images
        arrays = images.train.take(rng.integers(len(images.train), size=count))
        pixels = augment(arrays.images, images.augmentation, rng)
        device = bench.network.layers[0].shift.device
        inputs = normalize(pixels, images.mean, images.std).to(device)
        budgets = bench.setup.sample_episodes(self.method.book, count, rng, rates=(1.0,))
        share = exploration(number, total)

        def explore(layer: int, best: Tensor) -> Tensor:
            dice = torch.from_numpy(rng.random(count) < share).to(device)
            drawn = torch.from_numpy(rng.integers(ACTIONS, size=count)).to(device)
            return torch.where(dice, drawn, best)

        gate = self.method.exploring_gate(bench.network, budgets, explore)
        with torch.no_grad():
            logits = bench.network(inputs, gate)
        losses = F.cross_entropy(
            logits, torch.from_numpy(arrays.labels).to(device), reduction="none"
        )
        values, actions = self.decisions.values(gate.pooled), torch.stack(gate.actions, 1)
        chosen = values.gather(2, actions.unsqueeze(2)).squeeze(2)
        loss = F.mse_loss(chosen, targets(values, actions, losses, config.methods.rnp_price))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.item())


def improve(bench: Bench, fitted: Fitted, index: int, keep: Callable[[Fitted], None]) -> None:
    """As many updates before each round of fine-tuning as our agents get, of as many images.

    The network is frozen; its BatchNorm statistics are those under the present decisions.
    """
    training, count = bench.setup.config.training, bench.setup.config.rollouts.rollouts_per_update
    per_round, done = training.updates_per_round, int(fitted["updates"])
    goal, total = (index + 1) * per_round, max(1, training.rounds) * per_round
    if done >= goal:
        return
    learner = _Learner(bench, fitted)
    bench.network.set_predictors(False)
    if done == index * per_round:
        budgets = learner.method.book.episodes([bench.point])
        bench.evaluator.prepare(bench.network, learner.method, budgets)
    for number in range(done, goal):
        loss = learner.update(number, total)
        state = {
            name: value.cpu().clone() for name, value in learner.decisions.state_dict().items()
        }
        keep(
            {
                "network": state,
                "optimizer": learner.optimizer.state_dict(),
                "updates": number + 1,
                "rollouts": (number + 1) * count,
            }
        )
        bench.advance(number + 1, total, {"loss": loss})
