"""What a trial leaves beside its results while it trains: updates, difficulty, a picture."""

from __future__ import annotations

import io
import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rlprune import files
from rlprune.training.diagnostics import difficulty

logger = logging.getLogger(__name__)


class TrainingLog:
    """Writes a trial's log after each of its units, as far as there is something new.

    Args:
        updates: Parquet file, one row per PPO update; these are paths or URIs.
        difficulty: Parquet file, what the learned policy spends on easy and hard images.
        picture: PNG file, drawn from the two.
        seconds_between_pictures: while agents train, at least; drawing takes seconds, and
            rounds of a small trial are over sooner. The last picture is always drawn.
    """

    def __init__(
        self,
        updates: str | Path,
        difficulty: str | Path,
        picture: str | Path,
        seconds_between_pictures: float = 60.0,
    ) -> None:
        self.updates = os.fspath(updates)
        self.difficulty = os.fspath(difficulty)
        self.picture = os.fspath(picture)
        self._drawn = 0
        self._pause = seconds_between_pictures
        self._next_drawing = time.monotonic() + self._pause

    def write(self, algorithm: Any) -> None:
        """Writes what is new; trouble with diagnostics is logged and stops nothing.

        Args:
            algorithm: the ``PruningAlgorithm`` after an iteration.

        Raises:
            FileAccessError: the updates cannot be written.
        """
        history = algorithm.program.history
        if history:
            write_records(self.updates, history)
        try:
            measured = self._write_difficulty(algorithm)
            due = len(history) != self._drawn and time.monotonic() > self._next_drawing
            if history and (measured or due):
                self._draw(history)
                self._drawn = len(history)
                self._next_drawing = time.monotonic() + self._pause
        except Exception:
            logger.warning("%s: left out, could not be made.", self.picture, exc_info=True)

    def _write_difficulty(self, algorithm: Any) -> bool:
        """Whether the learned policy has been measured just now."""
        rows = difficulty(algorithm.program, algorithm.agents(), algorithm.measurements)
        if rows:
            write_records(self.difficulty, rows)
        return bool(rows)

    def _draw(self, history: Sequence[Mapping[str, float]]) -> None:
        from rlprune.report.training_figure import training_figure

        table = None
        if files.exists(self.difficulty):
            table = pd.read_parquet(io.BytesIO(files.read_whole(self.difficulty)))
        with tempfile.TemporaryDirectory(prefix="rlprune-") as folder:
            path = training_figure(pd.DataFrame(history), table, Path(folder, "training.png"))
            files.write_whole(self.picture, path.read_bytes())


def write_records(path: str | Path, records: Sequence[Mapping[str, float]]) -> None:
    """Writes one row per record to a Parquet file (a path or URI), whole or not at all."""
    buffer = io.BytesIO()
    pd.DataFrame(records).to_parquet(buffer, index=False)
    files.write_whole(path, buffer.getvalue())
