"""Masks and the two trade-off rules, on examples small enough to do by hand."""

import pytest
import torch

from rlprune.pruning import (
    cap_keep,
    kept_count,
    permanent_count,
    permanent_mask,
    tradeoff_keep,
)
from rlprune.pruning.masks import importance_order, lowest_members, share

RULES = ("permanent", "paper")


def channels(mask: torch.Tensor) -> list[int]:
    """Indices of the True entries of one row."""
    return mask.nonzero().flatten().tolist()


# --- counts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "total", "count"),
    [
        (0.5, 5, 3),  # ceil(2.5)
        (0.5, 4, 2),
        (0.1, 64, 7),  # ceil(6.4)
        (0.101, 10, 2),  # ceil(1.01)
        (1.0, 7, 7),
        (0.0, 7, 1),  # at least one
        (-0.3, 7, 1),
        (1.4, 7, 7),  # at most all
        # In binary 0.3 x 10, 0.07 x 100 and 0.29 x 100 lie above 3, 7 and 28.99...
        (0.3, 10, 3),
        (0.07, 100, 7),
        (0.29, 100, 29),
        (0.1 + 0.2, 10, 3),
        (0.55, 20, 11),
    ],
)
def test_kept_count(ratio: float, total: int, count: int) -> None:
    assert kept_count(torch.tensor([ratio], dtype=torch.float64), total).tolist() == [count]


def test_kept_count_of_every_exact_fraction() -> None:
    """k channels of C, written as the decimal number k / C, are k channels."""
    for total in range(1, 200):
        counts = torch.arange(1, total + 1)
        assert torch.equal(kept_count(counts.double() / total, total), counts)


def test_kept_count_of_single_precision_ratios() -> None:
    """Agents and anchored policies answer in float32: 0.6 x 160 = 96 all the same."""
    assert kept_count(torch.tensor([0.6, 0.3]), 160).tolist() == [96, 48]


def test_kept_count_broadcasts() -> None:
    ratios = torch.tensor([[0.5], [0.25]])
    counts = kept_count(ratios, torch.tensor([4, 6, 5]))
    assert counts.tolist() == [[2, 3, 3], [1, 2, 2]]  # 0.5 and 0.25 of 4, 6, 5, rounded up
    assert counts.dtype == torch.int64


@pytest.mark.parametrize(
    ("rate", "static_kept", "deleted"),
    [(0.0, 4, 6), (0.5, 4, 3), (0.5, 3, 3), (0.3, 0, 7), (0.7, 0, 3), (0.9, 0, 1), (1.0, 1, 0)],
)
def test_permanent_count(rate: float, static_kept: int, deleted: int) -> None:
    """floor((1 - R_r) |M_s|) of 10 channels; (1 - 0.7) x 10 is 3, not binary 2.999..."""
    rates = torch.tensor([rate], dtype=torch.float64)
    assert permanent_count(rates, torch.tensor([static_kept]), 10).tolist() == [deleted]


def test_share_rounds_down() -> None:
    rates = torch.tensor([0.5, 0.5, 0.29, 1.0], dtype=torch.float64)
    assert share(rates, torch.tensor([5, 4, 100, 3])).tolist() == [2, 2, 29, 3]


# --- order and selection --------------------------------------------------------------------


def test_order_breaks_ties_by_index() -> None:
    assert importance_order(torch.tensor([[2.0, 1.0, 2.0, 1.0]])).tolist() == [[1, 3, 0, 2]]


def test_lowest_members_passes_over_the_others() -> None:
    order = torch.tensor([[3, 0, 2, 1], [3, 0, 2, 1]])
    members = torch.tensor([[True, True, True, False], [True, True, False, False]])
    taken = lowest_members(order, members, torch.tensor([2, 5]))
    assert channels(taken[0]) == [0, 2]
    assert channels(taken[1]) == [0, 1]  # more are asked for than there are


# --- the trade-off --------------------------------------------------------------------------

# Six channels; the static agent keeps 2 of them, the runtime agent 3, for three inputs.
STATIC = torch.tensor([0.5, 0.1, 0.2, 0.6, 0.4, 0.3])  # M_s = {1, 2, 5, 4}, least first
RUNTIME = torch.tensor(
    [
        [0.1, 0.6, 0.2, 0.5, 0.3, 0.4],  # M_r = {0, 2, 4}; M_o = {2, 4}; M_r - M_o = {0}
        [0.1, 0.2, 0.6, 0.3, 0.5, 0.4],  # M_r = {0, 1, 3}; M_o = {1}; M_r - M_o = {0, 3}
        [0.6, 0.1, 0.2, 0.5, 0.4, 0.3],  # M_r = {1, 2, 5} = M_o
    ]
)


