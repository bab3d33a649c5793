"""One gated convolution of a shipped model.

Output: u * (conv(x) - mean) + beta for the channels that an image keeps, where u = u_r u_s,
u_r = W p + b predicted from the pooled input p at unit scale (paper Sec. 3.1). BatchNorm's
deviation is folded into the filters.

Legend: B images, S stored channels, I stored input channels, n and i computed ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rlprune.deploy.decide import Batch, Decisions, Positions, Single
from rlprune.deploy.spec import LayerSpec, Run
from rlprune.errors import ArtifactError

EPSILON = 1e-6  # of rlprune.pruning.predictor.unit_scale
Kept = Callable[[int], Positions | None]


def column_positions(runs: Sequence[Run], kept: Kept) -> Positions | None:
    """Stored input channels that are present, [i]; None: all of them.

    Args:
        runs: who provides the channels; widths as stored.
        kept: positions present of a layer, None: all.
    """
    if len(runs) == 1:
        return None if runs[0].layer is None else kept(runs[0].layer)
    parts, start, partial = [], 0, False
    for run in runs:
        positions = None if run.layer is None else kept(run.layer)
        if positions is None:
            parts.append(np.arange(start, start + run.channels))
        else:
            parts.append(positions + start)
            partial = True
        start += run.channels
    if not partial:
        return None
    return np.concatenate(parts)


def channel_columns(layer: LayerSpec) -> tuple[str, ...]:
    """What is stored for every channel of a layer, in the order of ``channel``'s columns."""
    if layer.rank is None:  # no predictor: everything is folded into the filters
        return ("beta",)
    names = ("beta", "static", "bias", *(("mean",) if layer.norm else ()))
    return (*names, "width_scale", "width_shift") if layer.width_affine else names


class Geometry(NamedTuple):
    """How a convolution moves over its input: (height, width) each."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def output(self, size: tuple[int, int], kernel: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the output for those of the input."""
        height, width = (
            (size[side] + 2 * self.padding[side] - self.dilation[side] * (kernel[side] - 1) - 1)
            // self.stride[side]
            + 1
            for side in (0, 1)
        )
        return height, width

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int = 1) -> Tensor:
        """[B, I, H, W] and [O, I / groups, kh, kw] -> [B, O, H', W']."""
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, groups)


