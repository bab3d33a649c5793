"""The two agents: memory, anchoring, probabilities, and what they weigh."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from rlprune.agents.networks import (
    AgentPolicy,
    RuntimeAgent,
    StaticAgent,
    runtime_agent_size,
)
from rlprune.agents.rollout import RewardScales, Rollout, roll_out
from rlprune.config import AgentConfig, BudgetConfig, PruningConfig
from rlprune.mdp import KeepRatioPolicy, PruningGate, PruningRules, RandomRatios, StaticPlan
from rlprune.mdp.environment import runtime_anchor
from rlprune.mdp.observation import (
    CONTEXT_WIDTH,
    STATIC_FEATURES,
    context,
    runtime_observation,
    runtime_width,
    static_features,
)
from rlprune.mdp.policy import AnchoredRatios
from rlprune.pruning import (
    BudgetBook,
    CostModel,
    EpisodeBudgets,
    GatedNetwork,
    Point,
    kept_count,
)
from tests.physical import Residual, ThreeLayers, gated

CONFIG = AgentConfig(hidden=4)


def stirred(agent: nn.Module, seed: int = 0) -> nn.Module:
    """As if trained: no parameter is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return agent


class World:
    """A random network with everything that a decision process needs."""

    def __init__(self, action: str = "absolute", seed: int = 0, backbone: object = None) -> None:
        self.network: GatedNetwork = gated(backbone or Residual([4, 6, 5]), seed=seed)
        self.graph = self.network.channels
        self.costs = CostModel(self.graph, agent=runtime_agent_size(CONFIG.hidden))
        self.book = BudgetBook(self.costs, BudgetConfig(), PruningConfig(alpha=0.1))
        self.rules = PruningRules(self.costs, PruningConfig(), action=action)
        torch.manual_seed(seed)
        self.runtime, self.static = RuntimeAgent(self.graph, CONFIG), StaticAgent(CONFIG)

    def budgets(self, *rates: float, ratio: float | None = 0.6) -> EpisodeBudgets:
        if ratio is None:
            return self.book.episodes([Point(rate, None, None, None) for rate in rates])
        return self.book.episodes([self.book.point(rate, ratio) for rate in rates])

    def images(self, count: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, *self.graph.input_shape, generator=generator)

    @torch.no_grad()
    def play(
        self, budgets: EpisodeBudgets, runtime: KeepRatioPolicy, static: KeepRatioPolicy
    ) -> PruningGate:
        plan = StaticPlan(self.rules, budgets, static)
        gate = PruningGate(self.rules, self.network, plan, runtime)
        self.network(self.images(len(budgets.rate)), gate)
        return gate


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["runtime", "static"])
def test_stepping_equals_unrolling(role: str) -> None:
    world = World()
    agent = stirred(getattr(world, role))
    agent.narrow(1.0)  # else the least spread would hide what the log-std head says
    width = runtime_width(world.graph) if role == "runtime" else CONTEXT_WIDTH + STATIC_FEATURES
    observations = torch.randn(3, len(world.graph.layers), width)
    unrolled, _ = agent.unroll(observations)
    state, steps = None, []
    for layer in range(observations.shape[1]):
        output, state = agent.step(layer, observations[:, layer], state)
        steps.append(output)
    for name in ("mean", "log_std", "value"):
        stepped = torch.stack([getattr(output, name) for output in steps], 1)
        torch.testing.assert_close(getattr(unrolled, name), stepped)
        assert stepped.std() > 0


@pytest.mark.parametrize("action", ["absolute", "change"])
def test_what_the_learner_unrolls_is_what_was_played(action: str) -> None:
    """Means, spreads and probabilities of recorded trajectories, for both action kinds."""
    world = World(action)
    players = [AgentPolicy(stirred(a), noise(1)) for a in (world.runtime, world.static)]
    gate = world.play(world.budgets(1.0, 0.5, 0.5, 0.7), *players)
    for player in players:
        trajectory = player.trajectory()
        output, _ = player.agent.unroll(trajectory.observations)
        torch.testing.assert_close(output.mean, trajectory.distribution[..., 0])
        torch.testing.assert_close(output.log_std, trajectory.distribution[..., 1])
        normal = torch.distributions.Normal(output.mean, output.log_std.exp())
        expected = normal.log_prob(trajectory.actions)
        torch.testing.assert_close(trajectory.log_probabilities, expected, rtol=1e-4, atol=1e-4)
    played = players[0].trajectory().actions.double().clamp(0.1, 1.0)
    torch.testing.assert_close(gate.ratios, played)
    torch.testing.assert_close(
        gate.plan.ratios, players[1].trajectory().actions.double().clamp(0.1, 1.0)
    )


