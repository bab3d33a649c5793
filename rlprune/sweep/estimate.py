"""What trials will cost: multiply-accumulates, images, memory, cluster resources."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from rlprune.backbones import build_backbone, trace_backbone
from rlprune.backbones.flow import tensor_shape
from rlprune.backbones.graph import ChannelGraph
from rlprune.config import BackboneConfig, TrialConfig, config_to_dict
from rlprune.data import ImageSet
from rlprune.pruning import GatedNetwork
from rlprune.sweep.fields import pretraining_values
from rlprune.sweep.space import TrialPoint
from rlprune.sweep.spec import SweepSpec
from rlprune.training import cascade
from rlprune.training.effort import rollout_images, training_images
from rlprune.training.phases import PRETRAIN
from rlprune.training.setup import TrialSetup, warn_if_unshippable

_FLOAT_BYTES = 4
_PROCESS_BYTES = 700 * 2**20  # measured: a process that has imported torch, Ray and RLlib: 683 MiB
# The weights themselves, their gradient, Adam's two averages, the three snapshots of
# TrialProgram, and the copy to which a measurement returns. A cascade keeps a second network.
_WEIGHT_COPIES = 8
_WORKER_COPIES = 5
"""In each process that trains the network: weights, gradient and its sum, Adam's averages."""


@dataclass(frozen=True)
class ImageFacts:
    """What planning needs to know of an image set.

    Attributes:
        train: images in the training split.
        num_classes: classes.
        input_shape: (C, H, W) of one image.
        bytes: of all splits in (shared) memory.
    """

    train: int
    num_classes: int
    input_shape: tuple[int, int, int]
    bytes: int

    @classmethod
    def of(cls, images: ImageSet) -> ImageFacts:
        """Looks at a loaded image set."""
        splits = (images.train, images.validation, images.test)
        return cls(
            train=len(images.train),
            num_classes=images.num_classes,
            input_shape=images.input_shape,
            bytes=sum(split.nbytes for split in splits),
        )


@dataclass(frozen=True)
class NetworkFacts:
    """What planning needs to know of a backbone at one input size.

    Attributes:
        graph: its channels.
        activations: numbers in all values that one image's forward pass computes.
    """

    graph: ChannelGraph
    activations: int

    @classmethod
    def of(cls, config: BackboneConfig, images: ImageFacts) -> NetworkFacts:
        """Builds and traces a backbone.

        Raises:
            BackboneError: the network cannot be built, traced or pruned.
        """
        backbone = build_backbone(config, images.num_classes, images.input_shape)
        traced = trace_backbone(backbone, images.input_shape, images.num_classes)
        activations = sum(_numbers(node) for node in traced.module.graph.nodes)
        warn_if_unshippable(GatedNetwork(traced))
        return cls(traced.channels, activations)


