"""What Ray Data's tasks do; nothing of RLlib here: they start in a second."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import ray

from rlprune.data import StoredImages
from rlprune.data.images import ByteArray, IntArray

Columns = dict[str, ByteArray | IntArray]


class Decoding:
    """Decodes one portion of an epoch, a batch at a time.

    Args:
        images: reference to the :class:`StoredImages`.
        size: images in a batch.
    """

    def __init__(self, images: ray.ObjectRef, size: int) -> None:
        self._images = images
        self._size = size

    def __call__(self, row: dict[str, IntArray]) -> Iterator[Columns]:
        """The images of a row with the column ``portion``, positions int64 ``[1, M]``.

        Raises:
            DataError: images that cannot be read; the message names them.
        """
        images: StoredImages = ray.get(self._images)
        portion = np.asarray(row["portion"][0], dtype=np.int64)
        for found in images.stream(portion, self._size, threads=1):
            yield {"image": found.images, "label": found.labels}
