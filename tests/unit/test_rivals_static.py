"""Published static methods: scores and choices by hand, and their budgets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import get_model

from rlprune.backbones import build_backbone, trace_backbone
from rlprune.config import config_from_dict
from rlprune.errors import BackboneError, ConfigError
from rlprune.pruning import GatedNetwork
from rlprune.training import setup as trial_setup
from rlprune.training.cnn import CnnSchedule, CnnTrainer
from rlprune.training.rivals import amc, dependency, legr
from rlprune.training.rivals.bench import Bench
from rlprune.training.rivals.ddpg import DDPG, Transition
from rlprune.training.rivals.filters import median_distances, scales_of, squared_norms
from rlprune.training.rivals.selection import global_threshold, scaled_ratios, static_limits
from rlprune.training.rivals.slimming import SparsityGate
from rlprune.training.setup import TrialSetup
from tests.physical import Residual, Sequential, gated
from tests.rival_trial import RivalTrial

STATIC = ("fpgm", "slimming", "legr", "amc")


# --- budgets --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_budgets_hold_and_are_used(name: str, residual: bool) -> None:
    backbone = Residual([8, 9, 7]) if residual else Sequential([10, 16, 12])
    trial = RivalTrial(backbone, train_range=[0.3, 0.7])
    method = trial.method(name)
    for ratio in (0.3, 0.5, 0.7):
        point = trial.setup.book.point(0.0, ratio)
        gate = trial.run(method, 0.0, ratio)
        macs, size = gate.macs(), gate.storage_bytes()
        assert macs.max() <= point.compute_max and size.max() <= point.storage_bytes
        # one budget or the other is nearly used up: a filter of these layers is large
        assert max(macs.max() / point.compute_max, size.max() / point.storage_bytes) > 0.7
        assert (gate.computed == gate.stored).all() and (gate.computed >= 1).all()
        assert torch.equal(gate.keep[1][0], gate.keep[1][-1])  # the same for every image


@pytest.mark.parametrize("name", STATIC)
def test_a_static_network_ships_without_extras(name: str) -> None:
    trial = RivalTrial(storage_max=0.5, compute_max=None)
    gate = trial.run(trial.method(name), 0.0)
    a, b, c = gate.stored[0].tolist()
    assert gate.parameters()[0] == (9 * 2 * a + a) + (9 * a * b + b) + (9 * b * c + c) + 3 * c + 3
    assert gate.macs().tolist() == [25 * 9 * 2 * a + 81 * a * b + 81 * b * c + 3 * c] * 4


@pytest.mark.parametrize("name", ["fpgm", "legr", "amc"])
def test_fitting_leaves_the_network_as_it_was(name: str) -> None:
    trial = RivalTrial()
    before = {key: value.clone() for key, value in trial.network.state_dict().items()}
    trial.fitted(name)
    assert all(torch.equal(value, before[key]) for key, value in trial.network.state_dict().items())


# --- selections -----------------------------------------------------------------------------


def test_global_threshold_prunes_as_few_as_the_budget_needs() -> None:
    trial = RivalTrial()
    scores = tuple(torch.arange(c) + offset for c, offset in ((10, 0.1), (16, 4.2), (12, 8.3)))
    select = global_threshold(scores)
    assert select(static_limits(trial.setup, None, None)).tolist() == [10, 16, 12]
    # all scores below 10: 10 of the first layer (two stay for alpha: ceil(1) = 1), 6, 2
    counts = torch.tensor([1, 10, 10])
    form = static_limits(trial.setup, None, None).costs.static_macs()
    macs = float(form.total(counts[None]))
    assert macs == 25 * 9 * 2 * 1 + 81 * 1 * 10 + 81 * 10 * 10 + 3 * 10
    assert select(static_limits(trial.setup, macs, None)).tolist() == [1, 10, 10]
    # one MAC more would have been needed for the filter of score 9.3, of the last layer
    assert select(static_limits(trial.setup, macs + 81 * 10 + 2, None)).tolist() == [1, 10, 10]
    assert select(static_limits(trial.setup, macs + 81 * 10 + 3, None)).tolist() == [1, 10, 11]


def test_filters_of_equal_score_go_together() -> None:
    trial = RivalTrial()
    scores = (torch.full((10,), 5.0), torch.arange(16.0) + 10, torch.full((12,), 5.0))
    limits = static_limits(trial.setup, trial.setup.book.dense_macs - 1, None)
    assert global_threshold(scores)(limits).tolist() == [1, 16, 2]  # alpha: ceil(0.1 C)


def test_scaled_ratios_keep_their_proportions() -> None:
    trial = RivalTrial(Sequential([100, 100, 100]))
    select = scaled_ratios(torch.tensor([0.8, 0.4, 0.2]))
    counts = select(static_limits(trial.setup, 0.1 * trial.setup.book.dense_macs, None))
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.1)
    assert counts[1] / counts[2] == pytest.approx(2, rel=0.1)
    # at 1: 80, 40, 20 cost exactly this, and one channel more would not fit
    exact = 25 * 9 * 2 * 80 + 81 * 80 * 40 + 81 * 40 * 20 + 3 * 20
    assert select(static_limits(trial.setup, exact, None)).tolist() == [80, 40, 20]


# --- fpgm -----------------------------------------------------------------------------------


def test_distances_to_all_other_filters_by_hand() -> None:
    """On a line the geometric median is the middle point, here 5: it is pruned first."""
    line = torch.tensor([[0.0], [1.0], [5.0], [6.0], [7.0]])
    assert median_distances(line).tolist() == [19, 16, 12, 13, 16]
    plane = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    assert median_distances(plane).tolist() == [15, 10, 15]


@torch.no_grad()
def test_fpgm_keeps_filters_that_others_cannot_replace() -> None:
    trial = RivalTrial(storage_max=0.5, compute_max=None)
    first = trial.network.layers[0].conv.weight
    first.copy_((torch.arange(10.0) ** 2).view(-1, 1, 1, 1).expand_as(first))
    gate = trial.run(trial.method("fpgm"), 0.0)
    kept = gate.keep[0][0].nonzero().flatten().tolist()
    # 0, 1, 4, ..., 81: sums of distances, least (pruned first) in the middle
    sums = [sum(abs(a * a - b * b) for b in range(10)) for a in range(10)]
    assert kept == sorted(np.argsort(sums, kind="stable")[-len(kept) :].tolist())
    assert 4 not in kept and 5 not in kept and {0, 9} & set(kept)


# --- slimming -------------------------------------------------------------------------------


@torch.no_grad()
def test_penalty_and_its_gradient_by_hand() -> None:
    network = gated(Sequential([2, 3]), seed=0)
    for layer in network.layers:
        layer.static_importance.fill_(1.0)
    network.layers[0].runtime_predictor.bias.copy_(torch.tensor([-2.0, 0.5]))
    network.layers[1].runtime_predictor.bias.copy_(torch.tensor([1.0, 0.0, -0.25]))
    with torch.enable_grad():
        penalty = SparsityGate(network, 0.1).penalty()
        penalty.backward()
    assert float(penalty.detach()) == pytest.approx(0.1 * 3.75)
    assert network.layers[0].runtime_predictor.bias.grad.tolist() == pytest.approx([-0.1, 0.1])
    assert [part.tolist() for part in scales_of(network)] == [[2, 0.5], [1, 0, 0.25]]


def test_training_with_the_penalty_shrinks_the_scales() -> None:
    """The gate's term is part of the loss that is trained: without it they stay where they are."""
    left = {}
    for weight in (0.0, 10.0):
        trial = RivalTrial()
        schedule = CnnSchedule(0.02, 12, 12, 40.0, 0.0)
        trainer = CnnTrainer(trial.network, trial.images, schedule, [0], ("static_importance",))
        before = sum(float(part.sum()) for part in scales_of(trial.network))
        gate = SparsityGate(trial.network, weight)
        trainer.run(12, lambda *_, gate=gate: gate)
        left[weight] = sum(float(part.sum()) for part in scales_of(trial.network)) / before
    assert left[10.0] < 0.9 < left[0.0]


