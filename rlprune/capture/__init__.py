"""A gated network's program as a shipped model knows it, and why it may have none.

:mod:`rlprune.export` puts numbers and policy to it; training asks only whether it will be able to.
"""

from __future__ import annotations

import torch

from rlprune.capture.calls import zero_padding
from rlprune.capture.walk import Captured, capture, input_columns
from rlprune.errors import ArtifactError
from rlprune.pruning import GatedConv, GatedNetwork

__all__ = ["Captured", "capture", "input_columns", "why_unshippable", "zero_padding"]


def why_unshippable(network: GatedNetwork) -> str | None:
    """What an export would refuse, whatever is pruned; None if nothing."""
    modules = [layer for layer in network.layers if isinstance(layer, GatedConv)]
    stored = [torch.arange(module.layer.out_channels) for module in modules]
    try:
        for module in modules:
            zero_padding(module.layer.name, module.conv)
        capture(network, stored)
    except ArtifactError as error:
        return str(error)
    except Exception as error:  # advice must not end what can be trained
        return f"{type(error).__name__}: {error}"
    return None
