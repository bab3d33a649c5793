"""Budgets: from what the user wrote to multiply-accumulates and bytes, and back.

Legend: B episodes, T prunable layers, s the number of a budget ("every layer keeps
s of its channels"), R_r the tradeoff rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlprune.amounts import parse_budget
from rlprune.config import BudgetConfig, PruningConfig
from rlprune.errors import BudgetError, Problem
from rlprune.pruning.costs import CostModel
from rlprune.pruning.masks import kept_count, permanent_count

_GRID = torch.linspace(0.005, 1.0, 200, dtype=torch.float64)


@dataclass(frozen=True)
class Point:
    """Where in budget space a network is trained or evaluated; no budget = None.

    Attributes:
        tradeoff_rate: R_r.
        storage_bytes: most bytes of stored weights.
        compute_max: most multiply-accumulates (MACs) of any image.
        compute_mean: most MACs per image on average.
        ratio: the number s that replaced the configured ones, None for the configured.
    """

    tradeoff_rate: float
    storage_bytes: float | None
    compute_max: float | None
    compute_mean: float | None
    ratio: float | None = None


@dataclass(frozen=True)
class EpisodeBudgets:
    """Budgets of B episodes as tensors [B]; no budget = infinity.

    Attributes:
        rate: R_r.
        storage_bytes, compute_max, compute_mean: as in :class:`Point`.
        storage_dial, compute_dial: the same budgets as equivalent numbers s, which is how
            the agents are told (compute: the tighter of cap and mean). 1 where there is
            no budget.
        cap_dial: the number s that is equivalent to ``compute_max``; 1 where it is none.
    """

    rate: Tensor
    storage_bytes: Tensor
    compute_max: Tensor
    compute_mean: Tensor
    storage_dial: Tensor
    compute_dial: Tensor
    cap_dial: Tensor

    def select(self, index: Tensor) -> EpisodeBudgets:
        """Rows ``index`` of every tensor."""
        return EpisodeBudgets(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def rows(self) -> Tensor:
        """All tensors side by side, float64 [B, fields]."""
        return torch.stack([getattr(self, name) for name in self.__dataclass_fields__], 1)

    def distinct(self) -> tuple[EpisodeBudgets, Tensor]:
        """The different rows, and for each episode which of them is its own, int64 [B]."""
        unique, index = torch.unique(self.rows(), dim=0, return_inverse=True)
        return EpisodeBudgets(*unique.unbind(1)), index


class BudgetBook:
    """Translates budgets for one backbone; every budget is resolved here and nowhere else.

    Args:
        costs: the complete network's costs (predictors and agent), against which a ratio s
            is resolved: s is the cost of that network with every layer keeping s of its
            channels.
        config: what the user wrote.
        pruning: least keep ratio of a layer, and the rule that decides what is deleted.

    Deviation: the paper counts convolutions alone for cost(s); here predictors and agent
    are part of it, since they are part of what is stored and computed.
    """

    def __init__(self, costs: CostModel, config: BudgetConfig, pruning: PruningConfig) -> None:
        self.costs = costs
        self.config = config
        self.pruning = pruning
        self.alpha = pruning.alpha
        self.least = kept_count(_full(len(costs.channels), pruning.alpha), costs.channels)
        full = costs.channels.unsqueeze(0)
        plain = CostModel(costs.graph, predictors=False)
        self.dense_macs = plain.dense_macs()
        self.dense_bytes = plain.dense_bytes()
        counts = costs.counts_at(_GRID)
        self._macs_table = self._macs(counts, full)
        self._rated_tables: dict[float, Tensor] = {}
        self._tables: dict[tuple[Point, ...], EpisodeBudgets] = {}

    def _macs(self, counts: Tensor, stored: Tensor) -> Tensor:
        runs = torch.ones(len(counts), dtype=torch.bool)
        return self.costs.macs(stored.expand_as(counts), runs).total(counts)

    def stored_at(self, ratio: Tensor, rate: Tensor) -> Tensor:
        """Stored channels if the static agent keeps ``ratio`` [B] in every layer, [B, T]."""
        static_kept = self.costs.counts_at(ratio)
        deleted = [
            permanent_count(rate, static_kept[:, layer], int(channels))
            for layer, channels in enumerate(self.costs.channels)
        ]
        counts = torch.stack(deleted, dim=1)
        if self.pruning.tradeoff == "paper":  # deletes nothing unless R_r = 0
            counts = torch.where((rate <= 0.0).unsqueeze(1), counts, torch.zeros_like(counts))
        return self.costs.channels - counts

    def storage_at(self, ratio: float, rate: float) -> float:
        """Bytes that a storage budget s allows at R_r."""
        stored = self.stored_at(_full(1, ratio), _full(1, rate))
        return float(self.costs.storage_bytes(agent_runs=rate > 0).total(stored).item())

    def macs_at(self, ratio: float) -> float:
        """MACs that a compute budget s allows."""
        counts = self.costs.counts_at(_full(1, ratio))
        return float(self._macs(counts, self.costs.channels.unsqueeze(0)).item())

    def _resolve(self, field: str, ratio: float | None, rate: float) -> float | None:
        value = getattr(self.config, field)
        if value is None:
            return None
        amount = parse_budget(value)
        storage = field == "storage_max"
        if amount.kind == "fraction":
            return amount.value * (self.dense_bytes if storage else self.dense_macs)
        if amount.kind == "absolute":
            return amount.value
        s = amount.value if ratio is None else ratio
        return self.storage_at(s, rate) if storage else self.macs_at(s)

    def point(self, rate: float, ratio: float | None = None) -> Point:
        """The budgets at tradeoff rate R_r.

        Args:
            rate: R_r.
            ratio: replaces every configured budget that is a number s; None keeps them.
        """
        return Point(
            tradeoff_rate=rate,
            storage_bytes=self._resolve("storage_max", ratio, rate),
            compute_max=self._resolve("compute_max", ratio, rate),
            compute_mean=self._resolve("compute_mean", ratio, rate),
            ratio=ratio,
        )

    def compute_dial(self, macs: float | None) -> float:
        """The largest s whose MACs fit; at least alpha, 1 for no budget."""
        if macs is None:
            return 1.0
        return self._largest(self._macs_table, macs)

    def storage_dial(self, size: float | None, rate: float) -> float:
        """The largest s whose bytes at R_r fit; at least alpha, 1 for no budget or R_r = 1."""
        if size is None or rate >= 1.0:
            return 1.0
        if rate not in self._rated_tables:
            stored = self.stored_at(_GRID, torch.full_like(_GRID, rate))
            table = self.costs.storage_bytes(agent_runs=rate > 0).total(stored)
            self._rated_tables[rate] = table
        return self._largest(self._rated_tables[rate], size)

    def _largest(self, table: Tensor, budget: float) -> float:
        fits = int((table <= budget + 1e-6).sum().item())
        return max(self.alpha, float(_GRID[max(fits - 1, 0)].item()))

    def episodes(self, points: Sequence[Point]) -> EpisodeBudgets:
        """One episode per point."""

        def column(values: list[float | None]) -> Tensor:
            plain = [float("inf") if value is None else value for value in values]
            return torch.tensor(plain, dtype=torch.float64)

        dial = [self.compute_dial(_tightest(p.compute_mean, p.compute_max)) for p in points]
        cap = [self.compute_dial(p.compute_max) for p in points]
        storage = [self.storage_dial(p.storage_bytes, p.tradeoff_rate) for p in points]
        return EpisodeBudgets(
            rate=torch.tensor([p.tradeoff_rate for p in points], dtype=torch.float64),
            storage_bytes=column([p.storage_bytes for p in points]),
            compute_max=column([p.compute_max for p in points]),
            compute_mean=column([p.compute_mean for p in points]),
            storage_dial=torch.tensor(storage, dtype=torch.float64),
            compute_dial=torch.tensor(dial, dtype=torch.float64),
            cap_dial=torch.tensor(cap, dtype=torch.float64),
        )

    def table(self, points: tuple[Point, ...]) -> EpisodeBudgets:
        """The same as :meth:`episodes`, remembered: training asks for it every batch."""
        if points not in self._tables:
            self._tables[points] = self.episodes(points)
        return self._tables[points]

    def check_reachable(self, points: Sequence[Point]) -> None:
        """Refuses budgets that no keep ratio >= alpha can meet.

        Raises:
            BudgetError: listing each such budget with what can be reached.
        """
        problems: dict[str, Problem] = {}
        for point in points:
            for field, budget, reachable, unit in self._least_costs(point):
                if budget is not None and budget < reachable:
                    problems.setdefault(
                        f"{field}@{point.tradeoff_rate}@{point.ratio}",
                        Problem(
                            f"budgets.{field} at R_r = {point.tradeoff_rate:g}",
                            f"alpha = {self.alpha:g} can reach {reachable:,.0f} {unit} at best",
                            f"{budget:,.0f} {unit}",
                            "Raise the budget, lower pruning.alpha or agents.hidden"
                            + (", or lower R_r." if field == "storage_max" else "."),
                        ),
                    )
        if problems:
            raise BudgetError(list(problems.values()))

    def _least_costs(self, point: Point) -> list[tuple[str, float | None, float, str]]:
        stored = self.stored_at(_full(1, self.alpha), _full(1, point.tradeoff_rate))
        size = self.costs.storage_bytes(point.tradeoff_rate > 0).total(stored).item()
        if point.tradeoff_rate > 0:
            counts = self.least.unsqueeze(0)
            macs = self._macs(counts, self.costs.channels.unsqueeze(0)).item()
        else:
            macs = self.costs.static_macs().total(stored).item()
        return [
            ("storage_max", point.storage_bytes, size, "bytes"),
            ("compute_max", point.compute_max, macs, "MACs"),
            ("compute_mean", point.compute_mean, macs, "MACs"),
        ]


def _full(count: int, value: float) -> Tensor:
    return torch.full((count,), value, dtype=torch.float64)


def _tightest(*budgets: float | None) -> float | None:
    given = [budget for budget in budgets if budget is not None]
    return min(given) if given else None
