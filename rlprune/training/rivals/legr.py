"""LeGR: an evolutionary search for what makes filters' norms comparable over layers.

Legend: T layers, M_l norms of layer l's filters.

Source: Chin et al. 2020, "Towards Efficient Model Compression via Learned Global Ranking".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rlprune.pruning import GatedNetwork
from rlprune.training.rivals.bench import Bench, Fitted
from rlprune.training.rivals.filters import filters_of, squared_norms
from rlprune.training.rivals.selection import SelectedMethod, global_threshold, selected
from rlprune.training.setup import TrialSetup

_MUTATED = 0.1
"""Share of the layers that a mutation changes, one at least."""


@dataclass(frozen=True)
class Affine:
    """A candidate: alpha and kappa of every layer, float64 [T] each."""

    alpha: NDArray[np.float64]
    kappa: NDArray[np.float64]


def ranks(norms: tuple[Tensor, ...], affine: Affine) -> tuple[Tensor, ...]:
    """alpha_l * M_l + kappa_l for every filter, [C] per layer; M is the squared norm.

    Source: Chin et al. 2020, Sec. 3, the affine transform of the layers' norms.
    """
    return tuple(
        float(alpha) * part.double() + float(kappa)
        for part, alpha, kappa in zip(norms, affine.alpha, affine.kappa, strict=True)
    )


def mutated(
    parent: Affine, spreads: NDArray[np.float64], scale: float, rng: np.random.Generator
) -> Affine:
    """Some layers' alpha times exp(N(0, scale)), their kappa plus N(0, scale * spread).

    Args:
        parent: unchanged.
        spreads: standard deviation of every layer's norms, [T].
        scale: of the step.
        rng: source of all randomness.
    """
    layers = len(spreads)
    chosen = rng.permutation(layers)[: max(1, round(_MUTATED * layers))]
    alpha, kappa = parent.alpha.copy(), parent.kappa.copy()
    alpha[chosen] *= np.exp(rng.normal(0.0, scale, len(chosen)))
    kappa[chosen] += rng.normal(0.0, 1.0, len(chosen)) * scale * spreads[chosen]
    return Affine(alpha, kappa)


def fit(bench: Bench) -> Fitted:
    """Regularised evolution: the oldest of the population gives way to a child of the best.

    The first candidate ranks by the norms as they are. Candidates are measured on the
    validation images.

    Source: Real et al. 2019, "Regularized Evolution for Image Classifier Architecture Search",
    as Chin et al. use it. Deviations: a candidate is fine-tuned for ``methods.search_steps``
    steps (the paper: 200) and measured with BatchNorm re-estimated; population and candidates
    are as few as every searching method gets (``methods.search_candidates``; the paper: 64, 400).
    """
    norms = tuple(squared_norms(part).cpu() for part in filters_of(bench.network))
    spreads = np.array([float(part.std(correction=0)) for part in norms])
    rng, layers = bench.generator(1), len(norms)
    size = min(64, max(2, bench.candidates // 4))
    population: list[tuple[float, Affine]] = []
    best: tuple[float, Affine] | None = None
    start = Affine(np.ones(layers), np.zeros(layers))
    for index in range(bench.candidates):
        progress = index / max(1, bench.candidates)
        if index == 0:
            candidate = start
        elif len(population) < size:
            candidate = Affine(
                np.exp(rng.normal(0.0, 1.0, layers)), rng.normal(0.0, 1.0, layers) * spreads
            )
        else:
            entrants = rng.choice(len(population), max(2, size // 4), replace=False)
            parent = max((population[i] for i in entrants), key=lambda member: member[0])[1]
            candidate = mutated(parent, spreads, 1.0 - 0.9 * progress, rng)
        score = bench.accuracy(_method(bench.setup, ranks(norms, candidate)))
        population = [*population, (score, candidate)][-size:]
        if best is None or score > best[0]:
            best = (score, candidate)
    assert best is not None
    return {"scores": list(ranks(norms, best[1]))}


def make(setup: TrialSetup, network: GatedNetwork, fitted: Fitted) -> SelectedMethod:
    """The filters of largest rank in the whole network, as many as the budgets allow."""
    return _method(setup, tuple(fitted["scores"]))


def _method(setup: TrialSetup, scores: tuple[Tensor, ...]) -> SelectedMethod:
    return selected("legr", setup, scores, global_threshold(scores))
