"""Which way a call of a model takes: as measured on this machine, else the usual way.

- One image computes its own channels alone; each layer as a convolution, or as a product of
  matrices with the unfolded input ("gathered").
- A batch goes image after image in that way, or all images at once, with everything that is
  stored and zeros in place of what an image prunes ("masked").

The answers are the same. Legend: T layers, S stored channels, I stored input channels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlprune.deploy.calibration import BatchTimes, Table
from rlprune.deploy.layer import GatedLayer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ways:
    """What is chosen with one number of threads.

    Attributes:
        pairs: for each layer the largest product of computed channels and computed input
            channels at which its input is unfolded, if there is room for it, [T].
        batches: by budget; empty: the usual.
    """

    pairs: tuple[int, ...]
    batches: tuple[BatchTimes, ...] = ()

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
        self._measured = {table.threads: self._ways(table, layers) for table in tables}
        self._warned: set[int] = set()

    def _ways(self, table: Table, layers: Sequence[GatedLayer]) -> Ways:
        pairs = tuple(
            pairs_at(layer, times.product_up_to)
            for layer, times in zip(layers, table.layers, strict=False)
        )
        return Ways(pairs or self._usual.pairs, table.batches)

    def now(self) -> Ways:
        """What is chosen in this call."""
        if not self._measured:
            return self._usual
        threads = torch.get_num_threads()
        if threads not in self._measured and threads not in self._warned:
            self._warned.add(threads)
            known = ", ".join(map(str, sorted(self._measured)))
            _log.warning(
                "calibrated with %s threads, but torch uses %d: the usual choices are made. "
                "Add a table with: rlprune calibrate FILE --threads %d",
                *(known, threads, threads),
            )
        return self._measured.get(threads, self._usual)


def pairs_at(layer: GatedLayer, share: float) -> int:
    """n i where a share of the stored channels is computed, in a layer and in those before it."""
    inputs = sum(run.channels if run.layer is None else share * run.channels for run in layer.runs)
    return int(share * layer.spec.stored * inputs + 1e-6)
