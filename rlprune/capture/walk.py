"""From a gated network's fx graph to the program of a shipped model.

Every call becomes an operation that :mod:`rlprune.deploy` knows by name. Where a consumer
needs channels that may be gone at their old places, an "expand" is put before it; everywhere
else tensors carry only the channels that exist.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from rlprune.backbones.flow import Flow, derive_flow, drops_branches, operand, tensor_shape, whole
from rlprune.backbones.graph import ChannelSource
from rlprune.capture.calls import (
    module_call,
    operation_of,
    plain_arguments,
    unknown,
    without_inplace,
    writes,
    zero_padding,
)
from rlprune.deploy.spec import Node, Run
from rlprune.pruning import GatedConv, GatedNetwork
from rlprune.pruning.gated import FollowerConv

_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)
_NOTHING_FUNCTIONS = (F.dropout, F.dropout2d)
_NOTHING_METHODS = ("contiguous", "clone", "float", "detach")
_RESHAPES = ("flatten", "reshape", "squeeze", "unsqueeze")
_VIEWS = (*_RESHAPES, "per_channel", "permute", "transpose", "chunk", "split", "getitem")
"""What may share its operand's memory."""


class Captured:
    """A program and the numbers of the layers that are not gated.

    Attributes:
        program: the calls.
        tensors: "<name>.weight" and "<name>.bias" of followers and fixed layers.
    """

    def __init__(self, program: tuple[Node, ...], tensors: dict[str, Tensor]) -> None:
        self.program = program
        self.tensors = tensors


def capture(network: GatedNetwork, stored: list[Tensor]) -> Captured:
    """The network's program without its deleted channels.

    Args:
        network: in eval mode; not changed.
        stored: positions of the stored channels of every layer, int64 [S].

    Raises:
        ArtifactError: the network calls something that a shipped model does not know.
    """
    walk = _Walk(network, stored)
    walk.run()
    return Captured(_without_unused(walk.nodes), walk.tensors)


