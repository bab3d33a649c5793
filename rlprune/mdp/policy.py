"""Who chooses the keep ratios: the interface, and the simple choosers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

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
    """Independent uniform ratios in [low, 1] per layer and episode.

    Args:
        low: least ratio.
        draw: function (episodes,) -> uniform numbers in [0, 1), shape [episodes].
    """

    observes = False

    def __init__(self, low: float, draw: Callable[[int], Tensor]) -> None:
        self.low = low
        self._draw = draw

    def ratio(self, layer: int, observation: Tensor) -> Tensor:
        """Fresh ratios [B]."""
        uniform = self._draw(len(observation))
        return self.low + (1.0 - self.low) * uniform
