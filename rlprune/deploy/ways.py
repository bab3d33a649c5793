"""Which way a call of a model takes: as measured on this machine, else the usual way.

- One image computes its own channels alone; each layer by the compiled convolution or by
  torch's ("gathered").
- A batch goes image after image in that way, or all images at once, with everything that is
  stored and zeros in place of what an image prunes ("masked").

The answers are the same. Legend: T layers, S stored channels, I stored input channels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from rlprune.deploy.calibration import BatchTimes, Table
from rlprune.deploy.layer import GatedLayer

_log = logging.getLogger(__name__)
_FEW_THREADS, _FEW_THREADS_PLAIN = 2, 1
"""The compiled convolution has one thread: with more than these torch's is taken, unmeasured.

A plain layer's filters lie ready for torch as well, so that a second thread pays earlier there.
"""


@dataclass(frozen=True)
class Ways:
    """What is chosen with one number of threads.

    Attributes:
        pairs: for each layer the largest product of computed channels and computed input
            channels at which the convolution is the compiled one, [T].
        batches: by budget; empty: the usual.
    """

    pairs: tuple[int, ...]
    batches: tuple[BatchTimes, ...] = ()

    @cached_property
    def limits(self) -> NDArray[np.int64]:
        """``pairs`` as compiled code reads them."""
        return np.array(self.pairs, dtype=np.int64)

    def masks(self, images: int, budget: float, usual: bool) -> bool:
        """Whether a batch is computed at once.

        Args:
            images: in it.
            budget: s of the call; the nearest one that was measured counts.
            usual: the answer where nothing was measured.
        """
        if not self.batches:
            return usual
        nearest = min(self.batches, key=lambda row: abs(row.budget - budget))
        return nearest.masked_from is not None and images >= nearest.masked_from


class Choice:
    """The ways of a model, by the number of threads of torch at a call.

    Args:
        layers: of the model.
        tables: measured, one for each number of threads.
    """

    def __init__(self, layers: Sequence[GatedLayer], tables: Sequence[Table] = ()) -> None:
        self._usual = Ways(tuple(pairs_at(layer, 1.0) for layer in layers))
        self._parallel = Ways((0,) * len(layers))
        plain = any(layer.predictor is None for layer in layers)
        self._few = _FEW_THREADS_PLAIN if plain else _FEW_THREADS
        self._measured = {table.threads: self._ways(table, layers) for table in tables}
        self._warned: set[int] = set()

    def _ways(self, table: Table, layers: Sequence[GatedLayer]) -> Ways:
        pairs = tuple(
            pairs_at(layer, times.compiled_up_to)
            for layer, times in zip(layers, table.layers, strict=False)
        )
        return Ways(pairs or self._unmeasured(table.threads).pairs, table.batches)

    def _unmeasured(self, threads: int) -> Ways:
        return self._usual if threads <= self._few else self._parallel

    def now(self) -> Ways:
        """What is chosen in this call."""
        threads = torch.get_num_threads()
        if not self._measured:
            return self._unmeasured(threads)
        if threads not in self._measured and threads not in self._warned:
            self._warned.add(threads)
            known = ", ".join(map(str, sorted(self._measured)))
            _log.warning(
                "calibrated with %s threads, but torch uses %d: the usual choices are made. "
                "Add a table with: rlprune calibrate FILE --threads %d",
                *(known, threads, threads),
            )
        return self._measured.get(threads, self._unmeasured(threads))


def pairs_at(layer: GatedLayer, share: float) -> int:
    """n i where a share of the stored channels is computed, in a layer and in those before it."""
    inputs = sum(run.channels if run.layer is None else share * run.channels for run in layer.runs)
    return int(share * layer.spec.stored * inputs + 1e-6)
