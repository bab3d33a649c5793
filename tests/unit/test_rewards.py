"""Rewards against numbers worked out by hand."""

import math

import pytest
import torch

from rlprune.mdp.reward import (
    PriceCurve,
    accuracy_term,
    compute_term,
    leave_one_out,
    mean_compute_term,
    storage_term,
)

INF = float("inf")
# -1.2 * (exp((B - B_max) / 0.03) - 1) for overruns of 0.03, 0.06 and 0.003
ONE_SCALE_OVER = -2.0619381942  # e = 2.7182818285: -1.2 * 1.7182818285
TWO_SCALES_OVER = -7.6668673187  # e^2 = 7.3890560989: -1.2 * 6.3890560989
TENTH_OVER = -0.1262051017  # e^0.1 = 1.1051709181: -1.2 * 0.1051709181


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_accuracy_is_the_loss_over_its_average() -> None:
    assert accuracy_term(numbers(2.0, 1.0, 0.0), 2.0).tolist() == [-1.0, -0.5, 0.0]


def test_an_enormous_loss_counts_as_five_nats() -> None:
    losses = numbers(4.0, 5.0, 1269.0, math.inf, math.nan)
    assert accuracy_term(losses, 1.0).tolist() == [-4.0, -5.0, -5.0, -5.0, -5.0]


def test_compute_term_penalises_overruns_and_pays_for_savings() -> None:
    cost = numbers(0.53, 0.56, 0.503, 0.3, 0.5)
    budget = numbers(0.5, 0.5, 0.5, 0.5, 0.5)
    expected = [ONE_SCALE_OVER, TWO_SCALES_OVER, TENTH_OVER, 0.02, 0.0]  # 0.1 * (0.5 - 0.3)
    assert compute_term(cost, budget).tolist() == pytest.approx(expected, abs=1e-9)


def test_storage_term_has_the_penalty_and_no_bonus() -> None:
    cost, budget = numbers(0.53, 0.56, 0.3, 0.5), numbers(0.5, 0.5, 0.5, 0.5)
    expected = [ONE_SCALE_OVER, TWO_SCALES_OVER, 0.0, 0.0]
    assert storage_term(cost, budget).tolist() == pytest.approx(expected, abs=1e-9)


def test_without_a_budget_there_is_no_term() -> None:
    cost, none = numbers(0.2, 3.0), numbers(INF, INF)
    assert compute_term(cost, none).tolist() == [0.0, 0.0]
    assert storage_term(cost, none).tolist() == [0.0, 0.0]
    assert mean_compute_term(cost, none, numbers(0.0, 2.0)).tolist() == [0.0, 0.0]


def test_huge_overruns_stay_finite() -> None:
    """Beyond 0.15 = 5 scales nothing gets worse: -1.2 * (e^5 - 1), e^5 = 148.4131591026."""
    for term in (compute_term, storage_term):
        penalty = term(numbers(50.0, 0.9, 0.26, 0.22), numbers(0.1, 0.1, 0.1, 0.1))
        assert penalty[0] == penalty[1] == penalty[2]
        assert penalty[0].item() == pytest.approx(-176.8957909231, rel=1e-11)
        # 4 scales: e^4 = 54.5981500331
        assert penalty[3].item() == pytest.approx(-64.3177800398, rel=1e-9)


def test_mean_compute_term_is_a_price_on_the_distance() -> None:
    terms = mean_compute_term(numbers(0.5, 0.2), numbers(0.4, 0.4), numbers(2.0, 2.0))
    assert terms.tolist() == pytest.approx([-0.5, 1.0])


# --- baseline -------------------------------------------------------------------------------


def test_leave_one_out() -> None:
    rewards = numbers(1, 2, 3, 4, 4, 10)
    # 1 - (2+3)/2, 2 - (1+3)/2, 3 - (1+2)/2; 4 - (4+10)/2, again, 10 - (4+4)/2
    assert leave_one_out(rewards, 3).tolist() == [-1.5, 0.0, 1.5, -3.0, -3.0, 6.0]