def told(rate: float, compute: float, storage: float) -> EpisodeBudgets:
    """One episode of which only R_r and the dials matter."""
    none = torch.tensor([float("inf")], dtype=torch.float64)
    dials = [torch.tensor([dial], dtype=torch.float64) for dial in (storage, compute, compute)]
    return EpisodeBudgets(torch.tensor([rate], dtype=torch.float64), none, none, none, *dials)


@pytest.mark.parametrize(
    ("rate", "compute", "storage", "anchor"),
    [
        (1.0, 0.5, 0.7, 0.5),  # runtime only: the votes are what is pruned
        # p = 0.5 * 0.5 = 0.25, q = 0.25 / 0.75 = 1/3, effect = 1/3 + 0.5 * 2/3 = 2/3,
        # votes = 0.25 + 0.25 / (2/3) = 0.625
        (0.5, 0.5, 0.5, 0.375),
        # p = 0.5 * 0.4 = 0.2, q = 0.2 / 0.8 = 1/4, effect = 5/8, votes = 0.2 + 0.2 * 8/5
        (0.5, 0.6, 0.6, 0.48),
        # p = 0.5 * 0.8 = 0.4 already exceeds 1 - s_c = 0.3: no votes beyond p
        (0.5, 0.7, 0.2, 0.6),
        (0.5, 0.1, 0.9, 0.1),  # p = 0.05, effect = 0.53: 1.66 votes, so alpha
    ],
)
def test_runtime_anchor_by_hand(rate: float, compute: float, storage: float, anchor: float) -> None:
    rules = World().rules
    found = runtime_anchor(told(rate, compute, storage), rules)
    assert found.item() == pytest.approx(anchor, abs=1e-9)
    paper = dataclasses.replace(rules.pruning, tradeoff="paper")
    rules.pruning = paper
    assert runtime_anchor(told(rate, compute, storage), rules).item() == pytest.approx(compute)


@pytest.mark.parametrize("rate", [1.0, 0.75, 0.5, 0.25])
def test_under_a_cap_the_anchor_is_the_budgets_ratio_and_uses_it_up(rate: float) -> None:
    """Whatever the votes of the two agents agree on, every layer computes ceil(s C)."""
    world = World(seed=3)
    for layer in world.network.layers:  # static votes that agree with the runtime ones
        torch.nn.init.normal_(layer.static_importance, mean=1.0)
        with torch.no_grad():
            layer.runtime_predictor.bias.copy_(layer.static_importance)
    budgets = world.book.episodes([world.book.point(rate, 0.5)] * 3)
    expected = kept_count(budgets.compute_dial[:1], world.costs.channels)
    gate = world.play(budgets, AnchoredRatios(), AnchoredRatios())
    assert torch.equal(runtime_anchor(budgets, world.rules), budgets.compute_dial)
    assert torch.equal(gate.computed, expected.expand(3, -1))


def test_without_a_projected_cap_the_anchor_expects_votes_to_overlap() -> None:
    world = World()
    world.rules.projected = False
    budgets = world.book.episodes([world.book.point(0.5, 0.5)])
    assert runtime_anchor(budgets, world.rules).item() < budgets.compute_dial.item()


def test_the_anchor_is_the_budgets_ratio_or_the_previous_one() -> None:
    """Column 0 of what the runtime agent observes."""
    for action in ("absolute", "change"):
        world = World(action)
        player = AgentPolicy(stirred(world.runtime), noise(2))
        budgets = world.budgets(1.0, 0.5)
        gate = world.play(budgets, player, AgentPolicy(world.static))
        anchors = player.trajectory().observations[..., 0].double()
        first = runtime_anchor(budgets, world.rules)
        torch.testing.assert_close(anchors[:, 0], first, rtol=1e-6, atol=1e-6)
        later = first.unsqueeze(1).expand(-1, 4) if action == "absolute" else gate.ratios[:, :-1]
        torch.testing.assert_close(anchors[:, 1:], later, rtol=1e-6, atol=1e-6)


def test_start_forgets_the_previous_episodes() -> None:
    world = World()
    player = AgentPolicy(stirred(world.runtime))
    budgets = world.budgets(1.0, 0.5)
    first = world.play(budgets, player, AgentPolicy(world.static)).ratios
    again = world.play(budgets, player, AgentPolicy(world.static)).ratios
    assert torch.equal(first, again)


