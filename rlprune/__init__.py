"""rlprune: storage- and runtime-pruned CNNs by reinforcement learning.

What a notebook needs is here and imports no Ray; whole trials are run by the ``rlprune``
command or :func:`rlprune.training.session.run_trial`.

Example:
    >>> import torch, rlprune
    >>> network = rlprune.gated_network("resnet20", input_shape=(3, 32, 32))
    >>> gate = rlprune.keep_ratio_gate(network, images=8, runtime=0.5)
    >>> logits = network(torch.randn(8, 3, 32, 32), gate)
    >>> print(gate.macs(), gate.storage_bytes())
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlprune.agents.networks import AgentPolicy, RuntimeAgent, StaticAgent
    from rlprune.backbones import trace_backbone
    from rlprune.config import TrialConfig, load_config
    from rlprune.data import load_image_set
    from rlprune.deploy import PrunedModel
    from rlprune.mdp import PruningGate
    from rlprune.mdp.by_hand import gated_network, keep_ratio_gate
    from rlprune.pruning import CostModel, GatedNetwork
    from rlprune.results import load_rows

try:
    __version__ = version("rlprune")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_HOMES = {
    "AgentPolicy": "rlprune.agents.networks",
    "CostModel": "rlprune.pruning",
    "GatedNetwork": "rlprune.pruning",
    "PrunedModel": "rlprune.deploy",
    "PruningGate": "rlprune.mdp",
    "RuntimeAgent": "rlprune.agents.networks",
    "StaticAgent": "rlprune.agents.networks",
    "TrialConfig": "rlprune.config",
    "gated_network": "rlprune.mdp.by_hand",
    "keep_ratio_gate": "rlprune.mdp.by_hand",
    "load_config": "rlprune.config",
    "load_image_set": "rlprune.data",
    "load_rows": "rlprune.results",
    "trace_backbone": "rlprune.backbones",
}

__all__ = [
    "AgentPolicy",
    "CostModel",
    "GatedNetwork",
    "PrunedModel",
    "PruningGate",
    "RuntimeAgent",
    "StaticAgent",
    "TrialConfig",
    "__version__",
    "gated_network",
    "keep_ratio_gate",
    "load_config",
    "load_image_set",
    "load_rows",
    "trace_backbone",
]


def __getattr__(name: str) -> Any:
    """Imports public names on first use: ``rlprune --help`` need not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rlprune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
