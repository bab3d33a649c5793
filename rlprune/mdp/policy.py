"""Who chooses the keep ratios: the interface, and the simple choosers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor


class KeepRatioPolicy(ABC):
    """Chooses one keep ratio per layer and episode, layer after layer.

    Attributes:
        observes: False where the observation is ignored, so that it need not be built.
        records: True where every decision is recorded, so that none may be left out.
    """

    observes = True
    records = False

    def start(self, episodes: int) -> None:  # noqa: B027 - a hook, empty on purpose
        """Begins ``episodes`` new episodes (resets memory)."""

    @abstractmethod
    def ratio(self, layer: int, observation: Tensor) -> Tensor:
        """Keep ratios [B] of layer t, unclipped, given the observation [B, D]."""


class ConstantRatios(KeepRatioPolicy):
    """The same given ratios for every input.

    Args:
        ratios: [T].
    """

    observes = False

    def __init__(self, ratios: Tensor) -> None:
        self.ratios = ratios

    def ratio(self, layer: int, observation: Tensor) -> Tensor:
        """ratios[t] for every episode, [B]."""
        return self.ratios[layer].expand(len(observation))


class AnchoredRatios(KeepRatioPolicy):
    """The budget's own ratio (column 0 of the observation), times a factor per layer.

    This is an untrained agent: ``uniform`` without factors, ``random`` with them.

    Args:
        factors: [T], None = 1 everywhere.
    """

    def __init__(self, factors: Tensor | None = None) -> None:
        self.factors = factors

    def ratio(self, layer: int, observation: Tensor) -> Tensor:
        """Ratios [B]."""
        anchor = observation[:, 0]
        return anchor if self.factors is None else anchor * float(self.factors[layer])


class RandomRatios(KeepRatioPolicy):
    """Random ratios that agree within an episode: a level, and noise for every layer.

    The level is log-uniform in [low, 1], the factor of each layer in [1/spread, spread].
    Without a common level the product over many layers would be far too narrow for nearly
    every episode, and a deep network would learn nothing.

    Args:
        low: least level.
        draw: function (episodes,) -> uniform numbers in [0, 1), shape [episodes].
        spread: largest factor, at least 1.
    """

    observes = False

    def __init__(self, low: float, draw: Callable[[int], Tensor], spread: float = 1.5) -> None:
        self.low = low
        self.spread = spread
        self._draw = draw
        self._level = torch.ones(0)

    def start(self, episodes: int) -> None:
        """Draws the episodes' levels."""
        self._level = self.low ** (1.0 - self._draw(episodes))

    def ratio(self, layer: int, observation: Tensor) -> Tensor:
        """Level times a fresh factor, [B]."""
        return self._level * self.spread ** (2.0 * self._draw(len(observation)) - 1.0)