# --- before training ------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["absolute", "change"])
def test_an_untrained_agent_plays_the_ratio_of_the_budget(action: str) -> None:
    world = World(action)
    budgets = world.budgets(1.0, 0.5, 0.5)
    gate = world.play(budgets, AgentPolicy(world.runtime), AgentPolicy(world.static))
    layers = len(world.graph.layers)
    anchor = runtime_anchor(budgets, world.rules).unsqueeze(1).expand(-1, layers)
    torch.testing.assert_close(gate.ratios, anchor, rtol=1e-6, atol=1e-6)
    dial = budgets.storage_dial.unsqueeze(1).expand(-1, layers)
    torch.testing.assert_close(gate.plan.ratios, dial, rtol=1e-6, atol=1e-6)


def test_an_untrained_agent_without_budgets_keeps_everything() -> None:
    world = World()
    budgets = world.budgets(1.0, 0.5, 0.0, ratio=None)
    gate = world.play(budgets, AgentPolicy(world.runtime), AgentPolicy(world.static))
    assert (gate.computed == world.costs.channels).all()


def test_initial_and_least_spread() -> None:
    config = dataclasses.replace(CONFIG, initial_log_std=-2.5, min_log_std=-3.0)
    agent = StaticAgent(config)
    observations = torch.randn(2, 3, CONTEXT_WIDTH + STATIC_FEATURES)
    assert torch.equal(agent.unroll(observations)[0].log_std, torch.full((2, 3), -2.5))
    assert torch.equal(agent.unroll(observations)[0].value, torch.zeros(2, 3))
    with torch.no_grad():
        agent.log_std_head.bias.fill_(-9.0)
        for progress, least in ((0.0, -2.5), (0.5, -2.75), (1.0, -3.0), (1.5, -3.0)):
            agent.narrow(progress)
            assert torch.equal(agent.unroll(observations)[0].log_std, torch.full((2, 3), least))
        agent.log_std_head.bias.fill_(9.0)
        assert torch.equal(agent.unroll(observations)[0].log_std, torch.zeros(2, 3))


# --- exploration ----------------------------------------------------------------------------


def test_exploration_follows_its_generator() -> None:
    world = World()
    budgets = world.budgets(0.5, 0.5)

    def actions(seed: int) -> Tensor:
        player = AgentPolicy(world.runtime, noise(seed))
        world.play(budgets, player, AgentPolicy(world.static))
        return player.trajectory().actions

    assert torch.equal(actions(1), actions(1))
    assert not torch.equal(actions(1), actions(2))


def test_exploration_has_the_spread_that_it_claims() -> None:
    agent = StaticAgent(dataclasses.replace(CONFIG, initial_log_std=-1.0))
    player = AgentPolicy(agent, noise(0))
    player.start(20_000)
    actions = player.ratio(0, torch.full((20_000, CONTEXT_WIDTH + STATIC_FEATURES), 0.5))
    assert actions.mean().item() == pytest.approx(0.5, abs=0.01)
    assert actions.std().item() == pytest.approx(0.3679, abs=0.01)  # exp(-1)


def test_a_log_probability_by_hand() -> None:
    """Mean 0.5, deviation exp(-1): -z^2 / 2 + 1 - log(sqrt(2 pi)), log(sqrt(2 pi)) = 0.918939."""
    agent = StaticAgent(dataclasses.replace(CONFIG, initial_log_std=-1.0))
    player = AgentPolicy(agent, noise(0))
    player.start(1)
    action = float(player.ratio(0, torch.full((1, CONTEXT_WIDTH + STATIC_FEATURES), 0.5)))
    z = (action - 0.5) / 0.36787944
    expected = -z * z / 2 + 1.0 - 0.91893853
    assert player.trajectory().log_probabilities.item() == pytest.approx(expected, abs=1e-5)


# --- observations ---------------------------------------------------------------------------


