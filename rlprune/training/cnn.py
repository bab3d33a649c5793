"""Training the network itself: pretraining, importances, fine-tuning (no Ray here)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from rlprune.data import (
    ImageArrays,
    Images,
    ImageSet,
    augment,
    iterate_batches,
    normalize,
)
from rlprune.errors import TrainingDivergedError
from rlprune.pruning import Gate, GatedNetwork
from rlprune.pruning.batch_norm import begin_estimate, end_estimate
from rlprune.replicas import ALONE, Replicas, Share

GateFactory = Callable[[Share, np.random.Generator], Gate]
"""(this process's share of a batch, generator) -> the gate for the share.

Whatever is drawn is drawn for the whole batch: generators must agree in all processes.
"""

_PREDICTORS = "runtime_predictor.weight"
PLAIN_FROZEN = (_PREDICTORS, "static_importance", "width_scale", "width_shift")
"""Parameters that a network without gates of ours does not train."""

StepReport = Callable[[int, int, float, float], None]
"""(step, steps in all, loss, accuracy) after each optimizer step."""


@dataclass(frozen=True)
class CnnSchedule:
    """How one phase trains.

    Attributes:
        learning_rate: Adam's step at the start.
        total_steps: optimizer steps of the whole phase.
        batch_size: images per step.
        gradient_clip: largest gradient norm.
        label_smoothing: of the cross-entropy.
        distillation: weight of the teacher's answers, 0 to 1.
        temperature: of the distillation.
        decays: whether the learning rate falls to zero along a cosine, or stays.
        predictor_rate: the rate of the predictors' matrices W, as a share of the others'.
        held: steps before the rate begins to fall.
    """

    learning_rate: float
    total_steps: int
    batch_size: int
    gradient_clip: float
    label_smoothing: float
    distillation: float = 0.0
    temperature: float = 1.0
    decays: bool = True
    predictor_rate: float = 1.0
    held: int = 0

    def rate(self, step: int) -> float:
        """Adam's step at an optimizer step, counted from 0."""
        if not self.decays or step < self.held:
            return self.learning_rate
        progress = min(1.0, (step - self.held) / max(1, self.total_steps - self.held))
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Step:
    """What an optimizer step tells, of the whole batch.

    Attributes:
        loss: mean over the images.
        correct: images whose class was right, before the step.
        images: in the batch.
    """

    loss: float
    correct: int
    images: int


@dataclass(frozen=True)
class Epoch:
    """The order in which one pass visits the training images.

    Attributes:
        number: from 0.
        order: positions of the images, int64 [N].
        batch_size: images per step.
    """

    number: int
    order: NDArray[np.int64]
    batch_size: int

    def positions(self, step: int, share: Share) -> NDArray[np.int64]:
        """Of the images in a process's share of a step's batch (counted within the epoch)."""
        start = step * self.batch_size
        return self.order[start + share.start : start + share.stop]


class Feed(Protocol):
    """Where a trainer gets the images of its steps from."""

    def take(self, epoch: Epoch, step: int, share: Share) -> ImageArrays:
        """The images at ``epoch.positions(step, share)``; steps mostly come in order."""

    def close(self) -> None:
        """Nothing is taken for now: ends reading ahead."""


class _Memory:
    """A feed that takes a batch when it is asked for it."""

    def __init__(self, images: Images) -> None:
        self._images = images

    def take(self, epoch: Epoch, step: int, share: Share) -> ImageArrays:
        return self._images.take(epoch.positions(step, share))

    def close(self) -> None:
        """Nothing to end."""


def run_steps(
    steps: int, take_step: Callable[[], Step], report: StepReport | None
) -> tuple[float, float]:
    """Takes optimizer steps one after the other.

    Args:
        steps: how many.
        take_step: takes one.
        report: called after every step; may raise to interrupt between two steps.

    Returns:
        Mean loss and accuracy over the steps.
    """
    losses, correct, seen = 0.0, 0, 0
    for index in range(steps):
        step = take_step()
        losses, correct, seen = losses + step.loss, correct + step.correct, seen + step.images
        if report is not None:
            report(index + 1, steps, losses / (index + 1), correct / seen)
    return losses / max(steps, 1), correct / max(seen, 1)


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || network) of answers softened by T, mean over [B, K] logits; [].

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", Sec. 2.
    """
    divergence = F.kl_div(
        F.log_softmax(logits / temperature, 1),
        F.log_softmax(teacher / temperature, 1),
        log_target=True,
        reduction="batchmean",
    )
    return temperature**2 * divergence


class CnnTrainer:
    """Adam over a gated network's parameters, resumable to the bit.

    Several processes can train together: each has a trainer of its own with equal
    arguments, runs its share of every batch, and takes the same steps. Up to rounding they
    do what one process does with the whole batch.

    Args:
        network: to be trained in place.
        images: training split and normalisation.
        schedule: see above.
        seed: entropy of everything random.
        freeze: names (suffixes) of parameters that stay fixed, for example
            "static_importance".
        teacher: whose answers are imitated (``schedule.distillation``), in eval mode;
            None: nobody's.
        replicas: this process among those that train together; the network must be
            synchronised with them (:func:`rlprune.pruning.synchronised.synchronise`).
        feed: where the images come from; None: ``images.train`` itself.
    """

    def __init__(
        self,
        network: GatedNetwork,
        images: ImageSet,
        schedule: CnnSchedule,
        seed: list[int],
        freeze: tuple[str, ...] = (),
        teacher: GatedNetwork | None = None,
        replicas: Replicas = ALONE,
        feed: Feed | None = None,
    ) -> None:
        self.network = network
        self.replicas = replicas
        self.teacher = teacher
        self.images = images
        self.schedule = schedule
        self.seed = seed
        self.step = 0
        self.last_loss = float("nan")
        self._feed = feed or _Memory(images.train)
        self._epoch: Epoch | None = None
        trained = {
            name: parameter
            for name, parameter in network.named_parameters()
            if not name.endswith(freeze or ("\0",))
        }
        self._parameters = list(trained.values())
        self._optimizer = torch.optim.Adam(self._groups(trained), lr=schedule.learning_rate)

    def _groups(self, trained: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
        """The optimizer's groups: predictors' matrices, then all other parameters."""
        predictors = [p for name, p in trained.items() if name.endswith(_PREDICTORS)]
        others = [p for name, p in trained.items() if not name.endswith(_PREDICTORS)]
        groups = [(predictors, self.schedule.predictor_rate), (others, 1.0)]
        return [{"params": part, "share": share} for part, share in groups if part]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the training images."""
        return max(1, len(self.images.train) // self.schedule.batch_size)

    def run(
        self, steps: int, gates: GateFactory | None, report: StepReport | None = None
    ) -> tuple[float, float]:
        """Takes ``steps`` optimizer steps from where the trainer stands.

        Args:
            steps: how many.
            gates: makes each batch's gate; None prunes nothing.
            report: called after every step; may raise to interrupt between two steps.

        Returns:
            Mean loss and accuracy over the steps.

        Raises:
            TrainingDivergedError: the loss became NaN or infinite.
        """
        self.network.train()
        try:
            return run_steps(steps, lambda: self.take_step(gates), report)
        finally:
            self.network.eval()
            self.close()

    def close(self) -> None:
        """After the last step for now."""
        self._feed.close()

    def take_step(self, gates: GateFactory | None) -> Step:
        """Takes one optimizer step; the network must be in training mode.

        Order, augmentation and dropout follow from (seed, step) alone, so that training
        can be stopped and resumed at any step with equal results.

        Raises:
            TrainingDivergedError: the loss became NaN or infinite.
        """
        number, position = divmod(self.step, self.steps_per_epoch)
        epoch = self._order_of(number)
        size = min(self.schedule.batch_size, len(epoch.order))
        share = self.replicas.begin(size)
        chosen = self._feed.take(epoch, position, share)
        rng = np.random.default_rng([*self.seed, 2, number, position])
        torch.manual_seed(int(rng.integers(2**31)))
        pixels = augment(chosen.images, self.images.augmentation, rng, share)
        weight = self._parameters[0]
        images = normalize(pixels, self.images.mean, self.images.std)
        labels = torch.from_numpy(chosen.labels).to(weight.device)
        gate = None if gates is None else gates(share, rng)
        return self._step(images.to(weight), labels, gate, share)

    def _order_of(self, number: int) -> Epoch:
        if self._epoch is None or self._epoch.number != number:
            shuffle = np.random.default_rng([*self.seed, 1, number])
            order = self.images.train.shuffled(shuffle)
            self._epoch = Epoch(number, order, self.schedule.batch_size)
        return self._epoch

    def _step(self, images: Tensor, labels: Tensor, gate: Gate | None, share: Share) -> Step:
        for group in self._optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.step) * group["share"]
        logits = self.network(images, gate)
        loss = self._loss(logits, images, labels) * share.weight
        correct = int((logits.argmax(1) == labels).sum().item())
        # What is told (and scales the agents' reward) is the loss without the penalty.
        told = torch.tensor([float(loss.item()), float(correct)], dtype=torch.float64)
        value, hits = self.replicas.sum(told).tolist()
        self._check(value)
        self._optimizer.zero_grad(set_to_none=True)
        penalty = None if gate is None else gate.penalty()
        loss = loss if penalty is None else loss + penalty * share.weight
        loss.backward()  # type: ignore[no-untyped-call]
        self.replicas.sum_gradients(self._parameters)
        nn.utils.clip_grad_norm_(self._parameters, self.schedule.gradient_clip)
        self._optimizer.step()
        self.step += 1
        self.last_loss = value
        return Step(value, int(hits), share.total)

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingDivergedError(
                f"The CNN's loss became {loss} at step {self.step} of "
                f"{self.schedule.total_steps}. Lower the phase's learning rate "
                f"(now {self.schedule.learning_rate:g}) and resume from the last checkpoint."
            )

    def _loss(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        schedule = self.schedule
        loss = F.cross_entropy(logits, labels, label_smoothing=schedule.label_smoothing)
        if self.teacher is None or schedule.distillation <= 0.0:
            return loss
        with torch.no_grad():
            answers = self.teacher(images)
        imitation = distillation_loss(logits, answers, schedule.temperature)
        return (1.0 - schedule.distillation) * loss + schedule.distillation * imitation

    def state_dict(self) -> dict[str, Any]:
        """Optimizer and position; the network is saved by its owner."""
        return {"step": self.step, "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.step = state["step"]
        self._optimizer.load_state_dict(state["optimizer"])


@torch.no_grad()
def reestimate_batchnorm(
    network: GatedNetwork,
    images: ImageSet,
    gates: Callable[[int], Gate] | None,
    count: int,
    batch_size: int,
    seed: list[int],
) -> None:
    """Sets BatchNorm's running statistics to those of training images under the gates.

    Args:
        network: changed in place (buffers only); left in eval mode.
        images: the training split is used, without augmentation.
        gates: images in a batch -> gate; None prunes nothing.
        count: images, rounded down to whole batches (one at least), which weigh the same.
        batch_size: images per forward pass.
        seed: chooses the images.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    trained = [begin_estimate(norm) for norm in norms]
    rng = np.random.default_rng(seed)
    chosen = images.train.take(images.train.shuffled(rng)[:count])
    network.eval()
    for norm in norms:
        norm.train()
    device = next(network.parameters()).device
    batches = iterate_batches(
        chosen, batch_size, None, images.mean, images.std, "none", drop_last=True
    )
    for batch, labels in batches:
        network(batch.to(device), None if gates is None else gates(len(labels)))
    for norm, before, momentum in zip(norms, trained, momenta, strict=True):
        end_estimate(norm, before, momentum)
        norm.eval()
