"""Pruning: importance, masks, costs and budgets of gated networks (pure torch)."""

from rlprune.pruning.boosting import boost_gates
from rlprune.pruning.budgets import BudgetBook, EpisodeBudgets, Point
from rlprune.pruning.costs import AgentSize, BilinearCost, CostModel
from rlprune.pruning.design import GateDesign
from rlprune.pruning.gated import PAPER, Gate, GatedConv, GatedNetwork, signed_product
from rlprune.pruning.masks import (
    TradeoffKeep,
    cap_keep,
    kept_count,
    permanent_count,
    permanent_mask,
    tradeoff_keep,
)

__all__ = [
    "PAPER",
    "AgentSize",
    "BilinearCost",
    "BudgetBook",
    "CostModel",
    "EpisodeBudgets",
    "Gate",
    "GateDesign",
    "GatedConv",
    "GatedNetwork",
    "Point",
    "TradeoffKeep",
    "boost_gates",
    "cap_keep",
    "kept_count",
    "permanent_count",
    "permanent_mask",
    "signed_product",
    "tradeoff_keep",
]
