"""Every method that can be measured: its kind, its source, and how its network is trained.

Facts alone, no torch: the plan of a trial, its effort and its rows follow from them. How a
method chooses channels is in :mod:`rlprune.training.methods` (the simple ones) and
:mod:`rlprune.training.rivals` (the published ones).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["runtime", "static", "both"]


@dataclass(frozen=True)
class MethodFacts:
    """What distinguishes a method before anything is measured.

    Attributes:
        name: as in the results and in ``evaluation.baselines``.
        kind: "runtime" chooses channels per image, "static" once and for all; "both" is made
            for each tradeoff rate R_r.
        source: where it comes from.
        plain: trained from the pretrained network on; the images that the importances' phases
            take of other methods are then added to its own. False: from the network after
            those phases on.
        predictors: whether its network has runtime predictors.
        has_rate: whether rows carry an R_r.
        preparation: name of a phase that trains the network before the method's own, None:
            there is none. A plain method's preparation takes the importances' images, and the
            method's own phase goes on from there; another's begins at the same network again.
    """

    name: str
    kind: Kind
    source: str
    plain: bool = True
    predictors: bool = False
    has_rate: bool = False
    preparation: str | None = None

    def rates(self, configured: tuple[float, ...]) -> tuple[float, ...]:
        """The R_r at which the method is trained and measured.

        A static method has the budgets of R_r = 0; one that decides at run time and deletes
        nothing those of R_r = 1.
        """
        if self.name == "dense":
            return configured
        if self.kind == "static":
            return (0.0,)
        if self.kind == "runtime" and not self.has_rate:
            return (1.0,)
        if self.kind == "runtime":
            return tuple(rate for rate in configured if rate > 0.0)
        return configured

    def continues(self, phase: str) -> bool:
        """Whether a phase goes on with the network that the one before it has left."""
        return self.plain and self.preparation is not None and phase == self.name


_ALL = (
    MethodFacts("dense", "static", "the backbone as it is"),
    MethodFacts(
        "uniform",
        "both",
        "the budget's ratio in every layer, no agents",
        plain=False,
        predictors=True,
        has_rate=True,
    ),
    MethodFacts("static_l1", "static", "Li et al. 2017, Pruning Filters for Efficient ConvNets"),
    MethodFacts(
        "random",
        "both",
        "random ratios, the best of N on validation",
        plain=False,
        predictors=True,
        has_rate=True,
    ),
    MethodFacts(
        "cascade",
        "runtime",
        "a small network, a large one where it is unsure",
        plain=False,
        predictors=True,
        has_rate=True,
        preparation="cascade_small",
    ),
    MethodFacts("fpgm", "static", "He et al. 2019, Filter Pruning via Geometric Median"),
    MethodFacts(
        "slimming",
        "static",
        "Liu et al. 2017, Network Slimming",
        preparation="slimming_sparse",
    ),
    MethodFacts("torch_pruning", "static", "Fang et al. 2023, DepGraph; package torch-pruning"),
    MethodFacts("legr", "static", "Chin et al. 2020, Learned Global Ranking"),
    MethodFacts("amc", "static", "He et al. 2018, AutoML for Model Compression"),
    MethodFacts(
        "fbs", "runtime", "Gao et al. 2019, Feature Boosting and Suppression", predictors=True
    ),
    MethodFacts(
        "rnp", "runtime", "Lin et al. 2017, Runtime Neural Pruning", preparation="rnp_random"
    ),
)

CATALOGUE: dict[str, MethodFacts] = {facts.name: facts for facts in _ALL}
"""Baselines by name; the learned policy is not among them."""

_OF_PHASE = CATALOGUE | {facts.preparation: facts for facts in _ALL if facts.preparation}


def facts_of(phase: str) -> MethodFacts | None:
    """The method that a phase trains a network for; None: a phase that serves the learned."""
    return _OF_PHASE.get(phase)
