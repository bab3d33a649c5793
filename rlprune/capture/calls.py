"""What a network's graph calls, as the operations of a shipped model: names and arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from rlprune.backbones.flow import operand
from rlprune.deploy.operations import name_of
from rlprune.errors import ArtifactError

_ATTRIBUTES: Mapping[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.ReLU: ("relu", ()),
    nn.ReLU6: ("relu6", ()),
    nn.LeakyReLU: ("leaky_relu", ("negative_slope",)),
    nn.GELU: ("gelu", ("approximate",)),
    nn.SiLU: ("silu", ()),
    nn.Mish: ("mish", ()),
    nn.Hardswish: ("hardswish", ()),
    nn.Hardsigmoid: ("hardsigmoid", ()),
    nn.Hardtanh: ("hardtanh", ("min_val", "max_val")),
    nn.Tanh: ("tanh", ()),
    nn.Sigmoid: ("sigmoid", ()),
    nn.ELU: ("elu", ("alpha",)),
    nn.CELU: ("celu", ("alpha",)),
    nn.SELU: ("selu", ()),
    nn.MaxPool2d: ("max_pool2d", ("kernel_size", "stride", "padding", "dilation", "ceil_mode")),
    nn.AvgPool2d: (
        "avg_pool2d",
        ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    ),
    nn.AdaptiveAvgPool2d: ("adaptive_avg_pool2d", ("output_size",)),
    nn.AdaptiveMaxPool2d: ("adaptive_max_pool2d", ("output_size",)),
    nn.Flatten: ("flatten", ("start_dim", "end_dim")),
    nn.Softmax: ("softmax", ("dim",)),
    nn.LogSoftmax: ("log_softmax", ("dim",)),
}
"""Modules without parameters: the operation, and attributes that become its arguments."""
_PAD_NAME = "pad"
_INPLACE = (
    *("relu", "relu6", "leaky_relu", "silu", "mish", "hardswish", "hardsigmoid", "hardtanh"),
    *("elu", "celu", "selu"),
)
"""What has an argument ``inplace`` in the last place."""


def module_call(path: str, module: nn.Module) -> tuple[str, dict[str, Any]]:
    """Operation and arguments, but for the value, of a module without parameters.

    Raises:
        ArtifactError: a shipped model knows no such operation; names the module.
    """
    if type(module) is nn.ZeroPad2d:
        return _PAD_NAME, {"pad": list(module.padding)}
    if type(module) not in _ATTRIBUTES:
        raise unknown(f"{path}, a {type(module).__name__}")
    name, attributes = _ATTRIBUTES[type(module)]
    values = {attribute: getattr(module, attribute) for attribute in attributes}
    return name, {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def operation_of(node: fx.Node) -> str:
    """The operation that a function or a tensor's method is.

    Raises:
        ArtifactError: a shipped model knows no such operation.
    """
    shape = node.target is getattr and node.args[1] == "shape"
    found = "size" if shape else name_of(node.target)
    if found is None:
        raise unknown(f"{getattr(node.target, '__name__', node.target)}")
    return found


def plain_arguments(node: fx.Node) -> tuple[list[Any], dict[str, Any]]:
    """Arguments with the tensor first, and a shape as one list."""
    args, options = list(node.args), {k: v for k, v in node.kwargs.items() if k != "inplace"}
    for name in ("input", "tensors", "tensor", "self"):
        if name in options:
            args.insert(0, options.pop(name))
    if "split_size" in options:  # the method's name for it
        options["split_size_or_sections"] = options.pop("split_size")
    if node.target is getattr:  # x.shape
        return args[:1], {}
    spread = node.target in ("view", "reshape", "permute") and len(args) > 1
    if spread and (len(args) > 2 or isinstance(args[1], int)):
        args[1:] = [args[1:]]
    return args, options


def without_inplace(name: str, args: list[Any]) -> list[Any]:
    """Positional ``inplace`` of an activation, dropped: values are never overwritten."""
    last = name in _INPLACE and len(args) > 1 and isinstance(args[-1], bool)
    return args[:-1] if last else args


def writes(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether the operation overwrites its operand."""
    if operand(node) is None:
        return False
    if module is not None:
        return getattr(module, "inplace", False) is True
    name = str(getattr(node.target, "__name__", node.target))
    spelled = name.endswith("_") and not name.startswith("_")
    named = name in ("iadd", "isub", "imul", "itruediv")
    return spelled or named or node.kwargs.get("inplace") is True


def zero_padding(name: str, conv: nn.Conv2d) -> tuple[int, int]:
    """Pixels of zeros on each side, (above and below, left and right).

    Raises:
        ArtifactError: it pads with something else, or the sides differ.
    """
    around = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if conv.padding_mode == "zeros":
        if conv.padding == "valid":
            return 0, 0
        if conv.padding == "same" and not any(total % 2 for total in around):
            return around[0] // 2, around[1] // 2
        if not isinstance(conv.padding, str):
            return int(conv.padding[0]), int(conv.padding[1])
    raise ArtifactError(
        f"{name}: padding {conv.padding!r} ({conv.padding_mode}) cannot be shipped. "
        "Use zeros, as many on both sides."
    )


def unknown(what: str) -> ArtifactError:
    """The error over something that cannot be shipped."""
    return ArtifactError(
        f"the network uses {what}, which a shipped model does not know. Replace it by torch's "
        "own layers and activations, or ship a network without it."
    )
