"""Which operations keep a masked (zero) channel at zero, and where it then sits.

A :class:`Flow` says, for one tensor, who provides its channels. :func:`derive_flow` is the
list of operations behind which that knowledge survives; every other operation is answered
with None, which means: from here on all channels count as whole. Being left out of the
list costs savings, never correctness.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from rlprune.backbones.graph import ChannelSource


@dataclass(frozen=True)
class Flow:
    """Who provides the entries of a tensor's dimension 1.

    Attributes:
        sources: runs of channels in order. A run of a prunable layer always spans all of
            its channels.
        features_per_channel: entries of dimension 1 that belong to one channel: 1, or H * W
            once [B, C, H, W] has been flattened.
    """

    sources: tuple[ChannelSource, ...]
    features_per_channel: int = 1

    @property
    def sole_layer(self) -> int | None:
        """The prunable layer that provides everything, if there is such a one."""
        return self.sources[0].layer if len(self.sources) == 1 else None

    @property
    def layers(self) -> frozenset[int]:
        """All prunable layers among the sources."""
        return frozenset(run.layer for run in self.sources if run.layer is not None)


def whole(channels: int) -> Flow:
    """A flow of ``channels`` channels that no mask silences."""
    return Flow((ChannelSource(None, channels),))


_SHAPE = "rlprune_shape"


def record_shape(node: fx.Node, value: object) -> None:
    """Note the shape of the node's value, for the functions below."""
    if isinstance(value, torch.Tensor):
        node.meta[_SHAPE] = tuple(value.shape)
    elif any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value)):
        node.meta[_SHAPE] = None


def tensor_shape(node: fx.Node) -> tuple[int, ...] | None:
    """Shape of the node's value at the traced batch size; None if it is not one tensor."""
    shape: tuple[int, ...] | None = node.meta.get(_SHAPE)
    return shape


def holds_tensors(node: fx.Node) -> bool:
    """Whether the value is a tensor or a collection of them (not a size, a number, ...)."""
    return _SHAPE in node.meta


def _torch_functions(*names: str) -> frozenset[Callable[..., Any]]:
    spaces = (torch, F, torch._C._nn)
    return frozenset(
        getattr(space, name) for name in names for space in spaces if hasattr(space, name)
    )


_ELEMENTWISE_MODULES = (
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Tanh,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.Dropout,
    nn.Dropout2d,
)
_BRANCH_DROPS = (
    "torchvision.ops.stochastic_depth.StochasticDepth",
    "timm.layers.drop.DropPath",
    "timm.models.layers.drop.DropPath",  # before timm 0.9
)
_ELEMENTWISE_FUNCTIONS = _torch_functions(
    *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "gelu", "silu", "mish", "hardswish"),
    *("tanh", "elu", "elu_", "celu", "selu", "dropout", "dropout2d", "neg", "abs", "clone"),
) | {operator.neg}
_ELEMENTWISE_METHODS = frozenset(
    ("relu", "relu_", "tanh", "tanh_", "neg", "abs", "contiguous", "clone", "float", "double")
)

_SPATIAL_MODULES = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.ZeroPad2d,
)
_SPATIAL_FUNCTIONS = _torch_functions(
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"
)

_RESHAPE_MODULES = (nn.Flatten, nn.Unflatten)
_RESHAPE_FUNCTIONS = _torch_functions("flatten", "reshape", "squeeze", "unsqueeze")
_RESHAPE_METHODS = frozenset(("flatten", "view", "reshape", "squeeze", "unsqueeze"))

_REDUCTION_FUNCTIONS = _torch_functions("mean", "sum", "amax")
_REDUCTION_METHODS = frozenset(("mean", "sum", "amax"))

_ADD_FUNCTIONS = _torch_functions("add", "sub") | {
    operator.add,
    operator.iadd,
    operator.sub,
    operator.isub,
}
_ADD_METHODS = frozenset(("add", "add_", "sub", "sub_"))
_SCALE_FUNCTIONS = _torch_functions("mul", "div") | {
    operator.mul,
    operator.imul,
    operator.truediv,
    operator.itruediv,
}
_SCALE_METHODS = frozenset(("mul", "mul_", "div", "div_"))
_CAT_FUNCTIONS = _torch_functions("cat", "concat", "concatenate")

Flows = Mapping[fx.Node, Flow]


def drops_branches(module: nn.Module | None) -> bool:
    """Whether it drops whole values of a batch while training, and does nothing else.

    Such modules of torchvision and timm are known by name, since neither need be installed.
    """
    return qualified_name(module) in _BRANCH_DROPS


def qualified_name(module: nn.Module | None) -> str:
    """Of its class, such as "torch.nn.modules.conv.Conv2d"."""
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}"


_Rule = Callable[[fx.Node, Flows], Flow | None]


def derive_flow(node: fx.Node, module: nn.Module | None, flows: Flows) -> Flow | None:
    """The flow of ``node``'s value, if the operation keeps zero channels at zero.

    Args:
        node: an operation that is no layer of its own (no convolution, linear layer, norm).
        module: what it calls, for ``call_module`` nodes.
        flows: the flows of all nodes before it.

    Returns:
        The flow, or None where the operation is not known to keep zeros, or where its
        value is not one tensor.
    """
    if tensor_shape(node) is None:
        return None
    rule = _module_rule(module) if module is not None else _function_rule(node)
    return None if rule is None else rule(node, flows)


