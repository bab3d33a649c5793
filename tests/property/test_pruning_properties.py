"""What must hold for every importance, ratio, policy, budget and network.

Networks are sequential or residual (with depthwise followers), their weights arbitrary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlprune.agents.networks import AgentPolicy, RuntimeAgent, StaticAgent, runtime_agent_size
from rlprune.config import AgentConfig, BudgetConfig, PruningConfig
from rlprune.mdp import KeepRatioPolicy, PruningGate, PruningRules, RandomRatios, StaticPlan
from rlprune.pruning import (
    PAPER,
    BudgetBook,
    CostModel,
    EpisodeBudgets,
    GateDesign,
    GatedNetwork,
    Point,
    cap_keep,
    kept_count,
    permanent_count,
    tradeoff_keep,
)
from tests.physical import Residual, Sequential, SmallNetwork, gated, randomise

checked = settings(deadline=None, max_examples=60)
walked = settings(deadline=None, max_examples=30)

RULES = ("permanent", "paper")
parts = st.one_of(st.just(0.0), st.floats(0.0, 1.0), st.just(1.0))
seeds = st.integers(0, 2**31 - 1)
rules = st.sampled_from(RULES)
rates = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.floats(0.0, 1.0))
mixed_rates = st.floats(0.05, 0.95)
widths = st.tuples(
    st.sampled_from([Sequential, Residual]),
    st.lists(st.integers(2, 7), min_size=2, max_size=3).map(tuple),
)


# --- masks alone ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Votes:
    """Importances and keep counts of one layer for B inputs."""

    runtime: Tensor
    static: Tensor
    runtime_kept: Tensor
    static_kept: Tensor
    rate: Tensor


@st.composite
def votes(draw: st.DrawFn) -> Votes:
    """Small integers as importances, so that ties are frequent."""
    channels, episodes = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    values, counts = st.integers(-4, 4), st.integers(1, channels)

    def column(elements: st.SearchStrategy[float], dtype: torch.dtype) -> Tensor:
        listed = st.lists(elements, min_size=episodes, max_size=episodes)
        return torch.tensor(draw(listed), dtype=dtype)

    one = st.lists(values, min_size=channels, max_size=channels)
    return Votes(
        runtime=torch.tensor([draw(one) for _ in range(episodes)]).float(),
        static=torch.tensor(draw(one)).float(),
        runtime_kept=column(counts, torch.int64),
        static_kept=column(counts, torch.int64),
        rate=column(rates, torch.float64),
    )


@checked
@given(votes(), rules)
def test_at_least_one_channel_is_kept_and_stored_ones_contain_the_kept(v: Votes, rule: str) -> None:
    masks = tradeoff_keep(v.runtime, v.static, v.runtime_kept, v.static_kept, v.rate, rule)
    assert (masks.keep.sum(1) >= 1).all()
    assert not (masks.keep & ~masks.keep_stored).any()


@checked
@given(votes())
def test_what_is_permanent_is_the_lowest_share_of_the_static_votes(v: Votes) -> None:
    masks = tradeoff_keep(v.runtime, v.static, v.runtime_kept, v.static_kept, v.rate)
    ranked = sorted(range(v.runtime.shape[1]), key=lambda c: (float(v.static[c]), c))
    count = permanent_count(v.rate, v.static_kept, v.runtime.shape[1]).tolist()
    for row, deleted in enumerate(count):
        assert (~masks.keep_stored[row]).nonzero().flatten().tolist() == sorted(ranked[:deleted])


@checked
@given(votes(), rules)
def test_static_only_masks_do_not_depend_on_the_input(v: Votes, rule: str) -> None:
    static_only = torch.zeros_like(v.rate)
    first = tradeoff_keep(v.runtime, v.static, v.runtime_kept, v.static_kept, static_only, rule)
    other = tradeoff_keep(
        -v.runtime, v.static, v.runtime_kept.flip(0), v.static_kept, static_only, rule
    )
    assert torch.equal(first.keep, other.keep)
    assert torch.equal(first.keep, first.keep_stored)
    assert torch.equal(first.keep.sum(1), v.static_kept)


@checked
@given(votes(), rules)
def test_runtime_only_masks_do_not_depend_on_the_static_vote(v: Votes, rule: str) -> None:
    runtime_only = torch.ones_like(v.rate)
    masks = tradeoff_keep(v.runtime, v.static, v.runtime_kept, v.static_kept, runtime_only, rule)
    assert torch.equal(masks.keep.sum(1), v.runtime_kept)
    assert masks.keep_stored.all()
    least_kept = torch.where(masks.keep, v.runtime, torch.inf).amin(1)
    most_pruned = torch.where(masks.keep, -torch.inf, v.runtime).amax(1)
    assert (least_kept >= most_pruned).all()


@checked
@given(votes(), st.lists(st.integers(1, 9), min_size=4, max_size=4))
def test_a_capped_mask_is_a_subset_of_the_most_important(v: Votes, caps: list[int]) -> None:
    masks = tradeoff_keep(v.runtime, v.static, v.runtime_kept, v.static_kept, v.rate)
    cap = torch.tensor(caps[: len(v.rate)])
    capped = cap_keep(masks.keep, v.runtime, cap)
    assert not (capped & ~masks.keep).any()
    assert torch.equal(capped.sum(1), torch.minimum(masks.keep.sum(1), cap))
    dropped = masks.keep & ~capped
    least_left = torch.where(capped, v.runtime, torch.inf).amin(1)
    most_dropped = torch.where(dropped, v.runtime, -torch.inf).amax(1)
    assert (least_left >= most_dropped).all()


@checked
@given(st.floats(-0.5, 1.5), st.integers(1, 2048))
def test_kept_counts_are_in_range_and_cover_the_ratio(ratio: float, channels: int) -> None:
    count = int(kept_count(torch.tensor(ratio, dtype=torch.float64), channels))
    assert 1 <= count <= channels
    assert count >= min(ratio, 1.0) * channels - 1e-5
    assert count <= max(1.0, ratio * channels + 1.0)


# --- networks -------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _traced(kind: type, listed: tuple[int, ...], design: GateDesign = PAPER) -> GatedNetwork:
    return gated(kind(listed), design=design)


def _design(seed: int) -> GateDesign:
    """Whole predictors and low-rank ones, with and without width-dependent scales."""
    return GateDesign((None, 1, 2)[seed % 3], seed % 2 == 1)


def network_of(shape: tuple[type, tuple[int, ...]], seed: int) -> GatedNetwork:
    """A network with arbitrary weights; tracing is remembered, every number is drawn anew."""
    network = _traced(*shape, _design(seed))
    randomise(network, seed)
    return network


class World:
    """One random network and a decision process on it."""

    def __init__(
        self, shape: tuple[type, tuple[int, ...]], seed: int, rule: str = "permanent"
    ) -> None:
        self.network = network_of(shape, seed)
        self.graph = self.network.channels
        self.design = _design(seed)
        self.costs = CostModel(self.graph, True, runtime_agent_size(2), self.design)
        self.pruning = PruningConfig(tradeoff=rule)
        self.rules = PruningRules(self.costs, self.pruning)
        self.book = BudgetBook(self.costs, BudgetConfig(), self.pruning)
        self.full = self.costs.channels.unsqueeze(0)
        self.generator = torch.Generator().manual_seed(seed)

    def images(self, count: int) -> Tensor:
        return torch.randn(count, *self.graph.input_shape, generator=self.generator)

    def random_policy(self, low: float) -> KeepRatioPolicy:
        def draw(episodes: int) -> Tensor:
            uniform = torch.rand(episodes, generator=self.generator, dtype=torch.float64)
            return 1.6 * uniform - 0.3  # outside of [0, 1] as well: policies are unclipped

        return RandomRatios(low, draw, spread=1.0 if low >= 1.0 else 1.5)  # 1: keep all

    def agents(self) -> tuple[AgentPolicy, AgentPolicy]:
        """Agents with arbitrary weights that explore."""
        config = AgentConfig(hidden=2, initial_log_std=-1.0)
        agents = RuntimeAgent(self.graph, config), StaticAgent(config)
        with torch.no_grad():
            for agent in agents:
                for parameter in agent.parameters():
                    shape = parameter.shape
                    parameter.add_(0.3 * torch.randn(shape, generator=self.generator))
        return AgentPolicy(agents[0], self.generator), AgentPolicy(agents[1], self.generator)

    @torch.no_grad()
    def play(
        self,
        budgets: EpisodeBudgets,
        runtime: KeepRatioPolicy,
        static: KeepRatioPolicy,
        images: Tensor | None = None,
    ) -> tuple[PruningGate, Tensor]:
        plan = StaticPlan(self.rules, budgets, static)
        gate = PruningGate(self.rules, self.network, plan, runtime)
        images = self.images(len(budgets.rate)) if images is None else images
        return gate, self.network(images, gate)

    def reachable(self, rate: float, storage_part: float, compute_part: float) -> Point:
        """Budgets between the least that alpha reaches (part 0) and everything (part 1).

        What ``paper`` stores can only be lowered at R_r = 0.
        """
        alpha = torch.tensor([self.pruning.alpha], dtype=torch.float64)
        least = self.costs.counts_at(alpha)
        deletes = rate <= 0 if self.pruning.tradeoff == "paper" else rate < 1
        static_least = self.book.stored_at(alpha, torch.tensor([rate], dtype=torch.float64))
        assert deletes or torch.equal(static_least, self.full)
        storage = self.costs.storage_bytes(agent_runs=rate > 0)
        if rate > 0:
            form = self.costs.macs(self.full, torch.tensor([True]))
        else:
            form = self.costs.static_macs()
        low, high = form.total(least).item(), form.total(self.full).item()
        small = storage.total(static_least).item()
        everything = storage.total(self.full).item()
        return Point(
            tradeoff_rate=rate,
            storage_bytes=small + storage_part * (everything - small),
            compute_max=low + compute_part * (high - low),
            compute_mean=None,
        )


def counted_macs(world: World, gate: PruningGate) -> list[int]:
    """Multiplications of each image, written out from its masks and the channel graph."""
    graph, totals = world.graph, []
    for b in range(len(gate.computed)):
        kept = [int(gate.keep[t][b].sum()) for t in range(len(graph.layers))]
        stored = gate.stored[b].tolist()
        runs = float(gate.budgets.rate[b]) > 0

        def read(sources: tuple, kept: list[int] = kept) -> int:
            return sum(s.channels if s.layer is None else kept[s.layer] for s in sources)

        total = 0
        for layer in graph.layers:
            inputs, t = read(layer.in_sources), layer.index
            kernel = layer.kernel_size[0] * layer.kernel_size[1]
            pixels = layer.out_size[0] * layer.out_size[1]
            total += kernel * pixels * inputs * kept[t]
            whole = layer.in_channels * layer.out_channels
            rank = world.design.predictor_rank
            if rank and rank * (layer.in_channels + layer.out_channels) < whole:
                total += rank * (inputs + stored[t])  # predictor: its code, its rows
            else:
                total += inputs * stored[t]
            if world.design.width_affine and any(s.layer is not None for s in layer.in_sources):
                total += 2 * stored[t]
            if runs:  # h = 2: encoder, 5 context inputs, recurrence, head
                total += 2 * (inputs + stored[t] + 5) + 2 * 2 * 2 + 2
        for follower in graph.followers:
            kernel = follower.kernel_size[0] * follower.kernel_size[1]
            total += kernel * follower.out_size[0] * follower.out_size[1] * kept[follower.producer]
        total += sum(read(fixed.in_sources) * fixed.macs_per_channel for fixed in graph.fixed)
        totals.append(total)
    return totals


# --- costs ----------------------------------------------------------------------------------


@walked
@given(widths, seeds)
def test_costs_grow_with_every_kept_channel(shape: tuple, seed: int) -> None:
    graph = _traced(*shape).channels
    costs = CostModel(graph, True, runtime_agent_size(2), _design(seed))
    generator = torch.Generator().manual_seed(seed)
    part = torch.rand(8, len(graph.layers), generator=generator)
    computed = (part * costs.channels).long().clamp(min=1)
    stored = torch.maximum(computed, (part.flip(0) * costs.channels).long())
    runs = torch.tensor([True, False] * 4)
    for layer in range(len(graph.layers)):
        more = computed.clone()
        more[:, layer] += 1
        form = costs.macs(stored, runs)
        assert (form.total(more) > form.total(computed)).all()
        wider = stored.clone()
        wider[:, layer] += 1
        assert (costs.macs(wider, runs).total(computed) > form.total(computed)).all()
        for size in (costs.parameters(), costs.storage_bytes(), costs.storage_bytes(False)):
            assert (size.total(wider) > size.total(stored)).all()


# --- projected budgets ----------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(
    widths,
    seeds,
    rules,
    st.lists(st.tuples(rates, parts, parts), min_size=4, max_size=4),
    st.sampled_from(["random", "greedy", "agents"]),
)
def test_projected_budgets_are_never_exceeded(
    shape: tuple, seed: int, rule: str, drawn: list[tuple[float, float, float]], policy: str
) -> None:
    """Four images, each with its own R_r and its own reachable budgets."""
    world = World(shape, seed, rule)
    points = [world.reachable(*numbers) for numbers in drawn]
    world.book.check_reachable(points)
    if policy == "agents":
        runtime, static = world.agents()
    else:
        low = 1.0 if policy == "greedy" else 0.0
        runtime, static = world.random_policy(low), world.random_policy(low)
    gate, _ = world.play(world.book.episodes(points), runtime, static)
    spent, stored = gate.macs(), gate.storage_bytes()
    for row, point in enumerate(points):
        assert spent[row] <= point.compute_max + 1e-6
        assert stored[row] <= point.storage_bytes + 1e-6
    assert spent.tolist() == counted_macs(world, gate)
    for layer, keep in gate.keep.items():
        assert torch.equal(gate.computed[:, layer], keep.sum(1))
    assert (gate.computed >= 1).all()
    assert (gate.computed <= gate.stored).all()
    assert (gate.stored <= world.costs.channels).all()


@walked
@given(widths, seeds, st.lists(rates, min_size=3, max_size=3))
def test_without_budgets_policies_are_not_held_back(
    shape: tuple, seed: int, drawn: list[float]
) -> None:
    world = World(shape, seed)
    points = [Point(rate, None, None, None) for rate in drawn]
    gate, _ = world.play(world.book.episodes(points), *[world.random_policy(1.0)] * 2)
    assert (gate.computed == world.costs.channels).all()
    assert (gate.stored == world.costs.channels).all()


@walked
@given(widths, seeds, rules, parts, parts)
def test_static_only_networks_treat_all_inputs_alike(
    shape: tuple, seed: int, rule: str, storage_part: float, compute_part: float
) -> None:
    world = World(shape, seed, rule)
    budgets = world.book.episodes([world.reachable(0.0, storage_part, compute_part)] * 3)
    agents = AgentConfig(hidden=2)
    static = AgentPolicy(StaticAgent(agents))
    gate, _ = world.play(budgets, world.random_policy(0.0), static)
    for layer, keep in gate.keep.items():
        assert torch.equal(keep, keep[:1].expand_as(keep))
        assert torch.equal(keep.sum(1), gate.stored[:, layer])


# --- permanent means deletable --------------------------------------------------------------


def deleted(world: World, gate: PruningGate) -> list[Tensor]:
    """P of each layer, bool [C]: lowest floor((1 - R_r) |M_s|) by u_s, ties by index."""
    masks = []
    for layer in world.graph.layers:
        u_s = world.network.layers[layer.index].static_importance.tolist()
        ranked = sorted(range(layer.out_channels), key=lambda c: (u_s[c], c))
        count = layer.out_channels - int(gate.stored[0, layer.index])
        mask = torch.zeros(layer.out_channels, dtype=torch.bool)
        mask[ranked[:count]] = True
        masks.append(mask)
    return masks


@st.composite
def one_static_plan(draw: st.DrawFn) -> tuple[World, list[Point]]:
    """A network under budgets that are the same for its inputs; runtime ratios differ."""
    world = World(draw(widths), draw(seeds))
    rate = draw(st.one_of(st.just(0.0), st.just(0.5), mixed_rates))
    return world, [world.reachable(rate, draw(parts), draw(parts))] * 5


@settings(deadline=None, max_examples=100)
@given(one_static_plan())
def test_the_physically_smaller_network_equals_the_masked_one(drawn: tuple) -> None:
    world, points = drawn
    images = world.images(len(points))
    static = AgentPolicy(StaticAgent(AgentConfig(hidden=2)))
    gate, logits = world.play(world.book.episodes(points), world.random_policy(0.0), static, images)
    gone = deleted(world, gate)
    for layer, mask in enumerate(gone):
        assert not gate.keep[layer][:, mask].any()
    small = SmallNetwork(world.network, [~mask for mask in gone])
    scale = max(1.0, float(logits.abs().max()))
    assert float((small(images, gate.keep) - logits).abs().max()) <= 1e-5 * scale
    # What is stored is what is counted: predictors included, the agent apart.
    costs, stored = CostModel(world.graph, design=world.design), gate.stored[:1]
    numbers = costs.parameters().total(stored).item()
    assert numbers == small.numbers()
    assert costs.storage_bytes().total(stored).item() == 4 * (numbers + small.index_numbers())
    runs = points[0].tradeoff_rate > 0
    agent = world.costs.parameters().total(stored).item() - numbers
    assert gate.parameters()[0] == numbers + (agent if runs else 0)


@torch.no_grad()
def overwrite(world: World, gone: list[Tensor]) -> None:
    """Arbitrary numbers wherever a smaller file would hold none: filters, predictor rows
    and biases, shifts of deleted channels, and what would read them."""
    for layer, module in zip(world.graph.layers, world.network.layers, strict=True):
        rows = gone[layer.index]
        predictor = module.runtime_predictor
        over_inputs = predictor.weight if predictor.code is None else predictor.code
        for tensor in (
            module.conv.weight,
            predictor.weight,
            predictor.bias,
            module.shift,
        ):
            tensor[rows] = 3.0 * torch.randn(tensor[rows].shape, generator=world.generator)
        start = 0
        for source in layer.in_sources:
            if source.layer is not None:
                columns = torch.zeros(layer.in_channels, dtype=torch.bool)
                columns[start : start + source.channels] = gone[source.layer]
                module.conv.weight[:, columns] = 7.0
                over_inputs[:, columns] = 7.0
            start += source.channels


class Answers(KeepRatioPolicy):
    """Given ratios [B, T], whatever is observed."""

    observes = False

    def __init__(self, ratios: Tensor) -> None:
        self.ratios = ratios

    def ratio(self, layer: int, observation: Tensor) -> Tensor:
        return self.ratios[:, layer]


@checked
@given(one_static_plan(), seeds)
def test_deleted_channels_have_no_say_in_the_masks(drawn: tuple, seed: int) -> None:
    """The runtime ratios given: which channels are kept must follow from what is stored."""
    world, points = drawn
    images, budgets = world.images(len(points)), world.book.episodes(points)
    generator = torch.Generator().manual_seed(seed)
    ratios = torch.rand(len(points), len(world.graph.layers), generator=generator)
    static = AgentPolicy(StaticAgent(AgentConfig(hidden=2)))
    gate, before = world.play(budgets, Answers(ratios), static, images)
    overwrite(world, deleted(world, gate))
    again, after = world.play(budgets, Answers(ratios), static, images)
    for layer, keep in gate.keep.items():
        assert torch.equal(again.keep[layer], keep)
    torch.testing.assert_close(after, before)


@checked
@given(one_static_plan())
def test_deleted_channels_have_no_say_in_the_ratios(drawn: tuple) -> None:
    """What the runtime agent observes of a layer must follow from what is stored."""
    world, points = drawn
    world.rules.projected = False
    images, budgets = world.images(len(points)), world.book.episodes(points)
    config = AgentConfig(hidden=2)
    static = AgentPolicy(StaticAgent(config))

    def observed() -> tuple[PruningGate, Tensor]:
        """Every layer's observation, under an untrained agent that explores."""
        runtime = AgentPolicy(RuntimeAgent(world.graph, config), torch.Generator().manual_seed(0))
        gate, _ = world.play(budgets, runtime, static, images)
        asked = points[0].tradeoff_rate > 0
        return gate, runtime.trajectory().observations if asked else torch.zeros(1)

    gate, before = observed()
    overwrite(world, deleted(world, gate))
    torch.testing.assert_close(observed()[1], before)