@torch.no_grad()
def test_slimming_has_one_threshold_for_all_layers() -> None:
    trial = RivalTrial(storage_max=0.5, compute_max=None)
    scales = (torch.linspace(0.01, 1.0, 10), torch.full((16,), 2.0), torch.linspace(0.5, 1.5, 12))
    for layer, scale in zip(trial.network.layers, scales, strict=True):
        signs = torch.where(torch.arange(len(scale)) % 2 == 0, -1.0, 1.0)
        layer.runtime_predictor.bias.copy_(scale * signs)
    gate = trial.run(trial.method("slimming"), 0.0)
    kept = [gate.keep[layer][0] for layer in range(3)]
    pruned = torch.cat([scale[~mask] for scale, mask in zip(scales, kept, strict=True)])
    remaining = torch.cat([scale[mask] for scale, mask in zip(scales[::2], kept[::2], strict=True)])
    assert len(pruned) > 5 and pruned.max() < remaining.min()
    assert kept[1].all() and not kept[0].all() and not kept[2].all()


# --- Torch-Pruning --------------------------------------------------------------------------


def backbone_trial(
    name: str = "m_cifarnet", width: float = 1.0, factory: str | None = None
) -> tuple[TrialSetup, GatedNetwork]:
    backbone = {"name": name, "width": width, "factory": factory}
    config = config_from_dict({"backbone": backbone})
    torch.manual_seed(0)
    shape = (3, 16, 16)
    network = GatedNetwork(trace_backbone(build_backbone(config.backbone, 10, shape), shape, 10))
    with torch.no_grad():
        for layer in network.layers:
            layer.runtime_predictor.bias.uniform_(0.2, 1.5)
            layer.shift.normal_()
    network.set_predictors(False)
    return TrialSetup.of(config, network.channels), network.eval()


