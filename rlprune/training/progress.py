"""What a trial tells whoever watches: a terminal bar, TensorBoard, or nobody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Values = Tensor | NDArray[np.floating[Any]]
"""Numbers of any shape."""


class Interrupted(Exception):
    """Raised by a reporter to stop a trial between two steps; the trial saves itself."""


class Reporter:
    """Receives progress; this base class ignores it.

    All methods are called between two steps. They may raise :class:`Interrupted`.
    """

    def phase(self, name: str, done: int, total: int) -> None:
        """A phase begins or goes on at step ``done`` of ``total``."""

    def advance(self, name: str, done: int, total: int, values: dict[str, float]) -> None:
        """Step ``done`` of ``total`` of a phase is finished; ``values`` to be shown."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Scalars for TensorBoard at ``step`` (counted per name's first part)."""

    def histograms(self, step: int, values: Mapping[str, Values]) -> None:
        """Distributions for TensorBoard at ``step``: numbers of any shape by name."""

    def note(self, text: str) -> None:
        """A line for the user."""
