"""Trace a network with torch.fx and find what can be pruned in it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from rlprune.backbones.find import find_channels, is_plain
from rlprune.backbones.flow import drops_branches, qualified_name, record_shape, tensor_shape
from rlprune.backbones.graph import TracedBackbone
from rlprune.errors import BackboneError

_BATCH = 2
_DROPOUTS: dict[Any, type[nn.Dropout] | type[nn.Dropout2d]] = {
    F.dropout: nn.Dropout,
    F.dropout2d: nn.Dropout2d,
}
_NORMS_WITH_ACTIVATION = (
    "timm.layers.norm_act.BatchNormAct2d",
    "timm.models.layers.norm_act.BatchNormAct2d",  # before timm 0.9
)
"""BatchNorm2d, then ``drop``, then ``act``: known by name, since timm need not be installed."""
_TRACE_REMEDY = (
    "torch.fx must be able to follow forward: no if, for, len() or int() on values or sizes "
    "of tensors. Rewrite that code, or move it into a function registered with torch.fx.wrap."
)


def trace_backbone(
    module: nn.Module, input_shape: tuple[int, int, int], num_classes: int | None = None
) -> TracedBackbone:
    """Turn a network into an fx graph and find who is prunable and who reads whom.

    The network is traced in evaluation mode; its parameters, its buffers and its training
    flags are left as they were. ``F.dropout`` and ``F.dropout2d`` become modules, so that
    they still follow ``train()`` and ``eval()`` in the traced network. timm's BatchNorm with
    activation becomes three modules.

    Args:
        module: network from images [B, C, H, W] to class scores [B, num_classes].
        input_shape: (C, H, W) of one image; sizes and costs hold for it.
        num_classes: what the output's width must be; None: whatever it is.

    Returns:
        A GraphModule that shares the network's parameters, and the findings.

    Raises:
        BackboneError: the network cannot be traced or run (the message names the module
            where that failed), its output has another shape, or nothing can be pruned.
    """
    network = type(module).__name__
    with _evaluating(module):
        graph = _symbolic_graph(module)
        traced = fx.GraphModule(module, graph, class_name=network)
        _make_arguments_positional(traced)
        dropouts, norms = _make_dropouts_modules(traced), _make_norms_plain(traced)
        _propagate_shapes(traced, input_shape, network)
    for new in (traced, *dropouts):  # all other modules are the network's own
        new.training = module.training
    for plain, norm in norms:
        plain.training = norm.training
    width = _output_width(traced, network, num_classes)
    return TracedBackbone(traced, find_channels(traced, input_shape, width, network))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's own training flag is restored behind."""
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in flags:
            part.training = training


class _Tracer(fx.Tracer):
    """Symbolic tracer that knows in which module it failed.

    Attributes:
        failed: path and module of the innermost call that raised, None if none did.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failed: tuple[str, nn.Module] | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether ``m`` stays one node: torch's own layers and their harmless subclasses.

        Stochastic depth as well: followed in evaluation mode, it would be gone in training.
        """
        plain = any(is_plain(m, kind) for kind in (nn.Conv2d, nn.BatchNorm2d, nn.Linear))
        if plain or drops_branches(m):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Trace a call of ``m`` and remember where tracing failed."""
        try:
            if _norm_with_activation(m):
                name = self.path_of_module(m)
                value = self.create_proxy("call_module", name, args, kwargs)
                return m.get_submodule("act")(m.get_submodule("drop")(value))
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed is None:
                self.failed = (self.path_of_module(m), m)
            raise


def _norm_with_activation(module: nn.Module) -> bool:
    return qualified_name(module) in _NORMS_WITH_ACTIVATION


def _make_norms_plain(traced: fx.GraphModule) -> list[tuple[nn.Module, nn.Module]]:
    """Puts a BatchNorm2d with the same parameters and statistics where one had an activation.

    Returns:
        The new modules and those that they stand for.
    """
    made: list[tuple[nn.Module, nn.Module]] = []
    names = {name for name, _ in traced.named_modules()}
    for name, norm in list(traced.named_modules()):
        if not isinstance(norm, nn.BatchNorm2d) or not _norm_with_activation(norm):
            continue
        settings = (norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        plain = nn.BatchNorm2d(norm.num_features, *settings)
        plain._parameters, plain._buffers = norm._parameters, norm._buffers
        traced.set_submodule(name, plain)
        for part in ("drop", "act"):
            new = f"{name}_{part}"
            while new in names:
                new += "_"
            traced.add_submodule(new, norm.get_submodule(part))
            _rename(traced.graph, f"{name}.{part}", new)
        made.append((plain, norm))
    traced.recompile()
    return made


def _rename(graph: fx.Graph, before: str, now: str) -> None:
    """Of a module and all inside it."""
    for node in graph.nodes:
        if node.op == "call_module" and f"{node.target}.".startswith(f"{before}."):
            node.target = now + str(node.target)[len(before) :]


def _make_arguments_positional(traced: fx.GraphModule) -> None:
    """``layer(input=x)`` becomes ``layer(x)``: who reads what is told by position."""
    for node in traced.graph.nodes:
        if node.op == "call_module" and node.kwargs:
            forward = inspect.signature(traced.get_submodule(str(node.target)).forward)
            try:
                bound = forward.bind(*node.args, **node.kwargs)
            except TypeError:
                continue  # running the graph will say so
            node.args, node.kwargs = bound.args, bound.kwargs
    traced.recompile()


def _symbolic_graph(module: nn.Module) -> fx.Graph:
    tracer = _Tracer()
    try:
        graph = tracer.trace(module, concrete_args=_default_arguments(module))
    except Exception as error:
        path, part = tracer.failed or ("", module)
        inside = f" in module {path!r} ({type(part).__name__})" if path else " in its forward"
        raise BackboneError(
            f"{type(module).__name__}: tracing failed{inside}: "
            f"{type(error).__name__}: {error}. {_TRACE_REMEDY}"
        ) from error
    _keep_only_image(graph)
    return graph


def _default_arguments(module: nn.Module) -> dict[str, Any]:
    """Values of forward's optional arguments, which would otherwise be traced as inputs."""
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return {}
    return {
        parameter.name: parameter.default
        for parameter in parameters[1:]
        if parameter.default is None or isinstance(parameter.default, bool | int | float | str)
    }


