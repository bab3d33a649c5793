"""Fitting the published methods in the course of a trial, so that it can be interrupted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rlprune.data import ImageSet
from rlprune.pruning import GatedNetwork, Point
from rlprune.training.evaluate import Evaluator
from rlprune.training.progress import Reporter
from rlprune.training.rivals.bench import Bench, Fitted
from rlprune.training.rivals.registry import RIVALS
from rlprune.training.setup import TrialSetup


@dataclass(frozen=True)
class FitEffort:
    """What fitting a method has taken.

    Attributes:
        updates: of its own agents.
        rollouts: episodes or candidates that it has tried.
        seconds: wall time.
    """

    updates: int
    rollouts: int
    seconds: float


class RivalFits:
    """What the published methods of one trial have found, and how far they are.

    Args:
        setup, network, images, evaluator, reporter: of the trial.
    """

    def __init__(
        self,
        setup: TrialSetup,
        network: GatedNetwork,
        images: ImageSet,
        evaluator: Evaluator,
        reporter: Reporter,
    ) -> None:
        self.setup = setup
        self.network = network
        self.images = images
        self.evaluator = evaluator
        self.reporter = reporter
        self._found: dict[str, Fitted] = {}
        self._known: dict[str, list[float]] = {}
        self._seconds: dict[str, float] = {}

    def found(self, name: str) -> Fitted:
        """What a method has found so far; nothing for one that is not fitted."""
        return self._found.get(name, {})

    def fit(self, name: str, point: Point) -> None:
        """What a published method chooses before its network is fine-tuned.

        Weights stay as they are, unless the method rewrites them (``Rival.reshapes``).
        """
        if name not in RIVALS or name in self._found:
            return
        rival = RIVALS[name]
        before = {key: value.clone() for key, value in self.network.state_dict().items()}
        with self._timed(name):
            try:
                self._found[name] = rival.fit(self._bench(name, point))
            except BaseException:  # interrupted: it begins again, from the same network
                self.network.load_state_dict(before)
                raise
        if not rival.reshapes:
            self.network.load_state_dict(before)

    def improve(self, name: str, point: Point, index: int) -> None:
        """What a published method goes on learning before a round's fine-tuning."""
        rival = RIVALS.get(name)
        if rival is None or rival.improve is None:
            return

        def keep(fitted: Fitted) -> None:
            self._found[name] = fitted

        with self._timed(name):
            rival.improve(self._bench(name, point), self._found[name], index, keep)

    def effort(self, name: str) -> FitEffort:
        """What fitting a method has taken; nothing for one that is not fitted."""
        found = self.found(name)
        tried = int(found.get("rollouts", len(self._known.get(name, ()))))
        return FitEffort(int(found.get("updates", 0)), tried, self._seconds.get(name, 0.0))

    def _bench(self, name: str, point: Point) -> Bench:
        def advance(done: int, total: int, values: dict[str, float]) -> None:
            self.reporter.advance(f"fit {name}", done, total, values)

        known = self._known.setdefault(name, [])
        return Bench(self.setup, self.network, self.images, self.evaluator, point, known, advance)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self._seconds[name] = self._seconds.get(name, 0.0) + spent

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings, lists and dictionaries only."""
        return {
            "found": {name: dict(found) for name, found in self._found.items()},
            "known": {name: list(known) for name, known in self._known.items()},
            "seconds": dict(self._seconds),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self._found = dict(state["found"])
        self._known = {name: list(known) for name, known in state["known"].items()}
        self._seconds = dict(state["seconds"])
