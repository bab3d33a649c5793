"""Networks with policies that decide, and the same as shipped models: for tests of both.

Everything is arbitrary but fixed by a seed: importances differ between images, agents play
different ratios in different layers, BatchNorm has statistics of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlprune.agents.networks import AgentPolicy, RuntimeAgent, StaticAgent, runtime_agent_size
from rlprune.backbones import trace_backbone
from rlprune.config import AgentConfig, BudgetConfig, PruningConfig
from rlprune.deploy import PrunedModel
from rlprune.export import Pixels, Shipped, ship
from rlprune.mdp import KeepRatioPolicy, PruningGate, PruningRules, StaticPlan
from rlprune.mdp.policy import AnchoredRatios
from rlprune.pruning import (
    BudgetBook,
    CostModel,
    EpisodeBudgets,
    GatedConv,
    GateDesign,
    GatedNetwork,
)

HIDDEN = 8


@dataclass(frozen=True)
class Setting:
    """How a network is pruned.

    Attributes:
        rate: R_r.
        tradeoff, rank, width_affine, boosted: as in ``PruningConfig``.
        policy: "agent", "constant" (the budget's ratio everywhere) or "l1" (no predictors,
            filters ranked by their L1 norms).
        compute_max, compute_mean, storage_max: budgets, as in ``BudgetConfig``.
        projected: whether caps are kept by construction.
        action: "change" where there is a budget on the mean, as in training.
    """

    rate: float = 0.5
    tradeoff: str = "permanent"
    rank: int | None = None
    width_affine: bool = False
    boosted: bool = False
    policy: str = "agent"
    compute_max: float | str | None = 0.5
    compute_mean: float | None = None
    storage_max: float | None = 0.5
    projected: bool = True

    @property
    def action(self) -> Any:
        return "absolute" if self.compute_mean is None else "change"


class Case:
    """A gated network, its policy at one point, and the shipped model made of them.

    Args:
        backbone: any network.
        shape: (C, H, W).
        setting: how it is pruned.
        seed: of everything arbitrary.
    """

    def __init__(
        self, backbone: nn.Module, shape: tuple[int, int, int], setting: Setting, seed: int = 0
    ) -> None:
        torch.manual_seed(seed)
        self.shape, self.setting = shape, setting
        predictors = setting.policy != "l1"
        design = GateDesign(setting.rank, setting.width_affine)
        self.network = GatedNetwork(trace_backbone(backbone, shape), design)
        self._unsettle()
        self.network.set_predictors(predictors, setting.boosted)
        graph, pruning = self.network.channels, self._pruning()
        agents = AgentConfig(hidden=HIDDEN)
        self.runtime = self._shaken(RuntimeAgent(graph, agents))
        self.static = self._shaken(StaticAgent(agents))
        size = runtime_agent_size(HIDDEN) if setting.policy == "agent" else None
        costs = CostModel(graph, predictors, size, design)
        self.rules = PruningRules(costs, pruning, setting.projected, setting.action)
        self.book = BudgetBook(costs, self._budgets(), pruning)
        self.budgets = self.book.episodes([self.book.point(setting.rate)])
        self.plan = StaticPlan(self.rules, self.budgets, self._policy(self.static))
        self.scores = None if predictors else tuple(map(_l1_norms, self.network.layers))
        self.shipped = self.ship()

    def ship(self) -> Shipped:
        """The shipped model, not yet written."""
        channels, classes = self.shape[0], self.network.channels.num_classes
        names = tuple(f"class {number}" for number in range(classes))
        return ship(
            self.network,
            self.rules,
            self.plan,
            self.runtime if self.setting.policy == "agent" else None,
            Pixels((0.5,) * channels, (0.25,) * channels, names),
            (self.book.dense_macs, self.book.dense_bytes),
            scores=self.scores,
            predictors=self.setting.policy != "l1",
        )

    def model(self, file: Path, dtype: str = "float32") -> PrunedModel:
        """Written and read again."""
        self.shipped.write(file, dtype)
        return PrunedModel.load(file)

    def images(self, count: int, seed: int = 1) -> Tensor:
        """Normal noise [B, C, H, W]; every second image is scaled, so that ratios differ."""
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(count, *self.shape, generator=generator)
        images[1::2] = 2.0 * images[1::2].abs() - 0.5
        return images

    @torch.no_grad()
    def expected(self, images: Tensor, dial: EpisodeBudgets | None = None) -> Expected:
        """What the network in training gives.

        Args:
            images: normalised.
            dial: budgets of one episode that the runtime policy gets in place of its own.
        """
        one = torch.zeros(len(images), dtype=torch.int64)
        budgets = (dial or self.budgets).select(one)
        plan = self.plan.select(one, budgets)
        gate = PruningGate(self.rules, self.network, plan, self._policy(self.runtime), self.scores)
        scores = self.network(images, gate)
        return Expected(scores, gate.computed.numpy(), gate.macs().numpy(), gate)

    def told(self, number: float) -> EpisodeBudgets:
        """The point's budgets with the compute budgets of a number s in place of its own."""
        cap = torch.full((1,), self.book.macs_at(number), dtype=torch.float64)
        if self.setting.compute_max is None:
            dial = torch.full((1,), number, dtype=torch.float64)
            return replace(self.budgets, compute_dial=dial)
        dial = torch.full((1,), self.book.compute_dial(float(cap)), dtype=torch.float64)
        return replace(self.budgets, compute_max=cap, compute_dial=dial, cap_dial=dial)

    def _policy(self, agent: nn.Module) -> KeepRatioPolicy:
        return AgentPolicy(agent) if self.setting.policy == "agent" else AnchoredRatios()

    def _pruning(self) -> PruningConfig:
        setting = self.setting
        return PruningConfig(
            tradeoff=setting.tradeoff,
            predictor_rank=setting.rank,
            width_affine=setting.width_affine,
        )

    def _budgets(self) -> BudgetConfig:
        setting = self.setting
        storage = None if setting.rate >= 1.0 or self._keeps_all() else setting.storage_max
        rule: Any = "projected" if setting.projected else "soft"
        return BudgetConfig(storage, setting.compute_max, setting.compute_mean, rule=rule)

    def _keeps_all(self) -> bool:
        """The paper's rule deletes nothing for good unless R_r = 0."""
        return self.setting.tradeoff == "paper" and self.setting.rate > 0.0

    @staticmethod
    @torch.no_grad()
    def _shaken(agent: Any) -> Any:
        for parameter in agent.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
        return agent.eval()

    @torch.no_grad()
    def _unsettle(self) -> None:
        """As after training: predictions that depend on the image, u_s of both signs."""
        for layer in self.network.layers:
            predictor = layer.runtime_predictor
            nn.init.normal_(predictor.weight, 0.0, 0.05 if predictor.code is None else 0.3)
            layer.static_importance.add_(0.4 * torch.randn_like(layer.static_importance))
            layer.shift.add_(0.1 * torch.randn_like(layer.shift))
            if layer.width_scale is not None:
                layer.width_scale.normal_(0.0, 0.3)
                layer.width_shift.normal_(0.0, 0.1)
        self.network.train()
        for _ in range(2):  # BatchNorm's statistics
            self.network(torch.randn(16, *self.shape))
        self.network.eval()


@dataclass(frozen=True)
class Expected:
    """What the masked network computes.

    Attributes:
        scores: [B, K].
        counts: channels computed [B, T].
        macs: [B].
        gate: after the pass.
    """

    scores: Tensor
    counts: Any
    macs: Any
    gate: PruningGate


def _l1_norms(layer: GatedConv) -> Tensor:
    return layer.conv.weight.detach().abs().sum((1, 2, 3)).clone()


def assert_same(
    model: PrunedModel, images: Tensor, expected: Expected, budget: float | None = None
) -> None:
    """Both ways to run give the scores (1e-4 of the largest), counts and MACs expected."""
    size = float(expected.scores.abs().max())
    for mode in ("masked", "gathered"):
        scores = model(images, budget, mode)
        counts = np.array([image.counts for image in model.last])
        np.testing.assert_array_equal(counts, expected.counts, mode)
        np.testing.assert_array_equal(model.macs(), expected.macs, mode)
        assert float((scores - expected.scores).abs().max()) <= 1e-4 * size, mode
