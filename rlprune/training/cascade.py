"""The confidence cascade: a small uniform network, and a large one where it is unsure (no Ray).

Every image goes through the small network. Where the largest softmax probability is below a
threshold the large network runs as well, from the image on, and its answer counts. Such an
image costs both passes, and the weights of both networks are stored. The threshold is chosen
on the validation images, so that the mean cost comes as near as it can below the budget.

The rival of a runtime agent under a budget for the mean compute: it too spends more on hard
images, without learning to. It is treated generously: each of its two networks is fine-tuned
on as many images as the one network of every other method.

Legend: N images, T prunable layers, s the number of a uniform network (``BudgetConfig``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlprune.pruning import BudgetBook, EpisodeBudgets, GatedNetwork, Point
from rlprune.training import methods
from rlprune.training.evaluate import Evaluator, Measurement, Passes, budgets_met
from rlprune.training.methods import Method
from rlprune.training.setup import TrialSetup

SMALL, LARGE = "cascade_small", "cascade"
"""The phases that train the two networks; the second is the method's name too."""

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Pair:
    """Sizes of the two networks, as multiples of the number s that the budget allows one."""

    small: float
    large: float


CANDIDATES = tuple(Pair(small, large) for small in (0.5, 0.7, 0.85) for large in (1.3, 1.7, 2.2))


def members(setup: TrialSetup, pair: Pair) -> tuple[Method, Method]:
    """The small and the large network's method: uniform, but told budgets of their own."""
    return _member(setup, pair, SMALL), _member(setup, pair, LARGE)


def _member(setup: TrialSetup, pair: Pair, name: str) -> Method:
    method = methods.uniform(setup)

    def told(budgets: EpisodeBudgets) -> EpisodeBudgets:
        distinct, index = budgets.distinct()
        return member_budgets(method.book, distinct, pair, large=name == LARGE).select(index)

    return replace(method, name=name, told=told)


def member_budgets(
    book: BudgetBook, budgets: EpisodeBudgets, pair: Pair, large: bool
) -> EpisodeBudgets:
    """The budgets of one of the two networks.

    Its number s is the pair's multiple of the budget's, at least alpha and at most 1. What
    the small network costs is taken from the cap on any image before the large one gets it.
    For good it deletes what ``uniform`` deletes at the same budgets, unless it computes more:
    a storage budget is for one network, two are held against it and usually miss it.

    Args:
        book: of the networks' own costs.
        budgets: of the trial, one row per different episode.
        pair: sizes.
        large: which network.
    """
    number = (pair.small * budgets.compute_dial).clamp(min=book.alpha)
    cap, cap_dial = budgets.compute_max, budgets.cap_dial
    if large:
        cap = cap - _column([book.macs_at(small) for small in number.tolist()])
        cap_dial = _column([book.compute_dial(macs) for macs in cap.tolist()])
        number = torch.minimum(pair.large * budgets.compute_dial, cap_dial).clamp(book.alpha, 1.0)
    return replace(
        budgets,
        storage_bytes=torch.full_like(budgets.storage_bytes, float("inf")),
        storage_dial=torch.maximum(budgets.storage_dial, number),
        compute_max=cap,
        compute_dial=number,
        cap_dial=cap_dial,
    )


def _column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def confidence_threshold(small: Passes, large: Passes, mean_budget: float) -> float:
    """The threshold below which images are sent on, for the largest mean cost in the budget.

    Images are sent on in the order of their confidence for as long as the budget lasts;
    images of equal confidence all or none.

    Args:
        small, large: the two networks on the same images.
        mean_budget: MACs per image.

    Returns:
        The confidence of the first image that is not sent on, infinity where all are: every
        image of less confidence is. Where the small network alone exceeds the budget, the
        least confidence of all: none is.
    """
    confidence, order = small.confidence.sort(stable=True)
    spent = small.macs.sum() + large.macs[order].cumsum(0)
    affordable = int((spent <= mean_budget * len(order)).sum())
    return float(confidence[affordable]) if affordable < len(order) else float("inf")


