"""Epochs of images that stay in their files, streamed through Ray Data.

Ray Data has shuffles of its own, but their order depends on the blocks that happen to arrive
first, and an iterator cannot start in the middle of an epoch. Here the order comes first: it
follows from seed and epoch alone (:meth:`StoredImages.shuffled`). Ray Data gets a row for each
portion of it; two tasks at a time, on whichever nodes Ray Data chooses, decode portions ahead
of the training, within a limit on what lies in the object store; and ``preserve_order`` hands
the images over in that order. So training is the same as with images in memory, and can go on
from any step. Every node must see the files, as ``rlprune preflight`` checks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import ray
from ray.data import DataContext, ExecutionResources

from rlprune.data import ImageArrays, ImageSet, StoredImages
from rlprune.data.images import IntArray
from rlprune.errors import DataError
from rlprune.pruning import GatedNetwork
from rlprune.replicas import Share
from rlprune.training.cnn import Epoch, Feed
from rlprune.training.decoding import Decoding
from rlprune.training.setup import TrialSetup
from rlprune.training.trainer import CnnJob, PhaseTrainer, Trainer

STORE_BYTES = 256 * 2**20
"""Decoded images that may wait in the object store, for each process that trains.

Where the node's store is small, an eighth of it: other trials stream as well.
"""
_BLOCK_BYTES = 16 * 2**20
_TASKS = 2


class StreamFeed:
    """Gives a trainer the batches of an epoch from files (a ``Feed``).

    Args:
        images: the training split.
    """

    def __init__(self, images: StoredImages) -> None:
        self._images = images
        self._stored: ray.ObjectRef | None = None
        self._batches: Iterator[dict[str, np.ndarray]] = iter(())
        self._next: tuple[int, ...] = ()

    def take(self, epoch: Epoch, step: int, share: Share) -> ImageArrays:
        """See ``Feed``; a step that is not the one after the last starts a new stream.

        Raises:
            DataError: images that cannot be read; the message names them.
        """
        place = (epoch.number, step, share.start, share.stop)
        if place != self._next:
            self._batches = self._stream(epoch, step, share)
        try:
            batch = next(self._batches)
        except ray.exceptions.RayError as error:
            self._batches, self._next = iter(()), ()
            cause = _data_error(error)
            if cause is None:
                raise
            raise cause from None
        self._next = (epoch.number, step + 1, share.start, share.stop)
        return ImageArrays(batch["image"], batch["label"].copy())  # torch wants to write

    def close(self) -> None:
        """Ends reading ahead."""
        self._batches, self._next = iter(()), ()

    def _stream(self, epoch: Epoch, step: int, share: Share) -> Iterator[dict[str, np.ndarray]]:
        self.close()  # the old one's tasks first
        if self._stored is None:
            self._stored = ray.put(self._images)
        parts = portions(epoch, step, share, self._images.portion)
        size = len(share)
        context = self._context()
        with DataContext.current(context):
            rows = ray.data.from_items(
                [{"portion": part} for part in parts], override_num_blocks=len(parts)
            )
            decoded = rows.map_batches(
                Decoding(self._stored, size),
                batch_size=1,
                num_cpus=0,  # trials may have reserved them all
                compute=ray.data.TaskPoolStrategy(size=min(_TASKS, len(parts))),
            )
            batches = decoded.iter_batches(batch_size=size, prefetch_batches=1)
            return iter(batches)

    def _context(self) -> DataContext:
        context = DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.target_max_block_size = _BLOCK_BYTES
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ExecutionResources.for_limits(
            object_store_memory=_store_bytes()
        )
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        return context


def feed_of(images: ImageSet) -> Feed | None:
    """A feed for images in files; None for those in memory, which need none."""
    train = images.train
    return StreamFeed(train) if isinstance(train, StoredImages) else None


def streaming_trainer(
    setup: TrialSetup, images: ImageSet, network: GatedNetwork, job: CnnJob
) -> Trainer:
    """Trains in this process (a ``TrainerFactory``), with a feed where images are in files."""
    return PhaseTrainer(setup, images, network, job, feed=feed_of(images))


def portions(epoch: Epoch, step: int, share: Share, length: int) -> list[IntArray]:
    """What the tasks of a stream decode: positions of images in the order of their use.

    Args:
        epoch: gives the order.
        step: the first of the steps, counted within the epoch.
        share: of each step's batch.
        length: images of the order that are best read at once.

    Returns:
        One array of positions for each task, int64.
    """
    steps = max(1, len(epoch.order) // epoch.batch_size)
    first = np.arange(step, steps) * epoch.batch_size
    used = (first[:, None] + np.arange(share.start, share.stop)).ravel()
    cuts = np.flatnonzero(np.diff(used // length)) + 1
    return np.split(epoch.order[used], cuts)


def _store_bytes() -> int:
    here = ray.get_runtime_context().get_node_id()
    stores = [
        node["Resources"].get("object_store_memory", 0.0)
        for node in ray.nodes()
        if node["NodeID"] == here
    ]
    return min(STORE_BYTES, int(max(stores, default=0.0)) // 8) or STORE_BYTES


def _data_error(error: BaseException | None) -> DataError | None:
    """Ours among the causes of Ray's error."""
    while error is not None and not isinstance(error, DataError):
        error = getattr(error, "cause", None) or error.__cause__
    return error
