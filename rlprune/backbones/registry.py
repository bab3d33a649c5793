"""From a :class:`~rlprune.config.BackboneConfig` to a network: built-in or the user's own."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from rlprune.backbones.cifar_resnet import resnet20, resnet32, resnet56
from rlprune.backbones.m_cifarnet import m_cifarnet
from rlprune.backbones.vgg import vgg16_bn
from rlprune.backbones.weights import load_weights
from rlprune.config import BackboneConfig
from rlprune.errors import BackboneError

_OWN: dict[str, Callable[[int, int, float], nn.Module]] = {
    "m_cifarnet": m_cifarnet,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet56": resnet56,
    "vgg16_bn": vgg16_bn,
}


def build_backbone(
    config: BackboneConfig, num_classes: int, input_shape: tuple[int, int, int]
) -> nn.Module:
    """Build the network that ``config`` names and load its weights where given.

    Args:
        config: name or factory, width, weights file.
        num_classes: width of the output.
        input_shape: (C, H, W) of one image; C decides the first convolution.

    Returns:
        The network, in training mode.

    Raises:
        BackboneError: unknown name; width where it has no meaning; a factory that cannot
            be imported, fails, or returns no ``nn.Module``; unusable weights.
    """
    in_channels = input_shape[0]
    if config.factory is not None:
        module = _from_factory(config, num_classes, in_channels)
    elif config.name in _OWN:
        module = _OWN[config.name](num_classes, in_channels, config.width)
    elif config.name == "resnet18":
        module = _resnet18(config, num_classes, in_channels)
    elif config.name == "mobilenet_v2":
        module = _mobilenet_v2(config, num_classes, in_channels)
    else:
        known = ", ".join([*_OWN, "resnet18", "mobilenet_v2"])
        raise BackboneError(
            f"backbone.name: {config.name!r} is not a built-in backbone. Use one of {known}, "
            "or give backbone.factory."
        )
    if config.weights is not None:
        load_weights(module, config.weights)
    return module


def _torchvision_models() -> Any:  # torchvision has no type annotations
    try:
        return importlib.import_module("torchvision.models")
    except ImportError as error:
        raise BackboneError(
            f"backbone.name: this backbone needs torchvision, which cannot be imported "
            f"({error}). Install torchvision, or use m_cifarnet, resnet20 or vgg16_bn."
        ) from error


def _resnet18(config: BackboneConfig, num_classes: int, in_channels: int) -> nn.Module:
    if config.width != 1.0:
        raise BackboneError(
            f"backbone.width: resnet18 has one width only (got {config.width!r}). "
            "Set width to 1.0, or use resnet20, resnet32 or resnet56."
        )
    model: nn.Module = _torchvision_models().resnet18(weights=None, num_classes=num_classes)
    if in_channels != 3:
        model.conv1 = _with_in_channels(model.conv1, in_channels)
    return model


def _mobilenet_v2(config: BackboneConfig, num_classes: int, in_channels: int) -> nn.Module:
    model = _torchvision_models().mobilenet_v2(
        weights=None, num_classes=num_classes, width_mult=config.width
    )
    if in_channels != 3:
        stem = model.features[0]
        stem[0] = _with_in_channels(stem[0], in_channels)
    built: nn.Module = model
    return built


def _with_in_channels(conv: Any, in_channels: int) -> nn.Conv2d:
    """A fresh bias-free convolution like ``conv`` (groups = 1) for other images."""
    new = nn.Conv2d(
        in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    return new


def _from_factory(config: BackboneConfig, num_classes: int, in_channels: int) -> nn.Module:
    path = config.factory or ""
    if config.width != 1.0:
        raise BackboneError(
            f"backbone.width: has no effect on the factory {path!r} (got {config.width!r}). "
            "Set width to 1.0 and choose the width inside the factory."
        )
    with _current_folder_importable():
        factory = _import_factory(path)
        arguments = _accepted(factory, {"num_classes": num_classes, "in_channels": in_channels})
        try:
            module = factory(**arguments)
        except Exception as error:
            raise BackboneError(
                f"backbone.factory: {path}({_shown(arguments)}) failed with "
                f"{type(error).__name__}: {error}. Correct the factory."
            ) from error
    if not isinstance(module, nn.Module):
        raise BackboneError(
            f"backbone.factory: {path!r} returned a {type(module).__name__}, not a "
            "torch.nn.Module. Return the network itself."
        )
    return module


def _import_factory(path: str) -> Callable[..., object]:
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise BackboneError(
            f"backbone.factory: must read 'package.module:function' (got {path!r})."
        )
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise BackboneError(
            f"backbone.factory: module {module_name!r} cannot be imported "
            f"({type(error).__name__}: {error}). Install it, or start rlprune in its folder "
            f"(now {os.getcwd()!r})."
        ) from error
    try:
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise BackboneError(
            f"backbone.factory: {module_name!r} has no attribute {attribute!r}. "
            "Correct the name after the colon."
        ) from error
    if not callable(found):
        raise BackboneError(
            f"backbone.factory: {path!r} is a {type(found).__name__} and cannot be called. "
            "Name a function or a class that returns the network."
        )
    factory: Callable[..., object] = found
    return factory


def _accepted(factory: Callable[..., object], offered: dict[str, int]) -> dict[str, int]:
    """Those of the ``offered`` keyword arguments that the factory's signature takes."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return offered
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: value
        for name, value in offered.items()
        if name in parameters and parameters[name].kind in by_keyword
    }


def _shown(arguments: dict[str, int]) -> str:
    return ", ".join(f"{name}={value}" for name, value in arguments.items())


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
