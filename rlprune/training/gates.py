"""From a phase to the gates of its batches, in whichever process the network trains (no Ray)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from rlprune.agents.networks import RuntimeAgent, StaticAgent
from rlprune.config import TrialConfig
from rlprune.pruning import Gate, GatedNetwork, Point
from rlprune.replicas import Share
from rlprune.training import cascade, methods
from rlprune.training.catalogue import CATALOGUE, facts_of
from rlprune.training.cnn import GateFactory
from rlprune.training.methods import Method
from rlprune.training.phases import (
    ALTERNATE,
    LEARNED,
    PRETRAIN,
    RUNTIME_IMPORTANCE,
    STATIC_IMPORTANCE,
)
from rlprune.training.rivals import RIVALS
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
        fitted: what a published method has found (:mod:`rlprune.training.rivals`).
    """

    phase: str
    agents: tuple[RuntimeAgent, StaticAgent] | None = None
    random_factors: Mapping[str, Tensor] = field(default_factory=dict)
    static_scores: tuple[Tensor, ...] = ()
    pair: cascade.Pair | None = None
    fitted: Mapping[str, Any] = field(default_factory=dict)


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
    if name in RIVALS:
        return RIVALS[name].make(setup, network, recipe.fitted)
    if name in (cascade.SMALL, cascade.LARGE):
        assert recipe.pair is not None
        return cascade.members(setup, recipe.pair)[name == cascade.LARGE]
    simple: dict[str, Callable[[TrialSetup], Method]] = {
        "uniform": methods.uniform,
        "dense": methods.dense,
    }
    return simple[name](setup)


def method_rates(config: TrialConfig, name: str) -> tuple[float, ...]:
    """The R_r values for which a method, or the phase of one, is made."""
    facts, rates = facts_of(name), config.evaluation.tradeoff_rates
    return rates if facts is None else facts.rates(rates)


def method_points(setup: TrialSetup, name: str) -> list[Point]:
    """The points at which a method is measured: its R_r at the configured budgets, then others."""
    if name == "dense":
        return setup.evaluation_points()[:1]
    ratios = (None, *setup.config.evaluation.budgets)
    rates = method_rates(setup.config, name)
    return [setup.book.point(rate, s) for s in ratios for rate in rates]


def gates_of(setup: TrialSetup, network: GatedNetwork, recipe: GateRecipe) -> GateFactory | None:
    """The gates of a phase's batches; None prunes nothing.

    Switches the network's predictors on or off, as the phase needs them.
    """
    if recipe.phase in (PRETRAIN, "dense"):
        network.set_predictors(False)
        return None
    if recipe.phase in (RUNTIME_IMPORTANCE, STATIC_IMPORTANCE):
        return _importance_gates(setup, network)
    facts = facts_of(recipe.phase)
    if facts is not None and facts.name in RIVALS and recipe.phase == facts.preparation:
        return _preparation_gates(setup, network, facts.name)
    return _finetune_gates(setup, network, method_of(setup, network, recipe))


def _importance_gates(setup: TrialSetup, network: GatedNetwork) -> GateFactory | None:
    network.set_predictors(True, setup.config.pruning.boosted)
    ratios = setup.config.training.importance_ratios
    if ratios == "none":
        return None
    if ratios == "budget":
        return _finetune_gates(setup, network, methods.uniform(setup))

    def varied(share: Share, rng: np.random.Generator) -> Gate:
        return methods.varied_ratio_gate(setup, network, share, rng)

    return varied


def _preparation_gates(setup: TrialSetup, network: GatedNetwork, name: str) -> GateFactory:
    """Gates of the phase before a published method's own."""
    prepare = RIVALS[name].prepare
    assert prepare is not None
    network.set_predictors(CATALOGUE[name].predictors)

    def make(share: Share, rng: np.random.Generator) -> Gate:
        return prepare(setup, network, share, rng)

    return make


def _finetune_gates(setup: TrialSetup, network: GatedNetwork, method: Method) -> GateFactory:
    """Gates that follow a method, at budgets and R_r drawn for each batch.

    Policies play their means: a network that is fine-tuned under exploration noise has
    trained for other widths than those at which it is measured.
    """
    network.set_predictors(method.predictors, method.boosted)
    rates = method_rates(setup.config, method.name)

    def make(share: Share, rng: np.random.Generator) -> Gate:
        budgets = setup.sample_episodes(method.book, share.total, rng, True, rates, share)
        return method.gate(network, budgets)

    return make