def _keep_only_image(graph: fx.Graph) -> None:
    """Remove the optional arguments, and the checks that fx inserts for them."""
    optional = [node for node in graph.nodes if node.op == "placeholder"][1:]
    for node in optional:
        if not node.args and not str(node.target).startswith("*"):
            continue  # a required argument: running the graph will say so
        checks = {node}
        for other in graph.nodes:
            if other.op == "call_function" and checks & set(other.all_input_nodes):
                checks.add(other)
        if all(_is_check(other) for other in checks - {node}):
            for other in reversed(list(graph.nodes)):
                if other in checks:
                    graph.erase_node(other)


def _is_check(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", "") in ("eq", "_assert", "_assert_is_none")


def _make_dropouts_modules(traced: fx.GraphModule) -> list[nn.Module]:
    """Replace functional dropouts, whose ``training`` tracing has frozen at False."""
    made: list[nn.Module] = []
    for node in list(traced.graph.nodes):
        kind = _DROPOUTS.get(node.target) if node.op == "call_function" else None
        given = dict(zip(("input", "p", "training"), node.args, strict=False)) | node.kwargs
        if kind is None or given.get("training", True) is not False:
            continue
        dropout = kind(given.get("p", 0.5))
        name = f"functional_dropout_{len(made)}"
        traced.add_submodule(name, dropout)
        with traced.graph.inserting_before(node):
            call = traced.graph.call_module(name, (given["input"],))
        node.replace_all_uses_with(call)
        traced.graph.erase_node(node)
        made.append(dropout)
    traced.recompile()
    return made


class _ShapeRecorder(fx.Interpreter):
    """Runs the graph and records every value's shape; ``at`` is the node being run."""

    at: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and record the shape of its value."""
        self.at = n
        value = super().run_node(n)
        record_shape(n, value)
        return value


def _propagate_shapes(
    traced: fx.GraphModule, input_shape: tuple[int, int, int], network: str
) -> None:
    traced.eval()
    parameters = (p for p in traced.parameters() if p.is_floating_point())
    like = next(parameters, torch.empty(0))
    images = torch.zeros(_BATCH, *input_shape, dtype=like.dtype, device=like.device)
    recorder = _ShapeRecorder(traced)
    recorder.extra_traceback = False
    try:
        with torch.no_grad():
            recorder.run(images)
    except Exception as error:
        at = f" at {recorder.at.op} {str(recorder.at.target)!r}" if recorder.at else ""
        raise BackboneError(
            f"{network}: running it on images of shape {tuple(input_shape)} failed{at}: "
            f"{error}. Use images of the shape that the network expects, or another network."
        ) from error


def _output_width(traced: fx.GraphModule, network: str, num_classes: int | None) -> int:
    output = next(node for node in traced.graph.nodes if node.op == "output")
    value = output.args[0]
    shape = tensor_shape(value) if isinstance(value, fx.Node) else None
    expected = "num_classes" if num_classes is None else str(num_classes)
    if shape is None:
        raise BackboneError(
            f"{network}: must return one tensor [B, {expected}] (got {value!r}). "
            "Return the class scores alone in evaluation mode."
        )
    fits = len(shape) == 2 and shape[0] == _BATCH and num_classes in (None, shape[1])
    if not fits:
        got = ", ".join(["B", *map(str, shape[1:])]) if shape[:1] == (_BATCH,) else str(shape)
        raise BackboneError(
            f"{network}: must return class scores [B, {expected}] (got [{got}]). "
            "Match the number of classes, and flatten what the last layer returns."
        )
    return shape[1]
