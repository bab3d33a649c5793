"""A shipped model: loads one file, needs torch, NumPy and safetensors, and no training code.

Legend: B images, K classes, T prunable layers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlprune.deploy import fast
from rlprune.deploy.artifact import read_artifact
from rlprune.deploy.budget import Budget, call_budget
from rlprune.deploy.calibration import Table, tables_for
from rlprune.deploy.chain import FastLayer
from rlprune.deploy.decide import CONTEXT, AgentWeights, Batch, Decisions, Rules
from rlprune.deploy.fast import FastBatch, FastDecisions
from rlprune.deploy.layer import GatedLayer, checked, in_rows, stored_places
from rlprune.deploy.numbers import restored
from rlprune.deploy.program import GATHERED, MASKED, Program
from rlprune.deploy.spec import ModelSpec
from rlprune.deploy.ways import Choice
from rlprune.errors import ArtifactError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Explanation:
    """What the model computed for one image.

    Attributes:
        scores: class scores [K].
        kept: for each layer the channels computed, numbered as in the original network.
        channels: C of each layer.
        layer_names: of the convolutions.
        layer_macs: multiply-accumulates of each convolution.
        macs: of the whole image, predictors and agent included.
        dense_macs: of the original network.
    """

    scores: Tensor
    kept: tuple[tuple[int, ...], ...]
    channels: tuple[int, ...]
    layer_names: tuple[str, ...]
    layer_macs: tuple[int, ...]
    macs: float
    dense_macs: float


class PrunedModel:
    """A pruned network with its runtime agent.

    Example:
        >>> model = PrunedModel.load("small.safetensors")
        >>> scores = model(model.normalize(images))        # uint8 [B, C, H, W]
        >>> scores = model(model.normalize(images), budget=0.4)
        >>> print(model.explain(model.normalize(images))[0].macs)

    Attributes:
        spec: everything about the model but its numbers.
        numbers: weights as they are computed with, by name; float32.
        accelerate: as in :meth:`load`.
        last: decisions of the last call, one per image.
    """

    def __init__(
        self, spec: ModelSpec, tensors: Mapping[str, Tensor], accelerate: bool | None = None
    ) -> None:
        self.spec = spec
        self.accelerate = accelerate
        self.numbers = numbers = {
            name: in_rows(value) if name.endswith(".filter") and value.dim() == 4 else value
            for name, value in restored(spec, tensors).items()
        }
        stored = [layer.stored for layer in spec.layers]
        self.layers = [
            GatedLayer(index, layer, stored, numbers) for index, layer in enumerate(spec.layers)
        ]
        agent = _agent(spec, self.layers, numbers) if spec.policy.kind == "agent" else None
        if spec.policy.kind != "none" and any(layer.rank is None for layer in spec.layers):
            raise ArtifactError("layers: a runtime policy needs importance predictors in each.")
        static = [layer.static.numpy() for layer in self.layers]
        self._rules = Rules(spec, static, agent)
        self._program = Program(spec, numbers, self.layers)
        self._places = [
            stored_places(layer, index, numbers) for index, layer in enumerate(spec.layers)
        ]
        self.last: Sequence[Decisions] = []
        # What is compiled, layer by layer; empty: nothing. None: the first call finds out.
        self._compiled: Sequence[FastLayer] | None = None
        if accelerate is False:
            self._compiled = ()
        elif accelerate:
            self._compiled = self._accelerate()
        self._choice = Choice(self.layers)
        self._own_budget = call_budget(spec, self._rules.costs, None)

    def use(self, tables: Sequence[Table]) -> None:
        """Chooses ways to run by these measurements of the model on this machine."""
        self._choice = Choice(self.layers, tables)

    @classmethod
    def load(
        cls, path: str | Path, accelerate: bool | None = None, calibrated: bool = True
    ) -> PrunedModel:
        """Reads a file made by ``rlprune export``.

        Args:
            path: of the file.
            accelerate: whether numba compiles the layers of a single image, convolutions
                included; the same decisions either way. None: if it is installed. It is loaded
                by the first call, which takes seconds when it is the first ever; True loads
                it at once.
            calibrated: whether what ``rlprune calibrate`` measured here is used, where it
                lies beside the file; it changes the speed, not the scores.

        Raises:
            ArtifactError: missing, foreign, damaged, edited, or of a later version; or numba
                is asked for and cannot be loaded.
        """
        if accelerate:
            fast.load_kernels()
        spec, tensors = read_artifact(path)
        model = cls._made(path, spec, tensors, accelerate)
        if calibrated:
            names = [layer.name for layer in spec.layers]
            model.use(tables_for(path, accelerate is not False, names))
        return model

    @classmethod
    def _made(
        cls,
        path: str | Path,
        spec: ModelSpec,
        tensors: Mapping[str, Tensor],
        accelerate: bool | None,
    ) -> PrunedModel:
        try:
            return cls(spec, tensors, accelerate)
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from None
        except (TypeError, ValueError, KeyError, IndexError, RuntimeError, OverflowError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ArtifactError(f"{path}: damaged or edited: {reason}. Export it again.") from None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.spec.classes

    def normalize(self, images: Tensor | NDArray[np.uint8]) -> Tensor:
        """uint8 pixels [B, C, H, W] -> what the network expects, float32."""
        pixels = torch.as_tensor(images)
        shape = self.spec.input_shape
        if pixels.dtype != torch.uint8 or pixels.dim() != 4 or tuple(pixels.shape[1:]) != shape:
            raise ValueError(
                f"images must be uint8 of shape {('B', *shape)} (got {pixels.dtype} "
                f"{tuple(pixels.shape)})"
            )
        mean = torch.tensor(self.spec.mean)[:, None, None]
        std = torch.tensor(self.spec.std)[:, None, None]
        return (pixels.float() / 255.0 - mean) / std

    @torch.inference_mode()
    def __call__(self, x: Tensor, budget: float | None = None, mode: str | None = None) -> Tensor:
        """Class scores.

        Args:
            x: normalised images [B, C, H, W], float32.
            budget: a number s in [alpha, 1] in place of the budget that the file was made
                for: at most what a network costs whose every layer keeps s of its channels
                (a model with a budget on the mean takes it as what its agent is told).
                None: the file's own.
            mode: "gathered" (image after image, only what is computed), "masked" (all
                images at once, all that is stored); None: whichever is faster.

        Returns:
            [B, K].

        Raises:
            ValueError: images of another shape or type, or a budget out of range.
        """
        self._check(x)
        told = self._budget(budget)
        if mode is None:
            mode = self._mode(len(x), told)
        if mode == MASKED:
            batch = self._batch(told, len(x))
            self.last = batch.images
            return self._program.run(x, batch, MASKED)
        if mode != GATHERED:
            raise ValueError(f"mode must be {GATHERED!r} or {MASKED!r} (got {mode!r})")
        self.last = [self._single(told) for _ in range(len(x))]
        rows = [
            self._program.run(x[row : row + 1], Batch([image]), GATHERED)
            for row, image in enumerate(self.last)
        ]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def macs(self) -> NDArray[np.float64]:
        """Multiply-accumulates of each image of the last call, [B]; all included."""
        return np.array([self._rules.costs.total(image.counts) for image in self.last])

    def explain(self, x: Tensor, budget: float | None = None) -> list[Explanation]:
        """What is computed for each image of ``x``; arguments as for a call."""
        scores, total = self(x, budget), self.macs()
        return [
            self._explanation(scores[row], image, float(total[row]))
            for row, image in enumerate(self.last)
        ]

    def _mode(self, images: int, told: Budget) -> str:
        """The way that is faster, as far as that is known."""
        ways = self._choice.now()
        compiled = images == 1 and any(ways.pairs) and self._accelerated()
        masks = ways.masks(images, told.compute_dial, not self._decides and not compiled)
        return MASKED if masks else GATHERED

    @property
    def _decides(self) -> bool:
        """Whether anything is decided at run time."""
        return self.spec.policy.kind != "none"

    def _single(self, told: Budget) -> Decisions:
        """Who decides for an image."""
        if self._accelerated():
            return FastDecisions(self._rules, told, self._choice.now().limits)
        return Decisions(self._rules, told)

    def _batch(self, told: Budget, images: int) -> Batch:
        """Who decides for all images at once."""
        if self._decides and (compiled := self._accelerated()):
            return FastBatch(self._rules, told, images, compiled)
        return Batch([Decisions(self._rules, told) for _ in range(images)])

    def _accelerate(self) -> Sequence[FastLayer]:
        rows = [row.layers for row in self._program.in_rows]
        compiled = fast.accelerate(self.layers, self._rules, rows)
        self._program.chains, self._program.kernels = compiled.chains, compiled.kernels
        return compiled.layers

    def _accelerated(self) -> Sequence[FastLayer]:
        """What is compiled; the first call finds out whether numba is there."""
        compiled = self._compiled
        if compiled is None:
            compiled = ()
            try:
                if fast.available():
                    compiled = self._accelerate()
            except ArtifactError as error:
                _log.warning("not accelerated: %s", error)
                self.use(())  # that was measured with it
            self._compiled = compiled  # last: another thread may look
        return compiled

    def _explanation(self, scores: Tensor, image: Decisions, macs: float) -> Explanation:
        kept, spent = [], []
        for index, layer in enumerate(self.spec.layers):
            positions = image.kept[index]
            places = self._places[index]
            kept.append(tuple((places if positions is None else places[positions]).tolist()))
            inputs = 0
            for run in layer.inputs:
                inputs += run.channels if run.layer is None else len(kept[run.layer])
            area = layer.kernel[0] * layer.kernel[1] * layer.out_size[0] * layer.out_size[1]
            spent.append(inputs * len(kept[index]) * area)
        return Explanation(
            scores=scores,
            kept=tuple(kept),
            channels=tuple(layer.channels for layer in self.spec.layers),
            layer_names=tuple(layer.name for layer in self.spec.layers),
            layer_macs=tuple(spent),
            macs=macs,
            dense_macs=self.spec.costs.dense_macs,
        )

    def _check(self, x: Tensor) -> None:
        shape = self.spec.input_shape
        if not isinstance(x, Tensor) or x.dtype != torch.float32:
            raise ValueError("x must be a float32 tensor; model.normalize makes it from pixels")
        if x.dim() != 4 or tuple(x.shape[1:]) != shape or len(x) == 0:
            raise ValueError(f"x must have the shape {('B', *shape)} (got {tuple(x.shape)})")

    def _budget(self, number: float | None) -> Budget:
        if number is None:
            return self._own_budget
        least = self.spec.budget.alpha
        if not least <= number <= 1.0:
            raise ValueError(f"budget must be from {least:g} to 1 (got {number!r})")
        if self.spec.policy.kind == "none":
            raise ValueError("this model has no runtime agent: its compute is fixed")
        return call_budget(self.spec, self._rules.costs, number)


def _agent(
    spec: ModelSpec, layers: Sequence[GatedLayer], tensors: Mapping[str, Tensor]
) -> AgentWeights:
    hidden = spec.policy.hidden
    if hidden < 1:
        raise ArtifactError("policy.hidden: must be at least 1 for an agent. Export it again.")
    encoders = [
        checked(
            tensors,
            f"{layer.index}.encoder",
            (CONTEXT + layer.inputs + layer.spec.stored + 1, hidden),
        ).numpy()
        for layer in layers
    ]
    shapes = {"input": (hidden, hidden), "hidden": (hidden, hidden), "bias": (hidden,)}
    shared = {
        name: checked(tensors, f"agent.{name}", shape).numpy() for name, shape in shapes.items()
    }
    shared["mean"] = checked(tensors, "agent.mean", (hidden + 1,)).numpy()
    return AgentWeights(encoders, shared)
