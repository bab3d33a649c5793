"""A dynamic model's channels cut down to chosen ones, and its agent taken out.

Legend: T layers, S stored channels of a layer before and n after.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlprune.agents.networks import runtime_agent_size
from rlprune.capture import input_columns
from rlprune.deploy.budget import Budget
from rlprune.deploy.spec import CostSpec, LayerSpec, ModelSpec, Node, PolicySpec, Run
from rlprune.export.compact import smallest_type
from rlprune.export.make import Shipped


def static_costs(spec: ModelSpec, counts: Sequence[int]) -> CostSpec:
    """Costs without the agent, and with the predictors of ``counts`` channels per layer, [T].

    Source: ``rlprune.pruning.costs.CostModel.macs``, which tests hold this against.
    """
    hidden = spec.policy.hidden
    decision = runtime_agent_size(hidden).macs_per_layer if spec.policy.kind == "agent" else 0
    constant, linear = spec.costs.constant, list(spec.costs.linear)
    for layer, count in zip(spec.layers, counts, strict=True):
        gone = layer.stored - count
        constant -= decision + hidden * layer.stored
        constant -= gone * ((layer.rank or 0) + 2 * layer.width_affine)
        read = hidden + (0 if layer.rank else gone)  # multiply-accumulates per input channel
        for run in layer.inputs:
            if run.layer is None:
                constant -= read * run.channels
            else:
                linear[run.layer] -= read
    return dataclasses.replace(spec.costs, constant=constant, linear=tuple(linear))


def without_agent(dynamic: Shipped, chosen: Sequence[NDArray[np.int64]], budget: Budget) -> Shipped:
    """The static model of the chosen channels.

    Args:
        dynamic: description and numbers as its file holds them, of whatever type.
        chosen: positions of the channels that stay, among the stored ones, [n] per layer.
        budget: that they were chosen for.
    """
    spec, counts = dynamic.spec, [len(places) for places in chosen]
    layers = tuple(
        dataclasses.replace(layer, stored=count, static_votes=0)
        for layer, count in zip(spec.layers, counts, strict=True)
    )
    told = dataclasses.replace(
        spec.budget,
        compute_max=budget.cap,
        compute_dial=budget.compute_dial,
        cap_dial=budget.cap_dial,
    )
    frozen = dataclasses.replace(
        spec,
        layers=layers,
        costs=static_costs(spec, counts),
        policy=PolicySpec("none", projected=spec.policy.projected),
        budget=told,
        measured={},
    )
    return Shipped(frozen, _Cut(dynamic, chosen).tensors)


class _Cut:
    """The numbers of the chosen channels alone; ``tensors`` holds what is left.

    Args:
        dynamic: of all stored channels, and with an agent.
        chosen: positions that stay, [n] per layer.
    """

    def __init__(self, dynamic: Shipped, chosen: Sequence[NDArray[np.int64]]) -> None:
        self.spec = dynamic.spec
        self.rows = [torch.from_numpy(places) for places in chosen]
        self.tensors = {
            name: value
            for name, value in dynamic.tensors.items()
            if not name.startswith("agent.") and ".encoder" not in name
        }
        for index, layer in enumerate(self.spec.layers):
            self._layer(index, layer)
        # A layer that is called twice is cut once.
        readers = {
            n.target: n for n in self.spec.program if n.kind in ("follower", "conv", "linear")
        }
        for node in readers.values():
            self._reader(node)

    def _reader(self, node: Node) -> None:
        if node.kind == "follower":
            rows = self.rows[int(node.kwargs["layer"])]
            self._keep(f"{node.target}.weight", rows)
            self._keep(f"{node.target}.bias", rows)
        else:
            runs = tuple(Run(layer, channels) for layer, channels in node.kwargs["runs"])
            columns = self._columns(runs, int(node.kwargs.get("each", 1)))
            self._keep(f"{node.target}.weight", columns=columns)

    def _layer(self, index: int, layer: LayerSpec) -> None:
        rows, columns = self.rows[index], self._columns(layer.inputs, 1)
        self._keep(f"{index}.filter", rows, columns)
        self._keep(f"{index}.channel", rows)
        self._keep(f"{index}.predictor", rows, None if layer.rank else columns)
        if layer.rank:
            self._keep(f"{index}.code", columns=columns)
        if len(rows) < layer.channels:
            places = self.tensors.get(f"{index}.index", torch.arange(layer.channels))
            self.tensors[f"{index}.index"] = places[rows].to(smallest_type(layer.channels))

    def _columns(self, runs: Sequence[Run], each: int) -> Tensor | None:
        """Positions that stay among stored inputs, ``each`` per channel; None: all."""
        if all(run.layer is None for run in runs):
            return None
        stored = self.spec.layers
        present = (
            run if run.layer is None else Run(run.layer, stored[run.layer].stored) for run in runs
        )
        return input_columns(tuple(present), self.rows, each)

    def _keep(self, name: str, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
        """Leaves these rows and columns of a tensor, and these rows of its 8-bit scale."""
        for part in (name, f"{name}.scale") if rows is not None else ():
            if part in self.tensors:
                self.tensors[part] = self.tensors[part][rows]
        if columns is not None:
            self.tensors[name] = self.tensors[name][:, columns]
