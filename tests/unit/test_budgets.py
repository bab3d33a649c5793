"""What a budget means in MACs and bytes, by hand, on the three layers of test_costs."""

import math

import pytest
import torch

from rlprune.agents.networks import runtime_agent_size
from rlprune.backbones import trace_backbone
from rlprune.config import BudgetConfig, PruningConfig
from rlprune.errors import BudgetError
from rlprune.pruning import BudgetBook, CostModel, Point
from tests.physical import ThreeLayers

# 2 -> 4 (3x3, 36 pixels) -> 6 (3x3, 9 pixels) -> 5 (1x1, 9 pixels) -> linear 3; agent h = 2,
# which takes 12 numbers per layer and 15 shared ones, and 20 multiplications per layer.
DENSE_MACS, DENSE_BYTES = 4821, 1404
# s = 0.5 keeps 2 of 4, 3 of 6, 3 of 5 channels:
# convolutions 9*36*2*2 + 9*9*2*3 + 9*3*3, linear 3*3: 1296 + 486 + 81 + 9 = 1872;
# predictors of all stored channels 2*4 + 2*6 + 3*5 = 35;
# agent 2*((2+4) + (2+6) + (3+5)) + 3*20 = 104
HALF_MACS = 2011


def book(alpha: float = 0.1, tradeoff: str = "permanent", **budgets: object) -> BudgetBook:
    graph = trace_backbone(ThreeLayers(), ThreeLayers.shape).channels
    none = {"storage_max": None, "compute_max": None, "compute_mean": None}
    costs = CostModel(graph, agent=runtime_agent_size(2))
    config = BudgetConfig(**{**none, **budgets})
    return BudgetBook(costs, config, PruningConfig(alpha=alpha, tradeoff=tradeoff))


# --- what a number s, a percentage and an amount mean ----------------------------------------


def test_a_number_s_is_the_cost_of_the_complete_network_at_that_ratio() -> None:
    point = book(compute_max=0.5, compute_mean=1.0).point(rate=1.0)
    assert point.compute_max == HALF_MACS
    assert point.compute_mean == 4821 + 62 + 54 + 60  # nothing pruned, predictors and agent
    assert point.storage_bytes is None


@pytest.mark.parametrize(
    ("rate", "numbers"),
    [
        # |M_s| = 2, 3, 2 of 4, 6, 5 channels at s = 0.5.
        # R_r = 0 deletes all of them; 2, 3, 3 are stored, no agent:
        # (18*2 + 2) + (9*2*3 + 3) + (3*3 + 3), linear 12: 38 + 57 + 12 + 12 = 119;
        # predictors (2*2 + 6) + (2*3 + 9) + (3*3 + 9) = 43
        (0.0, 162),
        # R_r = 0.5 deletes floor(1, 1.5, 1) = 1, 1, 1; 3, 5, 4 are stored:
        # 57 + (135 + 5) + (20 + 4) + 15 = 236; predictors (6 + 9) + (15 + 15) + (20 + 12) = 77;
        # agent 2*((2+3) + (3+5) + (5+4)) + 3*12 + 15 = 95
        (0.5, 408),
        # R_r = 0.8 deletes floor(0.4, 0.6, 0.4) = 0: as R_r = 1, everything
        (0.8, 563),
        (1.0, 563),
    ],
)
def test_storage_at_s_depends_on_the_share_that_is_static(rate: float, numbers: int) -> None:
    assert book(storage_max=0.5).point(rate).storage_bytes == 4 * numbers


def test_the_paper_rule_deletes_nothing_where_inputs_decide() -> None:
    """Some input may keep any channel: for R_r > 0 storage is 563 numbers, whatever s is."""
    budgets = book(tradeoff="paper", storage_max=0.5)
    rates = torch.tensor([0.0, 0.01, 0.5, 1.0], dtype=torch.float64)
    stored = budgets.stored_at(torch.full((4,), 0.5, dtype=torch.float64), rates)
    assert stored.tolist() == [[2, 3, 3]] + [[4, 6, 5]] * 3
    assert [budgets.point(rate).storage_bytes for rate in (0.0, 0.01, 0.5, 1.0)] == [
        4 * 162,
        4 * 563,
        4 * 563,
        4 * 563,
    ]
    permanent = book(storage_max=0.5)
    # R_r = 0.01 deletes floor(1.98, 2.97, 1.98) = 1, 2, 1
    assert permanent.stored_at(torch.full((4,), 0.5, dtype=torch.float64), rates).tolist() == [
        [2, 3, 3],
        [3, 4, 4],
        [3, 5, 4],
        [4, 6, 5],
    ]
    # what cannot be reached: at R_r = 0.5 anything below everything, at R_r = 0 as before
    budgets.check_reachable([Point(0.0, LEAST_STATIC_BYTES, None, None)])
    budgets.check_reachable([Point(0.5, 4 * 563, None, None)])
    with pytest.raises(BudgetError, match="2,252 bytes"):
        budgets.check_reachable([Point(0.5, 4 * 563 - 1, None, None)])