def _numbers(node: fx.Node) -> int:
    shape = tensor_shape(node)
    return 0 if not shape else math.prod(shape[1:])


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a trial needs, estimated.

    Attributes:
        images: in shared memory; trials with the same image set share it.
        weights: of network, gradient, optimizer and snapshots.
        activations: kept for the gradient of one batch.
        processes: of the trial's process, its CNN and rollout workers, libraries included.
        on_gpu: whether weights and activations lie in a GPU's memory.
    """

    images: int
    weights: int
    activations: int
    processes: int
    on_gpu: bool

    @property
    def host(self) -> int:
        """Bytes of main memory, images included (snapshots lie there in any case)."""
        network = self.weights if self.on_gpu else self.weights + self.activations
        return self.images + network + self.processes


@dataclass(frozen=True)
class TrialEstimate:
    """One trial of a plan.

    Attributes:
        index, name: of its point.
        config: its resolved configuration.
        values: dotted name -> value, as the space sets them.
        dense_macs: multiply-accumulates per image of the unpruned backbone.
        dense_bytes: stored weights of the unpruned backbone.
        images: phase or baseline -> images that the network is trained on.
        shares_pretraining: whether an earlier trial of the plan pretrains the network.
        rollouts: images of the agents' rollouts (forward only).
        memory: see the class.
        bundles: what the cluster must provide: the trial's process, then the processes
            that train its network (if it is not the trial's), then its rollout workers
            (``{"CPU": 1.0}`` each).
    """

    index: int
    name: str
    config: TrialConfig
    values: dict[str, Any]
    dense_macs: int
    dense_bytes: int
    images: Mapping[str, int]
    shares_pretraining: bool
    rollouts: int
    memory: MemoryEstimate
    bundles: tuple[Mapping[str, float], ...]

    @property
    def backbone(self) -> str:
        """Name of the network, or its package.module:factory."""
        return self.config.backbone.factory or self.config.backbone.name

    @property
    def training_images(self) -> int:
        """Images that this trial itself trains on: no pretraining that it shares."""
        skipped = self.images.get(PRETRAIN, 0) if self.shares_pretraining else 0
        return sum(self.images.values()) - skipped

    @property
    def cpus(self) -> float:
        """CPUs of the trial with its workers."""
        return sum(bundle.get("CPU", 0.0) for bundle in self.bundles)

    @property
    def gpus(self) -> float:
        """GPUs of the trial."""
        return sum(bundle.get("GPU", 0.0) for bundle in self.bundles)


def bundles(spec: SweepSpec, config: TrialConfig) -> list[dict[str, float]]:
    """What a trial reserves: its own process first, CNN workers, then rollout workers.

    A CNN worker takes as many CPUs as the trial's own process, and a whole GPU where that has
    (part of) one: NCCL does not let two processes share one.
    """
    own = {"CPU": float(spec.resources.cpus)}
    worker = {"CPU": float(spec.resources.cpus)}
    if spec.resources.gpus > 0:
        own["GPU"] = float(spec.resources.gpus)
        worker["GPU"] = 1.0
    rollouts = ({"CPU": 1.0} for _ in range(config.rollouts.num_env_runners))
    return [own, *(dict(worker) for _ in range(cnn_processes(config))), *rollouts]


def cnn_processes(config: TrialConfig) -> int:
    """Processes besides the trial's own that train its network."""
    workers = config.resources.cnn_workers
    return 0 if workers == 1 else workers


def memory_estimate(
    setup: TrialSetup, network: NetworkFacts, images: ImageFacts, on_gpu: bool
) -> MemoryEstimate:
    """Estimates a trial's memory from its network and batch size."""
    batch = min(setup.config.training.batch_size, images.train)
    config, workers = setup.config, cnn_processes(setup.config)
    copies = _WEIGHT_COPIES + (cascade.LARGE in config.evaluation.baselines)
    copies += workers * (_WORKER_COPIES + (config.training.distillation > 0.0))
    return MemoryEstimate(
        images=images.bytes,
        weights=copies * setup.costs.dense_bytes(),
        activations=batch * network.activations * _FLOAT_BYTES,
        processes=_PROCESS_BYTES * (1 + workers + config.rollouts.num_env_runners),
        on_gpu=on_gpu,
    )


def estimate_trial(
    spec: SweepSpec,
    point: TrialPoint,
    setup: TrialSetup,
    network: NetworkFacts,
    images: ImageFacts,
    shares_pretraining: bool,
) -> TrialEstimate:
    """Puts together the estimate of the trial at a point."""
    return TrialEstimate(
        index=point.index,
        name=point.name,
        config=setup.config,
        values=point.values,
        dense_macs=setup.book.dense_macs,
        dense_bytes=setup.book.dense_bytes,
        images=training_images(setup.config, images.train),
        shares_pretraining=shares_pretraining,
        rollouts=rollout_images(setup.config),
        memory=memory_estimate(setup, network, images, spec.resources.gpus > 0),
        bundles=tuple(bundles(spec, setup.config)),
    )


@dataclass(frozen=True)
class SweepPlan:
    """A sweep whose every trial can be built.

    Attributes:
        spec: what was planned.
        trials: in the order in which they start; draws of the space if ``sampled``.
        sampled: whether the points are only examples, since Optuna chooses as it goes.
    """

    spec: SweepSpec
    trials: tuple[TrialEstimate, ...]
    sampled: bool

    @property
    def count(self) -> int:
        """Trials that will run."""
        return self.spec.search.num_samples if self.sampled else len(self.trials)

    @property
    def training_images(self) -> int:
        """Images that all trials train on, baselines included, shared pretraining once.

        For a sampled plan: the mean of the draws, each with its own pretraining, times the
        number of trials; the sweep itself may share some.
        """
        return self._total([float(trial.training_images) for trial in self.trials])

    @property
    def forward_macs(self) -> int:
        """Dense multiply-accumulates of one forward pass over all training and rollout images.

        A training step costs about three times its forward pass; measuring is not included.
        """
        return self._total(
            [float(t.dense_macs * (t.training_images + t.rollouts)) for t in self.trials]
        )

    @property
    def pretrainings(self) -> int:
        """Different networks that are pretrained (of the draws, if sampled)."""
        trained = (trial for trial in self.trials if trial.config.training.pretrain_epochs > 0)
        return len({pretraining_values(config_to_dict(trial.config)) for trial in trained})

    @property
    def shared_image_bytes(self) -> int:
        """Bytes of all image sets together, each held once per node.

        Another seed is another set: it decides which images are held out for validation.
        """
        sets = {
            (trial.config.data, trial.config.seed): trial.memory.images for trial in self.trials
        }
        return sum(sets.values())

    def _total(self, numbers: Sequence[float]) -> int:
        return round(sum(numbers) * self.count / max(1, len(numbers)))
