"""A program: trains for an epoch on a folder of images, streamed, and tells what it took.

    python streaming_memory.py FOLDER

It prints JSON: bytes of the set decoded, of Ray's object store, spilled to disk; and how much
the memory of this process and of its children has grown since the first steps, at most.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import ray
import torch
from PIL import Image
from ray._private.internal_api import memory_summary
from torch import nn

from rlprune.config import BackboneConfig, DataConfig
from rlprune.data import load_image_set
from rlprune.training import cluster
from rlprune.training.cnn import CnnSchedule, CnnTrainer
from rlprune.training.setup import build_network
from rlprune.training.streaming import StreamFeed

SIDE, BATCH, PICTURES, COPIES = 192, 32, 10, 100
STORE_HEADROOM = 96 * 2**20
WARM_UP = 6


def write_folder(root: Path) -> None:
    """Four classes with few pictures, each under many names (hard links)."""
    rng = np.random.default_rng(0)
    for label in range(4):
        folder = root / "train" / str(label)
        folder.mkdir(parents=True)
        for number in range(PICTURES):
            pixels = rng.integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
            pixels[..., 0] = 60 * label  # the classes can be told
            picture = Image.fromarray(pixels).resize((SIDE, SIDE))
            first = folder / f"{number}-0.jpg"
            picture.save(first)
            for copy in range(1, COPIES):
                (folder / f"{number}-{copy}.jpg").hardlink_to(first)


def make(num_classes: int) -> nn.Module:
    """A network that is quick with large images."""
    return nn.Sequential(
        nn.AvgPool2d(16),
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, num_classes),
    )


class Watch(threading.Thread):
    """Looks again and again at what this process and its children hold for themselves."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.2):
            self.peak = max(self.peak, held())


def held() -> int:
    """Bytes that no other process shares."""
    this = psutil.Process()
    total = 0
    for process in (this, *this.children(recursive=True)):
        try:
            total += process.memory_full_info().uss
        except psutil.Error:
            continue
    return total


def main() -> None:
    """Trains and prints."""
    root = Path(sys.argv[1])
    torch.set_num_threads(1)
    images = load_image_set(DataConfig(name="imagefolder", root=str(root), streaming=True), 0)
    cluster._STORE_HEADROOM = STORE_HEADROOM
    backbone = BackboneConfig(factory="streaming_memory:make")
    network = build_network(backbone, images.num_classes, images.input_shape, 0)
    with cluster.private_ray(2, 0):
        steps = len(images.train) // BATCH
        schedule = CnnSchedule(0.01, steps, BATCH, 40.0, 0.0)
        trainer = CnnTrainer(network, images, schedule, [0], feed=StreamFeed(images.train))
        network.train()
        for _ in range(WARM_UP):
            trainer.take_step(None)
        before = held()
        watch = Watch()
        watch.start()
        told = [trainer.take_step(None) for _ in range(steps - WARM_UP)]
        watch.over.set()
        watch.join()
        last = told[-10:]
        summary = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
        values = {
            "set": len(images.train) * int(np.prod(images.input_shape)),
            "store": STORE_HEADROOM,
            "spilled": "Spilled" in summary,
            "growth": watch.peak - before,
            "steps": steps,
            "accuracy": sum(step.correct for step in last) / (BATCH * len(last)),
        }
        trainer.close()
        ray.shutdown()
    print(json.dumps(values))


if __name__ == "__main__":
    main()
