"""The decision process: observations, rewards, budgets kept by construction (pure torch)."""

from rlprune.mdp.advantages import generalized_advantages
from rlprune.mdp.environment import PruningGate, PruningRules, StaticPlan
from rlprune.mdp.policy import ConstantRatios, KeepRatioPolicy, RandomRatios

__all__ = [
    "ConstantRatios",
    "KeepRatioPolicy",
    "PruningGate",
    "PruningRules",
    "RandomRatios",
    "StaticPlan",
    "generalized_advantages",
]
