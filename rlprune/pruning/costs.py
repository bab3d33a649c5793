"""What a pruned network costs: multiply-accumulates per image, parameters, bytes.

Every number that rlprune reports or enforces comes from here. A conv's cost is a product
of kept input and kept output channels, so the cost of a whole network is a bilinear form
in the channel counts of its layers; that form also gives, in closed form, how many
channels a layer may keep when the rest of the network still has to fit a budget.

Legend: B episodes or images, T prunable layers, n [B, T] computed channels, S [B, T]
stored channels. Counts are float64: exact for integers below 2^53.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlprune.backbones.graph import ChannelGraph, ChannelSource, PrunableLayer
from rlprune.pruning.design import GateDesign
from rlprune.pruning.gated import PAPER
from rlprune.pruning.masks import kept_count
from rlprune.pruning.predictor import rank_of

BYTES_PER_NUMBER = 4


@dataclass(frozen=True)
class BilinearCost:
    """constant + linear . x + x^T pairwise x, for counts x [B, T].

    Attributes:
        constant: [] or [B].
        linear: [T] or [B, T].
        pairwise: [T, T], zero on and below the diagonal.
    """

    constant: Tensor
    linear: Tensor
    pairwise: Tensor

    def total(self, counts: Tensor) -> Tensor:
        """Cost at ``counts`` [B, T] -> [B]."""
        x = counts.double()
        return self.constant + (x * self.linear).sum(1) + ((x @ self.pairwise) * x).sum(1)

    def largest_count(self, counts: Tensor, layer: int, least: Tensor, budget: Tensor) -> Tensor:
        """Most channels that ``layer`` may have if every later layer has its least.

        Args:
            counts: [B, T]; entries before ``layer`` are decided, the others are ignored.
            layer: t.
            least: [T] or [B, T] counts below which no layer goes.
            budget: [B].

        Returns:
            int64 [B], never below ``least``: if the budget was reachable at the start it
            stays so, by induction over the layers.
        """
        x = least.double().expand_as(counts).clone()
        x[:, :layer] = counts[:, :layer].double()
        x[:, layer] = 0.0
        without = self.total(x)
        linear = self.linear.expand_as(counts)[:, layer]
        slope = linear + x @ self.pairwise[:, layer] + x @ self.pairwise[layer, :]
        room = torch.floor((budget - without) / slope.clamp(min=1e-9) + 1e-9)
        floor = least.double().expand_as(counts)[:, layer]
        return torch.maximum(room, floor).clamp(max=2.0**31).long()

    def proportional_share(
        self, counts: Tensor, layer: int, channels: Tensor, budget: Tensor
    ) -> Tensor:
        """The ratio y at which ``layer`` and all later layers together use up the budget.

        Args:
            counts: [B, T]; entries before ``layer`` are decided, the others are ignored.
            layer: t.
            channels: C of every layer, [T].
            budget: [B], finite.

        Returns:
            float64 [B], the root of total(decided, y C_t, ..., y C_{T-1}) = budget (at
            least 0): the form is quadratic in y.
        """
        decided = counts.double().clone()
        decided[:, layer:] = 0.0
        rest = channels.double().clone()
        rest[:layer] = 0.0
        spent = self.total(decided)
        quadratic = rest @ self.pairwise @ rest
        linear = (self.linear * rest).sum(-1) + decided @ (self.pairwise @ rest)
        room = (budget - spent).clamp(min=0.0)
        # The stable form of the quadratic formula: no cancellation where quadratic is tiny.
        root = torch.sqrt(linear.square() + 4.0 * quadratic * room)
        return 2.0 * room / (linear + root).clamp(min=1e-9)


@dataclass(frozen=True)
class AgentSize:
    """What the runtime agent adds to a shipped model.

    Attributes:
        encoder_width: outputs h of the per-layer encoder: h numbers and h
            multiply-accumulates per input feature (pooled input channels and u_r).
        parameters: of everything shared by the layers.
        parameters_per_layer: beside the encoder's weights (its bias, context inputs).
        macs_per_layer: of recurrence and head, per image.
        reads_importance: whether the encoder reads u_r; False: the pooled input alone.
    """

    encoder_width: int
    parameters: int
    parameters_per_layer: int
    macs_per_layer: int
    reads_importance: bool = True


class _Accumulator:
    """Sums up a bilinear form while walking over a graph."""

    def __init__(self, layers: int) -> None:
        self.constant = torch.zeros((), dtype=torch.float64)
        self.linear = torch.zeros(layers, dtype=torch.float64)
        self.pairwise = torch.zeros(layers, layers, dtype=torch.float64)

    def read(self, sources: tuple[ChannelSource, ...], amount: float, by: int | None) -> None:
        """Adds ``amount`` for each channel read from ``sources`` (times x[by], if given)."""
        for source in sources:
            if source.layer is None and by is None:
                self.constant += amount * source.channels
            elif source.layer is None:
                self.linear[by] += amount * source.channels
            elif by is None:
                self.linear[source.layer] += amount
            else:
                self.pairwise[source.layer, by] += amount

    def cost(self) -> BilinearCost:
        return BilinearCost(self.constant, self.linear, self.pairwise)


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


class CostModel:
    """Costs of one backbone, complete: predictors, agent and linear layers included.

    Args:
        graph: the traced backbone.
        predictors: whether runtime importance predictors (and u_s, and the shift that
            gates apart from BatchNorm's) are part of the network.
        agent: size of the runtime agent, None where none is shipped.
        design: how the gates are built.

    Stored numbers per stored channel: the filter; the folded BatchNorm's shift; with
    predictors also the gate's shift beta, u_s, the predictor's row and its bias (and, of a
    predictor of rank r, r numbers per stored input channel), and two where scale and shift
    follow the inputs' width. Depthwise
    followers: filter and shift. Bytes: 4 per number, plus a 4-byte index for each channel
    that adds into a residual stream.

    Source: the layer and the masks of paper Sec. 3.1-3.3, counted exactly.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        predictors: bool = True,
        agent: AgentSize | None = None,
        design: GateDesign = PAPER,
    ) -> None:
        self.graph = graph
        self.predictors = predictors
        self.design = design
        self.agent = agent
        self.channels = torch.tensor([layer.out_channels for layer in graph.layers])
        self._macs = self._count_macs()
        self._numbers = self._count_numbers(agent)
        self._numbers_without_agent = self._count_numbers(None)
        self._code_macs, self._predictor_macs = self._count_predictor_macs()
        self._agent_macs = self._count_agent_macs()
        self._indices = torch.tensor(
            [float(layer.joins_stream) for layer in graph.layers], dtype=torch.float64
        )

    def _count_macs(self) -> BilinearCost:
        count = _Accumulator(len(self.graph.layers))
        for layer in self.graph.layers:
            per_pair = _area(layer.kernel_size) * _area(layer.out_size)
            count.read(layer.in_sources, per_pair, layer.index)
        for follower in self.graph.followers:
            count.linear[follower.producer] += _area(follower.kernel_size) * _area(
                follower.out_size
            )
        for fixed in self.graph.fixed:
            count.read(fixed.in_sources, fixed.macs_per_channel, None)
        return count.cost()

    def _count_numbers(self, agent: AgentSize | None) -> BilinearCost:
        count = _Accumulator(len(self.graph.layers))
        for layer in self.graph.layers:
            count.read(layer.in_sources, _area(layer.kernel_size), layer.index)
            if layer.norm is not None or not self.predictors:  # else: the gate's shift alone
                count.linear[layer.index] += 1
            if self.predictors:
                rank = self._rank(layer)
                if rank is None:
                    count.read(layer.in_sources, 1, layer.index)
                else:
                    count.read(layer.in_sources, rank, None)
                    count.linear[layer.index] += rank
                count.linear[layer.index] += 3 + 2 * self.design.has_width_affine(layer)
            if agent is not None:
                count.read(layer.in_sources, agent.encoder_width, None)
                count.linear[layer.index] += agent.encoder_width * agent.reads_importance
                count.constant += agent.parameters_per_layer
        for follower in self.graph.followers:
            count.linear[follower.producer] += _area(follower.kernel_size) + 1
        for fixed in self.graph.fixed:
            count.read(fixed.in_sources, fixed.parameters_per_channel, None)
            count.constant += fixed.extra_parameters
        if agent is not None:
            count.constant += agent.parameters
        return count.cost()

    def _rank(self, layer: PrunableLayer) -> int | None:
        return rank_of(layer.in_channels, layer.out_channels, self.design.predictor_rank)

    def _count_predictor_macs(self) -> tuple[BilinearCost, BilinearCost]:
        """What low-rank codes cost, a form in n; and what the rest of the predictors costs.

        That is a form in which ``pairwise[i, t]`` multiplies n_i S_t and ``linear[t]`` S_t.
        """
        code, rest = _Accumulator(len(self.graph.layers)), _Accumulator(len(self.graph.layers))
        for layer in self.graph.layers if self.predictors else ():
            rank = self._rank(layer)
            if rank is None:
                rest.read(layer.in_sources, 1, layer.index)
            else:
                code.read(layer.in_sources, rank, None)
                rest.linear[layer.index] += rank
            rest.linear[layer.index] += 2 * self.design.has_width_affine(layer)
        return code.cost(), rest.cost()

    def _count_agent_macs(self) -> BilinearCost:
        """Form whose ``linear`` multiplies n; the encoder's u_r part is added per S."""
        count = _Accumulator(len(self.graph.layers))
        if self.agent is not None:
            for layer in self.graph.layers:
                count.read(layer.in_sources, self.agent.encoder_width, None)
                count.constant += self.agent.macs_per_layer
        return count.cost()

    def macs(self, stored: Tensor, agent_runs: Tensor) -> BilinearCost:
        """MACs per image as a form in the computed channels n, given what is stored.

        Args:
            stored: S [B, T].
            agent_runs: bool [B]; False where no runtime decision is taken (R_r = 0).
        """
        s = stored.double()
        runs = agent_runs.double().unsqueeze(1)
        agent = self.agent
        width = 0 if agent is None else agent.encoder_width * agent.reads_importance
        linear = self._macs.linear + self._code_macs.linear + s @ self._predictor_macs.pairwise.T
        linear = linear + runs * self._agent_macs.linear
        constant = self._macs.constant + self._code_macs.constant
        constant = constant + s @ self._predictor_macs.linear
        constant = constant + runs.squeeze(1) * (self._agent_macs.constant + width * s.sum(1))
        return BilinearCost(constant, linear, self._macs.pairwise)

    def static_macs(self) -> BilinearCost:
        """MACs per image where n = S and no agent runs (R_r = 0), as a form in S."""
        return BilinearCost(
            self._macs.constant + self._code_macs.constant,
            self._macs.linear + self._code_macs.linear + self._predictor_macs.linear,
            self._macs.pairwise + self._predictor_macs.pairwise,
        )

    def parameters(self, agent_runs: bool = True) -> BilinearCost:
        """Stored numbers as a form in S; without the agent's where it never runs."""
        if agent_runs or self.agent is None:
            return self._numbers
        return self._numbers_without_agent

    def storage_bytes(self, agent_runs: bool = True) -> BilinearCost:
        """Bytes of stored weights and indices as a form in S."""
        numbers = self.parameters(agent_runs)
        return BilinearCost(
            numbers.constant * BYTES_PER_NUMBER,
            (numbers.linear + self._indices) * BYTES_PER_NUMBER,
            numbers.pairwise * BYTES_PER_NUMBER,
        )

    def counts_at(self, keep_ratio: Tensor) -> Tensor:
        """Channels of every layer at one keep ratio per episode, [B] -> int64 [B, T]."""
        return kept_count(keep_ratio.reshape(-1, 1), self.channels)

    def dense_macs(self) -> int:
        """MACs per image of the unpruned network with what this model includes."""
        full = self.channels.unsqueeze(0)
        runs = torch.tensor([self.agent is not None])
        return int(self.macs(full, runs).total(full).item())

    def dense_bytes(self) -> int:
        """Bytes of the unpruned network with what this model includes."""
        return int(self.storage_bytes().total(self.channels.unsqueeze(0)).item())
