"""What a trial consists of before anything is trained (no Ray here)."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from rlprune.agents.networks import runtime_agent_size
from rlprune.amounts import parse_budget
from rlprune.backbones import build_backbone, trace_backbone
from rlprune.backbones.graph import ChannelGraph
from rlprune.capture import why_unshippable
from rlprune.config import BackboneConfig, TrialConfig
from rlprune.data import ImageSet
from rlprune.errors import ConfigError, Problem
from rlprune.mdp import PruningRules
from rlprune.pruning import (
    PAPER,
    BudgetBook,
    CostModel,
    EpisodeBudgets,
    GateDesign,
    GatedNetwork,
    Point,
)
from rlprune.replicas import Share

_RATIOS_IN_RANGE = 33
_logger = logging.getLogger(__name__)


def build_network(
    config: BackboneConfig,
    num_classes: int,
    input_shape: tuple[int, int, int],
    seed: int,
    design: GateDesign = PAPER,
) -> GatedNetwork:
    """A gated network with seeded initial weights, or those of ``config.weights``.

    Raises:
        BackboneError: the network cannot be built, traced or pruned.
    """
    torch.manual_seed(seed)
    backbone = build_backbone(config, num_classes, input_shape)
    traced = trace_backbone(backbone, input_shape, num_classes)
    network = GatedNetwork(traced, design)
    # Measured on a CPU without AVX-512: fine-tuning steps take 0.65-0.85 of the time.
    return network.to(memory_format=torch.channels_last)


def action_kind(config: TrialConfig) -> str:
    """Resolves ``agents.action: auto``."""
    if config.agents.action != "auto":
        return config.agents.action
    return "absolute" if config.budgets.compute_mean is None else "change"


def network_of(config: TrialConfig, images: ImageSet) -> GatedNetwork:
    """The gated network of a trial, see :func:`build_network`."""
    design = GateDesign.of(config.pruning)
    shape, classes = images.input_shape, images.num_classes
    return build_network(config.backbone, classes, shape, config.seed, design)


def without_weights(config: BackboneConfig) -> BackboneConfig:
    """For a network whose weights come from elsewhere: their file need not be there."""
    return dataclasses.replace(config, weights=None)


@dataclass(frozen=True)
class TrialSetup:
    """Costs, budgets and rules of one trial; equal in every process of it.

    Attributes:
        config: the trial's configuration.
        graph: the backbone's channels at the image set's input size.
        costs: of the complete network (predictors and runtime agent).
        book: resolves budgets; refuses what cannot be reached.
        rules: of the learned policy's decision process.
    """

    config: TrialConfig
    graph: ChannelGraph
    costs: CostModel
    book: BudgetBook
    rules: PruningRules
    _points: dict[tuple[float, ...], tuple[Point, ...]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, config: TrialConfig, graph: ChannelGraph) -> TrialSetup:
        """Derives everything from configuration and graph."""
        size = runtime_agent_size(config.agents.hidden)
        costs = CostModel(graph, agent=size, design=GateDesign.of(config.pruning))
        return cls(
            config=config,
            graph=graph,
            costs=costs,
            book=BudgetBook(costs, config.budgets, config.pruning),
            rules=PruningRules(
                costs,
                config.pruning,
                projected=config.budgets.rule == "projected",
                action="change" if action_kind(config) == "change" else "absolute",
                importance_penalty=config.training.importance_penalty,
            ),
        )

    def evaluation_points(self) -> list[Point]:
        """Every point that is measured: all R_r at the configured budgets, then the others."""
        ratios = (None, *self.config.evaluation.budgets)
        rates = self.config.evaluation.tradeoff_rates
        return [self.book.point(rate, ratio) for ratio in ratios for rate in rates]

    def check_budgets(self) -> None:
        """Refuses unreachable budgets.

        Raises:
            BudgetError: listing every one, with what can be reached.
        """
        points = self.evaluation_points()
        if self._range() is not None:
            points += [
                self.book.point(rate, self._range()[0])  # type: ignore[index]
                for rate in self.config.evaluation.tradeoff_rates
            ]
        self.book.check_reachable(points)

    def _range(self) -> tuple[float, float] | None:
        return self.config.budgets.train_range

    def mean_range(self) -> tuple[float, float] | None:
        """Span of mean-compute targets in training (fractions of dense MACs), None if none."""
        if self.config.budgets.compute_mean is None:
            return None
        ratios: list[float | None] = [None]
        amount = parse_budget(self.config.budgets.compute_mean)
        if self._range() is not None and amount.kind == "ratio":
            ratios = list(self._range() or ())
        targets = [self.book.point(1.0, ratio).compute_mean or 0.0 for ratio in ratios]
        return min(targets) / self.book.dense_macs, max(targets) / self.book.dense_macs

    def sample_episodes(
        self,
        book: BudgetBook,
        count: int,
        rng: np.random.Generator,
        one_point: bool = False,
        rates: tuple[float, ...] | None = None,
        share: Share | None = None,
    ) -> EpisodeBudgets:
        """Budgets of ``count`` training episodes.

        Args:
            book: whose dials the policy is told (a baseline has its own costs).
            count: B.
            rng: source of all randomness.
            one_point: draw one R_r and one number of ``train_range`` for all of them: BatchNorm
                then sees batches of the kind whose statistics are used at evaluation.
            rates: draw R_r from these instead of the configured ones.
            share: of a batch of ``count`` episodes, draw for all and return these; None: all.
        """
        rates = rates or self.config.evaluation.tradeoff_rates
        points = self._training_points(rates)
        ratios = len(points) // len(rates)
        draws = 1 if one_point else count
        drawn = rng.integers(len(rates), size=draws)
        if ratios > 1:
            drawn = drawn * ratios + rng.choice(ratios, size=draws, p=self._weights())
        index = np.broadcast_to(drawn, count).copy()
        index = index if share is None else index[share.part]
        return book.table(points).select(torch.from_numpy(index))

    def _weights(self) -> NDArray[np.float64]:
        """How often each number of ``train_range`` is drawn: as 1 / s^2.

        Narrow networks are furthest from the pretrained one, and need most training.
        Source: Yu and Huang 2019, "Universally Slimmable Networks", Sec. 3.2, train the
        narrowest width in every step for the same reason.
        """
        span = self._range()
        assert span is not None
        weights = np.linspace(*span, _RATIOS_IN_RANGE) ** -2.0
        return weights / weights.sum()  # type: ignore[no-any-return]

    def _training_points(self, rates: tuple[float, ...]) -> tuple[Point, ...]:
        """Every R_r at the configured budgets, or at a grid over ``train_range``."""
        if rates not in self._points:
            span = self._range()
            ratios = [None] if span is None else np.linspace(*span, _RATIOS_IN_RANGE).tolist()
            self._points[rates] = tuple(
                self.book.point(rate, ratio) for rate in rates for ratio in ratios
            )
        return self._points[rates]


def check_packages(baselines: tuple[str, ...]) -> None:
    """Refuses methods whose package is not installed.

    Raises:
        ConfigError: naming the package.
    """
    if "torch_pruning" in baselines and importlib.util.find_spec("torch_pruning") is None:
        rule = "torch_pruning needs the package torch-pruning"
        remedy = "Run `pip install 'rlprune[compare]'`, or take it out of the list."
        raise ConfigError([Problem("evaluation.baselines", rule, list(baselines), remedy)])


def setup_trial(config: TrialConfig, images: ImageSet) -> TrialSetup:
    """Builds the set-up for an image set and checks the budgets.

    Raises:
        ConfigError: a method's package is missing.
        BackboneError: see :func:`build_network`.
        BudgetError: see :meth:`TrialSetup.check_budgets`.
    """
    check_packages(config.evaluation.baselines)
    network = network_of(config, images)
    setup = TrialSetup.of(config, network.channels)
    setup.check_budgets()
    return setup


def warn_if_unshippable(network: GatedNetwork) -> None:
    """Says before anything is trained that the network can be pruned but not exported."""
    reason = why_unshippable(network)
    if reason is not None:
        text = "%s can be trained and measured, but `rlprune export` will refuse it: %s"
        _logger.warning(text, type(network.body).__name__, reason)
