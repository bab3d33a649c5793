"""A shipped model for other runtimes: ONNX, and torch's own exported programs.

:class:`PlainModel` computes what :class:`~rlprune.deploy.PrunedModel` computes, as one torch
module without Python decisions: all stored channels, those that an image prunes multiplied
by zero. So a static model (R_r = 0, or frozen: :mod:`rlprune.export.freeze`) loses nothing; a
dynamic one gives equal results and a file smaller by its static part, but saves no time where
it runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlprune.deploy import PrunedModel
from rlprune.deploy.batch import BatchAgent, BatchDecisions
from rlprune.deploy.budget import Costs, call_budget
from rlprune.deploy.layer import EPSILON, GatedLayer, Geometry
from rlprune.deploy.operations import OPERATIONS
from rlprune.deploy.spec import ModelSpec, Node
from rlprune.errors import ArtifactError


class PlainModel(nn.Module):
    """A shipped model as a plain torch module.

    Args:
        model: as loaded.
        budget: a number s in place of the file's own budget, see ``PrunedModel.__call__``.
        multiple: channel counts of a static model are filled up with zeros to a multiple of
            this; some accelerators want 8.

    Raises:
        ArtifactError: a budget or a multiple that this model cannot have.

    Input: pixels in [0, 1], float32 [B, C, H, W]; they are normalised inside. Output: class
    scores [B, K].
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: PrunedModel, budget: float | None = None, multiple: int = 1) -> None:
        super().__init__()
        self.spec = model.spec
        _check(self.spec, budget, multiple)
        self.multiple = multiple
        channels = tuple(layer.channels for layer in self.spec.layers)
        self.costs = Costs(self.spec.costs, channels, self.spec.budget.alpha)
        self.budget = call_budget(self.spec, self.costs, budget)
        self.layers = model.layers
        self.numbers = model.numbers
        self._agent = _agent(model) if self.spec.policy.kind == "agent" else None
        self.register_buffer("mean", torch.tensor(self.spec.mean)[:, None, None])
        self.register_buffer("deviation", torch.tensor(self.spec.std)[:, None, None])
        self._constants = 0
        self._steps = [self._prepared(node) for node in self.spec.program]

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, C, H, W] in [0, 1] -> [B, K]."""
        decisions = BatchDecisions(
            self.spec,
            self.costs,
            self.budget,
            [layer.static for layer in self.layers],
            self._agent,
            pixels.shape[0],
        )
        values: list[Any] = [(pixels - self.mean) / self.deviation]
        for node, names in zip(self.spec.program[1:], self._steps[1:], strict=True):
            values.append(self._run(node, names, values, decisions))
        result: Tensor = values[-1]
        return result

    # --- weights ----------------------------------------------------------------------

    def _constant(self, value: Tensor) -> str:
        name = f"number_{self._constants}"
        self._constants += 1
        self.register_buffer(name, value.clone(memory_format=torch.contiguous_format))
        return name

    def _prepared(self, node: Node) -> dict[str, str]:
        """Registers a call's numbers, filled up; returns their names."""
        if node.kind == "gated":
            return {
                name: self._constant(value)
                for name, value in self._layer_numbers(self.layers[int(node.target)]).items()
            }
        if node.kind == "expand":
            return {"places": self._constant(self._gather_map(node))}
        if node.kind not in ("follower", "conv", "linear", "affine"):
            return {}
        weight = self.numbers[f"{node.target}.weight"]
        bias = self.numbers[f"{node.target}.bias"]
        if node.kind == "follower":
            weight, bias = self._filled(weight, 0), self._filled(bias, 0)
        elif node.kind in ("conv", "linear"):
            each = int(node.kwargs.get("each", 1))
            weight = self._filled_columns(weight, node.kwargs["runs"], each)
        return {"weight": self._constant(weight), "bias": self._constant(bias)}

    def _layer_numbers(self, layer: GatedLayer) -> dict[str, Tensor]:
        runs = [[run.layer, run.channels] for run in layer.runs]
        numbers = {"filter": self._filled(self._filled_columns(layer.filter, runs, 1), 0)}
        for name in ("beta", "mean", "static", "bias", "width_scale", "width_shift"):
            value = getattr(layer, name)
            if value is not None:
                numbers[name] = self._filled(value, 0)
        if layer.code is not None:
            numbers["code"] = self._filled_columns(layer.code, runs, 1)
        if layer.predictor is not None:
            predictor = self._filled(layer.predictor, 0)
            whole = layer.code is None
            numbers["predictor"] = self._filled_columns(predictor, runs, 1) if whole else predictor
        return numbers

    def _wide(self, channels: int) -> int:
        return -(-channels // self.multiple) * self.multiple

    def _filled(self, value: Tensor, dim: int) -> Tensor:
        missing = self._wide(value.shape[dim]) - value.shape[dim]
        shape = list(value.shape)
        shape[dim] = missing
        return torch.cat([value, value.new_zeros(shape)], dim) if missing else value

    def _filled_columns(self, weight: Tensor, runs: list[list[Any]], each: int) -> Tensor:
        """Columns [O, I * each, ...] with zeros behind every run of a layer's channels."""
        parts, start = [], 0
        for layer, channels in runs:
            width = channels if layer is None else self.spec.layers[layer].stored
            part = weight[:, start * each : (start + width) * each]
            start += width
            missing = 0 if layer is None else self._wide(width) - width
            parts.append(part)
            if missing:
                parts.append(part.new_zeros(len(part), missing * each, *part.shape[2:]))
        return torch.cat(parts, 1) if len(parts) > 1 else weight

    def _gather_map(self, node: Node) -> Tensor:
        """For every place of a stream the channel that goes there; the last one is zero."""
        each, places, start = int(node.kwargs["each"]), [], 0
        for layer, channels in node.kwargs["runs"]:
            wide = channels
            where = torch.arange(channels)
            if layer is not None:
                wide = self._wide(self.spec.layers[layer].stored)
                known = self.numbers.get(f"{layer}.index")
                where = where if known is None else known.long()
            run = torch.full((channels,), -1, dtype=torch.int64)
            run[where] = start + torch.arange(len(where))
            places.append(run)
            start += wide
        flat = torch.cat(places)
        flat = torch.where(flat < 0, start, flat)
        spread = flat.unsqueeze(1) * each + torch.arange(each)
        return spread.flatten()

    # --- running ----------------------------------------------------------------------

    def _run(
        self,
        node: Node,
        names: Mapping[str, str],
        values: list[Any],
        decisions: BatchDecisions,
    ) -> Any:
        numbers = {name: getattr(self, buffer) for name, buffer in names.items()}
        x = _resolved(node.args[0], values)
        if node.kind == "gated":
            return self._gated(self.layers[int(node.target)], numbers, x, decisions)
        if node.kind == "output":
            return x
        if node.kind == "affine":
            return x * numbers["weight"][:, None, None] + numbers["bias"][:, None, None]
        if node.kind == "linear":
            return F.linear(x, numbers["weight"], numbers["bias"])
        if node.kind == "expand":
            nothing = torch.zeros_like(x[:, : int(node.kwargs["each"])])
            return torch.cat([x, nothing], 1).index_select(1, numbers["places"])
        if node.kind in ("conv", "follower"):
            return self._convolution(node, numbers, x, decisions)
        args = [_resolved(value, values) for value in node.args]
        kwargs = {name: _resolved(value, values) for name, value in node.kwargs.items()}
        return OPERATIONS[str(node.target)](*args, **kwargs)

    def _convolution(
        self, node: Node, numbers: Mapping[str, Tensor], x: Tensor, decisions: BatchDecisions
    ) -> Tensor:
        geometry = Geometry(*(tuple(node.kwargs[name]) for name in Geometry._fields))
        weight = numbers["weight"]
        groups = len(weight) if node.kind == "follower" else int(node.kwargs["groups"])
        y = geometry.convolve(x, weight, numbers["bias"], groups)
        keep = decisions.keep[int(node.kwargs["layer"])] if node.kind == "follower" else None
        return y if keep is None else y * keep[:, :, None, None]

    def _gated(
        self,
        layer: GatedLayer,
        numbers: Mapping[str, Tensor],
        x: Tensor,
        decisions: BatchDecisions,
    ) -> Tensor:
        if layer.predictor is None:
            decisions.decide(layer.index, x, x)
            return layer.geometry.convolve(x, numbers["filter"], numbers["beta"])
        pooled = x.mean((2, 3))
        power = pooled.square().sum(1, keepdim=True) / layer.spec.in_channels
        seen = pooled * torch.rsqrt(power + EPSILON)
        seen = F.linear(seen, numbers["code"]) if "code" in numbers else seen
        runtime = F.linear(seen, numbers["predictor"], numbers["bias"])
        runtime = runtime.relu() if layer.spec.boosted else runtime
        static = numbers["static"]
        size = (runtime * static).abs()
        scale = torch.where((runtime < 0) | (static < 0), -size, size)
        beta = numbers["beta"].expand_as(scale)
        beta = scale * beta if layer.spec.boosted else beta
        if "width_scale" in numbers:
            pruned = self._pruned_share(layer, decisions).float().unsqueeze(1)
            scale = scale * (1 + pruned * numbers["width_scale"])
            beta = beta + pruned * numbers["width_shift"]
        shift = beta - scale * numbers["mean"]
        keep = decisions.decide(layer.index, pooled, runtime)
        if keep is not None:
            scale, shift = scale * keep, shift * keep
        y = layer.geometry.convolve(x, numbers["filter"], None)
        return y * scale[:, :, None, None] + shift[:, :, None, None]

    @staticmethod
    def _pruned_share(layer: GatedLayer, decisions: BatchDecisions) -> Tensor:
        present = torch.zeros_like(decisions._spent)
        for run in layer.runs:
            present = present + (run.channels if run.layer is None else decisions.counts[run.layer])
        return (layer.spec.in_channels - present) / layer.spec.in_channels


def _check(spec: ModelSpec, budget: float | None, multiple: int) -> None:
    """What the user asks for, before anything is built.

    Raises:
        ArtifactError: the model cannot have it.
    """
    static, least = spec.policy.kind == "none", spec.budget.alpha
    if multiple > 1 and not static:
        raise ArtifactError(
            "only a static model can be filled up to a multiple. Export at R_r = 0, or --freeze it."
        )
    if budget is not None and static:
        raise ArtifactError("a static model's compute is fixed. Leave --budget out.")
    if budget is not None and not least <= budget <= 1.0:
        raise ArtifactError(f"--budget: must be from {least:g} to 1 (got {budget:g}). Change it.")


def _resolved(value: Any, values: list[Any]) -> Any:
    """An argument of a call, with values in the place of references."""
    if isinstance(value, Mapping):
        return slice(*value["s"]) if set(value) == {"s"} else values[value["r"]]
    if isinstance(value, list):
        return [_resolved(item, values) for item in value]
    return value


def _agent(model: PrunedModel) -> BatchAgent:
    numbers = model.numbers
    encoders = [numbers[f"{index}.encoder"] for index in range(len(model.spec.layers))]
    shared = {name: numbers[f"agent.{name}"] for name in ("input", "hidden", "bias", "mean")}
    return BatchAgent(encoders, shared)


def to_program(
    model: PrunedModel, budget: float | None = None, multiple: int = 1
) -> torch.export.ExportedProgram:
    """The model as torch's exported program, for any batch size.

    Arguments as for :class:`PlainModel`. Save it with ``torch.export.save``.
    """
    plain = PlainModel(model, budget, multiple).eval()
    example = torch.rand(2, *model.spec.input_shape)
    batch = torch.export.Dim("batch", min=1, max=4096)
    return torch.export.export(plain, (example,), dynamic_shapes=({0: batch},))


def to_onnx(model: PrunedModel, file: Path, budget: float | None = None, multiple: int = 1) -> int:
    """Writes the model as ONNX (opset 18, any batch size); returns the file's bytes.

    Arguments as for :class:`PlainModel`. Input "pixels", output "scores".

    Raises:
        ArtifactError: ``onnx`` and ``onnxscript`` are not installed.
    """
    try:
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError:
        raise ArtifactError("ONNX needs two more packages: pip install 'rlprune[onnx]'.") from None
    program = to_program(model, budget, multiple)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            program,
            (),
            None,
            input_names=["pixels"],
            output_names=["scores"],
            opset_version=18,
            dynamo=True,
            verbose=False,
        )
    assert exported is not None
    for node in exported.model.graph:  # where in our code it comes from: a third of the file
        node.metadata_props.clear()
        node.doc_string = None
    for value in exported.model.graph.initializers.values():
        value.metadata_props.clear()
    exported.model.metadata_props.clear()
    exported.save(str(file), external_data=False)
    return file.stat().st_size


def write_model(
    model: PrunedModel, file: Path, budget: float | None = None, multiple: int = 1
) -> int:
    """Writes the model as the file's ending says, .onnx or .pt2; returns the file's bytes.

    Arguments as for :class:`PlainModel`.

    Raises:
        ArtifactError: see :func:`to_onnx` and :class:`PlainModel`.
    """
    if file.suffix == ".onnx":
        return to_onnx(model, file, budget, multiple)
    program = to_program(model, budget, multiple)
    for call in program.graph.nodes:  # where in our code it comes from: half of the file
        for name in ("stack_trace", "nn_module_stack"):
            call.meta.pop(name, None)
    torch.export.save(program, file)
    return file.stat().st_size
