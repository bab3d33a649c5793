"""A dynamic model made static: one fixed set of channels in place of a choice for each image.

What the runtime agent does on given images decides. A layer keeps as many channels as these
images compute in it on average, and of its channels those that most of them compute. The
others are removed as if they had been pruned for good, the agent with them; the importance
predictors of what stays go on scaling it, as at R_r = 0.

No weight changes, and nothing is estimated again: BatchNorm was folded at the export. So the
answers differ from those of the dynamic model, and :class:`Frozen` says by how much.

Legend: N images, T layers, S stored channels of a layer before and n after freezing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlprune.deploy import PrunedModel
from rlprune.deploy.artifact import read_artifact
from rlprune.deploy.budget import Budget, Costs, call_budget
from rlprune.deploy.spec import ModelSpec
from rlprune.errors import ArtifactError
from rlprune.export.cut import static_costs, without_agent
from rlprune.export.make import Shipped

_BATCH = 250
_STEP = 0.01  # by which counts are lowered until a cap holds


@dataclass(frozen=True)
class Behaviour:
    """What a model does on N images.

    Attributes:
        times: for each layer, how many images compute each stored channel, int64 [S].
        counts: channels computed on average, float64 [T].
        macs: multiply-accumulates of each image, float64 [N].
        classes: predicted, int64 [N].
    """

    times: tuple[NDArray[np.int64], ...]
    counts: NDArray[np.float64]
    macs: NDArray[np.float64]
    classes: NDArray[np.int64]


@dataclass(frozen=True)
class Frozen:
    """A frozen model beside the dynamic one that it was made of.

    Attributes:
        shipped: the static model, as it is written.
        model, dynamic: the static and the dynamic model, ready to run.
        budget: of the dynamic one; None: its file's own.
        before, after: what the dynamic and the static model do on the images.
    """

    shipped: Shipped
    model: PrunedModel
    dynamic: PrunedModel
    budget: float | None
    before: Behaviour
    after: Behaviour

    @property
    def agreement(self) -> float:
        """Share of the images for which both predict the same class."""
        return float((self.before.classes == self.after.classes).mean())


def freeze(file: str | Path, pixels: NDArray[np.uint8], budget: float | None = None) -> Frozen:
    """The model of a file with what its agent does on the images as a fixed choice.

    Args:
        file: made by ``rlprune export``.
        pixels: images [N, C, H, W], of the kind that the model will see.
        budget: a number s in place of the file's own budget, see ``PrunedModel.__call__``.

    Raises:
        ArtifactError: no file of ours, or a static model.
        ValueError: images of another shape, none, or a budget out of range.
    """
    whole, dynamic = Shipped(*read_artifact(file)), PrunedModel.load(file)
    if dynamic.spec.policy.kind == "none":
        raise ArtifactError(f"{file}: static already (R_r = 0, or frozen). Leave --freeze out.")
    before = observe(dynamic, pixels, budget)
    told = call_budget(dynamic.spec, _costs_of(dynamic.spec), budget)
    counts = channel_counts(dynamic.spec, before.counts, _cap(dynamic.spec, told, budget))
    parts = zip(before.times, dynamic.layers, counts, strict=True)
    chosen = [most_computed(times, layer.static.numpy(), count) for times, layer, count in parts]
    shipped = without_agent(whole, chosen, told)
    model = PrunedModel(shipped.spec, shipped.tensors)
    frozen = Frozen(shipped, model, dynamic, budget, before, observe(model, pixels))
    macs = float(frozen.after.macs[0])  # of every image
    return _noting(
        frozen,
        macs_mean=macs,
        macs_max=macs,
        agreement=frozen.agreement,
        agreement_images=len(pixels),
    )


def with_accuracy(frozen: Frozen, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> Frozen:
    """The same, its description saying the test accuracy of both models.

    Args:
        frozen: of :func:`freeze`.
        pixels, labels: test images [N, C, H, W] and their classes [N].
    """
    before = observe(frozen.dynamic, pixels, frozen.budget).classes
    after = observe(frozen.model, pixels).classes
    return _noting(
        frozen,
        test_accuracy=float((after == labels).mean()),
        dynamic_test_accuracy=float((before == labels).mean()),
        test_images=len(labels),
    )


def _noting(frozen: Frozen, **measured: float) -> Frozen:
    return dataclasses.replace(frozen, shipped=frozen.shipped.noting(**measured))


def _cap(spec: ModelSpec, told: Budget, budget: float | None) -> float | None:
    """What the static network may cost: the caps that the dynamic one keeps on these images."""
    caps = [told.cap if spec.policy.projected else None]
    caps.append(spec.budget.compute_mean if budget is None else None)
    return min((cap for cap in caps if cap is not None), default=None)


def observe(
    model: PrunedModel, pixels: NDArray[np.uint8], budget: float | None = None
) -> Behaviour:
    """Runs a model over images [N, C, H, W].

    Raises:
        ValueError: images of another shape, none, or a budget out of range.
    """
    times = [np.zeros(layer.stored, dtype=np.int64) for layer in model.spec.layers]
    counts, macs, classes = [], [], []
    for start in range(0, max(len(pixels), 1), _BATCH):
        images = model.normalize(pixels[start : start + _BATCH])
        classes.append(model(images, budget, mode="masked").argmax(1).numpy())
        macs.append(model.macs())
        for image in model.last:
            counts.append(image.counts)
            for layer, seen in enumerate(times):
                kept = image.kept[layer]
                seen[slice(None) if kept is None else kept] += 1
    return Behaviour(
        tuple(times), np.array(counts).mean(0), np.concatenate(macs), np.concatenate(classes)
    )


def channel_counts(spec: ModelSpec, mean: NDArray[np.float64], cap: float | None) -> list[int]:
    """Channels that each layer keeps, [T]: the average, rounded.

    A layer's rounded average may cost more than any image did. Where that breaks the cap,
    all layers get less, in proportion, until it holds.

    Args:
        spec: of the dynamic model.
        mean: channels computed on average, [T].
        cap: most MACs of any image; None: no cap.
    """
    counts = [1] * len(mean)
    for share in np.arange(1.0, 0.0, -_STEP):
        counts = np.floor(share * mean + 0.5).clip(min=1.0).astype(int).tolist()
        if cap is None or static_macs(spec, counts) <= cap:
            break
    return counts


def static_macs(spec: ModelSpec, counts: Sequence[int]) -> float:
    """MACs of an image once a dynamic model is frozen to so many channels per layer, [T]."""
    frozen = dataclasses.replace(spec, costs=static_costs(spec, counts))
    return _costs_of(frozen).total(counts)


def most_computed(
    times: NDArray[np.int64], static: NDArray[np.float32], count: int
) -> NDArray[np.int64]:
    """Positions [n] of the channels that most images compute, ascending.

    Ties go to the larger static importance u_s, then to the channel that comes first.
    """
    order = np.lexsort((np.arange(len(times)), -static, -times))
    return np.sort(order[:count])


def _costs_of(spec: ModelSpec) -> Costs:
    channels = tuple(layer.channels for layer in spec.layers)
    return Costs(spec.costs, channels, spec.budget.alpha)
