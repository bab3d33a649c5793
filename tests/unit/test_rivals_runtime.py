"""Published runtime methods by hand: FBS and RNP."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from rlprune.pruning import Gate, boost_gates
from rlprune.replicas import Share
from rlprune.training.cnn import CnnSchedule, CnnTrainer
from rlprune.training.rivals import RIVALS, rnp
from tests.physical import Residual, Sequential, gated
from tests.rival_trial import RivalTrial

# --- both -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fbs", "rnp"])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_budgets_hold(name: str, residual: bool) -> None:
    backbone = Residual([8, 9, 7]) if residual else Sequential([10, 16, 12])
    trial = RivalTrial(backbone, train_range=[0.3, 0.7])
    method = trial.method(name)
    for ratio in (0.3, 0.5, 0.7):
        point = trial.setup.book.point(1.0, ratio)
        gate = trial.run(method, 1.0, ratio, images=16)
        assert gate.macs().max() <= point.compute_max
        assert gate.storage_bytes().max() <= point.storage_bytes  # nothing is deleted
        assert (gate.stored == trial.setup.costs.channels).all()
        assert (gate.computed >= 1).all()


# --- FBS ------------------------------------------------------------------------------------


def test_rewriting_leaves_what_the_network_computes() -> None:
    trial = RivalTrial(Residual([8, 9, 7]))
    assert any((layer.runtime_predictor.bias < 0).any() for layer in trial.network.layers)
    images = torch.randn(5, 2, 4, 4)
    before = trial.network(images)
    boost_gates(trial.network)
    trial.network.set_predictors(True, boosted=True)
    torch.testing.assert_close(trial.network(images), before, rtol=1e-4, atol=1e-5)
    trial.network.set_predictors(True)  # without it the shift is not scaled
    assert not torch.allclose(trial.network(images), before, atol=1e-2)
    with torch.no_grad():
        trial.network.layers[1].runtime_predictor.weight.fill_(0.1)
    with pytest.raises(ValueError, match="before their predictors are trained"):
        boost_gates(trial.network)


def test_ranked_importances_are_rewritten_too() -> None:
    """u_r and u_s both carry a part of the scale then, and either may be negative."""
    trial = RivalTrial(Residual([8, 9, 7]))
    with torch.no_grad():
        for layer in trial.network.layers:
            layer.static_importance.copy_(torch.randn(layer.layer.out_channels))
    images = torch.randn(5, 2, 4, 4)
    before = trial.network(images)
    boost_gates(trial.network)
    trial.network.set_predictors(True, boosted=True)
    torch.testing.assert_close(trial.network(images), before, rtol=1e-4, atol=1e-5)
    trial.network.set_predictors(False, boosted=True)  # R_r = 0 reads no input
    torch.testing.assert_close(trial.network(images), before, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_boosted_layer_by_hand() -> None:
    """pi(x) * (norm(conv(x)) + beta) with pi = relu(W pool(x) + b), two winners of three."""
    network = gated(Sequential([3]))
    layer = network.layers[0]
    predictor = layer.runtime_predictor
    predictor.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0]]))
    predictor.bias.copy_(torch.tensor([0.5, 0.0, 0.25]))
    layer.shift.copy_(torch.tensor([1.0, 2.0, 3.0]))
    network.set_predictors(True, boosted=True)
    x = torch.zeros(1, 2, 5, 5)
    x[:, 0] = 1.0  # pooled: (1, 0), at unit root mean square (sqrt 2, 0)
    found: list[torch.Tensor] = []

    class Winners(Gate):
        def decide(self, index: int, pooled: torch.Tensor, importance: torch.Tensor) -> None:
            found.append(importance)

    y = layer(x, Winners())
    saliency = [2**0.5 + 0.5, 0.0, 0.0]  # the third would be 0.25 - 2 sqrt 2
    assert found[0][0].tolist() == pytest.approx(saliency, abs=1e-5)
    assert found[0].requires_grad is False
    # the second and third channel are salient by 0: their shift goes with it
    assert y[0, 1:].abs().max() == 0.0
    normal = layer.norm(layer.conv(x))[0, 0]
    torch.testing.assert_close(y[0, 0], saliency[0] * (normal + 1.0), rtol=1e-5, atol=1e-6)


def test_the_most_salient_channels_win_at_a_fixed_density() -> None:
    trial = RivalTrial(Sequential([40, 40, 40]), storage_max=None, compute_max=0.5)
    method = trial.method("fbs")
    with torch.no_grad():
        for layer in trial.network.layers:
            layer.runtime_predictor.weight.normal_()
    gate = trial.run(method, 1.0, images=8)
    dial = method.book.compute_dial(trial.setup.book.point(1.0).compute_max)
    kept = int(np.ceil(dial * 40 - 1e-6))
    assert 20 <= kept <= 22  # there is no agent to pay for
    assert (gate.computed == kept).all()
    assert not torch.equal(gate.keep[0][0], gate.keep[0][1])  # another image, other channels
    # filters, predictor rows of 2, 40 and 40 inputs (from 2, kept and kept of them), linear
    macs = 25 * 9 * 2 * kept + 81 * kept**2 * 2 + 3 * kept + 2 * 40 + 2 * kept * 40
    assert gate.macs().tolist() == [macs] * 8


def test_the_saliencies_norm_is_added_to_the_loss() -> None:
    trial = RivalTrial(methods={"fbs_penalty": 0.25})
    method = trial.method("fbs")
    with torch.no_grad():
        for number, layer in enumerate(trial.network.layers):
            layer.runtime_predictor.bias.fill_(1.0 + number)
    trial.network.set_predictors(True, boosted=True)
    budgets = method.book.episodes([trial.setup.book.point(1.0)] * 3)
    gate = method.gate(trial.network, budgets)
    trial.network(torch.randn(3, 2, 5, 5), gate)
    penalty = gate.penalty()
    assert float(penalty.detach()) == pytest.approx(0.25 * (10 * 1 + 16 * 2 + 12 * 3), rel=1e-5)
    penalty.backward()
    assert trial.network.layers[1].runtime_predictor.bias.grad.tolist() == pytest.approx(
        [0.25] * 16
    )


def test_the_norm_is_minimised_but_not_told_as_loss() -> None:
    told, biases = [], []
    for weight in (0.0, 100.0):
        trial = RivalTrial(methods={"fbs_penalty": weight})
        method = trial.method("fbs")
        trial.network.set_predictors(True, boosted=True)
        budgets = method.book.table((trial.setup.book.point(1.0),))
        schedule = CnnSchedule(1e-3, 1, 8, 40.0, 0.0)
        trainer = CnnTrainer(trial.network, trial.images, schedule, [0])

        def gates(
            share: Share,
            _: np.random.Generator,
            method: Any = method,
            trial: Any = trial,
            budgets: Any = budgets,
        ) -> Any:
            none = torch.zeros(len(share), dtype=torch.int64)
            return method.gate(trial.network, budgets.select(none))

        trainer.run(1, gates)
        told.append(trainer.last_loss)
        biases.append(trial.network.layers[0].runtime_predictor.bias.detach().clone())
    assert told[0] == told[1]
    assert (biases[1] < biases[0]).any()


# --- RNP ------------------------------------------------------------------------------------


def test_four_groups_of_ten_channels() -> None:
    assert rnp.group_count(torch.arange(4), 10).tolist() == [3, 5, 8, 10]
    assert rnp.group_count(torch.arange(4), 64).tolist() == [16, 32, 48, 64]
    assert rnp.group_count(torch.arange(4), 2).tolist() == [1, 1, 2, 2]


def test_groups_are_the_first_channels() -> None:
    trial = RivalTrial(storage_max=None, compute_max=None, compute_mean=1.0)
    gate = rnp.prepare(trial.setup, trial.network, Share.whole(6), np.random.default_rng(0))
    trial.network(torch.randn(6, 2, 5, 5), gate)
    actions = torch.stack(gate.actions, 1)
    assert len(actions.unique()) == 4
    for layer, channels in enumerate((10, 16, 12)):
        expected = rnp.group_count(actions[:, layer], channels)
        assert gate.computed[:, layer].tolist() == expected.tolist()
        for row, count in zip(gate.keep[layer], expected.tolist(), strict=True):
            assert row.tolist() == [True] * count + [False] * (channels - count)


def test_random_groups_are_shared_out_as_drawn() -> None:
    trial = RivalTrial()

    def drawn(share: Share) -> torch.Tensor:
        gate = rnp.prepare(trial.setup, trial.network, share, np.random.default_rng(3))
        trial.network(torch.randn(len(share), 2, 5, 5), gate)
        return torch.stack(gate.actions, 1)

    whole = drawn(Share.whole(7))
    parts = [drawn(share) for share in (Share(0, 4, 7), Share(4, 7, 7))]
    assert torch.equal(torch.cat(parts), whole)


def test_targets_by_hand() -> None:
    values = torch.tensor([[[0.0, 0.1, 0.2, 0.3], [1.0, 3.0, 2.0, 0.0], [9.0, 9.0, 9.0, 9.0]]])
    actions, losses = torch.tensor([[3, 0, 2]]), torch.tensor([0.7])
    found = rnp.targets(values, actions, losses, price=0.1)
    # -0.3 + max(1, 3, 2, 0); 0 + 9; -0.2 - 0.7
    assert found.tolist()[0] == pytest.approx([2.7, 9.0, -0.9])
    huge = rnp.targets(values, actions, torch.tensor([float("nan")]), price=0.1)
    assert float(huge[0, 2]) == pytest.approx(-5.2)


def test_exploration_falls_to_a_tenth() -> None:
    found = [rnp.exploration(update, 100) for update in (0, 25, 45, 50, 99)]
    assert found == pytest.approx([1.0, 0.5, 0.1, 0.1, 0.1])


def test_the_decision_network_costs_what_it_is() -> None:
    trial = RivalTrial(hidden=5)
    network = rnp.DecisionNetwork(trial.setup.graph, 5)
    gate = trial.run(trial.method("rnp"), 1.0)
    plain = 10 * 9 * 2 + 16 * 9 * 10 + 12 * 9 * 16 + 10 + 16 + 12 + 3 * 12 + 3
    own = sum(parameter.numel() for parameter in network.parameters())
    assert gate.parameters().tolist() == [plain + own] * 4
    a, b, c = gate.computed[0].tolist()
    convolutions = 25 * 9 * 2 * a + 81 * a * b + 81 * b * c + 3 * c
    # encoders read 2, a and b inputs; the cell 5 x 5 twice, the head 5 x 4, in each layer
    assert gate.macs()[0] == convolutions + 5 * (2 + a + b) + 3 * (2 * 25 + 20)


def test_the_action_of_largest_value_is_taken_layer_by_layer() -> None:
    trial = RivalTrial(storage_max=None, compute_max=None, compute_mean=1.0)
    method = trial.method("rnp")
    gate = trial.run(method, 1.0, images=6)
    with torch.no_grad():
        values = method.decisions.values(gate.pooled)
    assert torch.equal(values.argmax(2), torch.stack(gate.actions, 1))


def test_learning_goes_on_where_it_was_interrupted() -> None:
    class Stopped(Exception):
        pass

    def learn(stop_at: int) -> tuple[dict[str, torch.Tensor], int]:
        trial = RivalTrial()
        kept = [RIVALS["rnp"].fit(trial.bench(1.0))]
        calls = 0

        def advance(done: int, total: int, values: dict[str, float]) -> None:
            nonlocal calls
            calls += 1
            assert total == 6  # two rounds of three updates
            if calls == stop_at:
                raise Stopped

        bench = dataclasses.replace(trial.bench(1.0), advance=advance)
        for index in (0, 1):
            while True:
                try:
                    rnp.improve(bench, kept[-1], index, kept.append)
                    break
                except Stopped:
                    continue
        assert kept[-1]["updates"] == 6 and kept[-1]["rollouts"] == 6 * 12
        return kept[-1]["network"], calls

    calm, calls = learn(-1)
    stopped, again = learn(2)
    assert calls == again == 6
    for name, value in calm.items():
        assert torch.equal(value, stopped[name])


def test_q_learning_prefers_what_costs_less_where_nothing_is_lost() -> None:
    """At a high price the smallest group is best in every layer."""
    trial = RivalTrial(methods={"rnp_price": 5.0}, storage_max=None, compute_max=None)
    learner = rnp._Learner(trial.bench(1.0), RIVALS["rnp"].fit(trial.bench(1.0)))
    for group in learner.optimizer.param_groups:
        group["lr"] = 0.02
    for number in range(120):
        learner.update(number, 120)
    gate = learner.method.gate(
        trial.network, learner.method.book.episodes([trial.setup.book.point(1.0)] * 4)
    )
    with torch.no_grad():
        trial.network(torch.randn(4, 2, 5, 5), gate)
    assert torch.stack(gate.actions, 1).tolist() == [[0, 0, 0]] * 4