def test_layout_of_the_runtime_observation() -> None:
    world = World(backbone=ThreeLayers())
    budgets = world.budgets(0.5, ratio=0.6)
    leading = context(torch.tensor([0.3]), budgets, torch.tensor([0.8]))
    dials = [float(budgets.compute_dial), float(budgets.storage_dial)]
    assert leading.tolist()[0] == pytest.approx([0.3, *dials, 0.5, 0.8])
    width = runtime_width(world.graph)
    assert width == 5 + 11  # the widest layer reads 6 and gives 5 channels
    pooled, importance = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    stored = torch.ones(1, 4, dtype=torch.bool)
    row = runtime_observation(leading, pooled, importance, width, stored)[0].tolist()
    assert row[:5] == pytest.approx(leading[0].tolist())
    # standardised: (1, 3) has mean 2 and deviation 1; (0, 0, 4, 4) mean 2 and deviation 2
    assert row[5:11] == pytest.approx([-1, 1, -1, -1, 1, 1], abs=1e-4)
    assert row[11:] == [0.0] * 5


def test_what_is_absent_is_not_observed() -> None:
    """Channels that were not computed (exactly zero), and u_r of deleted channels."""
    leading = torch.zeros(2, CONTEXT_WIDTH)
    pooled = torch.tensor([[0.0, 1.0, 3.0], [5.0, 0.0, 0.0]])
    importance = torch.tensor([[-2.0, 9.0, 2.0, 0.0], [4.0, 4.0, 8.0, 4.0]])
    stored = torch.tensor([[True, False, True, True], [True, True, True, False]])
    rows = runtime_observation(leading, pooled, importance, 13, stored).tolist()
    # (1, 3): mean 2, deviation 1; (-2, 2, 0): mean 0, deviation sqrt(8 / 3) = 1.632993
    assert rows[0][5:8] == pytest.approx([0, -1, 1], abs=1e-4)
    assert rows[0][8:12] == pytest.approx([-1.224745, 0, 1.224745, 0], abs=1e-4)
    # a single one has no deviation; (4, 4, 8): mean 16 / 3, deviation sqrt(32 / 9) = 1.885618
    assert rows[1][5:8] == [0.0] * 3
    assert rows[1][8:12] == pytest.approx([-0.707107, -0.707107, 1.414214, 0], abs=1e-4)
    assert rows[0][12] == rows[1][12] == 0.0
    # whatever stands in the place of a deleted channel
    importance[0, 1], importance[1, 3] = -70.0, 1e6
    assert runtime_observation(leading, pooled, importance, 13, stored).tolist() == rows


def test_static_features_are_the_shape_of_the_layer() -> None:
    rows = static_features(World(backbone=ThreeLayers()).graph).tolist()
    # weights 72, 216, 30 of 318; multiplications 2592, 1944, 270 of 4806
    assert rows[0] == pytest.approx(
        [1 / 8, 2 / 8, 1, 5.169925 / 8, 0.5, 0, 2592 / 4806, 72 / 318], abs=1e-6
    )
    assert rows[1] == pytest.approx(
        [2 / 8, 2.584963 / 8, 1, 3.169925 / 8, 1, 1 / 3, 1944 / 4806, 216 / 318], abs=1e-6
    )


def test_episodes_with_and_without_a_cap_in_one_batch() -> None:
    world = World()
    point = world.book.point(1.0, 0.6)
    budgets = world.book.episodes([point, dataclasses.replace(point, compute_max=None)])
    player = AgentPolicy(world.runtime, noise(0))
    gate = world.play(budgets, player, AgentPolicy(world.static))
    observations = player.trajectory().observations
    assert torch.isfinite(observations).all()
    assert gate.macs()[0] <= point.compute_max
    assert (observations[1, :, 4] == 1.0).all()  # no cap: all the room
    unlimited = (gate.ratios[1] * world.costs.channels - 1e-4).ceil().long()
    assert gate.computed[1].tolist() == unlimited.tolist()  # R_r = 1 and nothing to keep within


# --- what ships -----------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [1, 4, 32])
@pytest.mark.parametrize("backbone", [ThreeLayers, lambda: Residual([4, 6, 5])])
def test_agent_size_counts_the_parameters_that_ship(backbone: object, hidden: int) -> None:
    """Counted in the module: used encoder rows, biases, RNN, mean head; no other head."""
    graph = gated(backbone()).channels
    agent = RuntimeAgent(graph, dataclasses.replace(CONFIG, hidden=hidden))
    shared = [*agent.memory.parameters(), *agent.mean_head.parameters()]
    shipped = sum(parameter.numel() for parameter in shared)
    for layer in graph.layers:
        # the rows beyond what a layer fills are zero, and their inputs are too
        used = int((agent.encoder_weight[layer.index] != 0).any(1).sum())
        assert used == CONTEXT_WIDTH + layer.in_channels + layer.out_channels
        shipped += used * hidden + agent.encoder_bias[layer.index].numel()
    size = runtime_agent_size(hidden)
    with_agent, without = CostModel(graph, agent=size), CostModel(graph)
    full = with_agent.channels.unsqueeze(0)
    added = with_agent.parameters().total(full) - without.parameters().total(full)
    assert added.item() == shipped