def example(rate: float, rule: str) -> tuple[list[list[int]], list[list[int]]]:
    """(kept, stored) channels of the three inputs."""
    masks = tradeoff_keep(
        RUNTIME,
        STATIC,
        torch.tensor([3, 3, 3]),
        torch.tensor([2, 2, 2]),
        torch.full((3,), rate, dtype=torch.float64),
        rule,
    )
    return [channels(row) for row in masks.keep], [channels(row) for row in masks.keep_stored]


@pytest.mark.parametrize("rule", RULES)
def test_rate_one_is_the_runtime_vote_alone(rule: str) -> None:
    kept, stored = example(1.0, rule)
    assert kept == [[1, 3, 5], [2, 4, 5], [0, 3, 4]]
    assert stored == [[0, 1, 2, 3, 4, 5]] * 3


@pytest.mark.parametrize("rule", RULES)
def test_rate_zero_is_the_static_vote_alone(rule: str) -> None:
    kept, stored = example(0.0, rule)
    assert kept == stored == [[0, 3]] * 3


def test_rate_one_half_permanent() -> None:
    """P = lowest floor(0.5 * 4) = 2 of M_s = {1, 2} for every input; they come first in M_r.

    Inputs 0 and 1: M_r = {1, 2, 0}, M_o = {1, 2}, floor(0.5 * |{0}|) = 0: pruned {1, 2}.
    Input 2: M_r = M_o = {1, 2, 5}: pruned {1, 2, 5}.
    """
    kept, stored = example(0.5, "permanent")
    assert kept == [[0, 3, 4, 5], [0, 3, 4, 5], [0, 3, 4]]
    assert stored == [[0, 3, 4, 5]] * 3


def test_rate_one_half_permanent_with_votes_of_both() -> None:
    """Runtime keeps 2, static 3: M_s = {1, 2, 5}, P = lowest floor(0.5 * 3) = 1 of it = {1}.

    Input 0: 1 before 0, 2, 4, 5, 3, so M_r = {1, 0, 2, 4}; M_o = {1, 2}, and
    floor(0.5 * |{0, 4}|) = 1 runtime vote, channel 0: pruned {0, 1, 2}.
    Input 1: 1 before 0, 3, 5, 4, 2, so M_r = {1, 0, 3, 5}; M_o = {1, 5}, and
    floor(0.5 * |{0, 3}|) = 1 runtime vote, channel 0: pruned {0, 1, 5}.
    Input 2: 1 before 2, 5, 4, 3, 0, so M_r = {1, 2, 5, 4}; M_o = {1, 2, 5}, and
    floor(0.5 * |{4}|) = 0: pruned {1, 2, 5}.
    """
    masks = tradeoff_keep(
        RUNTIME,
        STATIC,
        torch.tensor([2, 2, 2]),
        torch.tensor([3, 3, 3]),
        torch.full((3,), 0.5, dtype=torch.float64),
    )
    assert [channels(row) for row in masks.keep] == [[3, 4, 5], [2, 3, 4], [0, 3, 4]]
    assert [channels(row) for row in masks.keep_stored] == [[0, 2, 3, 4, 5]] * 3


def test_permanent_mask() -> None:
    """Static keeps 2: M_s = {1, 2, 5, 4}, least first; of it floor((1 - R_r) 4) for good."""
    rates = torch.tensor([0.0, 0.25, 0.5, 0.9, 1.0], dtype=torch.float64)
    kept = torch.full((5,), 2)
    permanent = permanent_mask(STATIC, kept, rates, "permanent")
    assert [channels(row) for row in permanent] == [[1, 2, 4, 5], [1, 2, 5], [1, 2], [], []]
    paper = permanent_mask(STATIC, kept, rates, "paper")
    assert [channels(row) for row in paper] == [[1, 2, 4, 5], [], [], [], []]
    # every row its own u_s and keep count
    importance = torch.stack([STATIC, -STATIC])  # the latter: M_s = {3, 0, 4}, least first
    mask = permanent_mask(importance, torch.tensor([5, 3]), rates[[0, 2]], "permanent")
    assert [channels(row) for row in mask] == [[1], [3]]


def test_a_known_permanent_mask_changes_nothing() -> None:
    given = (RUNTIME, STATIC, torch.tensor([2, 3, 4]), torch.tensor([2, 3, 2]))
    rate = torch.tensor([0.25, 0.5, 0.0], dtype=torch.float64)
    for rule in RULES:
        known = permanent_mask(STATIC, given[3], rate, rule)
        found, again = tradeoff_keep(*given, rate, rule), tradeoff_keep(*given, rate, rule, known)
        assert torch.equal(found.keep, again.keep)
        assert torch.equal(found.keep_stored, again.keep_stored)
        assert torch.equal(again.keep_stored, ~known)


