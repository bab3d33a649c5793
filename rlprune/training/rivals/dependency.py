"""Filters ranked by the package Torch-Pruning, which knows which channels hang together.

Source: Fang et al. 2023, "DepGraph: Towards Any Structural Pruning"; package torch-pruning.
"""

from __future__ import annotations

import importlib
from typing import Any, cast

import torch
from torch import Tensor, nn

from rlprune.backbones import build_backbone
from rlprune.errors import BackboneError
from rlprune.pruning import GatedConv, GatedNetwork
from rlprune.pruning.gated import FollowerConv
from rlprune.training.rivals.bench import Bench, Fitted
from rlprune.training.rivals.selection import SelectedMethod, global_threshold, selected
from rlprune.training.setup import TrialSetup, without_weights

NAME = "torch_pruning"


@torch.no_grad()
def plain_backbone(setup: TrialSetup, network: GatedNetwork, classes: int) -> nn.Module:
    """The backbone as an ordinary module with the weights of a gated network.

    What it computes in eval mode is what the gated network computes without predictors.

    Args:
        setup: says which backbone.
        network: not changed; copied from.
        classes: width of the output.
    """
    config, shape = without_weights(setup.config.backbone), setup.graph.input_shape
    module = build_backbone(config, classes, shape)
    own: dict[str, Tensor] = {}
    for part in network.body.modules():
        if isinstance(part, GatedConv):
            own |= _layer_weights(part)
        elif isinstance(part, FollowerConv):
            own |= _prefixed(part.layer.name, part.conv)
            if part.norm is not None and part.layer.norm is not None:
                own |= _prefixed(part.layer.norm, part.norm)
    gated = tuple(f"{name}." for name, part in network.body.named_modules() if _is_gate(part))
    for name, value in network.body.state_dict().items():
        if not name.startswith(gated):
            own[name] = value
    for name in [name for name in own if name.endswith(".bias")]:  # a gate's shift, here a bias
        layer = module.get_submodule(name.removesuffix(".bias"))
        if layer._parameters.get("bias", 0) is None:
            layer.register_parameter(
                "bias", nn.Parameter(torch.zeros_like(own[name], device="cpu"))
            )
    state = {name: value.detach().cpu().clone() for name, value in own.items()}
    found = module.load_state_dict(state, strict=False)
    # What evaluation does not call (GoogLeNet's other classifiers) is not in the gated network.
    called = tuple(f"{n.target}." for n in network.body.graph.nodes if n.op == "call_module")
    wrong = [*found.unexpected_keys, *(k for k in found.missing_keys if k.startswith(called))]
    if wrong:
        raise BackboneError(f"{NAME}: weights that do not fit the network: {', '.join(wrong[:5])}.")
    return module.eval()


def _is_gate(part: nn.Module) -> bool:
    return isinstance(part, GatedConv | FollowerConv)


def _prefixed(name: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for key, value in module.state_dict().items()}


def _layer_weights(part: GatedConv) -> dict[str, Tensor]:
    """Convolution and BatchNorm of a gate; the scale is folded in where there is no BatchNorm."""
    layer, scale = part.layer, part.runtime_predictor.bias * part.static_importance
    if part.norm is None or layer.norm is None:
        weight = part.conv.weight * scale.view(-1, 1, 1, 1)
        return {f"{layer.name}.weight": weight, f"{layer.name}.bias": part.shift}
    found = {f"{layer.name}.weight": part.conv.weight} | _prefixed(layer.norm, part.norm)
    return found | {f"{layer.norm}.weight": scale, f"{layer.norm}.bias": part.shift}


def group_scores(setup: TrialSetup, module: nn.Module) -> tuple[Tensor, ...]:
    """Torch-Pruning's importance of every filter of the prunable layers, [C] per layer.

    Its groups hold all that has to go with a channel: of layers that add into one stream the
    channels share one score. A layer in no group gets infinity and keeps all.

    Args:
        setup: the layers.
        module: the plain backbone.
    """
    tp = cast(Any, importlib.import_module("torch_pruning"))
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    graph = tp.DependencyGraph()
    try:
        graph.build_dependency(module, example_inputs=torch.zeros(1, *setup.graph.input_shape))
    except Exception as error:  # whatever the package fails at
        raise BackboneError(
            f"{NAME}: Torch-Pruning cannot take {type(module).__name__} apart "
            f"({type(error).__name__}: {error}). Take it out of evaluation.baselines."
        ) from error
    classifiers = [
        module.get_submodule(fixed.name)
        for fixed in setup.graph.fixed
        if isinstance(module.get_submodule(fixed.name), nn.Linear)
    ]
    positions = {module.get_submodule(layer.name): layer.index for layer in setup.graph.layers}
    scores = [
        torch.full((layer.out_channels,), float("inf"), dtype=torch.float64)
        for layer in setup.graph.layers
    ]
    for group in graph.get_all_groups(ignored_layers=classifiers):
        found = importance(group)
        if found is None:
            continue
        for item in group:
            target, handler = item.dep.target.module, item.dep.handler
            if target in positions and handler == tp.prune_conv_out_channels:
                index = torch.tensor(item.idxs)
                scores[positions[target]][index] = found[torch.tensor(item.root_idxs)].double()
    return tuple(scores)


def fit(bench: Bench) -> Fitted:
    """Scores of the pretrained network's filters."""
    module = plain_backbone(bench.setup, bench.network, bench.images.num_classes)
    return {"scores": list(group_scores(bench.setup, module))}


def make(setup: TrialSetup, network: GatedNetwork, fitted: Fitted) -> SelectedMethod:
    """One threshold over all groups, as the package's global pruning has it.

    Deviation: the package is told a share of the channels; here the threshold is the lowest
    at which our cost model finds the budgets kept. In a residual network the stream itself
    stays whole, so that a pruned channel of it saves less than the package says.
    """
    scores = tuple(fitted["scores"])
    return selected(NAME, setup, scores, global_threshold(scores))