def test_percentages_are_of_the_dense_backbone() -> None:
    budgets = book(storage_max="40%", compute_max="40%", compute_mean="5 %")
    for rate in (0.0, 0.5, 1.0):
        point = budgets.point(rate)
        assert point.storage_bytes == pytest.approx(0.4 * DENSE_BYTES)
        assert point.compute_max == pytest.approx(0.4 * DENSE_MACS)
        assert point.compute_mean == pytest.approx(0.05 * DENSE_MACS)


def test_amounts_are_taken_as_they_are() -> None:
    point = book(storage_max="300KB", compute_max="1.5M", compute_mean=1234).point(0.5)
    assert (point.storage_bytes, point.compute_max, point.compute_mean) == (3e5, 1.5e6, 1234)
    assert book(storage_max="2KiB").point(0.5).storage_bytes == 2048


def test_a_ratio_replaces_numbers_s_and_nothing_else() -> None:
    budgets = book(storage_max="40%", compute_max=0.9, compute_mean=3000)
    point = budgets.point(1.0, ratio=0.5)
    assert point.compute_max == HALF_MACS
    assert point.storage_bytes == pytest.approx(0.4 * DENSE_BYTES)
    assert (point.compute_mean, point.ratio) == (3000, 0.5)


def test_no_budgets() -> None:
    assert book().point(0.5) == Point(0.5, None, None, None)


# --- dials ----------------------------------------------------------------------------------


def test_compute_dial_is_the_largest_s_that_fits() -> None:
    budgets = book()
    assert budgets.compute_dial(None) == 1.0
    # counts 2, 3, 3 hold up to s = 0.5; 0.505 asks for 3, 4, 3
    assert budgets.compute_dial(HALF_MACS) == pytest.approx(0.5)
    # one less: the next smaller counts are 2, 3, 2, and they hold up to s = 2/5
    assert budgets.compute_dial(HALF_MACS - 1) == pytest.approx(0.4)
    assert budgets.compute_dial(1e9) == 1.0
    assert budgets.compute_dial(1.0) == pytest.approx(0.1)  # never below alpha


def test_storage_dial_is_the_largest_s_that_fits_at_its_rate() -> None:
    budgets = book()
    assert budgets.storage_dial(None, 0.5) == 1.0
    assert budgets.storage_dial(10.0, 1.0) == 1.0  # the static agent decides nothing
    assert budgets.storage_dial(4 * 162, 0.0) == pytest.approx(0.5)
    assert budgets.storage_dial(4 * 408, 0.5) == pytest.approx(0.5)
    # At R_r = 0.5 as much is deleted down to s = 1/3 (|M_s| = 2, 3, 3 delete 1, 1, 1);
    # at and below 1/3, |M_s| = 2, 4, 3 deletes 1, 2, 1. The grid's next number is 0.33.
    assert budgets.storage_dial(4 * 408 - 1, 0.5) == pytest.approx(0.33)
    # under "paper" no s makes the model smaller at R_r = 0.5: all fit, or none does
    paper = book(tradeoff="paper")
    assert paper.storage_dial(4 * 563, 0.5) == 1.0
    assert paper.storage_dial(4 * 563 - 1, 0.5) == pytest.approx(0.1)
    assert paper.storage_dial(4 * 162, 0.0) == pytest.approx(0.5)


def test_episodes_carry_budgets_and_dials() -> None:
    budgets = book()
    points = [
        Point(1.0, None, HALF_MACS, HALF_MACS - 1),
        Point(0.5, 4 * 408, None, HALF_MACS),
        Point(0.0, 4 * 162, HALF_MACS - 1, None),
    ]
    episodes = budgets.episodes(points)
    assert episodes.rate.tolist() == [1.0, 0.5, 0.0]
    assert episodes.storage_bytes.tolist() == [math.inf, 1632, 648]
    assert episodes.compute_max.tolist() == [2011, math.inf, 2010]
    assert episodes.compute_mean.tolist() == [2010, 2011, math.inf]
    # told: the tighter of cap and mean
    assert episodes.compute_dial.tolist() == pytest.approx([0.4, 0.5, 0.4])
    assert episodes.cap_dial.tolist() == pytest.approx([0.5, 1.0, 0.4])
    assert episodes.storage_dial.tolist() == pytest.approx([1.0, 0.5, 0.5])
    chosen = episodes.select(torch.tensor([2, 0, 0]))
    assert chosen.rate.tolist() == [0.0, 1.0, 1.0]
    assert chosen.cap_dial.tolist() == pytest.approx([0.4, 0.5, 0.5])