class GatedLayer:
    """See the module.

    Args:
        index: t.
        spec: of the layer.
        stored: S of every layer, for the widths of the inputs.
        tensors: "t.filter" [S, I, kh, kw], "t.channel" [S, k] (:func:`channel_columns`),
            "t.predictor" [S, I] or [S, r], "t.code" [r, I].

    Raises:
        ArtifactError: a tensor is missing or of another shape.
    """

    def __init__(
        self, index: int, spec: LayerSpec, stored: Sequence[int], tensors: Mapping[str, Tensor]
    ) -> None:
        self.index = index
        self.spec = spec
        self.runs = tuple(
            run if run.layer is None else Run(run.layer, stored[run.layer]) for run in spec.inputs
        )
        self.inputs = sum(run.channels for run in self.runs)
        names = channel_columns(spec)

        def take(name: str, *shape: int) -> Tensor:
            return checked(tensors, f"{index}.{name}", shape)

        self.filter = in_rows(take("filter", spec.stored, self.inputs, *spec.kernel))
        columns = take("channel", spec.stored, len(names)).unbind(1)
        numbers = {name: column.contiguous() for name, column in zip(names, columns, strict=True)}
        self.beta = numbers["beta"]
        self.mean = numbers.get("mean", torch.zeros_like(self.beta))
        self.static = numbers.get("static", torch.ones_like(self.beta))
        self.bias = numbers.get("bias", torch.ones_like(self.beta))
        self.width_scale = numbers.get("width_scale")
        self.width_shift = numbers.get("width_shift")
        self.code: Tensor | None = None
        self.predictor: Tensor | None = None
        if spec.rank:
            self.code = take("code", spec.rank, self.inputs)
        if spec.rank is not None:
            self.predictor = take("predictor", spec.stored, spec.rank or self.inputs)
        self._single = {
            name: value.numpy()
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and name != "filter"
        }
        negative = self.static < 0
        self._negative = negative if bool(negative.any()) else None
        self._centre = -self.mean
        self.fast: Callable[[Tensor, Any], Tensor] | None = None
        self.rectified = False  # the program says whether a ReLU is all that reads the output
        self._averaging: Tensor | None = None
        self.geometry = Geometry(spec.stride, spec.padding, spec.dilation)
        # Scaling whichever is smaller, filters or outputs, costs less.
        outputs = spec.out_size[0] * spec.out_size[1]
        self._scale_filters = self.inputs * spec.kernel[0] * spec.kernel[1] < 4 * outputs

    # --- one image, only what it computes -----------------------------------------------

    def gathered(self, x: Tensor, decisions: Decisions) -> Tensor:
        """[1, i, H, W] -> [1, n, H', W']; decides what to compute on the way."""
        if self.fast is not None:
            return self.fast(x, decisions)
        columns = column_positions(self.runs, decisions.kept.__getitem__)
        filters = self.filter
        if self.predictor is None:  # plain
            decisions.decide(self.index, _NOTHING, _NOTHING)
            part = filters if columns is None else filters[:, torch.from_numpy(columns)]
            return self.geometry.convolve(x, part, self.beta)
        pooled = self._pooled(x, columns)
        runtime = self._importance(pooled)
        kept = decisions.decide(self.index, pooled, runtime)
        scale, shift = self._scale_and_shift(runtime, kept, columns)
        filters = self._selected(kept, columns)
        if self._scale_filters:
            return self.geometry.convolve(x, filters * scale[:, None, None, None], shift)
        y = self.geometry.convolve(x, filters, None)
        return torch.addcmul(shift[:, None, None], y, scale[:, None, None])

    def _pooled(self, x: Tensor, columns: Positions | None) -> Single:
        """Averages of all stored input channels, zero where not computed, [I]."""
        pixels = x.shape[2] * x.shape[3]
        rows = x.permute(0, 2, 3, 1).reshape(pixels, -1)
        averages = torch.mv(rows.t(), self._mean_of(pixels)).numpy()
        if columns is None:
            return averages
        pooled = np.zeros(self.inputs, dtype=np.float32)
        pooled[columns] = averages
        return pooled

    def _mean_of(self, pixels: int) -> Tensor:
        """[pixels] whose product with a row is the row's mean (faster than ``mean``)."""
        if self._averaging is None or len(self._averaging) != pixels:
            self._averaging = torch.full((pixels,), 1.0 / pixels)
        return self._averaging

    def _selected(self, kept: Positions | None, columns: Positions | None) -> Tensor:
        """Filters [n, i, kh, kw], channels last in memory; rows first, then columns."""
        rows = self.filter.permute(0, 2, 3, 1).flatten(1)
        if kept is not None:
            rows = rows.index_select(0, torch.from_numpy(kept))
        taps = rows.view(-1, self.inputs)
        if columns is not None:
            taps = taps.index_select(1, torch.from_numpy(columns))
        return taps.view(len(rows), *self.spec.kernel, -1).permute(0, 3, 1, 2)

    def _importance(self, pooled: Single) -> Single:
        """u_r [S] of one image."""
        power = float(pooled @ pooled) / self.spec.in_channels
        seen = pooled * np.float32(1.0 / np.sqrt(power + EPSILON))
        numbers = self._single
        if "code" in numbers:
            seen = numbers["code"] @ seen
        found: Single = numbers["predictor"] @ seen + numbers["bias"]
        return np.maximum(found, np.float32(0.0)) if self.spec.boosted else found

    def _scale_and_shift(
        self, runtime: Single, kept: Positions | None, columns: Positions | None
    ) -> tuple[Tensor, Tensor]:
        """u [n] and beta (boosted: u * beta) - u * mean [n]."""
        numbers = self._single
        static, beta, mean = numbers["static"], numbers["beta"], numbers["mean"]
        if kept is not None:
            runtime, static, beta, mean = runtime[kept], static[kept], beta[kept], mean[kept]
        size = np.abs(runtime * static)
        scale = np.where((runtime < 0) | (static < 0), -size, size)
        if self.spec.boosted:
            beta = scale * beta
        if self.width_scale is not None:
            present = self.inputs if columns is None else len(columns)
            pruned = np.float32((self.spec.in_channels - present) / self.spec.in_channels)
            slope, offset = numbers["width_scale"], numbers["width_shift"]
            if kept is not None:
                slope, offset = slope[kept], offset[kept]
            scale = scale * (1 + pruned * slope)
            beta = beta + pruned * offset
        return torch.from_numpy(scale), torch.from_numpy(beta - scale * mean)

    # --- a batch, all stored channels ---------------------------------------------------

    def masked(self, x: Tensor, batch: Batch) -> Tensor:
        """[B, I, H, W] -> [B, S, H', W'] with zeros in the channels that an image prunes."""
        if self.predictor is None:
            batch.keep_all(self.index)
            return self.geometry.convolve(x, self.filter, self.beta)
        pooled = x.mean((2, 3))
        power = pooled.square().sum(1, keepdim=True) / self.spec.in_channels
        seen = pooled * torch.rsqrt(power + EPSILON)
        if self.code is not None:
            seen = F.linear(seen, self.code)
        runtime = F.linear(seen, self.predictor, self.bias)
        if self.spec.boosted:
            runtime = runtime.relu()
        scale, beta = runtime * self.static, self.beta
        if self._negative is not None:  # negative where either factor is
            scale = torch.where(self._negative, -scale.abs(), scale)
        if self.spec.boosted:
            beta = scale * beta
        if self.width_scale is not None and self.width_shift is not None:
            shares = [self._pruned_share(image) for image in batch.images]
            pruned = torch.tensor(shares).unsqueeze(1)
            scale = scale * (1 + pruned * self.width_scale)
            beta = beta + pruned * self.width_shift
        keep = batch.decide(self.index, pooled.numpy(), runtime.numpy())
        if keep is not None:
            mask = torch.from_numpy(keep)
            scale, beta = scale * mask, beta * mask
        y = self.geometry.convolve(x, self.filter, self._centre)
        return torch.addcmul(beta[..., None, None], y, scale[:, :, None, None])

    def _pruned_share(self, image: Decisions) -> float:
        present = 0
        for run in self.runs:
            kept = None if run.layer is None else image.kept[run.layer]
            present += run.channels if kept is None else len(kept)
        return (self.spec.in_channels - present) / self.spec.in_channels


