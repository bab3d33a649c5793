"""Gated networks and ratios set by hand: what a notebook needs, without any agent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rlprune.backbones import build_backbone, trace_backbone
from rlprune.config import BackboneConfig, PruningConfig, config_from_dict
from rlprune.errors import ConfigError, Problem
from rlprune.mdp.environment import PruningGate, PruningRules, StaticPlan
from rlprune.mdp.policy import ConstantRatios
from rlprune.pruning import CostModel, EpisodeBudgets, GatedNetwork


def gated_network(
    backbone: str | nn.Module,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    num_classes: int = 10,
    width: float = 1.0,
) -> GatedNetwork:
    """Puts gates in front of every prunable convolution of a network.

    Args:
        backbone: name of a built-in backbone ("resnet20"), or any traceable module (it is
            taken over and must not be used afterwards).
        input_shape: (channels, height, width) of one image.
        num_classes: outputs.
        width: multiplier of a built-in backbone's channels.

    Returns:
        The gated network in evaluation mode; without a gate it computes what the backbone
        computes.

    Raises:
        ConfigError: no such backbone.
        BackboneError: the module cannot be traced or has nothing to prune.

    Example:
        >>> network = gated_network("resnet20", input_shape=(3, 32, 32))
        >>> gate = keep_ratio_gate(network, images=8, runtime=0.5)
        >>> logits = network(torch.randn(8, 3, 32, 32), gate)
        >>> gate.macs(), gate.storage_bytes()
    """
    if isinstance(backbone, str):
        config: BackboneConfig = config_from_dict(
            {"backbone": {"name": backbone, "width": width}}
        ).backbone
        backbone = build_backbone(config, num_classes, input_shape)
    network = GatedNetwork(trace_backbone(backbone, input_shape, num_classes))
    network.eval()
    return network


def _ratios(name: str, value: float | Sequence[float], layers: int) -> torch.Tensor:
    numbers = torch.as_tensor(value, dtype=torch.float64).flatten()
    given = numbers.expand(layers).tolist() if len(numbers) == 1 else numbers.tolist()
    if len(given) != layers or not all(0.0 < ratio <= 1.0 for ratio in given):
        rule = f"must be one number in (0, 1], or {layers} of them, one per layer"
        raise ConfigError([Problem(name, rule, value, "Give for example 0.5.")])
    return torch.tensor(given, dtype=torch.float64)


def keep_ratio_gate(
    network: GatedNetwork,
    images: int,
    runtime: float | Sequence[float] = 1.0,
    static: float | Sequence[float] = 1.0,
    tradeoff_rate: float = 1.0,
    tradeoff: str = "permanent",
) -> PruningGate:
    """A gate with given keep ratios, for one forward pass over ``images`` images.

    Args:
        network: from :func:`gated_network`.
        images: how many images the pass will have.
        runtime: keep ratio(s) a_r of the runtime votes, one number or one per layer.
        static: keep ratio(s) a_s of the static votes.
        tradeoff_rate: R_r; 1 = runtime only, 0 = static only.
        tradeoff: "permanent" or "paper".

    Returns:
        The gate; after ``network(images, gate)`` it tells ``macs()`` per image,
        ``parameters()``, ``storage_bytes()`` and the ``computed`` channels per layer.

    Raises:
        ConfigError: a ratio, rate or rule that is not allowed.
    """
    config: PruningConfig = config_from_dict({"pruning": {"tradeoff": tradeoff}}).pruning
    if not 0.0 <= tradeoff_rate <= 1.0:
        rule = "must be between 0 (static only) and 1 (runtime only)"
        raise ConfigError([Problem("tradeoff_rate", rule, tradeoff_rate, "Give 0.5.")])
    layers = len(network.layers)
    lowest = PruningConfig(alpha=1e-6, tradeoff=config.tradeoff)
    rules = PruningRules(CostModel(network.channels), lowest, projected=False)
    unlimited = torch.full((images,), float("inf"), dtype=torch.float64)
    ones = torch.ones(images, dtype=torch.float64)
    budgets = EpisodeBudgets(
        ones * tradeoff_rate, unlimited, unlimited, unlimited, ones, ones, ones
    )
    plan = StaticPlan(rules, budgets, ConstantRatios(_ratios("static", static, layers)))
    return PruningGate(rules, network, plan, ConstantRatios(_ratios("runtime", runtime, layers)))
