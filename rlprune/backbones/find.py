"""Walk a traced network once and find who is prunable and who reads whose channels."""

from __future__ import annotations

import dataclasses
import logging
import math
import operator
from collections import Counter
from dataclasses import dataclass
from typing import TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import fx, nn

from rlprune.backbones.flow import (
    Flow,
    derive_flow,
    holds_tensors,
    operand,
    qualified_name,
    tensor_shape,
    whole,
)
from rlprune.backbones.graph import (
    ChannelGraph,
    ChannelSource,
    FixedLayer,
    FollowerLayer,
    PrunableLayer,
)
from rlprune.errors import BackboneError

_Kind = TypeVar("_Kind", bound=nn.Module)
_logger = logging.getLogger(__name__)

_NORMS = (
    nn.modules.batchnorm._NormBase,  # all BatchNorms and InstanceNorms
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
_MIXING = frozenset(
    (
        *(F.linear, F.conv2d, torch.conv2d, torch.matmul, torch.mm, torch.bmm, torch.addmm),
        *(torch.einsum, operator.matmul, "matmul", "mm", "bmm"),
    )
)
"""Operations that compute new channels out of all channels, as a layer does."""
_THE_SAME = ("timm.layers.linear.Linear", "timm.models.layers.linear.Linear")
"""Subclasses whose forward is another only for TorchScript; timm need not be installed."""


def is_plain(module: nn.Module | None, kind: type[_Kind]) -> TypeGuard[_Kind]:
    """Whether ``module`` computes what ``kind`` computes (a subclass may not)."""
    if not isinstance(module, kind):
        return False
    if qualified_name(module) in _THE_SAME:
        return True
    if type(module).forward is not kind.forward:
        return False
    inner = "_conv_forward"
    return getattr(type(module), inner, None) is getattr(kind, inner, None)


@dataclass(frozen=True)
class _Norm:
    """What directly follows a convolution.

    Attributes:
        node: the BatchNorm2d that alone reads the convolution and can be folded into it.
        supported: False where the only reader is another kind of normalisation.
    """

    node: fx.Node | None
    supported: bool = True


def find_channels(
    traced: fx.GraphModule, input_shape: tuple[int, int, int], num_classes: int, network: str
) -> ChannelGraph:
    """Find prunable, following and fixed layers of a traced network.

    Args:
        traced: the network; the shapes of its values are recorded at its nodes.
        input_shape: (C, H, W) of one image.
        num_classes: width of the output.
        network: class name of the network, for messages.

    Returns:
        The findings, layers in execution order.

    Raises:
        BackboneError: no convolution can be pruned.
    """
    finder = _Finder(traced)
    finder.run()
    if not finder.layers:
        raise BackboneError(
            f"{network}: no convolution can be pruned. rlprune prunes Conv2d layers with "
            "groups=1 and at least two output channels that are called once, carry plain "
            "weights, are not followed by a norm other than BatchNorm2d, and are not the "
            "classifier itself."
        )
    layers = (
        dataclasses.replace(layer, joins_stream=layer.index in finder.joined)
        for layer in finder.layers
    )
    fixed = tuple(finder.fixed.values())
    return ChannelGraph(input_shape, num_classes, tuple(layers), tuple(finder.followers), fixed)


class _Finder:
    """One walk over the nodes; ``layers``, ``followers``, ``fixed``, ``joined`` fill up."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.layers: list[PrunableLayer] = []
        self.followers: list[FollowerLayer] = []
        self.fixed: dict[str, FixedLayer] = {}
        self.joined: set[int] = set()
        self._flows: dict[fx.Node, Flow] = {}
        self._norms: dict[fx.Node, Flow] = {}
        self._calls = Counter(node.target for node in traced.graph.nodes if _is_call(node))
        self._owners = self._count_weight_owners()
        self._final = self._find_final_convolutions()

    def run(self) -> None:
        """Visit all nodes in execution order."""
        for node in self.traced.graph.nodes:
            if node.op == "placeholder":
                self._set_whole(node)
            elif node.op in ("call_module", "call_function", "call_method"):
                self._visit(node)
        self._warn_about_uncounted()

    # --- the graph around a node ------------------------------------------------------

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.traced.get_submodule(str(node.target)) if _is_call(node) else None

    def _count_weight_owners(self) -> Counter[int]:
        """How many called modules own each weight tensor (more than one: tied weights)."""
        owners: Counter[int] = Counter()
        for name in self._calls:
            weight = self.traced.get_submodule(str(name))._parameters.get("weight")
            if weight is not None:
                owners[id(weight)] += 1
        return owners

    def _find_final_convolutions(self) -> set[fx.Node]:
        """Convolutions whose channels become the class scores with no layer in between."""
        final: set[fx.Node] = set()
        pending = [n for node in self.traced.graph.nodes if node.op == "output" for n in node.args]
        seen: set[object] = set()
        while pending:
            node = pending.pop()
            if not isinstance(node, fx.Node) or node in seen or tensor_shape(node) is None:
                continue
            seen.add(node)
            module = self._module(node)
            if isinstance(module, nn.Conv2d):
                final.add(node)
            elif not _is_layer(node, module):
                pending.extend(node.all_input_nodes)
        return final

    def _norm_after(self, node: fx.Node) -> _Norm:
        reader = next(iter(node.users)) if len(node.users) == 1 else None
        module = None if reader is None else self._module(reader)
        if reader is None or not isinstance(module, _NORMS):
            return _Norm(None)
        foldable = (
            is_plain(module, nn.BatchNorm2d)
            and module.affine is True
            and module.track_running_stats is True
            and self._is_own(reader, module)
        )
        return _Norm(reader) if foldable else _Norm(None, supported=False)

    def _is_own(self, node: fx.Node, module: nn.Module) -> bool:
        """Called once, with a weight of its own that is stored as it is used."""
        weight = module._parameters.get("weight")
        return (
            weight is not None and self._calls[node.target] == 1 and self._owners[id(weight)] == 1
        )

    def _input_flow(self, node: fx.Node) -> Flow | None:
        value = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
        return self._flows.get(value) if isinstance(value, fx.Node) else None

    # --- what a node does to the channels ---------------------------------------------

    def _set_whole(self, node: fx.Node) -> None:
        shape = tensor_shape(node)
        if shape is not None:
            self._flows[node] = whole(shape[1] if len(shape) > 1 else 1)

    def _join(self, flow: Flow | None) -> None:
        """Behind here these channels are whole again: remember who wrote them."""
        if flow is not None:
            self.joined |= flow.layers

    def _visit(self, node: fx.Node) -> None:
        module = self._module(node)
        if node in self._norms:
            self._flows[node] = self._norms[node]
        elif is_plain(module, nn.Conv2d) and _is_image_like(node):
            self._visit_convolution(node, module)
        elif is_plain(module, nn.Linear):
            self._visit_linear(node, module)
        elif is_plain(module, nn.BatchNorm2d):
            self._visit_batch_norm(node, module)
        else:
            self._visit_other(node, module)

    def _visit_other(self, node: fx.Node, module: nn.Module | None) -> None:
        if module is not None and next(module.parameters(), None) is not None:
            self._count_opaque(node, module)
        flow = derive_flow(node, module, self._flows)
        if flow is not None:
            self._flows[node] = flow
        elif holds_tensors(node):
            for value in node.all_input_nodes:
                self._join(self._flows.get(value))
            self._set_whole(node)
            self._spoil_operand(node)

    def _spoil_operand(self, node: fx.Node) -> None:
        """An in-place operation changes its operand for all who read it later."""
        while _writes_in_place(node, self._module(node)) and (value := operand(node)) is not None:
            self._join(self._flows.get(value))
            self._set_whole(value)
            node = value

    def _visit_convolution(self, node: fx.Node, conv: nn.Conv2d) -> None:
        norm = self._norm_after(node)
        read = self._read_channels(node, conv.in_channels)
        own = self._is_own(node, conv) and norm.supported and node not in self._final
        depthwise = conv.groups == conv.in_channels == conv.out_channels
        if own and conv.groups == 1 and conv.out_channels >= 2:
            self._add_prunable(node, conv, norm.node, read)
        elif own and depthwise and read.sole_layer is not None:
            self._add_follower(node, conv, norm.node, read, read.sole_layer)
        else:
            self._add_fixed_convolution(node, conv, norm.node, read)

    def _read_channels(self, node: fx.Node, channels: int) -> Flow:
        """The input of a layer that reads one feature per channel, whole if it does not."""
        flow = self._input_flow(node)
        if flow is None or flow.features_per_channel != 1:
            self._join(flow)
            return whole(channels)
        return flow

    def _add_prunable(
        self, node: fx.Node, conv: nn.Conv2d, norm: fx.Node | None, read: Flow
    ) -> None:
        index = len(self.layers)
        self.layers.append(
            PrunableLayer(
                index=index,
                name=str(node.target),
                norm=None if norm is None else str(norm.target),
                in_sources=read.sources,
                in_channels=conv.in_channels,
                out_channels=conv.out_channels,
                kernel_size=_pair(conv.kernel_size),
                stride=_pair(conv.stride),
                out_size=_image_size(node),
                joins_stream=False,
            )
        )
        self._provide(node, norm, Flow((ChannelSource(index, conv.out_channels),)))

    def _add_follower(
        self, node: fx.Node, conv: nn.Conv2d, norm: fx.Node | None, read: Flow, producer: int
    ) -> None:
        self.followers.append(
            FollowerLayer(
                name=str(node.target),
                norm=None if norm is None else str(norm.target),
                producer=producer,
                channels=conv.out_channels,
                kernel_size=_pair(conv.kernel_size),
                out_size=_image_size(node),
            )
        )
        self._provide(node, norm, read)

    def _add_fixed_convolution(
        self, node: fx.Node, conv: nn.Conv2d, norm: fx.Node | None, read: Flow
    ) -> None:
        if conv.groups > 1:  # every group would need filters of a size of its own
            self._join(read)
            read = whole(conv.in_channels)
        weights = math.prod(conv.kernel_size) * conv.out_channels // conv.groups
        folded = norm if self._calls[node.target] == 1 else None
        shifts = conv.out_channels if conv.bias is not None or folded is not None else 0
        macs = weights * math.prod(_image_size(node))
        self._count(node, conv, read, macs, weights, shifts)
        self._provide(node, folded, whole(conv.out_channels))

    def _provide(self, node: fx.Node, norm: fx.Node | None, flow: Flow) -> None:
        self._flows[node] = flow
        if norm is not None:
            self._norms[norm] = flow

    def _visit_linear(self, node: fx.Node, linear: nn.Linear) -> None:
        shape = tensor_shape(node)
        flow = self._input_flow(node)
        if shape is None or len(shape) != 2 or flow is None:  # the last dimension, not channels
            self._join(flow)
            flow = whole(linear.in_features)
        positions = 1 if shape is None else math.prod(shape[1:-1])
        weights = linear.out_features * flow.features_per_channel
        bias = 0 if linear.bias is None else linear.out_features
        self._count(node, linear, flow, weights * positions, weights, bias)
        self._set_whole(node)

    def _visit_batch_norm(self, node: fx.Node, norm: nn.BatchNorm2d) -> None:
        """A BatchNorm2d that cannot be folded: a scale and a shift at every pixel.

        Of all channels: what is pruned is zero before it, and the channel's shift behind it.
        """
        self._join(self._input_flow(node))
        read = whole(norm.num_features)
        numbers = 2 if norm.affine or norm.track_running_stats else 0
        self._count(node, norm, read, math.prod(_image_size(node)), numbers, 0)
        self._set_whole(node)

    def _count_opaque(self, node: fx.Node, module: nn.Module) -> None:
        """A module with parameters that we do not know: they are stored, whatever it reads."""
        flow = self._input_flow(node) or whole(1)
        extra = sum(parameter.numel() for parameter in module.parameters())
        self._count(node, module, flow, 0, 0, extra)
        if not isinstance(module, (*_NORMS, nn.PReLU)):
            _logger.warning(
                "%s (%s): its multiply-accumulates are not counted, and it is not pruned",
                node.target,
                type(module).__name__,
            )

    def _count(
        self, node: fx.Node, module: nn.Module, read: Flow, macs: int, weights: int, extra: int
    ) -> None:
        """Record a fixed layer's cost; each call costs, but the weights are stored once."""
        name = str(node.target)
        if self._calls[node.target] > 1:  # another call may read other channels
            factor = read.features_per_channel
            channels = sum(run.channels for run in read.sources)
            read = whole(channels * factor)
            macs, weights = macs // factor, weights // factor
        if name in self.fixed:
            before = self.fixed[name]
            macs += before.macs_per_channel
            self.fixed[name] = dataclasses.replace(before, macs_per_channel=macs)
            return
        weight = module._parameters.get("weight")
        if weight is not None and self._owners[id(weight)] > 1 and self._stored(weight):
            weights, extra = 0, 0
        self.fixed[name] = FixedLayer(name, read.sources, macs, weights, extra)

    def _stored(self, weight: nn.Parameter) -> bool:
        """Whether a tied weight is counted already."""
        names = (*self.fixed, *(layer.name for layer in self.layers))
        return any(self.traced.get_submodule(n)._parameters.get("weight") is weight for n in names)

    def _warn_about_uncounted(self) -> None:
        """Parameters that the forward function reads itself have no layer to be counted at."""
        nodes = [node for node in self.traced.graph.nodes if node.op == "get_attr"]
        parameters = dict(self.traced.named_parameters())
        names = sorted({str(node.target) for node in nodes} & set(parameters))
        if names:
            _logger.warning(
                "%d parameters are used outside torch's own layers (%s%s): their bytes and "
                "multiply-accumulates are not counted",
                len(names),
                ", ".join(names[:5]),
                ", ..." if len(names) > 5 else "",
            )


def _is_call(node: fx.Node) -> bool:
    return node.op == "call_module"


def _is_layer(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether the call computes new channels out of all channels that it reads."""
    if module is None:
        return node.target in _MIXING
    weighted = next(module.parameters(), None) is not None
    return weighted and not isinstance(module, (*_NORMS, nn.PReLU))


def _is_image_like(node: fx.Node) -> bool:
    shape = tensor_shape(node)
    return shape is not None and len(shape) == 4


def _writes_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return getattr(module, "inplace", False) is True
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).startswith("_")
    if node.op == "call_function":
        name = str(getattr(node.target, "__name__", ""))
        in_place = name.endswith("_") or node.target in (operator.iadd, operator.isub)
        return in_place or node.kwargs.get("inplace") is True
    return False


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    return (value[0], value[1])


def _image_size(node: fx.Node) -> tuple[int, int]:
    shape = tensor_shape(node) or ()
    return _pair(shape[-2:])