class _Walk:
    """One walk over the graph; ``nodes`` and ``tensors`` fill up."""

    def __init__(self, network: GatedNetwork, stored: list[Tensor]) -> None:
        self.body = network.body
        self.stored = stored
        self.channels = [layer.out_channels for layer in network.channels.layers]
        self.fixed = {layer.name: layer for layer in network.channels.fixed}
        self.nodes: list[Node] = []
        self.tensors: dict[str, Tensor] = {}
        self._at: dict[fx.Node, int] = {}
        self._flows: dict[fx.Node, Flow] = {}
        self._whole: dict[fx.Node, int] = {}
        self._folded: dict[fx.Node, fx.Node] = {}
        self._memory: dict[fx.Node, fx.Node] = {}
        self._order = {node: at for at, node in enumerate(self.body.graph.nodes)}

    def run(self) -> None:
        """Visits all nodes in execution order."""
        for node in self.body.graph.nodes:
            if node.op == "placeholder":
                if node.target != "gate":
                    self._emit(node, "input", "", [], {})
                    self._flows[node] = whole((tensor_shape(node) or (0, 1))[1])
            elif node.op == "output":
                value = node.args[0]
                self.nodes.append(Node("output", "", ({"r": self._expanded(value)},), {}))
            elif node.op == "get_attr":
                raise unknown(f"{node.target}, a tensor that forward reads by itself")
            else:
                self._visit(node)

    def _emit(
        self, node: fx.Node, kind: str, target: int | str, args: list[Any], kwargs: dict[str, Any]
    ) -> None:
        self._at[node] = len(self.nodes)
        self.nodes.append(Node(kind, target, tuple(args), kwargs))

    def _visit(self, node: fx.Node) -> None:
        module = self.body.get_submodule(str(node.target)) if node.op == "call_module" else None
        if node in self._folded:
            self._alias(node, self._folded[node])
        elif isinstance(module, GatedConv):
            self._emit(node, "gated", module.layer.index, [self._compact(node.args[0])], {})
            source = ChannelSource(module.layer.index, module.layer.out_channels)
            self._flows[node] = Flow((source,))
        elif isinstance(module, FollowerConv):
            self._follower(node, module)
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
            self._fixed(node, module)
        else:
            self._other(node, module)

    # --- values -----------------------------------------------------------------------

    def _compact(self, value: Any) -> dict[str, int]:
        return {"r": self._at[value]}

    def _expanded(self, value: fx.Node) -> int:
        """Index of the value with every channel at its old place."""
        flow = self._flows.get(value)
        if flow is None or not flow.layers:
            return self._at[value]
        if value not in self._whole:
            runs = [[run.layer, run.channels] for run in flow.sources]
            options = {"runs": runs, "each": flow.features_per_channel}
            self._whole[value] = len(self.nodes)
            self.nodes.append(Node("expand", "", (self._compact(value),), options))
        return self._whole[value]

    def _alias(self, node: fx.Node, value: fx.Node) -> None:
        """``node`` is the same value."""
        self._at[node] = self._at[value]
        if value in self._flows:
            self._flows[node] = self._flows[value]
        if value in self._whole:
            self._whole[node] = self._whole[value]

    def _argument(self, value: Any, compact: bool) -> Any:
        if isinstance(value, fx.Node):
            return {"r": self._at[value] if compact else self._expanded(value)}
        if isinstance(value, list | tuple):
            return [self._argument(item, compact) for item in value]
        if isinstance(value, slice):
            ends = [value.start, value.stop, value.step]
            if all(end is None or isinstance(end, int) for end in ends):
                return {"s": ends}
        plain = value is None or isinstance(value, bool | int | str)
        if plain or (isinstance(value, float) and math.isfinite(value)):
            return value
        raise unknown(f"the argument {value!r}")

    # --- layers with numbers ----------------------------------------------------------

    def _follower(self, node: fx.Node, module: FollowerConv) -> None:
        rows = self.stored[module.layer.producer]
        weight, bias = _folded(module.conv, module.norm)
        name = module.layer.name
        self._store(name, weight[rows], bias[rows])
        options = {**_geometry(name, module.conv), "layer": module.layer.producer}
        self._emit(node, "follower", name, [self._compact(node.args[0])], options)
        self._flows[node] = self._flows[node.args[0]]  # type: ignore[index]

    def _fixed(self, node: fx.Node, module: nn.Module) -> None:
        name, value = str(node.target), node.args[0]
        assert isinstance(value, fx.Node)
        self._flows[node] = whole(_width(node))
        if isinstance(module, nn.BatchNorm2d):
            if not module.track_running_stats:
                raise unknown(f"{name}, a BatchNorm2d without running statistics")
            self._store(name, *_scale_and_shift(module))
            self._emit(node, "affine", name, [{"r": self._expanded(value)}], {})
            return
        sources = self.fixed[name].in_sources
        compact = any(source.layer is not None for source in sources)
        read = self._compact(value) if compact else {"r": self._expanded(value)}
        options: dict[str, Any] = {"runs": [[s.layer, s.channels] for s in sources]}
        if isinstance(module, nn.Linear):
            each = module.in_features // sum(source.channels for source in sources)
            weight, bias = module.weight.detach(), _bias(module.bias, module.out_features)
            self._store(name, weight[:, input_columns(sources, self.stored, each)], bias)
            self._emit(node, "linear", name, [read], {**options, "each": each})
            return
        assert isinstance(module, nn.Conv2d)
        weight, bias = _folded(module, self._norm_behind(node))
        self._store(name, weight[:, input_columns(sources, self.stored, 1)] if compact else weight)
        self.tensors[f"{name}.bias"] = bias.clone()
        self._emit(
            node,
            "conv",
            name,
            [read],
            {**options, **_geometry(name, module), "groups": module.groups},
        )

    def _norm_behind(self, node: fx.Node) -> nn.BatchNorm2d | None:
        """The BatchNorm that alone reads a fixed convolution which is called once."""
        calls = sum(other.target == node.target for other in self.body.graph.nodes)
        reader = next(iter(node.users)) if len(node.users) == 1 else None
        if calls > 1 or reader is None or reader.op != "call_module":
            return None
        module = self.body.get_submodule(str(reader.target))
        if type(module) is not nn.BatchNorm2d or not module.track_running_stats:
            return None
        self._folded[reader] = node
        return module

    def _store(self, name: str, weight: Tensor, bias: Tensor | None = None) -> None:
        self.tensors[f"{name}.weight"] = weight.detach().clone()
        if bias is not None:
            self.tensors[f"{name}.bias"] = bias.detach().clone()

    # --- everything else --------------------------------------------------------------

    def _other(self, node: fx.Node, module: nn.Module | None) -> None:
        flow = derive_flow(node, module, self._flows)
        about = operand(node)
        if about is not None and self._does_nothing(node, module):
            self._alias(node, about)
            if node.target != "clone":
                self._memory[node] = self._home(about)
            return
        name, args, kwargs = self._called(node, module, flow)
        self._emit(node, "call", name, args, kwargs)
        shape = tensor_shape(node)
        if flow is not None:
            self._flows[node] = flow
        elif shape is not None:
            self._flows[node] = whole(_width(node))
        if about is not None and name in _VIEWS:
            self._memory[node] = self._home(about)
        if about in self._at and writes(node, module):
            self._write(node, about)

    @staticmethod
    def _does_nothing(node: fx.Node, module: nn.Module | None) -> bool:
        if node.op == "call_method":
            return node.target in _NOTHING_METHODS
        drops = type(module) in _NOTHING or drops_branches(module)
        return drops or node.target in _NOTHING_FUNCTIONS

    def _called(
        self, node: fx.Node, module: nn.Module | None, flow: Flow | None
    ) -> tuple[str, list[Any], dict[str, Any]]:
        compact = flow is not None
        given, options = plain_arguments(node)
        args = [self._argument(value, compact) for value in given]
        first = args[:1]
        if module is not None:
            name, kwargs = module_call(str(node.target), module)
            args = first
        else:
            name = operation_of(node)
            kwargs = {k: self._argument(v, compact) for k, v in options.items()}
            args = without_inplace(name, args)
        if flow is not None and name in _RESHAPES:
            shape, before = tensor_shape(node), tensor_shape(node.all_input_nodes[0])
            assert shape is not None and before is not None
            trailing = list(shape[2:]) if shape[1] == before[1] else []
            if trailing or shape[1] != before[1]:
                return "per_channel", [first[0], trailing], {}
            return "flatten", [first[0], 1], {}
        return name, args, kwargs

    def _home(self, value: Any) -> fx.Node:
        """The first value in the same memory."""
        home: fx.Node = self._memory.get(value, value)
        return home

    def _write(self, node: fx.Node, about: fx.Node) -> None:
        """An operation in place changes its operand for all who read it later.

        Raises:
            ArtifactError: other views of the same memory are read later.
        """
        home, now = self._home(about), self._order[node]
        for other in self._at:
            shares = other not in (node, about) and self._home(other) is home
            if shares and any(self._order[reader] > now for reader in other.users):
                raise unknown(f"{node.name}, which overwrites what {other.name} still shows")
        self._memory[node] = home
        self._at[about] = self._at[node]
        self._whole.pop(about, None)
        if node in self._flows:
            self._flows[about] = self._flows[node]


