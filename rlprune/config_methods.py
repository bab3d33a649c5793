"""The configuration of the measurement: methods beside the learned policy, points, their settings.

Sections of :class:`~rlprune.config.TrialConfig`; ``rlprune.config`` exports them as well.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from rlprune.config_reading import STRICT, AtLeastOne, Fraction

BaselineName = Literal[
    "dense",
    "uniform",
    "static_l1",
    "random",
    "cascade",
    "fpgm",
    "slimming",
    "torch_pruning",
    "legr",
    "amc",
    "fbs",
    "rnp",
]


@dataclass(frozen=True, config=STRICT)
class EvaluationConfig:
    """Which points are measured.

    Attributes:
        tradeoff_rates: the R_r values; training samples from them too.
        budgets: further numbers s at which to evaluate (each replaces every budget that
            is itself a number s); empty: only the configured budgets.
        baselines: which methods stand beside the learned policy. ``cascade`` needs
            ``budgets.compute_mean`` and an R_r above 0, at which alone it is measured.
        random_candidates: N of the ``random`` baseline (best of N on validation).
        batchnorm_images: training images for re-estimating BatchNorm statistics per point.
        batch_size: images per evaluation step.
        every_round: measure the learned policy on the validation images after every round,
            for schedulers that stop trials early (costs one validation pass per R_r).
    """

    tradeoff_rates: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (1.0, 0.5, 0.0)
    budgets: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = ()
    baselines: tuple[BaselineName, ...] = ("dense", "uniform", "static_l1", "random")
    random_candidates: AtLeastOne = 8
    batchnorm_images: AtLeastOne = 2048
    batch_size: AtLeastOne = 250
    every_round: bool = False


@dataclass(frozen=True, config=STRICT)
class MethodConfig:
    """Hyper-parameters of the published methods among ``evaluation.baselines``.

    Attributes:
        search_candidates: candidates that each method which searches (``legr``, ``amc``) may
            measure on the validation images before fine-tuning.
        search_steps: steps that the network is fine-tuned for before each of them is measured,
            at fine-tuning's first rate; its weights are put back afterwards (Chin et al. 2020:
            200 for ``legr``; He et al. 2018: none for ``amc``).
        slimming_penalty: lambda, weight of the BatchNorm scales' L1 norm while ``slimming``
            trains them towards zero.
        fbs_penalty: lambda, weight of the saliencies' L1 norm in the loss of ``fbs``.
        rnp_price: what a group of channels costs ``rnp``, in nats (the paper's -p).
    """

    search_candidates: AtLeastOne = 40
    search_steps: Annotated[int, Field(ge=0)] = 10
    slimming_penalty: Annotated[float, Field(ge=0.0)] = 1e-4
    fbs_penalty: Annotated[float, Field(ge=0.0)] = 1e-8
    rnp_price: Annotated[float, Field(ge=0.0)] = 0.01