@pytest.mark.parametrize("rule", RULES)
def test_the_runtime_importance_of_deleted_channels_is_not_looked_at(rule: str) -> None:
    """P = {1, 2} at R_r = 0.5 under "permanent", and {1, 2, 5, 4} at R_r = 0 under both."""
    rate = torch.full((3,), 0.5 if rule == "permanent" else 0.0, dtype=torch.float64)
    given = (STATIC, torch.tensor([3, 3, 3]), torch.tensor([2, 2, 2]), rate, rule)
    before = tradeoff_keep(RUNTIME, *given)
    for value in (-9.0, 9.0):
        changed = RUNTIME.clone()
        changed[:, [1, 2]] = value
        assert torch.equal(tradeoff_keep(changed, *given).keep, before.keep)


def test_rate_one_half_paper() -> None:
    """Static votes beside M_o. Input 0: floor(0.5 * |{1, 5}|) = 1, channel 1; input 1:
    floor(0.5 * |{2, 5, 4}|) = 1, channel 2; input 2: floor(0.5 * |{4}|) = 0."""
    kept, stored = example(0.5, "paper")
    assert kept == [[0, 3, 5], [3, 4, 5], [0, 3, 4]]
    assert stored == [[0, 1, 2, 3, 4, 5]] * 3


def test_at_rate_one_quarter_only_permanent_deletes_what_the_paper_claims() -> None:
    """The lowest floor(0.75 * 4) = 3 static channels are {1, 2, 5}. Under the paper's rule
    channel 5 survives for input 0: beside M_o = {2, 4} only floor(0.75 * |{1, 5}|) = 1
    static vote is pruned. Runtime votes: floor(0.25 * 1 or 2) = 0. Under "permanent" the
    three deleted channels are the three that the runtime agent may drop: M_r = M_o = P."""
    kept, stored = example(0.25, "paper")
    # input 1: M_o = {1}, then floor(0.75 * |{2, 5, 4}|) = 2, channels 2 and 5
    assert kept == [[0, 3, 5], [0, 3, 4], [0, 3, 4]]
    assert stored[0] == [0, 1, 2, 3, 4, 5]
    kept, stored = example(0.25, "permanent")
    assert kept == stored == [[0, 3, 4]] * 3


def test_every_row_has_its_own_counts_rate_and_static_importance() -> None:
    masks = tradeoff_keep(
        torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]),
        torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]),
        torch.tensor([1, 2, 3]),
        torch.tensor([3, 1, 2]),
        torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64),
    )
    # row 0: the runtime agent keeps one, the best; row 1: the static agent does; row 2:
    # M_r is empty, M_s = {2}, floor(0.5 * 1) = 0 are deleted
    assert [channels(row) for row in masks.keep] == [[2], [0], [0, 1, 2]]
    assert [channels(row) for row in masks.keep_stored] == [[0, 1, 2], [0], [0, 1, 2]]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_opposite_votes_for_a_single_channel_leave_one(rule: str, rate: float) -> None:
    """Both keep one of 2..6 channels, and not the same one."""
    for total in range(2, 7):
        importance = torch.arange(total).float()
        masks = tradeoff_keep(
            importance.unsqueeze(0),
            -importance,
            torch.tensor([1]),
            torch.tensor([1]),
            torch.tensor([rate], dtype=torch.float64),
            rule,
        )
        assert masks.keep.sum() >= 1


# --- the cap --------------------------------------------------------------------------------


def test_cap_drops_the_least_important_of_the_kept() -> None:
    importance = torch.tensor([[0.3, 0.1, 0.4, 0.2], [0.3, 0.1, 0.4, 0.2], [0.3, 0.1, 0.4, 0.2]])
    keep = torch.tensor([[True] * 4, [True, False, True, True], [False, True, False, True]])
    capped = cap_keep(keep, importance, torch.tensor([3, 1, 3]))
    # row 0 loses channel 1; row 1 loses 3 and 0; row 2 is within its cap
    assert [channels(row) for row in capped] == [[0, 2, 3], [2], [1, 3]]


def test_cap_above_all_counts_changes_nothing() -> None:
    keep = torch.tensor([[True, False, True]])
    assert torch.equal(cap_keep(keep, torch.zeros(1, 3), torch.tensor([2])), keep)
