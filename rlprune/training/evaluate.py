"""Measuring a method at a point: accuracy and cost on validation and test (no Ray here)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rlprune.config import EvaluationConfig
from rlprune.data import Images, ImageSet, iterate_batches
from rlprune.mdp import PruningGate
from rlprune.pruning import EpisodeBudgets, Gate, GatedNetwork, Point
from rlprune.training.cnn import reestimate_batchnorm
from rlprune.training.methods import Method, with_dial

MEAN_TOLERANCE = 0.01
_BISECTIONS = 12
_FEW = 0.01  # of the images: a channel that fewer compute, or all but fewer, is the same for all


@dataclass(frozen=True)
class SplitResult:
    """A method on one split.

    Attributes:
        accuracy: top-1, fraction.
        accuracy_top5: fraction; None with at most 10 classes.
        loss: mean cross-entropy, nats.
        macs: multiply-accumulates of each image, float64 [N].
        losses: cross-entropy of each image, [N].
        computed: channels computed, float64 [N, T].
        stored: channels stored, float64 [T].
        parameters: stored numbers.
        storage_bytes: bytes of stored weights.
        varying: channels that 1 to 99 % of the images compute, float64 [T]; None: not counted.
    """

    accuracy: float
    accuracy_top5: float | None
    loss: float
    macs: Tensor
    losses: Tensor
    computed: Tensor
    stored: Tensor
    parameters: int
    storage_bytes: int
    varying: Tensor | None


@dataclass(frozen=True)
class Passes:
    """One pass of a method over every image of a split, before it is summed up.

    Attributes:
        losses: cross-entropy of each image, float64 [N].
        hits: whether the k-th guess is right, bool [N, at most 5].
        confidence: largest softmax probability of each image, float64 [N].
        macs: multiply-accumulates of each image, float64 [N].
        computed: channels computed, float64 [N, T].
        stored: channels stored, float64 [T].
        parameters: stored numbers.
        storage_bytes: bytes of stored weights.
        users: how many images compute each channel, int64 [C] per layer; None: not counted.
    """

    losses: Tensor
    hits: Tensor
    confidence: Tensor
    macs: Tensor
    computed: Tensor
    stored: Tensor
    parameters: int
    storage_bytes: int
    users: tuple[Tensor, ...] | None = None

    def result(self, classes: int) -> SplitResult:
        """Sums the passes up; top-5 accuracy is given with more than 10 classes."""
        return SplitResult(
            accuracy=float(self.hits[:, 0].double().mean()),
            accuracy_top5=float(self.hits.any(1).double().mean()) if classes > 10 else None,
            loss=float(self.losses.mean()),
            macs=self.macs,
            losses=self.losses,
            computed=self.computed,
            stored=self.stored,
            parameters=self.parameters,
            storage_bytes=self.storage_bytes,
            varying=None if self.users is None else self._varying(self.users),
        )

    def _varying(self, users: tuple[Tensor, ...]) -> Tensor:
        least = _FEW * len(self.losses)
        some = [(count >= least) & (count <= len(self.losses) - least) for count in users]
        return torch.stack([layer.sum().double() for layer in some])


@dataclass(frozen=True)
class Measurement:
    """A method at one point.

    Attributes:
        method: its name.
        point: budgets and R_r.
        dial: the number s that the policy was told (found by bisection for a mean budget).
        validation, test: the splits.
        seconds: wall time of measuring.
        budgets_met: whether caps hold on the test images, storage holds, and the mean
            budget is met on validation within 1 % (the tolerance of its bisection).
    """

    method: str
    point: Point
    dial: float
    validation: SplitResult
    test: SplitResult
    seconds: float
    budgets_met: bool


@dataclass(frozen=True)
class Validation:
    """The learned policy on the validation images at one R_r and the configured budgets."""

    tradeoff_rate: float
    result: SplitResult

    def record(self, dense_macs: float) -> dict[str, float]:
        """What the history of updates says of it; MACs as a part of the dense network's."""
        rate, result = self.tradeoff_rate, self.result
        return {
            f"validation_accuracy_{rate:g}": result.accuracy,
            f"validation_loss_{rate:g}": result.loss,
            f"validation_macs_ratio_{rate:g}": float(result.macs.mean()) / dense_macs,
        }