def in_rows(filters: Tensor) -> Tensor:
    """The same filters [S, I, kh, kw], input channels next to each other in memory.

    Convolutions of one image are a tenth faster so, on input that lies likewise.
    """
    return filters.contiguous(memory_format=torch.channels_last)


_NOTHING = np.zeros(0, dtype=np.float32)


def checked(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of the file.

    Raises:
        ArtifactError: it is missing or has another shape.
    """
    if name not in tensors or tuple(tensors[name].shape) != shape:
        found = tuple(tensors[name].shape) if name in tensors else "nothing"
        raise ArtifactError(
            f"{name}: must have the shape {shape} (got {found}). "
            "The file is damaged or was edited; export it again."
        )
    return tensors[name]


def stored_places(spec: LayerSpec, index: int, tensors: Mapping[str, Tensor]) -> Positions:
    """Where a layer's stored channels stood in the original network, ascending, [S].

    Raises:
        ArtifactError: they are missing or no such places.
    """
    if spec.stored == spec.channels:
        return np.arange(spec.channels)
    places: Positions = checked(tensors, f"{index}.index", (spec.stored,)).numpy().astype(np.int64)
    if places[0] < 0 or places[-1] >= spec.channels or bool((np.diff(places) <= 0).any()):
        raise ArtifactError(f"{index}.index: damaged. Export the model again.")
    return places