def test_table_remembers() -> None:
    budgets = book(compute_max=0.5)
    points = (budgets.point(1.0),)
    assert budgets.table(points) is budgets.table(points)
    assert budgets.table(points).compute_max.tolist() == [HALF_MACS]


# --- what cannot be reached -----------------------------------------------------------------

# alpha = 0.1 keeps one channel per layer.
# R_r = 1: convolutions 9*36*2 + 9*9 + 9, linear 3 = 741; predictors of all stored channels
# 2*4 + 1*6 + 1*5 = 19; agent 2*((2+4) + (1+6) + (1+5)) + 60 = 98
LEAST_MACS = 858
# R_r = 0: predictors 2*1 + 1 + 1 = 4, no agent
LEAST_STATIC_MACS = 745
# R_r = 0 stores 1, 1, 1: (18 + 1) + (9 + 1) + (1 + 1), linear 6 = 37; predictors 5 + 4 + 4
LEAST_STATIC_BYTES = 4 * 50
# R_r = 0.5: |M_s| = 3, 5, 4 deletes 1, 2, 2; stored 3, 4, 3:
# 57 + (108 + 4) + (12 + 3) + 12 = 196; predictors 15 + 24 + 21; agent 2*(5 + 7 + 7) + 51
LEAST_HALF_BYTES = 4 * 345


def test_the_least_that_can_be_reached_is_accepted() -> None:
    budgets = book()
    budgets.check_reachable(
        [
            Point(1.0, DENSE_BYTES * 2.0, LEAST_MACS, LEAST_MACS),
            Point(0.5, LEAST_HALF_BYTES, LEAST_MACS, None),
            Point(0.0, LEAST_STATIC_BYTES, LEAST_STATIC_MACS, LEAST_STATIC_MACS),
            Point(0.5, None, None, None),
        ]
    )
    for short in (
        Point(1.0, None, LEAST_MACS - 1, None),
        Point(0.5, LEAST_HALF_BYTES - 1, None, None),
        Point(0.0, LEAST_STATIC_BYTES - 1, None, None),
    ):
        with pytest.raises(BudgetError):
            budgets.check_reachable([short])


@pytest.mark.parametrize(
    ("point", "field", "reached"),
    [
        (Point(1.0, None, LEAST_MACS - 1, None), "compute_max at R_r = 1", "858 MACs"),
        (Point(1.0, None, None, LEAST_MACS - 1), "compute_mean at R_r = 1", "858 MACs"),
        (Point(0.0, None, LEAST_STATIC_MACS - 1, None), "compute_max at R_r = 0", "745 MACs"),
        (Point(0.0, LEAST_STATIC_BYTES - 1, None, None), "storage_max at R_r = 0", "200 bytes"),
        (Point(0.5, LEAST_HALF_BYTES - 1, None, None), "storage_max at R_r = 0.5", "1,380 bytes"),
        (Point(1.0, 2251, None, None), "storage_max at R_r = 1", "2,252 bytes"),
    ],
)
def test_one_less_is_refused_and_the_message_says_what_can_be_reached(
    point: Point, field: str, reached: str
) -> None:
    with pytest.raises(BudgetError) as caught:
        book().check_reachable([point])
    text = str(caught.value)
    assert f"budgets.{field}" in text
    assert f"alpha = 0.1 can reach {reached} at best" in text
    assert "Raise the budget, lower pruning.alpha" in text
    assert ("lower R_r" in text) == ("storage" in field)
    assert caught.value.exit_status == 2


def test_all_unreachable_budgets_are_listed() -> None:
    points = [Point(0.0, 10, 20, 30), Point(1.0, None, 40, None)]
    with pytest.raises(BudgetError) as caught:
        book().check_reachable(points)
    assert [problem.field for problem in caught.value.problems] == [
        "budgets.storage_max at R_r = 0",
        "budgets.compute_max at R_r = 0",
        "budgets.compute_mean at R_r = 0",
        "budgets.compute_max at R_r = 1",
    ]
    assert str(caught.value).startswith("4 problems found, nothing was started:")


def test_a_larger_alpha_reaches_less() -> None:
    with pytest.raises(BudgetError, match=r"alpha = 0\.5 can reach 2,011 MACs"):
        book(alpha=0.5).check_reachable([Point(1.0, None, HALF_MACS - 1, None)])