class Evaluator:
    """Measures networks on one image set.

    Args:
        images: the splits.
        config: batch sizes and how many images re-estimate BatchNorm.
        seed: chooses the images for BatchNorm.
    """

    def __init__(self, images: ImageSet, config: EvaluationConfig, seed: int) -> None:
        self.images = images
        self.config = config
        self.seed = seed

    def measure(self, network: GatedNetwork, method: Method, point: Point) -> Measurement:
        """Measures ``method`` at ``point``; the test images are touched once.

        The network's BatchNorm statistics are left as re-estimated for this point.
        """
        started = time.perf_counter()
        network.set_predictors(method.predictors, method.boosted)
        budgets = method.book.episodes([point])
        if point.compute_mean is not None and method.runtime is not None:
            if point.tradeoff_rate > 0:
                budgets = self._meet_mean(network, method, budgets)
        self.prepare(network, method, budgets)
        validation = self.split(network, method, budgets, self.images.validation)
        test = self.split(network, method, budgets, self.images.test)
        met = budgets_met(point, validation, test) if method.runtime is not None else True
        dial = float(budgets.compute_dial[0])
        seconds = time.perf_counter() - started
        return Measurement(method.name, point, dial, validation, test, seconds, met)

    def validate(self, network: GatedNetwork, method: Method, point: Point) -> SplitResult:
        """Validation only, with re-estimated BatchNorm: for choosing and for progress."""
        network.set_predictors(method.predictors, method.boosted)
        budgets = method.book.episodes([point])
        self.prepare(network, method, budgets)
        return self.split(network, method, budgets, self.images.validation)

    def prepare(self, network: GatedNetwork, method: Method, budgets: EpisodeBudgets) -> None:
        """Re-estimates BatchNorm's statistics under the method's gates (one episode's budgets)."""
        reestimate_batchnorm(
            network,
            self.images,
            self._gates(network, method, budgets),
            self.config.batchnorm_images,
            self.config.batch_size,
            [self.seed, 77],
        )

    @staticmethod
    def _gates(
        network: GatedNetwork, method: Method, budgets: EpisodeBudgets
    ) -> Callable[[int], Gate]:
        def make(count: int) -> Gate:
            return method.gate(network, budgets.select(torch.zeros(count, dtype=torch.int64)))

        return make

    def _meet_mean(
        self, network: GatedNetwork, method: Method, budgets: EpisodeBudgets
    ) -> EpisodeBudgets:
        """Finds the dial whose mean MACs on validation come closest below the budget.

        By bisection on the budget that the agent is told, on the validation images.
        """
        target = float(budgets.compute_mean[0])
        low, high = 0.0, 2.0
        best, best_macs = 0.0, -1.0
        dial = float(budgets.compute_dial[0])
        for _ in range(_BISECTIONS):
            trial = with_dial(budgets, dial)
            self.prepare(network, method, trial)
            split = self.split(network, method, trial, self.images.validation)
            macs = float(split.macs.mean())
            if best_macs < macs <= target:
                best, best_macs = dial, macs
            low, high = (dial, high) if macs <= target else (low, dial)
            if (1.0 - 0.5 * MEAN_TOLERANCE) * target <= macs <= target:
                break
            dial = (low + high) / 2
        return with_dial(budgets, best)

    def split(
        self, network: GatedNetwork, method: Method, budgets: EpisodeBudgets, arrays: Images
    ) -> SplitResult:
        """Runs one split through the network as it is and sums up; see :meth:`passes`."""
        return self.passes(network, method, budgets, arrays).result(len(self.images.class_names))

    @torch.no_grad()
    def passes(
        self, network: GatedNetwork, method: Method, budgets: EpisodeBudgets, arrays: Images
    ) -> Passes:
        """Runs one split through the network as it is.

        Args:
            network: in eval mode.
            method: chooses the channels.
            budgets: of one episode; every image gets them.
            arrays: the images.
        """
        device = next(network.parameters()).device
        gates = self._gates(network, method, budgets)
        names = ("losses", "hits", "confidence", "macs", "computed")
        collected: dict[str, list[Tensor]] = {name: [] for name in names}
        last: Gate = Gate()
        users = [torch.zeros(int(c), dtype=torch.int64) for c in method.rules.costs.channels]
        batches = iterate_batches(
            arrays, self.config.batch_size, None, self.images.mean, self.images.std
        )
        for images, labels in batches:
            last = gates(len(labels))
            logits = network(images.to(device), last).cpu()
            losses = F.cross_entropy(logits, labels, reduction="none")
            collected["losses"].append(losses.double())
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
            collected["hits"].append(ranked == labels.unsqueeze(1))
            collected["confidence"].append(logits.double().softmax(1).amax(1))
            macs, computed = self._spent(method, last, len(labels))
            collected["macs"].append(macs)
            collected["computed"].append(computed)
            for layer, count in enumerate(users):
                keep = last.keep.get(layer)
                count += len(labels) if keep is None else keep.sum(0).cpu()
        merged = {name: torch.cat(parts) for name, parts in collected.items()}
        stored, parameters, size = self._stored(method, last)
        return Passes(
            **merged,
            stored=stored,
            parameters=parameters,
            storage_bytes=size,
            users=tuple(users),
        )

    @staticmethod
    def _spent(method: Method, gate: Gate, count: int) -> tuple[Tensor, Tensor]:
        if isinstance(gate, PruningGate):
            return gate.macs(), gate.computed.double()
        costs = method.rules.costs
        macs = torch.full((count,), float(costs.dense_macs()), dtype=torch.float64)
        return macs, costs.channels.double().expand(count, -1)

    @staticmethod
    def _stored(method: Method, gate: Gate) -> tuple[Tensor, int, int]:
        if isinstance(gate, PruningGate):
            return (
                gate.stored[0].double(),
                int(gate.parameters()[0].item()),
                int(gate.storage_bytes()[0].item()),
            )
        costs = method.rules.costs
        full = costs.channels.unsqueeze(0)
        parameters = int(costs.parameters().total(full).item())
        return costs.channels.double(), parameters, costs.dense_bytes()


def budgets_met(point: Point, validation: SplitResult, test: SplitResult) -> bool:
    """Whether the budgets hold as measured, see :class:`Measurement`."""
    slack = 1e-6
    met = True
    if point.compute_max is not None:
        met &= float(test.macs.max()) <= point.compute_max * (1 + slack)
    if point.storage_bytes is not None:
        met &= test.storage_bytes <= point.storage_bytes * (1 + slack)
    if point.compute_mean is not None:
        met &= float(validation.macs.mean()) <= point.compute_mean * (1 + MEAN_TOLERANCE)
    return met
