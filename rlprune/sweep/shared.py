"""What the trials of a sweep share: image sets, and who pretrains which network."""

from __future__ import annotations

import time
from typing import Any

import ray

from rlprune.config import DataConfig
from rlprune.data import load_image_set
from rlprune.training.pretrained import images_digest

LEASE_SECONDS = 60.0


class SharedData:
    """One actor per sweep; trials reach it through its handle.

    Image sets are loaded once and lie in the object store, where every trial on a node
    reads the same copy. A lease says which trial pretrains a network that several need;
    it ends by itself when its holder stops renewing it (because it was killed).
    """

    def __init__(self) -> None:
        self._images: dict[tuple[DataConfig, int], tuple[ray.ObjectRef, str]] = {}
        self._leases: dict[str, tuple[str, float]] = {}

    def images(self, data: DataConfig, seed: int) -> list[Any]:
        """``[reference, digest]`` of an image set.

        The reference is in a list so that Ray passes it on instead of the images.

        Raises:
            DataError: see :func:`rlprune.data.load_image_set`.
        """
        key = (data, seed)
        if key not in self._images:
            loaded = load_image_set(data, seed)
            self._images[key] = (ray.put(loaded), images_digest(loaded))
        return list(self._images[key])

    def claim(self, key: str, trial: str) -> bool:
        """Gives or renews the lease to pretrain ``key``; False while another trial has it."""
        holder, until = self._leases.get(key, (trial, 0.0))
        now = time.monotonic()
        if holder != trial and now < until:
            return False
        self._leases[key] = (trial, now + LEASE_SECONDS)
        return True

    def release(self, key: str, trial: str) -> None:
        """Ends the lease, if it is this trial's."""
        if self._leases.get(key, ("", 0.0))[0] == trial:
            del self._leases[key]


def start_shared_data() -> Any:
    """Starts the actor; it comes back empty after a crash, and answers again."""
    actor = ray.remote(SharedData).options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
    return actor.remote()
