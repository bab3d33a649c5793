"""The simple methods beside the learned policy: what they keep, and within which budgets."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlprune.agents.networks import RuntimeAgent, StaticAgent
from rlprune.config import config_from_dict
from rlprune.data import ImageArrays, ImageSet
from rlprune.mdp import PruningGate
from rlprune.pruning import Gate, GatedNetwork
from rlprune.replicas import Share
from rlprune.training import methods
from rlprune.training.cnn import reestimate_batchnorm
from rlprune.training.gates import GateRecipe, gates_of
from rlprune.training.methods import Method
from rlprune.training.setup import TrialSetup
from rlprune.training.trainer import CnnJob
from tests.physical import Residual, Sequential, gated

RATES = (1.0, 0.5, 0.0)
NAMES = ("uniform", "random", "static_l1", "learned")


class Trial:
    """A small traced network, its set-up, and all methods."""

    def __init__(
        self, backbone: object = None, pruning: Any = None, training: Any = None, **budgets: object
    ) -> None:
        values = {"budgets": budgets, "agents": {"hidden": 2}}
        values |= {"pruning": pruning or {}, "training": training or {}}
        config = config_from_dict(values)
        self.network: GatedNetwork = gated(backbone or Sequential([10, 16, 12]), seed=0)
        self.setup = TrialSetup.of(config, self.network.channels)
        self.channels = self.setup.costs.channels

    def method(self, name: str, seed: int = 0) -> Method:
        if name == "random":
            rng = np.random.default_rng(seed)
            return methods.random_ratios(self.setup, *methods.random_factors(self.setup, rng))
        if name == "static_l1":
            return methods.static_l1(self.setup, self.network)
        if name == "learned":
            torch.manual_seed(seed)
            agents = self.setup.config.agents
            runtime = RuntimeAgent(self.network.channels, agents)
            return methods.learned(self.setup, runtime, StaticAgent(agents))
        return {"uniform": methods.uniform, "dense": methods.dense}[name](self.setup)

    @torch.no_grad()
    def run(
        self, method: Method, rate: float, ratio: float | None = None, images: int = 4
    ) -> PruningGate:
        self.network.set_predictors(method.predictors, method.boosted)
        budgets = method.book.episodes([self.setup.book.point(rate, ratio)] * images)
        gate = method.gate(self.network, budgets)
        torch.manual_seed(1)
        self.network(torch.randn(images, *self.setup.graph.input_shape), gate)
        return gate


# --- budgets --------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [[10, 16, 12], None], ids=["plain", "residual"])
def test_budgets_hold(name: str, rate: float, width: list[int] | None) -> None:
    trial = Trial(Sequential(width) if width else Residual([8, 9, 7]), train_range=[0.3, 0.7])
    method = trial.method(name)
    for ratio in (0.3, 0.5, 0.7):
        point = trial.setup.book.point(rate, ratio)
        gate = trial.run(method, rate, ratio)
        assert gate.macs().max() <= point.compute_max
        if rate < 1.0:  # at R_r = 1 the budget is everything that a model with agent stores
            assert gate.storage_bytes().max() <= point.storage_bytes
        assert (gate.computed >= 1).all() and (gate.computed <= gate.stored).all()


def test_dense_prunes_nothing_and_ships_nothing_extra() -> None:
    trial = Trial()
    method = trial.method("dense")
    gate = trial.run(method, 1.0)
    assert type(gate) is Gate and set(gate.keep.values()) == {None}
    assert not method.predictors
    assert method.rules.costs.dense_macs() == trial.setup.book.dense_macs
    # conv 3x3: 25 pixels * 9 * 2 * 10, 9 pixels * 9 * 10 * 16, 9 pixels * 9 * 16 * 12; linear
    assert trial.setup.book.dense_macs == 4500 + 12960 + 15552 + 36


# --- uniform --------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7, 1.0])
def test_uniform_keeps_the_same_share_of_every_layer(ratio: float) -> None:
    trial = Trial(storage_max=None, compute_max=0.5)
    method = trial.method("uniform")
    gate = trial.run(method, 1.0, ratio)
    dial = method.book.compute_dial(trial.setup.book.point(1.0, ratio).compute_max)
    assert dial >= ratio - 1e-9  # no agent to pay for: at least the ratio of the budget
    assert gate.ratios.numpy() == pytest.approx(dial)
    expected = [math.ceil(dial * c - 1e-6) for c in trial.channels.tolist()]
    assert gate.computed.tolist() == [expected] * 4


@pytest.mark.parametrize("name", ["uniform", "static_l1"])
def test_static_ratios_are_uniform_where_storage_binds(name: str) -> None:
    trial = Trial(storage_max=0.5, compute_max=None)
    method = trial.method(name)
    plan = trial.run(method, 0.0).plan
    dial = method.book.storage_dial(trial.setup.book.point(0.0).storage_bytes, 0.0)
    expected = [math.ceil(dial * c - 1e-6) for c in trial.channels.tolist()]
    assert plan.stored.tolist() == [expected] * 4


@pytest.mark.parametrize("name", ["uniform", "static_l1"])
def test_static_ratios_are_uniform_where_compute_binds(name: str) -> None:
    """At R_r = 0 the static ratios must keep the compute budgets too."""
    trial = Trial(Sequential([20, 20, 20, 20]), storage_max=None, compute_max=0.5)
    kept = trial.run(trial.method(name), 0.0).plan.stored[0] / 20
    assert kept.max() - kept.min() <= 0.11


# --- static_l1 ------------------------------------------------------------------------------


@torch.no_grad()
def test_static_l1_keeps_the_filters_of_largest_norm() -> None:
    trial = Trial(storage_max=0.5, compute_max=None)
    norms = []
    for layer in trial.network.layers:
        order = torch.randperm(layer.layer.out_channels)
        weight = layer.conv.weight
        per_filter = weight[0].numel()
        # L1 norm order[c] + 1, half of it negative; u_s says the opposite and is not asked
        weight.copy_(((order + 1) / per_filter).view(-1, 1, 1, 1).expand_as(weight))
        weight[:, :, 0] *= -1
        layer.static_importance.copy_(-order.float())
        norms.append(order + 1)
    method = trial.method("static_l1")
    for found, expected in zip(method.static_scores, norms, strict=True):
        torch.testing.assert_close(found, expected.float())
    gate = trial.run(method, 0.0)
    for layer, norm in enumerate(norms):
        kept = int(gate.stored[0, layer])
        largest = set(norm.argsort(descending=True)[:kept].tolist())
        assert 1 < kept < len(norm)
        for row in gate.keep[layer]:
            assert set(row.nonzero().flatten().tolist()) == largest


def test_static_l1_ships_a_plain_network() -> None:
    trial = Trial(storage_max=0.5, compute_max=None)
    gate = trial.run(trial.method("static_l1"), 0.0)
    a, b, c = gate.stored[0].tolist()
    # filters and one shift per channel; linear layer with 3 biases
    assert gate.parameters()[0] == (9 * 2 * a + a) + (9 * a * b + b) + (9 * b * c + c) + 3 * c + 3
    assert gate.storage_bytes()[0] == 4 * gate.parameters()[0]
    macs = 25 * 9 * 2 * a + 9 * 9 * a * b + 9 * 9 * b * c + 3 * c
    assert gate.macs().tolist() == [macs] * 4


def test_known_norms_are_kept_through_fine_tuning() -> None:
    trial = Trial()
    before = trial.method("static_l1").static_scores
    with torch.no_grad():
        for layer in trial.network.layers:
            layer.conv.weight.mul_(-3.0)
    again = methods.static_l1(trial.setup, trial.network, before)
    assert again.static_scores is before
    assert not torch.equal(trial.method("static_l1").static_scores[0], before[0])


# --- random ---------------------------------------------------------------------------------


def clipped_cost(trial: Trial, ratios: Tensor) -> float:
    """Multiplications at fractional counts; every layer reads all that the one before keeps."""
    a, b, c = (ratios.clamp(0.1, 1.0) * trial.channels).tolist()
    convolutions = 25 * 9 * 2 * a + 9 * 9 * a * b + 9 * 9 * b * c + 3 * c
    return convolutions + 2 * a + a * b + b * c  # predictors


@pytest.mark.parametrize("seed", range(5))
def test_random_factors_cost_what_uniform_costs(seed: int) -> None:
    trial = Trial(storage_max=None, compute_max=0.5)
    point = trial.setup.book.point(1.0)
    dial = methods.uniform(trial.setup).book.compute_dial(point.compute_max)
    uniform = clipped_cost(trial, torch.full((3,), dial, dtype=torch.float64))
    # no storage budget: the static factors serve the compute budget (of R_r = 0) too
    drawn = methods.random_factors(trial.setup, np.random.default_rng(seed))
    for factors in drawn:
        assert clipped_cost(trial, factors * dial) == pytest.approx(uniform, rel=1e-6)
        assert factors.max() / factors.min() <= 4.0 + 1e-9  # between 1/2 and 2, then scaled
        assert factors.std() > 0.01
    assert not torch.equal(*drawn)


def clipped_bytes(trial: Trial, ratios: Tensor) -> float:
    """4 bytes per number at fractional counts: filters, predictor rows, 4 numbers per channel."""
    a, b, c = (ratios.clamp(0.1, 1.0) * trial.channels).tolist()
    return 4 * (10 * (2 * a + a * b + b * c) + 4 * (a + b + c) + 3 * c + 3)


@pytest.mark.parametrize("seed", range(5))
def test_static_factors_cost_the_bytes_that_uniform_costs(seed: int) -> None:
    trial = Trial(storage_max=0.5, compute_max=0.5)
    runtime, static = methods.random_factors(trial.setup, np.random.default_rng(seed))
    book, points = methods.uniform(trial.setup).book, trial.setup.evaluation_points()
    assert [point.tradeoff_rate for point in points] == list(RATES)
    # s of the tightest point
    storage = min(book.storage_dial(p.storage_bytes, p.tradeoff_rate) for p in points)
    compute = min(book.compute_dial(p.compute_max) for p in points)
    assert 0.5 <= storage < 1.0 and 0.5 <= compute < 1.0
    uniform = torch.ones(3, dtype=torch.float64)
    expected = clipped_bytes(trial, uniform * storage)
    assert clipped_bytes(trial, static * storage) == pytest.approx(expected, rel=1e-6)
    expected = clipped_cost(trial, uniform * compute)
    assert clipped_cost(trial, runtime * compute) == pytest.approx(expected, rel=1e-6)


def test_random_factors_follow_their_generator() -> None:
    trial = Trial()

    def drawn(seed: int) -> list[list[float]]:
        return [
            f.tolist() for f in methods.random_factors(trial.setup, np.random.default_rng(seed))
        ]

    assert drawn(1) == drawn(1) != drawn(2)


def test_random_plays_the_same_ratios_for_every_image() -> None:
    trial = Trial(storage_max=None, compute_max=0.5)
    gate = trial.run(trial.method("random"), 1.0)
    assert torch.equal(gate.ratios, gate.ratios[:1].expand_as(gate.ratios))
    assert len(set(gate.ratios[0].tolist())) > 1


# --- learned --------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1.0, 0.75, 0.5, 0.25])
def test_uniform_computes_at_most_its_share_in_every_layer(rate: float) -> None:
    """No layer pays for what the votes of an earlier layer left over by accident."""
    trial = Trial(Sequential([40, 40, 40, 40]), storage_max=0.5, compute_max=0.5)
    torch.manual_seed(3)
    for layer in trial.network.layers:
        layer.static_importance.data = torch.rand(layer.layer.out_channels)
        layer.runtime_predictor.weight.data.normal_()
    method = trial.method("uniform")
    gate = trial.run(method, rate, images=32)
    dial = method.book.compute_dial(trial.setup.book.point(rate).compute_max)
    share = gate.computed.double().mean(0) / 40
    assert (gate.computed <= np.ceil(dial * 40)).all()
    assert (share >= dial - 0.06).all()  # the last layer too: it is not starved


def test_learned_before_training_is_uniform_at_its_own_costs() -> None:
    trial = Trial(storage_max=None, compute_max=0.5)
    gate = trial.run(trial.method("learned"), 1.0)
    assert gate.ratios.numpy() == pytest.approx(0.5, abs=1e-6)
    assert gate.computed.tolist() == [[5, 8, 6]] * 4
    assert gate.macs().tolist() == [trial.setup.book.point(1.0).compute_max] * 4


@pytest.mark.parametrize("name", ["learned", "uniform", "random"])
def test_our_gates_are_boosted_and_penalised_where_the_trial_says_so(name: str) -> None:
    trial = Trial()
    assert not trial.method(name).boosted
    assert trial.run(trial.method(name), 0.5).penalty() is None
    trial = Trial(pruning={"boosted": True}, training={"importance_penalty": 0.5})
    with torch.no_grad():
        for number, layer in enumerate(trial.network.layers):
            layer.runtime_predictor.weight.zero_()
            layer.runtime_predictor.bias.fill_(-1.0 if number == 0 else 2.0)
    method = trial.method(name)
    assert method.boosted
    # Of 10, 16 and 12 channels the first ten are cut at zero.
    assert float(trial.run(method, 0.5).penalty()) == pytest.approx(0.5 * (16 + 12) * 2.0)


@pytest.mark.parametrize("name", ["static_l1", "dense"])
def test_plain_methods_are_neither(name: str) -> None:
    trial = Trial(pruning={"boosted": True}, training={"importance_penalty": 0.5})
    method = trial.method(name)
    assert not method.boosted and trial.run(method, 0.0).penalty() is None


def test_equal_budgets_share_one_plan() -> None:
    """A gate over mixed budgets decides for each image as for that image alone."""
    trial = Trial(train_range=[0.3, 0.7])
    method = trial.method("learned")
    book = trial.setup.book
    points = [book.point(rate, ratio) for rate, ratio in [(0.5, 0.3), (0.0, 0.5), (0.5, 0.3)]]
    gate = method.gate(trial.network, method.book.episodes(points))
    for row, point in enumerate(points):
        alone = method.gate(trial.network, method.book.episodes([point]))
        assert gate.plan.stored[row].tolist() == alone.plan.stored[0].tolist()
        assert gate.plan.kept[row].tolist() == alone.plan.kept[0].tolist()
    assert gate.stored.shape == (3, 3)


def test_told_another_dial_the_caps_stay() -> None:
    trial = Trial(storage_max=None, compute_max=0.5)
    method = trial.method("uniform")
    budgets = method.book.episodes([trial.setup.book.point(1.0)])
    told = methods.with_dial(budgets, 0.9)
    gate = method.gate(trial.network, told)
    trial.network(torch.randn(1, 2, 5, 5), gate)
    assert gate.ratios.numpy() == pytest.approx(0.9)
    assert gate.macs() <= budgets.compute_max


# --- training the importances under varied ratios -------------------------------------------


def test_varied_ratios_differ_between_images_and_layers() -> None:
    trial = Trial()
    gate = methods.varied_ratio_gate(
        trial.setup, trial.network, Share.whole(16), np.random.default_rng(0)
    )
    trial.network(torch.randn(16, 2, 5, 5), gate)
    if (gate.plan.budgets.rate > 0).all():
        assert gate.ratios.std() > 0.05
    assert gate.plan.ratios.std() > 0.05
    assert (gate.plan.ratios >= 0.8 * 0.5 / 1.5 - 1e-9).all()  # the tightest budget is 0.5


def test_varied_ratios_reach_below_a_mean_budget() -> None:
    trial = Trial(storage_max=None, compute_max=None, compute_mean=0.3)
    gate = methods.varied_ratio_gate(
        trial.setup, trial.network, Share.whole(64), np.random.default_rng(0)
    )
    assert gate.plan.ratios.min() < 0.3


@pytest.mark.parametrize(("ratios", "kept"), [("budget", 0.5), ("none", 1.0)])
def test_importances_are_trained_at_the_budget_or_unpruned(ratios: str, kept: float) -> None:
    trial = Trial(storage_max=None, compute_max=0.5)
    training = dataclasses.replace(trial.setup.config.training, importance_ratios=ratios)
    evaluation = dataclasses.replace(trial.setup.config.evaluation, tradeoff_rates=(1.0,))
    config = dataclasses.replace(trial.setup.config, training=training, evaluation=evaluation)
    setup = dataclasses.replace(trial.setup, config=config)
    gates = gates_of(setup, trial.network, GateRecipe("runtime_importance"))
    if kept == 1.0:
        assert gates is None
        return
    assert gates is not None
    gate = gates(Share.whole(16), np.random.default_rng(0))
    trial.network(torch.randn(16, 2, 5, 5), gate)
    assert isinstance(gate, PruningGate)
    assert gate.ratios.numpy() == pytest.approx(kept, abs=0.02)
    assert (gate.macs() <= methods.uniform(setup).book.macs_at(kept)).all()


@pytest.mark.parametrize(
    ("phase", "last"),
    [
        ("pretrain", 0.0),
        ("runtime_importance", 1e-3),
        ("static_importance", 1e-3),
        ("slimming_sparse", 1e-3),
        ("cascade_small", 0.0),
        ("uniform", 0.0),
        ("alternate", 0.0),
    ],
)
def test_the_rate_falls_to_zero_where_no_phase_goes_on_from_there(phase: str, last: float) -> None:
    config = config_from_dict({"training": {"finetune_learning_rate": 1e-3}})
    schedule = CnnJob.of(config, phase, 1000, None).schedule
    assert schedule.rate(0) == schedule.learning_rate
    assert schedule.rate(schedule.total_steps) == pytest.approx(last, abs=1e-12)
    half = schedule.rate(schedule.total_steps // 2)
    assert half == pytest.approx(last or schedule.learning_rate / 2, rel=0.1)


# --- BatchNorm ------------------------------------------------------------------------------


def test_reestimated_statistics_are_those_under_the_masks() -> None:
    trial = Trial(storage_max=0.5, compute_max=None)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 2, 5, 5)).astype(np.uint8)
    arrays = ImageArrays(pixels, np.arange(20) % 3)
    mean, std = (0.5, 0.4), (0.2, 0.3)
    images = ImageSet("test", arrays, arrays, arrays, ("a", "b", "c"), mean, std, "none")
    method = trial.method("static_l1")
    trial.network.set_predictors(False)
    budgets = method.book.episodes([trial.setup.book.point(0.0)])
    before = {name: p.clone() for name, p in trial.network.named_parameters()}

    def gates(count: int) -> Gate:
        return method.gate(trial.network, budgets.select(torch.zeros(count, dtype=torch.int64)))

    def reestimate() -> None:
        reestimate_batchnorm(trial.network, images, gates, 20, 10, [0])

    reestimate()
    assert all(torch.equal(p, before[name]) for name, p in trial.network.named_parameters())
    assert not any(module.training for module in trial.network.modules())
    assert {layer.norm.momentum for layer in trial.network.layers} == {0.1}
    first, second = trial.network.layers[:2]
    scaled = torch.from_numpy(pixels).float() / 255
    x = (scaled - torch.tensor(mean).view(2, 1, 1)) / torch.tensor(std).view(2, 1, 1)
    with torch.no_grad():
        # the mean over two batches of ten is the mean over all twenty, whatever their order
        torch.testing.assert_close(first.norm.running_mean, first.conv(x).mean((0, 2, 3)))
        # what would read a pruned channel of the first layer has no part in the second's
        found = second.norm.running_mean.clone()
        pruned = ~gates_masks(trial, gates, x)
        assert 0 < pruned.sum() < 10
        second.conv.weight[:, pruned] = 100.0
        reestimate()
        torch.testing.assert_close(second.norm.running_mean, found)


def gates_masks(trial: Trial, gates: Callable[[int], Gate], x: Tensor) -> Tensor:
    """The first layer's mask, bool [C]; static_l1's is the same for every image."""
    gate = gates(len(x))
    trial.network(x, gate)
    return gate.keep[0][0]
