"""Networks, and what can be pruned in them.

:func:`build_backbone` makes a network from its configuration, :func:`trace_backbone` turns
any network into an fx graph and a :class:`ChannelGraph`.
"""

from rlprune.backbones.cifar_resnet import CifarResNet, resnet20, resnet32, resnet56
from rlprune.backbones.graph import (
    ChannelGraph,
    ChannelSource,
    FixedLayer,
    FollowerLayer,
    PrunableLayer,
    TracedBackbone,
)
from rlprune.backbones.m_cifarnet import MCifarNet, m_cifarnet
from rlprune.backbones.registry import build_backbone
from rlprune.backbones.trace import trace_backbone
from rlprune.backbones.vgg import VGG, vgg16_bn
from rlprune.backbones.weights import load_weights

__all__ = [
    "VGG",
    "ChannelGraph",
    "ChannelSource",
    "CifarResNet",
    "FixedLayer",
    "FollowerLayer",
    "MCifarNet",
    "PrunableLayer",
    "TracedBackbone",
    "build_backbone",
    "load_weights",
    "m_cifarnet",
    "resnet20",
    "resnet32",
    "resnet56",
    "trace_backbone",
    "vgg16_bn",
]
