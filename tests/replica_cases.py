"""Phases that one process, or several together, train; started by tests as real processes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from rlprune.agents.networks import RuntimeAgent, StaticAgent
from rlprune.config import config_from_dict
from rlprune.data import ImageArrays, ImageSet, load_image_set
from rlprune.pruning.synchronised import synchronise
from rlprune.replicas import ALONE, Replicas
from rlprune.training import cascade, methods
from rlprune.training.gates import GateRecipe
from rlprune.training.group import Group, Place
from rlprune.training.phases import ALTERNATE, PRETRAIN, RUNTIME_IMPORTANCE, STATIC_IMPORTANCE
from rlprune.training.setup import TrialSetup, network_of
from rlprune.training.trainer import CnnJob, PhaseTrainer

BATCH = 33  # shared unevenly by two and by three
STEPS = 6
PHASES = (
    PRETRAIN,
    RUNTIME_IMPORTANCE,
    STATIC_IMPORTANCE,
    ALTERNATE,
    "uniform",
    "random",
    "static_l1",
    "dense",
    cascade.SMALL,
    "slimming_sparse",
    "rnp_random",
    "fbs",
)


@dataclass(frozen=True)
class Case:
    """A phase of a backbone's training.

    Attributes:
        phase: or a method's name.
        backbone: its name.
        double: in float64, where rounding does not hide a wrong formula.
    """

    phase: str
    backbone: str = "m_cifarnet"
    double: bool = True


@dataclass(frozen=True)
class Outcome:
    """What training left: weights and statistics, and (loss, accuracy) after each step."""

    state: dict[str, Tensor]
    told: list[tuple[float, float]]


def config_of(case: Case) -> Any:
    means = case.phase == cascade.SMALL
    return config_from_dict(
        {
            "data": {"name": "digits", "max_train_images": 230},
            "backbone": _backbone(case),
            "agents": {"hidden": 8},
            "budgets": {
                "compute_mean": 0.5 if means else None,
                "compute_max": None if means else 0.5,
            },
            "training": {
                "batch_size": BATCH,
                "pretrain_epochs": 1,
                "runtime_importance_epochs": 1,
                "static_importance_epochs": 1,
                "rounds": 1,
                "finetune_epochs": 1,
                "label_smoothing": 0.1,
                "distillation": 0.4,
            },
        }
    )


def _backbone(case: Case) -> dict[str, Any]:
    if ":" in case.backbone:
        return {"factory": case.backbone}
    return {"name": case.backbone, "width": 0.25}


class Branches(nn.Module):
    """Branches that are dropped image by image and for a whole batch; a BatchNorm of its own."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.rows, self.batch = StochasticDepth(0.5, "row"), StochasticDepth(0.5, "batch")
        self.dropout, self.classifier = nn.Dropout(0.5), nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.relu(self.stem(x)))
        x = x + self.rows(torch.relu(self.left(x)))
        x = x + self.batch(torch.relu(self.right(x)))
        return self.classifier(self.dropout(x.mean((2, 3))))


def larger(images: ImageSet) -> ImageSet:
    """Digits of 16x16 pixels: below 100, channels that nobody needs are computed as well."""

    def twice(part: ImageArrays) -> ImageArrays:
        return ImageArrays(part.images.repeat(2, axis=2).repeat(2, axis=3), part.labels)

    parts = {name: twice(getattr(images, name)) for name in ("train", "validation", "test")}
    return dataclasses.replace(images, **parts, augmentation="crop_flip")


def recipe_of(case: Case, setup: TrialSetup, network: Any) -> GateRecipe:
    torch.manual_seed(5)
    agents = RuntimeAgent(setup.graph, setup.config.agents), StaticAgent(setup.config.agents)
    with torch.no_grad():  # an untrained agent decides the same for every image
        for agent in agents:
            agent.mean_head.weight.normal_(std=0.3)
    rng = np.random.default_rng(5)
    factors = dict(zip(("runtime", "static"), methods.random_factors(setup, rng), strict=True))
    scores = methods.static_l1(setup, network).static_scores or ()
    return GateRecipe(case.phase, agents, factors, tuple(scores), cascade.CANDIDATES[0])


def train(case: Case, replicas: Replicas = ALONE) -> Outcome:
    """One epoch of the case, from weights that follow from the seed."""
    torch.set_num_threads(1)
    config = config_of(case)
    images = larger(load_image_set(config.data, config.seed))
    network = network_of(config, images)
    if case.double:
        network.double()
    setup = TrialSetup.of(config, network.channels)
    recipe = recipe_of(case, setup, network)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    teacher = None if case.phase == PRETRAIN else weights
    synchronise(network, replicas)
    job = CnnJob.of(config, case.phase, len(images.train), teacher)
    trainer = PhaseTrainer(setup, images, network, job, replicas)
    if trainer.cnn.teacher is not None and case.double:
        trainer.cnn.teacher.double()
    told: list[tuple[float, float]] = []
    trainer.run(STEPS, recipe, lambda done, steps, loss, hits: told.append((loss, hits)))
    return Outcome(network.state_dict(), told)


def work(rank: int, size: int, place: Place, cases: list[Case], folder: str) -> None:
    """What each of several processes does; each writes its outcomes into the folder."""
    group = Group()
    replicas = group.join(place, rank, size, "cpu")
    outcomes = [dataclasses.astuple(train(case, replicas)) for case in cases]
    torch.save(outcomes, Path(folder, f"{rank}.pt"))
    group.leave()
