"""A round's agents are kept only where validation says that they are better."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rlprune.agents.networks import RuntimeAgent, StaticAgent
from rlprune.config import config_from_dict
from rlprune.data import ImageSet, load_image_set
from rlprune.training.judge import Agents, agent_weights, is_better, load_agents
from rlprune.training.program import TrialProgram
from rlprune.training.progress import Reporter
from rlprune.training.setup import setup_trial


def test_better_means_by_more_than_two_standard_errors() -> None:
    old = torch.tensor([1.0, 2.0, 3.0, 4.0])
    # Gains 1.5, 1.5, 1.5, -0.5: mean 1, deviation 1, standard error 0.5.
    assert not is_better(old + torch.tensor([1.5, 1.5, 1.5, -0.5]), old)
    assert is_better(old + torch.tensor([1.5, 1.5, 1.5, -0.4]), old)
    assert not is_better(old, old)


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_image_set(config_from_dict({}).data, 0)


class Pretender:
    """Stands where RLlib does: its "training" changes the agents in a given way."""

    def __init__(self, program: TrialProgram, change: Callable[[Agents], None]) -> None:
        self.program, self.change = program, change
        graph, config = program.setup.graph, program.config.agents
        self.pair = (RuntimeAgent(graph, config), StaticAgent(config))

    def train_agents(self, updates: int) -> None:
        if self.program.counters.rl_updates < updates:
            self.change(self.pair)
            self.program.counters.rl_updates = updates
            self.program.history.append({"update": float(updates)})

    def agents(self) -> Agents:
        return self.pair


def program_of(images: ImageSet) -> TrialProgram:
    config = config_from_dict(
        {
            "backbone": {"width": 0.1},
            "agents": {"hidden": 4},
            "training": {
                "pretrain_epochs": 8,
                "runtime_importance_epochs": 2,
                "batch_size": 32,
                "static_importance_epochs": 0,
                "rounds": 1,
                "updates_per_round": 1,
                "finetune_epochs": 0,
                "keep_better": True,
            },
            "evaluation": {"tradeoff_rates": [1.0], "baselines": []},
        }
    )
    return TrialProgram(setup_trial(config, images), images, "cpu", Reporter())


def spoil(agents: Agents) -> None:
    """The least keep ratio in every layer."""
    with torch.no_grad():
        agents[0].mean_head.bias.fill_(-1.0)


def mend(agents: Agents) -> None:
    """The ratio that the budget allows."""
    with torch.no_grad():
        agents[0].mean_head.bias.fill_(0.0)


@pytest.mark.parametrize(("start", "change", "kept"), [(mend, spoil, 0.0), (spoil, mend, 1.0)])
def test_the_worse_agents_of_a_round_are_put_back(
    digits: ImageSet, start: Callable[[Agents], None], change: Callable[[Agents], None], kept: float
) -> None:
    program = program_of(digits)
    trainer = Pretender(program, change)
    start(trainer.pair)
    before = agent_weights(trainer.pair)
    while program.units[program.position].phase != "learned":
        program.advance(trainer)
    assert program.history == [{"update": 1.0, "agents_kept": kept}]
    bias = trainer.pair[0].mean_head.bias.detach()
    assert float(bias) == 0.0  # in both cases the better one
    same = torch.equal(before[0]["mean_head.bias"], bias)
    assert same == (kept == 0.0)
    assert program.agents_before is None


def test_the_spread_is_not_put_back(digits: ImageSet) -> None:
    program = program_of(digits)
    agents = Pretender(program, mend).pair
    before = agent_weights(agents)
    agents[0].narrow(1.0)
    narrowed = float(agents[0].least_log_std)
    assert narrowed < float(before[0]["least_log_std"])
    load_agents(agents, before)
    assert float(agents[0].least_log_std) == narrowed


@pytest.mark.parametrize("ranked", [True, False])
def test_gated_methods_start_at_ranked_importances_and_plain_ones_do_not(
    digits: ImageSet, ranked: bool
) -> None:
    phases = ("pretrain_epochs", "runtime_importance_epochs", "static_importance_epochs", "rounds")
    config = config_from_dict(
        {
            "backbone": {"width": 0.1},
            "agents": {"hidden": 4},
            "training": dict.fromkeys(phases, 0) | {"ranked_start": ranked},
            "evaluation": {"tradeoff_rates": [1.0], "baselines": []},
        }
    )
    program = TrialProgram(setup_trial(config, digits), digits, "cpu", Reporter())
    program.advance(Pretender(program, mend))
    spread = {
        name: max(
            float(tensor.std()) for key, tensor in weights.items() if "static_importance" in key
        )
        for name, weights in program.snapshots.items()
    }
    assert spread["pretrained"] == 0.0
    assert (spread["importance"] > 0.0) == ranked
