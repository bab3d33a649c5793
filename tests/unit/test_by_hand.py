"""Gated networks and ratios set by hand, as a notebook would: costs against sums by hand."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import rlprune
from rlprune.errors import BackboneError, ConfigError
from rlprune.mdp import PruningGate
from rlprune.mdp.by_hand import gated_network, keep_ratio_gate
from rlprune.pruning import CostModel, GatedNetwork
from tests.physical import ThreeLayers, randomise

# ThreeLayers: 2 -> 4 (3x3, 36 pixels) -> 6 (3x3, 9 pixels) -> 5 (1x1, 9 pixels) -> linear 3.
# No agent ships with ratios set by hand; dense with predictors 4883 multiplications and
# 351 + 62 + 45 = 458 numbers (test_costs).


def three_layers() -> GatedNetwork:
    network = gated_network(ThreeLayers(), ThreeLayers.shape, num_classes=3)
    randomise(network, 0)
    return network


@torch.no_grad()
def run(network: GatedNetwork, images: int = 2, **ratios: object) -> PruningGate:
    gate = keep_ratio_gate(network, images, **ratios)
    torch.manual_seed(0)
    network(torch.randn(images, *network.channels.input_shape), gate)
    return gate


# --- the network ----------------------------------------------------------------------------


def test_without_a_gate_it_computes_what_the_backbone_computes() -> None:
    torch.manual_seed(0)
    backbone = ThreeLayers().eval()
    images = torch.randn(4, *ThreeLayers.shape)
    network = gated_network(copy.deepcopy(backbone), ThreeLayers.shape, num_classes=3)
    assert not network.training
    torch.testing.assert_close(network(images), backbone(images), rtol=1e-4, atol=1e-5)


def test_a_built_in_backbone_by_name() -> None:
    network = gated_network("resnet20", input_shape=(1, 16, 16), num_classes=7, width=0.5)
    assert not network.training
    assert network(torch.randn(2, 1, 16, 16)).shape == (2, 7)
    # stem and 3 x 3 blocks of two convolutions, 8 -> 16 -> 32 channels at half width; the
    # first block of the second and third stage may have a convolution as its shortcut
    widths = [layer.out_channels for layer in network.channels.layers]
    assert widths[0] == 8 and max(widths) == 32 and set(widths) == {8, 16, 32}


@pytest.mark.parametrize(
    ("arguments", "field"),
    [({"backbone": "resnet2"}, "backbone.name"), ({"width": 0.0}, "backbone.width")],
)
def test_wrong_names_and_widths(arguments: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        gated_network(**{"backbone": "resnet20", **arguments})
    assert [problem.field for problem in caught.value.problems] == [field]


def test_nothing_to_prune() -> None:
    class OnlyLinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(1))

    with pytest.raises(BackboneError):
        gated_network(OnlyLinear(), (1, 2, 2), num_classes=2)


# --- costs ----------------------------------------------------------------------------------


def test_runtime_pruning_by_hand() -> None:
    """0.5 keeps 2 of 4, 3 of 6, 3 of 5; everything stays stored."""
    gate = run(three_layers(), images=3, runtime=0.5)
    assert gate.computed.tolist() == [[2, 3, 3]] * 3
    assert gate.stored.tolist() == [[4, 6, 5]] * 3
    # 9*36*2*2 + 9*9*2*3 + 9*3*3 + 3*3 = 1872; predictors of stored channels 2*4 + 2*6 + 3*5
    assert gate.macs().tolist() == [1872 + 35] * 3
    assert gate.parameters().tolist() == [458] * 3
    assert gate.storage_bytes().tolist() == [4 * 458] * 3


def test_nothing_pruned_by_hand() -> None:
    network = three_layers()
    gate = run(network)
    assert gate.macs().tolist() == [4883] * 2
    assert gate.storage_bytes().tolist() == [4 * 458] * 2
    images = torch.randn(2, *ThreeLayers.shape)
    with torch.no_grad():
        pruned = network(images, keep_ratio_gate(network, 2))
        torch.testing.assert_close(pruned, network(images))


def test_static_pruning_by_hand() -> None:
    """R_r = 0: 2, 3, 3 channels are stored and computed; runtime ratios are not asked."""
    gate = run(three_layers(), runtime=0.1, static=0.5, tradeoff_rate=0.0)
    assert gate.computed.tolist() == gate.stored.tolist() == [[2, 3, 3]] * 2
    assert gate.macs().tolist() == [1872 + 2 * 2 + 2 * 3 + 3 * 3] * 2
    # (36 + 2) + (54 + 3) + (9 + 3), linear 12, predictors (4 + 6) + (6 + 9) + (9 + 9)
    assert gate.parameters().tolist() == [162] * 2
    assert gate.storage_bytes().tolist() == [4 * 162] * 2


def test_both_by_hand() -> None:
    """R_r = 0.5 deletes floor(0.5 * (2, 3, 2)) = 1, 1, 1 channels; all others are kept."""
    gate = run(three_layers(), static=0.5, tradeoff_rate=0.5)
    assert gate.computed.tolist() == gate.stored.tolist() == [[3, 5, 4]] * 2
    # 9*36*2*3 + 9*9*3*5 + 9*5*4 + 3*4 = 3351; predictors 2*3 + 3*5 + 5*4
    assert gate.macs().tolist() == [3351 + 41] * 2
    # (54 + 3) + (135 + 5) + (20 + 4), linear 15, predictors (6 + 9) + (15 + 15) + (20 + 12)
    assert gate.parameters().tolist() == [313] * 2
    assert gate.storage_bytes().tolist() == [4 * 313] * 2


def test_the_paper_rule_stores_everything_unless_static_only() -> None:
    network = three_layers()
    gate = run(network, static=0.5, tradeoff_rate=0.5, tradeoff="paper")
    assert gate.stored.tolist() == [[4, 6, 5]] * 2
    assert gate.computed.tolist() == [[3, 5, 4]] * 2  # M_r is empty: floor(0.5 |M_s|) dropped
    gate = run(network, static=0.5, tradeoff_rate=0.0, tradeoff="paper")
    assert gate.stored.tolist() == [[2, 3, 3]] * 2


def test_ratios_per_layer() -> None:
    gate = run(three_layers(), runtime=[0.5, 1.0, 0.2])
    assert gate.computed.tolist() == [[2, 6, 1]] * 2
    # 9*36*2*2 + 9*9*2*6 + 9*6*1 + 3*1 = 2325; predictors 2*4 + 2*6 + 6*5
    assert gate.macs().tolist() == [2325 + 50] * 2
    gate = run(three_layers(), static=(1.0, 0.5, 0.2), tradeoff_rate=0.0)
    assert gate.stored.tolist() == [[4, 3, 1]] * 2


def test_a_tiny_ratio_keeps_one_channel() -> None:
    """No least ratio alpha is imposed on what is set by hand."""
    network = gated_network("m_cifarnet", input_shape=(3, 8, 8))
    gate = run(network, runtime=1e-5)
    assert (gate.computed == 1).all()


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
def test_costs_are_those_of_the_cost_model(name: str) -> None:
    network = gated_network(name, input_shape=(3, 8, 8), width=0.25)
    randomise(network, 1)
    costs = CostModel(network.channels)
    gate = run(network, runtime=0.6, static=0.4, tradeoff_rate=0.5)
    kept = torch.stack([gate.keep[t].sum(1) for t in range(len(network.layers))], 1)
    assert torch.equal(gate.computed, kept)
    form = costs.macs(gate.stored, torch.tensor([True, True]))
    assert torch.equal(gate.macs(), form.total(kept))
    assert torch.equal(gate.storage_bytes(), costs.storage_bytes().total(gate.stored))
    assert torch.equal(gate.parameters(), costs.parameters().total(gate.stored))
    full = run(network)
    assert full.macs().tolist() == [costs.dense_macs()] * 2
    assert full.storage_bytes().tolist() == [costs.dense_bytes()] * 2


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"runtime": 0.0}, "runtime"),
        ({"runtime": -0.5}, "runtime"),
        ({"runtime": 1.01}, "runtime"),
        ({"runtime": float("nan")}, "runtime"),
        ({"runtime": [0.5, 0.5]}, "runtime"),
        ({"runtime": [0.5] * 4}, "runtime"),
        ({"runtime": []}, "runtime"),
        ({"runtime": [0.5, 0.5, 0.0]}, "runtime"),
        ({"static": 2}, "static"),
        ({"static": [1.0, 1.0, 1.5]}, "static"),
        ({"tradeoff_rate": -0.1}, "tradeoff_rate"),
        ({"tradeoff_rate": 1.1}, "tradeoff_rate"),
        ({"tradeoff_rate": float("nan")}, "tradeoff_rate"),
        ({"tradeoff": "papers"}, "pruning.tradeoff"),
    ],
)
def test_wrong_ratios_rates_and_rules(arguments: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        keep_ratio_gate(three_layers(), 2, **arguments)
    assert [problem.field for problem in caught.value.problems] == [field]


def test_the_message_says_how_many_ratios_are_needed() -> None:
    with pytest.raises(ConfigError, match=r"one number in \(0, 1\], or 3 of them, one per layer"):
        keep_ratio_gate(three_layers(), 2, runtime=[0.5, 0.5])


# --- the package ----------------------------------------------------------------------------


def test_every_public_name_is_there() -> None:
    for name in rlprune.__all__:
        assert getattr(rlprune, name) is not None
    assert rlprune.keep_ratio_gate is keep_ratio_gate
    with pytest.raises(AttributeError, match="'rlprune' has no attribute 'prune'"):
        _ = rlprune.prune


def test_the_example_of_the_package_runs_without_ray() -> None:
    code = """
import sys, torch, rlprune
torch.set_num_threads(1)
network = rlprune.gated_network("resnet20", input_shape=(3, 32, 32))
gate = rlprune.keep_ratio_gate(network, images=8, runtime=0.5)
logits = network(torch.randn(8, 3, 32, 32), gate)
print(logits.shape, len(gate.macs()), len(gate.storage_bytes()))
for name in rlprune.__all__:
    getattr(rlprune, name)
print("ray" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["torch.Size([8, 10]) 8 8", "False"]
