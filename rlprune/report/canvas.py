"""Drawing with matplotlib: the common look, and files that appear whole or not at all."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlprune.errors import ResultsError

DPI = 150
_RC: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "rlprune",
}
_RC_LOCK = threading.Lock()  # rc_context sets and restores settings of the whole process


@contextmanager
def drawing() -> Iterator[None]:
    """The look of all figures, for one thread at a time."""
    with _RC_LOCK, mpl.rc_context(_RC):
        yield


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes a figure; the suffix decides the format.

    Raises:
        ResultsError: the file cannot be written, or the format is unknown.
    """
    target = Path(path)
    temporary = target.with_name(f".{uuid.uuid4().hex[:8]}.{target.name}")
    FigureCanvasAgg(figure)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            figure.savefig(temporary, dpi=DPI)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise ResultsError(
            f"figure {target}: cannot be written ({error}). Choose another file."
        ) from error
    return target