def cascaded(small: Passes, large: Passes, threshold: float) -> Passes:
    """What the pair does together: answers of the last network that ran, costs of all.

    ``computed`` is that of the last pass alone: its sum over two passes could exceed the
    channels that a layer has; which channels depend on the image is not counted. ``stored`` is
    the larger of the two, layer by layer. Numbers and bytes are those of both networks.
    """
    sent = small.confidence < threshold
    rows = sent.unsqueeze(1)
    return Passes(
        losses=torch.where(sent, large.losses, small.losses),
        hits=torch.where(rows, large.hits, small.hits),
        confidence=torch.where(sent, large.confidence, small.confidence),
        macs=small.macs + torch.where(sent, large.macs, torch.zeros_like(large.macs)),
        computed=torch.where(rows, large.computed, small.computed),
        stored=torch.maximum(small.stored, large.stored),
        parameters=small.parameters + large.parameters,
        storage_bytes=small.storage_bytes + large.storage_bytes,
    )


def choose(
    evaluator: Evaluator,
    network: GatedNetwork,
    setup: TrialSetup,
    points: Sequence[Point],
    report: Callable[[int, float], None],
) -> Pair:
    """The candidate that is most accurate on validation over all points, before fine-tuning.

    Both networks are ``network`` still, at different ratios. What keeps the compute budgets
    at more points comes before what is more accurate; of equals the first is taken.

    Args:
        evaluator: has the images.
        network: with importances; its BatchNorm statistics are changed.
        setup: of the trial.
        points: budgets and R_r > 0.
        report: called with (candidates done, best accuracy) after each.
    """
    known: dict[tuple[float, ...], Passes] = {}

    def run(part: Method, point: Point) -> Passes:
        budgets = part.book.episodes([point])
        key = tuple(part.told(budgets).rows().flatten().tolist())
        if key not in known:
            network.set_predictors(part.predictors, part.boosted)
            evaluator.prepare(network, part, budgets)
            known[key] = evaluator.passes(network, part, budgets, evaluator.images.validation)
        return known[key]

    best, chosen = (-1, 0.0), CANDIDATES[0]
    for index, pair in enumerate(CANDIDATES):
        parts = members(setup, pair)
        kept, accuracy = 0, 0.0
        for point in points:
            small, large = (run(part, point) for part in parts)
            limit = confidence_threshold(small, large, _mean_budget(point))
            result = cascaded(small, large, limit).result(len(evaluator.images.class_names))
            kept += budgets_met(replace(point, storage_bytes=None), result, result)
            accuracy += result.accuracy / len(points)
        if (kept, accuracy) > best:
            best, chosen = (kept, accuracy), pair
        report(index + 1, best[1])
    return chosen


def _mean_budget(point: Point) -> float:
    return float("inf") if point.compute_mean is None else point.compute_mean


def measure(
    evaluator: Evaluator,
    network: GatedNetwork,
    weights: tuple[Weights, Weights],
    parts: tuple[Method, Method],
    point: Point,
) -> Measurement:
    """Measures the pair at a point with R_r > 0; the threshold is that of validation.

    Both networks run on every image, in turn; what is counted is what would have to run.

    Args:
        evaluator: has the images.
        network: that the weights are loaded into; left with the second ones.
        weights: of the small and of the large network.
        parts: their methods (:func:`members`).
        point: budgets and R_r.
    """
    started = time.perf_counter()
    images = evaluator.images
    splits = (images.validation, images.test)
    runs: list[list[Passes]] = []
    for state, part in zip(weights, parts, strict=True):
        network.load_state_dict(state)
        network.set_predictors(part.predictors, part.boosted)
        budgets = part.book.episodes([point])
        evaluator.prepare(network, part, budgets)
        runs.append([evaluator.passes(network, part, budgets, split) for split in splits])
    small, large = runs
    limit = confidence_threshold(small[0], large[0], _mean_budget(point))
    validation, test = (
        cascaded(first, second, limit).result(len(images.class_names))
        for first, second in zip(small, large, strict=True)
    )
    dial = float(parts[0].book.episodes([point]).compute_dial[0])
    met = budgets_met(point, validation, test)
    seconds = time.perf_counter() - started
    return Measurement(LARGE, point, dial, validation, test, seconds, met)
