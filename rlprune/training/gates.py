"""From a phase to the gates of its batches, in whichever process the network trains (no Ray)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from rlprune.agents.networks import RuntimeAgent, StaticAgent
from rlprune.config import TrialConfig
from rlprune.pruning import Gate, GatedNetwork
from rlprune.replicas import Share
from rlprune.training import cascade, methods
from rlprune.training.cnn import GateFactory
from rlprune.training.methods import Method
from rlprune.training.phases import (
    ALTERNATE,
    LEARNED,
    PRETRAIN,
    RUNTIME_IMPORTANCE,
    STATIC_IMPORTANCE,
)
from rlprune.training.setup import TrialSetup


@dataclass(frozen=True)
class GateRecipe:
    """All that decides on a phase's gates besides set-up and network; can travel.

    Attributes:
        phase: a phase, or a method's name.
        agents: of the learned policy.
        random_factors: of ``random``: "runtime" and "static", [T] each.
        static_scores: of ``static_l1``: the filters' norms, [C] per layer.
        pair: sizes of the cascade.
    """

    phase: str
    agents: tuple[RuntimeAgent, StaticAgent] | None = None
    random_factors: Mapping[str, Tensor] = field(default_factory=dict)
    static_scores: tuple[Tensor, ...] = ()
    pair: cascade.Pair | None = None


def method_of(setup: TrialSetup, network: GatedNetwork, recipe: GateRecipe) -> Method:
    """The method that a phase trains for."""
    name = recipe.phase
    if name in (ALTERNATE, LEARNED):
        assert recipe.agents is not None
        return methods.learned(setup, *recipe.agents)
    if name == "random":
        factors = recipe.random_factors
        return methods.random_ratios(setup, factors["runtime"], factors["static"])
    if name == "static_l1":
        return methods.static_l1(setup, network, recipe.static_scores)
    if name in (cascade.SMALL, cascade.LARGE):
        assert recipe.pair is not None
        return cascade.members(setup, recipe.pair)[name == cascade.LARGE]
    simple: dict[str, Callable[[TrialSetup], Method]] = {
        "uniform": methods.uniform,
        "dense": methods.dense,
    }
    return simple[name](setup)


def method_rates(config: TrialConfig, name: str) -> tuple[float, ...]:
    """The R_r values for which a method is made."""
    if name == "static_l1":
        return (0.0,)
    rates = config.evaluation.tradeoff_rates
    if name in (cascade.SMALL, cascade.LARGE):
        return tuple(rate for rate in rates if rate > 0.0)
    return rates


def gates_of(setup: TrialSetup, network: GatedNetwork, recipe: GateRecipe) -> GateFactory | None:
    """The gates of a phase's batches; None prunes nothing.

    Switches the network's predictors on or off, as the phase needs them.
    """
    if recipe.phase in (PRETRAIN, "dense"):
        network.set_predictors(False)
        return None
    if recipe.phase in (RUNTIME_IMPORTANCE, STATIC_IMPORTANCE):
        network.set_predictors(True)
        if not setup.config.training.varied_ratios:
            return None

        def varied(share: Share, rng: np.random.Generator) -> Gate:
            return methods.varied_ratio_gate(setup, network, share, rng)

        return varied
    return _finetune_gates(setup, network, method_of(setup, network, recipe))


def _finetune_gates(setup: TrialSetup, network: GatedNetwork, method: Method) -> GateFactory:
    """Gates that follow a method, at budgets and R_r drawn for each batch.

    Policies play their means: a network that is fine-tuned under exploration noise has
    trained for other widths than those at which it is measured.
    """
    network.set_predictors(method.predictors)
    rates = method_rates(setup.config, method.name)

    def make(share: Share, rng: np.random.Generator) -> Gate:
        budgets = setup.sample_episodes(method.book, share.total, rng, True, rates, share)
        return method.gate(network, budgets)

    return make