@pytest.mark.parametrize(("name", "width"), [("m_cifarnet", 0.1), ("resnet20", 0.25)])
def test_a_plain_backbone_computes_what_the_gated_one_does(name: str, width: float) -> None:
    setup, network = backbone_trial(name, width)
    images = torch.randn(4, 3, 16, 16)
    plain = dependency.plain_backbone(setup, network, 10)
    torch.testing.assert_close(plain(images), network(images))


@pytest.mark.parametrize(("name", "width"), [("m_cifarnet", 0.1), ("resnet20", 0.25)])
def test_scores_rank_as_the_packages_own_global_pruning(name: str, width: float) -> None:
    tp = pytest.importorskip("torch_pruning")
    setup, network = backbone_trial(name, width)
    module = dependency.plain_backbone(setup, network, 10)
    scores = dependency.group_scores(setup, module)
    pruner = tp.pruner.BasePruner(
        module,
        torch.zeros(1, 3, 16, 16),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=0.4,
        ignored_layers=[m for m in module.modules() if isinstance(m, nn.Linear)],
    )
    names = {module.get_submodule(layer.name): layer.index for layer in setup.graph.layers}
    pruned: dict[int, set[int]] = {index: set() for index in names.values()}
    for group in pruner.step(interactive=True):
        for item in group:
            if item.dep.handler == tp.prune_conv_out_channels and item.dep.target.module in names:
                pruned[names[item.dep.target.module]] |= set(item.idxs)
    gone = [score[sorted(pruned[i])] for i, score in enumerate(scores) if pruned[i]]
    left = [
        score[[c for c in range(len(score)) if c not in pruned[i]]]
        for i, score in enumerate(scores)
    ]
    assert sum(map(len, gone)) >= 10
    assert torch.cat(gone).max() <= torch.cat(left).min()


@pytest.mark.parametrize(("name", "width"), [("m_cifarnet", 0.2), ("resnet20", 0.25)])
def test_groups_are_pruned_within_the_budgets(name: str, width: float) -> None:
    setup, network = backbone_trial(name, width)
    scores = dependency.group_scores(setup, dependency.plain_backbone(setup, network, 10))
    method = dependency.make(setup, network, {"scores": list(scores)})
    point = setup.book.point(0.0)
    gate = method.gate(network, method.book.episodes([point] * 2))
    network(torch.randn(2, 3, 16, 16), gate)
    assert gate.macs().max() <= point.compute_max
    assert gate.storage_bytes().max() <= point.storage_bytes
    assert (gate.stored[0] < setup.costs.channels).any()


