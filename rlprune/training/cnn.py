"""Training the network itself: pretraining, importances, fine-tuning (no Ray here)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from rlprune.data import ImageSet, augment, epoch_order, iterate_batches, normalize
from rlprune.errors import TrainingDivergedError
from rlprune.pruning import Gate, GatedNetwork

GateFactory = Callable[[int, np.random.Generator], Gate]
"""(images in the batch, generator) -> the gate for that batch."""

StepReport = Callable[[int, int, float, float], None]
"""(step, steps in all, loss, accuracy) after each optimizer step."""


@dataclass(frozen=True)
class CnnSchedule:
    """How one phase trains.

    Attributes:
        learning_rate: Adam's step at the start; falls to zero along a cosine.
        total_steps: optimizer steps of the whole phase.
        batch_size: images per step.
        gradient_clip: largest gradient norm.
        label_smoothing: of the cross-entropy.
        distillation: weight of the teacher's answers, 0 to 1.
        temperature: of the distillation.
    """

    learning_rate: float
    total_steps: int
    batch_size: int
    gradient_clip: float
    label_smoothing: float
    distillation: float = 0.0
    temperature: float = 1.0


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

    Args:
        network: to be trained in place.
        images: training split and normalisation.
        schedule: see above.
        seed: entropy of everything random.
        freeze: names (suffixes) of parameters that stay fixed, for example
            "static_importance".
        teacher: whose answers are imitated (``schedule.distillation``), in eval mode;
            None: nobody's.
    """

    def __init__(
        self,
        network: GatedNetwork,
        images: ImageSet,
        schedule: CnnSchedule,
        seed: list[int],
        freeze: tuple[str, ...] = (),
        teacher: GatedNetwork | None = None,
    ) -> None:
        self.network = network
        self.teacher = teacher
        self.images = images
        self.schedule = schedule
        self.seed = seed
        self.step = 0
        self.last_loss = float("nan")
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self._parameters = [
            parameter
            for name, parameter in network.named_parameters()
            if not name.endswith(freeze or ("\0",))
        ]
        self._optimizer = torch.optim.Adam(self._parameters, lr=schedule.learning_rate)

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
        losses, correct, seen = 0.0, 0, 0
        try:
            for index in range(steps):
                images, labels, rng = self._batch()
                loss, hits = self._step(images, labels, gates, rng)
                losses, correct, seen = losses + loss, correct + hits, seen + len(labels)
                if report is not None:
                    report(index + 1, steps, losses / (index + 1), correct / seen)
        finally:
            self.network.eval()
        return losses / max(steps, 1), correct / max(seen, 1)

    def _batch(self) -> tuple[Tensor, Tensor, np.random.Generator]:
        """The batch of the current step, and the generator for everything random in it.

        Order, augmentation and dropout follow from (seed, step) alone, so that training
        can be stopped and resumed at any step with equal results.
        """
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            shuffle = np.random.default_rng([*self.seed, 1, epoch])
            self._order = (epoch, epoch_order(len(self.images.train), shuffle))
        size = self.schedule.batch_size
        chosen = self.images.train.take(self._order[1][position * size : (position + 1) * size])
        rng = np.random.default_rng([*self.seed, 2, epoch, position])
        torch.manual_seed(int(rng.integers(2**31)))
        pixels = augment(chosen.images, self.images.augmentation, rng)
        images = normalize(pixels, self.images.mean, self.images.std)
        return images, torch.from_numpy(chosen.labels), rng

    def _step(
        self, images: Tensor, labels: Tensor, gates: GateFactory | None, rng: np.random.Generator
    ) -> tuple[float, int]:
        device = self._parameters[0].device
        images, labels = images.to(device), labels.to(device)
        gate = None if gates is None else gates(len(labels), rng)
        progress = min(1.0, self.step / max(1, self.schedule.total_steps))
        for group in self._optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
        logits = self.network(images, gate)
        loss = self._loss(logits, images, labels)
        value = float(loss.item())
        if not math.isfinite(value):
            raise TrainingDivergedError(
                f"The CNN's loss became {value} at step {self.step} of "
                f"{self.schedule.total_steps}. Lower the phase's learning rate "
                f"(now {self.schedule.learning_rate:g}) and resume from the last checkpoint."
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, self.schedule.gradient_clip)
        self._optimizer.step()
        self.step += 1
        self.last_loss = value
        return value, int((logits.argmax(1) == labels).sum().item())

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
    rng = np.random.default_rng(seed)
    chosen = images.train.take(rng.permutation(len(images.train))[:count])
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    device = next(network.parameters()).device
    batches = iterate_batches(
        chosen, batch_size, None, images.mean, images.std, "none", drop_last=True
    )
    for batch, labels in batches:
        network(batch.to(device), None if gates is None else gates(len(labels)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