def test_leave_one_out_of_single_episodes_changes_nothing() -> None:
    assert leave_one_out(numbers(1, -2), 1).tolist() == [1.0, -2.0]


def test_the_baseline_ignores_the_own_reward_and_other_images() -> None:
    before = leave_one_out(numbers(1, 2, 5, 7), 2)
    after = leave_one_out(numbers(1, 2, 5, 9), 2)
    assert before.tolist()[:2] == after.tolist()[:2]
    assert after[3] - before[3] == 2.0


# --- price ----------------------------------------------------------------------------------


def test_price_is_linear_between_the_knots_and_constant_outside() -> None:
    curve = PriceCurve([0.2, 0.4, 0.6], [1.0, 2.0, 4.0])
    prices = curve.price(numbers(0.3, 0.5, 0.4, 0.1, 0.9))
    assert prices.tolist() == pytest.approx([1.5, 3.0, 2.0, 1.0, 4.0])


def test_curve_over_a_range_and_over_a_point() -> None:
    curve = PriceCurve.over(0.2, 0.6, count=3, price=1.5)
    assert curve.knots == pytest.approx([0.2, 0.4, 0.6]) and curve.prices == [1.5] * 3
    point = PriceCurve.over(0.25, 0.25)
    assert point.knots == [0.25] and point.price(numbers(0.1, 0.25)).tolist() == [0.3, 0.3]


def test_dual_step_is_shared_out_between_the_knots() -> None:
    curve = PriceCurve([0.2, 0.4, 0.6], [1.0, 2.0, 4.0], step=0.2)
    # Target 0.2 (all on knot 0) overspends by half of itself, 0.3 (half on 0, half on 1)
    # by nothing: knot 0 sees (1 * 0.5 + 0.5 * 0) / 1.5 = 1/3, knot 1 sees 0, knot 2 nothing.
    curve.update(numbers(0.2, 0.3), numbers(0.3, 0.3))
    assert curve.prices == pytest.approx([1.0 + 0.2 / 3, 2.0, 4.0])


def test_episodes_without_a_target_have_no_say_in_the_price() -> None:
    curve = PriceCurve([0.2, 0.4, 0.6], [1.0, 2.0, 4.0], step=0.2)
    curve.update(numbers(0.2, INF, 0.3, INF), numbers(0.3, 9.0, 0.3, 0.0))
    assert curve.prices == pytest.approx([1.0 + 0.2 / 3, 2.0, 4.0])  # as without them
    before = list(curve.prices)
    curve.update(numbers(INF, INF), numbers(0.3, 0.9))
    assert curve.prices == before


def test_what_is_charged_answers_the_present_excess_at_once() -> None:
    curve = PriceCurve([0.5], [0.3], step=0.1, gain=0.5)
    assert curve.charged() == [0.3]
    curve.update(numbers(0.5), numbers(0.7))  # 0.4 above; half of it enters the average
    assert curve.prices == pytest.approx([0.34])
    assert curve.charged() == pytest.approx([0.34 + 0.5 * 0.2])
    assert curve.price(numbers(0.5)).tolist() == pytest.approx([0.44])
    curve.update(numbers(0.5), numbers(0.1))  # 0.8 below: average 0.2 + (-0.8 - 0.2) / 2 = -0.3
    assert curve.prices == pytest.approx([0.26])
    assert curve.charged() == pytest.approx([0.11])
    curve.update(numbers(0.5), numbers(0.1))  # average -0.55, price 0.18
    assert curve.charged() == [0.0]  # compute is never paid for


def test_price_falls_below_the_target_and_never_below_zero() -> None:
    curve = PriceCurve([0.5], [0.15], step=0.2)
    curve.update(numbers(0.5, 0.5), numbers(0.25, 0.25))  # half of the target is spent
    assert curve.prices == pytest.approx([0.05])  # 0.15 - 0.2 * 0.5
    curve.update(numbers(0.5, 0.5), numbers(0.25, 0.25))
    assert curve.prices == [0.0]