def input_columns(
    sources: Sequence[ChannelSource | Run], stored: Sequence[Tensor], each: int
) -> Tensor:
    """Positions of stored inputs among a consumer's inputs, ``each`` per channel, int64 [I]."""
    columns, start = [], 0
    for source in sources:
        present = torch.arange(source.channels) if source.layer is None else stored[source.layer]
        columns.append(start + present)
        start += source.channels
    flat = torch.cat(columns)
    return (flat.unsqueeze(1) * each + torch.arange(each)).flatten()


def _width(node: fx.Node) -> int:
    shape = tensor_shape(node) or ()
    return shape[1] if len(shape) > 1 else 1


def _geometry(name: str, conv: nn.Conv2d) -> dict[str, list[int]]:
    return {
        "stride": list(conv.stride),
        "padding": list(zero_padding(name, conv)),
        "dilation": list(conv.dilation),
    }


def _bias(bias: Tensor | None, width: int) -> Tensor:
    return torch.zeros(width) if bias is None else bias.detach()


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach()


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """Filters and bias of a convolution with the BatchNorm behind it."""
    weight, bias = conv.weight.detach(), _bias(conv.bias, conv.out_channels)
    if norm is None:
        return weight, bias
    scale, shift = _scale_and_shift(norm)
    return weight * scale[:, None, None, None], bias * scale + shift


def _without_unused(nodes: list[Node]) -> tuple[Node, ...]:
    """The calls that the output depends on, renumbered."""
    needed: set[int] = set()
    pending = [len(nodes) - 1, 0]
    while pending:
        index = pending.pop()
        if index not in needed:
            needed.add(index)
            pending += _reads([nodes[index].args, nodes[index].kwargs])
    number = {old: new for new, old in enumerate(sorted(needed))}

    def renumbered(value: Any) -> Any:
        if isinstance(value, Mapping) and set(value) == {"r"}:
            return {"r": number[value["r"]]}
        if isinstance(value, list):
            return [renumbered(item) for item in value]
        return value

    return tuple(
        Node(
            nodes[old].kind,
            nodes[old].target,
            tuple(renumbered(value) for value in nodes[old].args),
            {name: renumbered(value) for name, value in nodes[old].kwargs.items()},
        )
        for old in sorted(needed)
    )


def _reads(value: Any) -> list[int]:
    if isinstance(value, Mapping):
        return [value["r"]] if set(value) == {"r"} else _reads(list(value.values()))
    if isinstance(value, list | tuple):
        return [index for item in value for index in _reads(item)]
    return []