def test_agent_size_counts_the_multiplications_of_one_step_per_layer() -> None:
    """One for each weight of encoder, recurrence and head that is used, once per layer."""
    graph = gated(ThreeLayers()).channels
    agent = RuntimeAgent(graph, CONFIG)
    memory = agent.memory
    weights = memory.weight_ih_l0.numel() + memory.weight_hh_l0.numel()
    per_layer = weights + agent.mean_head.weight.numel()
    encoders = sum(
        (CONTEXT_WIDTH + layer.in_channels + layer.out_channels) * CONFIG.hidden
        for layer in graph.layers
    )
    with_agent = CostModel(graph, agent=runtime_agent_size(CONFIG.hidden))
    assert with_agent.dense_macs() - CostModel(graph).dense_macs() == encoders + 3 * per_layer


# --- a batch of episodes --------------------------------------------------------------------


def rolled_out(world: World, budgets: EpisodeBudgets, group: int = 2) -> Rollout:
    count = len(budgets.rate)
    images = world.images(count // group).repeat_interleave(group, 0)
    return roll_out(
        world.network,
        world.rules,
        AgentPolicy(world.runtime, noise(1)),
        AgentPolicy(world.static, noise(2)),
        images,
        torch.arange(count // group).repeat_interleave(group) % 3,
        budgets,
        RewardScales(2.0, world.book.dense_macs, world.book.dense_bytes, None, group),
    )


def test_a_rollout_pays_loss_and_costs() -> None:
    world = World()
    budgets = world.budgets(1.0, 1.0, 0.5, 0.5)
    rollout = rolled_out(world, budgets)
    macs, cap = rollout.macs, budgets.compute_max / world.book.dense_macs
    assert (macs <= cap).all()  # projected: so the runtime reward has the bonus
    accuracy = -rollout.loss.clamp(max=5.0) / 2
    torch.testing.assert_close(rollout.runtime_reward, accuracy + 0.1 * (cap - macs))
    # R_r = 1 stores everything and has no storage budget to keep; R_r = 0.5 keeps it
    torch.testing.assert_close(rollout.static_reward, accuracy)
    for name in ("runtime", "static"):
        reward, signal = getattr(rollout, f"{name}_reward"), getattr(rollout, f"{name}_signal")
        torch.testing.assert_close(signal[0], reward[0] - reward[1])
        torch.testing.assert_close(signal[3], reward[3] - reward[2])
        shape = getattr(rollout, name).actions.shape
        assert shape == (4, len(world.graph.layers))


def test_a_rollout_at_rate_zero_alone() -> None:
    world = World()
    rollout = rolled_out(world, world.budgets(0.0, 0.0))
    assert torch.isfinite(rollout.static_signal).all()
    shape = (2, len(world.graph.layers))
    assert rollout.runtime.actions.shape == rollout.static.actions.shape == shape
    assert torch.isfinite(rollout.runtime.log_probabilities).all()
    assert torch.equal(rollout.computed_ratio, rollout.stored_ratio)


def test_a_rollout_tells_rates_and_mean_targets() -> None:
    """At R_r = 0 the static plan keeps the mean budget: no price is put on it."""
    world = World()
    points = [dataclasses.replace(world.book.point(r, 0.6), compute_mean=900.0) for r in (1.0, 0.0)]
    rollout = rolled_out(world, world.book.episodes([points[0], points[0], points[1], points[1]]))
    assert rollout.rate.tolist() == [1.0, 1.0, 0.0, 0.0]
    target = 900.0 / world.book.dense_macs
    assert rollout.mean_target.tolist() == pytest.approx([target, target, math.inf, math.inf])


def test_random_ratios_are_a_level_times_a_factor_per_layer() -> None:
    draws = iter(torch.tensor([[0.0, 0.5], [0.5, 1.0], [0.0, 0.5]], dtype=torch.float64))
    policy = RandomRatios(0.25, lambda episodes: next(draws), spread=2.0)
    policy.start(2)  # levels 0.25 and sqrt(0.25)
    assert policy.ratio(0, torch.zeros(2, 1)).tolist() == pytest.approx([0.25, 1.0])
    assert policy.ratio(1, torch.zeros(2, 1)).tolist() == pytest.approx([0.125, 0.5])