class Unlike(nn.Module):
    """A convolution without bias and BatchNorm, and a classifier that only training calls."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, 6, 3, bias=False)
        self.second = nn.Conv2d(6, 8, 3)
        self.classifier, self.other = nn.Linear(8, num_classes), nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x).relu()).relu().mean((2, 3))
        return self.classifier(x) + (self.other(x) if self.training else 0.0)


def test_a_plain_backbone_of_other_layers() -> None:
    setup, network = backbone_trial(factory="tests.unit.test_rivals_static:Unlike")
    images = torch.randn(4, 3, 16, 16)
    plain = dependency.plain_backbone(setup, network, 10)
    torch.testing.assert_close(plain(images), network(images))
    pytest.importorskip("torch_pruning")
    assert all(score.isfinite().all() for score in dependency.group_scores(setup, plain))


def shuffle_net(num_classes: int) -> nn.Module:
    return get_model("shufflenet_v2_x0_5", num_classes=num_classes)


def test_what_the_package_cannot_take_apart_is_named() -> None:
    pytest.importorskip("torch_pruning")
    setup, network = backbone_trial(factory="tests.unit.test_rivals_static:shuffle_net")
    with pytest.raises(BackboneError, match=r"take ShuffleNetV2 apart .*evaluation\.baselines"):
        dependency.group_scores(setup, dependency.plain_backbone(setup, network, 10))


def test_layers_of_one_stream_share_their_scores() -> None:
    setup, network = backbone_trial("resnet20", 0.25)
    scores = dependency.group_scores(setup, dependency.plain_backbone(setup, network, 10))
    first = [
        scores[layer.index]
        for layer in setup.graph.layers
        if layer.joins_stream and layer.out_channels == setup.graph.layers[0].out_channels
    ]
    assert len(first) >= 3 and all(torch.equal(part, first[0]) for part in first)


def test_a_missing_package_is_named_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trial_setup.importlib.util, "find_spec", lambda _: None)
    trial_setup.check_packages(("legr",))
    with pytest.raises(ConfigError) as caught:
        trial_setup.check_packages(("dense", "torch_pruning"))
    text = str(caught.value)
    assert "evaluation.baselines" in text and "pip install 'rlprune[compare]'" in text


# --- LeGR -----------------------------------------------------------------------------------


def test_ranks_by_hand() -> None:
    norms = (squared_norms(torch.tensor([[3.0, 4.0], [1.0, 0.0]])), torch.tensor([2.0]))
    assert norms[0].tolist() == [25, 1]
    affine = legr.Affine(np.array([2.0, 0.5]), np.array([-1.0, 10.0]))
    assert [part.tolist() for part in legr.ranks(norms, affine)] == [[49, 1], [11]]


def test_a_mutation_changes_a_tenth_of_the_layers() -> None:
    parent = legr.Affine(np.ones(20), np.zeros(20))
    child = legr.mutated(parent, np.full(20, 3.0), 1.0, np.random.default_rng(0))
    assert (child.alpha != 1.0).sum() == (child.kappa != 0.0).sum() == 2
    assert (parent.alpha == 1.0).all() and (child.alpha > 0).all()


class Judged(Bench):
    """Accuracy is a known function of how much of each layer is kept."""

    def accuracy(self, method: object) -> float:
        if self._asked == len(self.known):
            plan = method.gate(self.network, method.book.episodes([self.point])).plan
            self.known.append(float(plan.stored[0, 0]) / 10 - float(plan.stored[0, 2]) / 100)
        self._asked += 1
        return self.known[self._asked - 1]


def judged(trial: RivalTrial) -> Judged:
    bench = trial.bench()
    return Judged(**{key: value for key, value in vars(bench).items() if key != "_asked"})


def weights_of(trial: RivalTrial) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trial.network.state_dict().items()}


@pytest.mark.parametrize("steps", [0, 5])
def test_a_candidate_is_fine_tuned_and_its_weights_are_put_back(steps: int) -> None:
    trial = RivalTrial(methods={"search_steps": steps})
    method, before = trial.method("fpgm"), weights_of(trial)
    measured: list[dict[str, torch.Tensor]] = []
    validate = trial.evaluator.validate

    def noting(*arguments: Any) -> Any:
        measured.append(weights_of(trial))
        return validate(*arguments)

    trial.evaluator.validate = noting  # type: ignore[method-assign]
    bench = trial.bench()
    assert bench.accuracy(method) == bench.known[0] == trial.bench().accuracy(method)
    after = weights_of(trial)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    (found,) = measured  # the second bench knew the answer
    moved = {name for name, value in before.items() if not torch.equal(found[name], value)}
    if steps == 0:
        assert moved == set()
        return
    assert any(name.endswith("conv.weight") for name in moved)
    assert not any("static_importance" in name or "predictor.weight" in name for name in moved)


def test_a_candidate_that_diverges_is_the_worst_one() -> None:
    trial = RivalTrial(methods={"search_steps": 3})
    method = trial.method("fpgm")
    with torch.no_grad():
        trial.network.layers[0].conv.weight.fill_(torch.nan)
    before = weights_of(trial)
    assert trial.bench().accuracy(method) == 0.0
    after = weights_of(trial)
    assert all(
        torch.equal(after[name], value) or value.isnan().any() for name, value in before.items()
    )


@pytest.mark.parametrize("name", ["legr", "amc"])
def test_a_search_takes_the_best_of_its_candidates(name: str) -> None:
    """Here a whole first layer is best, which the norms do not say."""
    module = {"legr": legr, "amc": amc}[name]
    trial = RivalTrial(Sequential([10, 16, 12]), candidates=60, compute_max=0.5, storage_max=None)
    found = module.fit(judged(trial))
    assert len(trial.known) == 60
    gate = trial.run(module.make(trial.setup, trial.network, found), 0.0)
    value = float(gate.stored[0, 0]) / 10 - float(gate.stored[0, 2]) / 100
    assert value == pytest.approx(max(trial.known)) and value > trial.known[0]
    # run again with what is known, it does the same without measuring anything
    again = module.fit(judged(trial))
    assert len(trial.known) == 60
    for one, other in zip(found["scores"], again["scores"], strict=True):
        assert torch.equal(one, other)


# --- AMC ------------------------------------------------------------------------------------


def test_the_hard_budget_by_hand() -> None:
    trial = RivalTrial(Sequential([10, 10]))
    # layers of 10 and 10: 450 a + 81 a b + 3 b; with the second at its least, one channel
    limits = static_limits(trial.setup, 450 * 4 + 81 * 4 * 1 + 3 * 1, None)
    counts = torch.tensor([10, 10])
    assert amc.bounded_count(0, 0.95, counts, limits) == 4
    assert amc.bounded_count(0, 0.25, counts, limits) == 3
    assert amc.bounded_count(1, 0.95, torch.tensor([3, 10]), limits) == math.floor(
        (450 * 4 + 81 * 4 + 3 - 450 * 3) / (81 * 3 + 3)
    )


def test_the_state_by_hand() -> None:
    trial = RivalTrial(Sequential([10, 20]))
    limits = static_limits(trial.setup, None, None)
    fixed = amc.layer_features(trial.setup)
    # layer, out, in, height, width, stride, kernel, MACs (4500 of 16200)
    first = [0, 0.5, 0.2, 1, 1, 0.5, 1, 4500 / 16200]
    assert fixed[0].tolist() == pytest.approx(first)
    state = amc.state_of(fixed, 1, torch.tensor([5, 20]), limits, 0.5)
    dense = 4500 + 16200 + 3 * 20
    saved = 1 - (2250 + 8100 + 3 * 20) / dense
    assert state.tolist() == pytest.approx([*fixed[1].tolist(), saved, 0.0, 0.5])


def test_targets_are_baselined_and_bootstrapped() -> None:
    agent = DDPG(2, 0.1, np.random.default_rng(0))
    state = torch.tensor([0.3, 0.6])
    agent.remember([Transition(state, 0.5, state, 0.8), Transition(state, 0.4, None, 0.8)])
    agent.remember([Transition(state, 0.5, None, 0.6)])
    # the first episode sets the baseline, the second moves it by a twentieth
    assert agent._baseline == pytest.approx(0.8 + 0.05 * (0.6 - 0.8))
    targets = agent._targets(list(agent._memory))
    with torch.no_grad():
        action = agent._policy(agent._slow_actor, state)
        value = agent._slow_critic(torch.cat([state, action.view(1)]))
    expected = [0.8 - 0.79 + float(value), 0.8 - 0.79, 0.6 - 0.79]
    assert targets.tolist() == pytest.approx(expected, abs=1e-6)


def test_ddpg_finds_the_best_action_of_a_bandit() -> None:
    agent = DDPG(1, 0.1, np.random.default_rng(0))
    state = torch.ones(1)
    for episode in range(80):
        action = agent.act(state, episode - 40)
        agent.remember([Transition(state, action, None, 1.0 - 4.0 * (action - 0.8) ** 2)])
        for _ in range(6):
            agent.learn()
    with torch.no_grad():
        assert float(agent._policy(agent._actor, state)) == pytest.approx(0.8, abs=0.1)


def test_noise_is_cut_to_the_actions_there_are() -> None:
    agent = DDPG(1, 0.1, np.random.default_rng(0))
    early = [agent.act(torch.ones(1), 0) for _ in range(200)]
    late = [agent.act(torch.ones(1), 60) for _ in range(200)]
    assert 0.1 <= min(early) and max(early) <= 1.0
    assert np.std(late) < 0.1 * np.std(early)
