"""Whether a round's agents are better than those before it, on the validation images (no Ray).

The agents learn on images that the network was trained on, whose losses are small: what pays
there need not pay elsewhere. Measured (analysis/learning.md), policies that were always taken
over lost to the uniform ratio that they had started from.

Legend: N validation images, P points (R_r and budgets).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlprune.agents.networks import RuntimeAgent, StaticAgent
from rlprune.mdp.reward import (
    PriceCurve,
    accuracy_term,
    compute_term,
    mean_compute_term,
    storage_term,
)
from rlprune.pruning import BudgetBook, GatedNetwork, Point
from rlprune.training.evaluate import Evaluator, SplitResult
from rlprune.training.methods import Method

Agents = tuple[RuntimeAgent, StaticAgent]
AgentWeights = list[dict[str, Tensor]]


def agent_weights(agents: Agents) -> AgentWeights:
    """Copies of both agents' weights."""
    return [
        {name: tensor.detach().cpu().clone() for name, tensor in agent.state_dict().items()}
        for agent in agents
    ]


def load_agents(agents: Agents, weights: AgentWeights) -> None:
    """Puts :func:`agent_weights` back, but for the spread, which follows the updates alone."""
    for agent, state in zip(agents, weights, strict=True):
        agent.load_state_dict({**state, "least_log_std": agent.least_log_std})


def validation_rewards(
    evaluator: Evaluator,
    network: GatedNetwork,
    method: Method,
    points: Sequence[Point],
    average_loss: float,
    price: PriceCurve | None,
) -> Tensor:
    """What the agents are trained for, on the validation images: both rewards' terms, once each.

    Args:
        evaluator: has the images.
        network: its BatchNorm statistics are changed.
        method: the learned policy.
        points: where it is judged.
        average_loss: of the reward's accuracy term.
        price: of mean compute, None without such a budget.

    Returns:
        Reward of each image, mean over the points, float64 [N].
    """
    rewards = [
        _rewards(
            evaluator.validate(network, method, point), point, method.book, average_loss, price
        )
        for point in points
    ]
    return torch.stack(rewards).mean(0)


def _rewards(
    result: SplitResult,
    point: Point,
    book: BudgetBook,
    average_loss: float,
    price: PriceCurve | None,
) -> Tensor:
    macs = result.macs / book.dense_macs
    cap = _share(point.compute_max, book.dense_macs, macs)
    storage = torch.full_like(macs, result.storage_bytes / book.dense_bytes)
    reward = accuracy_term(result.losses, average_loss) + compute_term(macs, cap)
    reward = reward + storage_term(storage, _share(point.storage_bytes, book.dense_bytes, macs))
    if price is None or point.tradeoff_rate <= 0:
        return reward
    target = _share(point.compute_mean, book.dense_macs, macs)
    return reward + mean_compute_term(macs, target, price.price(target))


def _share(budget: float | None, dense: float, like: Tensor) -> Tensor:
    return torch.full_like(like, math.inf if budget is None else budget / dense)


_ERRORS = 2.0
"""Standard errors that a gain must exceed. At one, three of 18 rounds passed, as by chance."""


def is_better(new: Tensor, old: Tensor) -> bool:
    """Whether new rewards exceed old ones of the same images by more than two standard errors.

    Args:
        new, old: [N], N at least 2.
    """
    gain = new - old
    return bool(gain.mean() > _ERRORS * gain.std() / math.sqrt(len(gain)))


def keep_better(agents: Agents, before: AgentWeights, rewards: Callable[[], Tensor]) -> bool:
    """Puts the agents before a round back, where it has not made them better.

    Args:
        agents: as the round has left them.
        before: their weights before it.
        rewards: of the agents as they are at the call (:func:`validation_rewards`).

    Returns:
        Whether the round's agents were kept.
    """
    trained, new = agent_weights(agents), rewards()
    load_agents(agents, before)
    kept = is_better(new, rewards())
    if kept:
        load_agents(agents, trained)
    return kept
