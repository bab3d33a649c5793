"""A shipped model out of a trained network and its policy at one point.

Source: paper Sec. 3.3 (what is pruned for good).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlprune.agents.networks import RuntimeAgent
from rlprune.capture import capture, zero_padding
from rlprune.deploy.artifact import write_artifact
from rlprune.deploy.numbers import stored_as
from rlprune.deploy.spec import BudgetSpec, CostSpec, LayerSpec, ModelSpec, PolicySpec, Run
from rlprune.errors import ArtifactError
from rlprune.export.compact import agent_tensors, layer_tensors
from rlprune.mdp import PruningRules, StaticPlan
from rlprune.pruning import EpisodeBudgets, GatedConv, GatedNetwork, permanent_mask
from rlprune.pruning.predictor import rank_of


@dataclass(frozen=True)
class Pixels:
    """What goes in and what comes out.

    Attributes:
        mean, std: per input channel, for pixels in [0, 1].
        classes: names in label order.
        resize: how image files become pixels, see ``ModelSpec``.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    resize: str = "stretch"


@dataclass(frozen=True)
class Shipped:
    """Everything that a file holds.

    Attributes:
        spec: the description.
        tensors: the numbers, float32.
    """

    spec: ModelSpec
    tensors: dict[str, Tensor]

    def noting(self, **measured: float) -> Shipped:
        """The same with other or further measured numbers in its description."""
        noted = {**self.spec.measured, **measured}
        return Shipped(dataclasses.replace(self.spec, measured=noted), self.tensors)

    def write(self, path: str | Path, dtype: str = "float32") -> int:
        """Writes the file, numbers stored as ``dtype``; returns its bytes."""
        spec = dataclasses.replace(self.spec, dtype=dtype)
        return write_artifact(path, spec, stored_as(dtype, self.tensors))


@torch.no_grad()
def ship(
    network: GatedNetwork,
    rules: PruningRules,
    plan: StaticPlan,
    policy: RuntimeAgent | None,
    pixels: Pixels,
    dense: tuple[float, float],
    scores: tuple[Tensor, ...] | None = None,
    predictors: bool = True,
    measured: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Shipped:
    """Removes what is pruned for good and describes the rest.

    Args:
        network: in eval mode, BatchNorm statistics as measured; not changed.
        rules: of the decision process.
        plan: static decisions of one episode, with its budgets.
        policy: the runtime agent; None: the budget's own ratio everywhere.
        pixels: of the image set.
        dense: MACs and bytes of the original network.
        scores: ranking of the filters in place of u_s (``static_l1``).
        predictors: whether runtime importances are used at all.
        measured: numbers for the description, for example ``test_accuracy``.
        origin: where the model comes from.

    Raises:
        ArtifactError: the network calls something that a shipped model does not know.
    """
    if len(plan.stored) != 1:
        raise ArtifactError("a model is shipped at one point: give the plan of one episode.")
    budgets, rate = plan.budgets, float(plan.budgets.rate[0])
    modules = [layer for layer in network.layers if isinstance(layer, GatedConv)]
    gone = [
        permanent_mask(
            module.static_importance if scores is None else scores[index],
            plan.kept[:, index],
            budgets.rate,
            rules.pruning.tradeoff,
        )[0]
        for index, module in enumerate(modules)
    ]
    stored = [(~mask).nonzero().squeeze(1) for mask in gone]
    runs = rate > 0.0 and predictors
    layers = tuple(
        _layer_spec(module, network, stored, int(plan.kept[0, index]), predictors)
        for index, module in enumerate(modules)
    )
    captured = capture(network, stored)
    tensors = dict(captured.tensors)
    for module, layer in zip(modules, layers, strict=True):
        tensors |= layer_tensors(module, layer, stored)
    if runs and policy is not None:
        tensors |= agent_tensors(policy, modules, stored)
    agent = runs and policy is not None
    kind = ("agent" if agent else "constant") if runs else "none"
    spec = ModelSpec(
        input_shape=network.channels.input_shape,
        mean=pixels.mean,
        std=pixels.std,
        resize=pixels.resize,
        classes=pixels.classes,
        layers=layers,
        program=captured.program,
        costs=_costs(rules, plan, rate > 0.0, dense),
        policy=PolicySpec(
            kind=kind,
            action=rules.action,
            hidden=policy.mean_head.in_features if agent and policy is not None else 0,
            projected=rules.projected,
        ),
        budget=_budget(budgets, rules),
        dtype="float32",
        measured=dict(measured or {}),
        origin=dict(origin or {}),
    )
    return Shipped(spec, tensors)


def _layer_spec(
    module: GatedConv,
    network: GatedNetwork,
    stored: list[Tensor],
    static_kept: int,
    predictors: bool,
) -> LayerSpec:
    layer, conv = module.layer, module.conv
    rank = rank_of(layer.in_channels, layer.out_channels, network.design.predictor_rank)
    deleted = layer.out_channels - len(stored[layer.index])
    return LayerSpec(
        name=layer.name,
        channels=layer.out_channels,
        stored=len(stored[layer.index]),
        inputs=tuple(Run(source.layer, source.channels) for source in layer.in_sources),
        kernel=_pair(conv.kernel_size),
        stride=_pair(conv.stride),
        padding=zero_padding(layer.name, conv),
        dilation=_pair(conv.dilation),
        out_size=layer.out_size,
        static_votes=max(0, layer.out_channels - static_kept - deleted),
        rank=(rank or 0) if predictors else None,
        width_affine=predictors and module.width_scale is not None,
        boosted=predictors and module.boosted,
        norm=isinstance(module.norm, nn.BatchNorm2d),
    )


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    return int(value[0]), int(value[1])


def _costs(
    rules: PruningRules, plan: StaticPlan, runs: bool, dense: tuple[float, float]
) -> CostSpec:
    costs = rules.costs
    own = costs.macs(plan.stored, torch.tensor([runs]))
    full = costs.macs(costs.channels.unsqueeze(0), torch.tensor([True]))
    pairs = own.pairwise.nonzero().tolist()
    return CostSpec(
        constant=float(own.constant),
        linear=tuple(own.linear.reshape(-1).tolist()),
        pairwise=tuple((row, column, float(own.pairwise[row, column])) for row, column in pairs),
        full_constant=float(full.constant),
        full_linear=tuple(full.linear.reshape(-1).tolist()),
        dense_macs=dense[0],
        dense_bytes=dense[1],
    )


def _budget(budgets: EpisodeBudgets, rules: PruningRules) -> BudgetSpec:
    def amount(value: Tensor) -> float | None:
        number = float(value[0])
        return None if number == float("inf") else number

    return BudgetSpec(
        tradeoff_rate=float(budgets.rate[0]),
        tradeoff=rules.pruning.tradeoff,
        alpha=rules.pruning.alpha,
        compute_max=amount(budgets.compute_max),
        compute_mean=amount(budgets.compute_mean),
        compute_dial=float(budgets.compute_dial[0]),
        storage_dial=float(budgets.storage_dial[0]),
        cap_dial=float(budgets.cap_dial[0]),
    )