def _module_rule(module: nn.Module) -> _Rule | None:
    kind = type(module)  # not isinstance: a subclass may compute something else
    if kind in _ELEMENTWISE_MODULES or drops_branches(module):
        return _elementwise
    if isinstance(module, nn.Hardtanh) and kind is nn.Hardtanh:
        return _elementwise if module.min_val <= 0.0 <= module.max_val else None
    if isinstance(module, nn.PReLU) and kind is nn.PReLU:  # one weight needs no slicing
        return _elementwise if module.num_parameters == 1 else None
    if kind in _SPATIAL_MODULES:
        return _spatial
    if kind in _RESHAPE_MODULES:
        return _reshape
    return None


def _function_rule(node: fx.Node) -> _Rule | None:
    method = node.op == "call_method"
    tables: tuple[tuple[frozenset[Any], frozenset[str], _Rule], ...] = (
        (_ELEMENTWISE_FUNCTIONS, _ELEMENTWISE_METHODS, _elementwise),
        (_SPATIAL_FUNCTIONS, frozenset(), _spatial),
        (_RESHAPE_FUNCTIONS, _RESHAPE_METHODS, _reshape),
        (_REDUCTION_FUNCTIONS, _REDUCTION_METHODS, _reduction),
        (_ADD_FUNCTIONS, _ADD_METHODS, _addition),
        (_SCALE_FUNCTIONS, _SCALE_METHODS, _scaling),
        (_CAT_FUNCTIONS, frozenset(), _concatenation),
    )
    for functions, methods, rule in tables:
        if node.target in (methods if method else functions):
            return rule
    return None


def _argument(node: fx.Node, position: int, *names: str) -> Any:
    """A positional or keyword argument of a call; None where it is not given."""
    if len(node.args) > position:
        return node.args[position]
    return next((node.kwargs[name] for name in names if name in node.kwargs), None)


def operand(node: fx.Node) -> fx.Node | None:
    """The value that a call is about, by position or by name; None where it is not one value."""
    value = _argument(node, 0, "input", "self", "tensor")
    return value if isinstance(value, fx.Node) else None


def _operand(node: fx.Node, flows: Flows) -> tuple[Flow, tuple[int, ...]] | None:
    """Flow and shape of the tensor that the operation is about."""
    value = _argument(node, 0, "input", "self")
    if not isinstance(value, fx.Node) or value not in flows:
        return None
    shape = tensor_shape(value)
    return None if shape is None else (flows[value], shape)


def _elementwise(node: fx.Node, flows: Flows) -> Flow | None:
    operand = _operand(node, flows)
    if operand is None or tensor_shape(node) != operand[1]:
        return None
    return operand[0]


def _spatial(node: fx.Node, flows: Flows) -> Flow | None:
    operand = _operand(node, flows)
    shape = tensor_shape(node)
    # With three dimensions torch's 2-d pools take dimension 1 for the height.
    if operand is None or shape is None or len(shape) != 4 or len(operand[1]) != 4:
        return None
    return operand[0] if shape[:2] == operand[1][:2] else None


def _reshape(node: fx.Node, flows: Flows) -> Flow | None:
    operand = _operand(node, flows)
    shape = tensor_shape(node)
    if operand is None or shape is None:
        return None
    flow, before = operand
    if len(before) < 2 or len(shape) < 2 or shape[0] != before[0]:
        return None
    if shape[1] == before[1]:
        return flow
    if len(shape) == 2:  # all of dimension 1 and behind merged
        return Flow(flow.sources, flow.features_per_channel * (shape[1] // before[1]))
    return None


def _reduction(node: fx.Node, flows: Flows) -> Flow | None:
    operand = _operand(node, flows)
    dims = _argument(node, 1, "dim", "axis")
    if operand is None or dims is None:
        return None
    flow, shape = operand
    listed = [dims] if isinstance(dims, int) else list(dims)
    if not listed or not all(isinstance(dim, int) for dim in listed):
        return None
    spatial = all((dim + len(shape) if dim < 0 else dim) >= 2 for dim in listed)
    return flow if spatial else None


def _addition(node: fx.Node, flows: Flows) -> Flow | None:
    terms = (_argument(node, 0, "input", "self"), _argument(node, 1, "other"))
    nodes = [term for term in terms if isinstance(term, fx.Node) and term in flows]
    if len(nodes) != 2 or flows[nodes[0]] != flows[nodes[1]]:
        return None
    same_shape = tensor_shape(nodes[0]) == tensor_shape(nodes[1]) == tensor_shape(node)
    return flows[nodes[0]] if same_shape else None


def _scaling(node: fx.Node, flows: Flows) -> Flow | None:
    first, second = _argument(node, 0, "input", "self"), _argument(node, 1, "other")
    if isinstance(first, int | float) and node.target in (operator.mul, torch.mul):
        first, second = second, first
    if not isinstance(second, int | float) or not isinstance(first, fx.Node):
        return None
    return flows.get(first)


def _concatenation(node: fx.Node, flows: Flows) -> Flow | None:
    parts = _argument(node, 0, "tensors")
    dim = _argument(node, 1, "dim", "axis")
    shape = tensor_shape(node)
    if not isinstance(parts, list | tuple) or not isinstance(dim, int) or shape is None:
        return None
    if dim not in (1, 1 - len(shape)) or not all(part in flows for part in parts):
        return None
    factors = {flows[part].features_per_channel for part in parts}
    if len(factors) != 1:
        return None
    runs = [run for part in parts for run in flows[part].sources]
    return Flow(merged(runs), factors.pop())


def merged(runs: list[ChannelSource]) -> tuple[ChannelSource, ...]:
    """Neighbouring runs of whole channels joined into one."""
    out: list[ChannelSource] = []
    for run in runs:
        if out and run.layer is None and out[-1].layer is None:
            out[-1] = ChannelSource(None, out[-1].channels + run.channels)
        else:
            out.append(run)
    return tuple(out)
