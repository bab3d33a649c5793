"""What can be looked at while the agents train, and whom the final policy spends on (no Ray).

Legend: B episodes, N images, G episodes of each image (consecutive rows), T prunable layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from rlprune.agents.networks import RuntimeAgent, StaticAgent
from rlprune.agents.rollout import Rollout
from rlprune.data import iterate_batches
from rlprune.mdp.reward import PriceCurve
from rlprune.pruning import Gate, GatedNetwork
from rlprune.training import methods
from rlprune.training.cnn import reestimate_batchnorm
from rlprune.training.evaluate import Measurement
from rlprune.training.methods import Method
from rlprune.training.phases import LEARNED
from rlprune.training.program import PRETRAINED, TrialProgram
from rlprune.training.setup import network_of

HISTOGRAM_EVERY = 10
_DECILES = 10
_CONSTANT = 1e-9  # relative spread below which numbers differ by rounding alone
_MEANS = {
    "reward_runtime": "runtime_reward",
    "reward_static": "static_reward",
    "loss": "loss",
    "accuracy": "correct",
    "macs_ratio": "macs",
    "storage_ratio": "storage",
}


# ------------------------------------------------------------------------ one PPO update


@dataclass(frozen=True)
class UpdateDiagnostics:
    """What one PPO update tells.

    Attributes:
        record: numbers by name: a row of ``updates.parquet``.
        keep_ratios: channels computed over channels of every episode, [B, T].
    """

    record: dict[str, float]
    keep_ratios: Tensor

    def histograms(self) -> dict[str, Tensor]:
        """The keep ratios of each layer over the episodes, [B] each, by TensorBoard name."""
        layers = self.keep_ratios.unbind(1)
        return {f"keep_ratio/layer_{layer}": ratios for layer, ratios in enumerate(layers)}


def update_diagnostics(
    rollouts: Sequence[Rollout],
    group: int,
    price: PriceCurve | None,
    learner: Mapping[str, float],
) -> UpdateDiagnostics:
    """Makes the record of one PPO update.

    Args:
        rollouts: of all workers.
        group: episodes per image G.
        price: of compute, after the update; None without a mean budget.
        learner: what the learner reports, by the names of the record.
    """

    def merged(name: str) -> Tensor:
        return torch.cat([getattr(rollout, name) for rollout in rollouts]).double()

    record = {name: float(merged(field).mean()) for name, field in _MEANS.items()}
    macs, ratios = merged("macs"), merged("computed_ratio")
    rate, target = merged("rate"), merged("mean_target")
    compute_cap, storage_cap = merged("compute_cap"), merged("storage_cap")
    kinds = _kinds(torch.stack([rate, target, compute_cap, storage_cap], 1)[::group])
    spread = image_std(ratios, group, kinds)
    for layer, (mean, std) in enumerate(zip(ratios.mean(0), spread, strict=True)):
        record[f"keep_ratio_{layer}"] = float(mean)
        record[f"keep_ratio_std_{layer}"] = float(std)
    record["macs_difficulty"] = image_correlation(merged("loss"), macs, group, kinds)
    used = {
        "compute_used": budget_used(macs, torch.where(target.isfinite(), target, compute_cap)),
        "storage_used": budget_used(merged("storage"), storage_cap),
    }
    record.update({name: value for name, value in used.items() if value is not None})
    if price is not None:
        record["price"] = sum(price.charged()) / len(price.knots)
    return UpdateDiagnostics({**record, **learner}, ratios)


def budget_used(cost: Tensor, budget: Tensor) -> float | None:
    """Mean of cost / budget over the episodes that have a budget; None if none has.

    Args:
        cost: [B].
        budget: in the same unit, [B]; infinity = none.
    """
    limited = budget.isfinite()
    if not bool(limited.any()):
        return None
    return float((cost[limited] / budget[limited]).mean())


def image_std(values: Tensor, group: int, kinds: Tensor | None = None) -> Tensor:
    """Standard deviation over images of what the policy does, without its exploration noise.

    The estimate of the one-way analysis of variance: of the variance of the images' means,
    exploration explains (mean variance within an image) / G, which is taken off. Below zero
    it is zero. Images are compared with images of their own kind only: what R_r and budgets
    change from image to image is not a reaction to the image.

    Args:
        values: [B, T].
        group: episodes per image G; with G = 1 there is nothing to tell the noise by, and
            the result is the plain standard deviation, exploration included.
        kinds: int64 [N], equal for images with equal budgets and R_r; None: all are equal.

    Returns:
        float64 [T]; zeros where no two images are of one kind.

    Source: Searle, Casella and McCulloch 1992, "Variance Components", Sec. 3.5.
    """
    grouped = values.double().reshape(-1, group, values.shape[1])
    kinds = torch.zeros(len(grouped), dtype=torch.int64) if kinds is None else kinds
    counts = torch.bincount(kinds)
    freedom = len(grouped) - int((counts > 0).sum())
    if freedom == 0:
        return torch.zeros(values.shape[1], dtype=torch.float64)
    between = _centred(grouped.mean(1), kinds).square().sum(0)
    if group > 1:
        # The squares of n images around their own mean hold n - 1 times the noise.
        share = 1.0 - 1.0 / counts[kinds].double()
        between = between - (share.unsqueeze(1) * grouped.var(1)).sum(0) / group
    return (between / freedom).clamp(min=0.0).sqrt()


def image_correlation(
    first: Tensor, second: Tensor, group: int, kinds: Tensor | None = None
) -> float:
    """Pearson correlation over images of the images' means, within images of one kind.

    Args:
        first, second: [B].
        group: episodes per image G.
        kinds: as in :func:`image_std`.

    Returns:
        A number in [-1, 1]; 0 where either of the two is constant.
    """
    pair = torch.stack([first, second], 1).double().reshape(-1, group, 2).mean(1)
    kinds = torch.zeros(len(pair), dtype=torch.int64) if kinds is None else kinds
    centred = _centred(pair, kinds)
    spread = centred.square().sum(0).sqrt()
    if bool((spread <= _CONSTANT * pair.square().sum(0).sqrt()).any()):
        return 0.0
    return float(((centred[:, 0] * centred[:, 1]).sum() / spread.prod()).clamp(-1.0, 1.0))


def _kinds(budgets: Tensor) -> Tensor:
    """Numbers the different rows of [N, ...], int64 [N]."""
    _, kinds = torch.unique(budgets, dim=0, return_inverse=True)
    return cast(Tensor, kinds)


def _centred(values: Tensor, kinds: Tensor) -> Tensor:
    """Values [N, T] minus the mean of their kind."""
    counts = torch.bincount(kinds).clamp(min=1).double().unsqueeze(1)
    sums = torch.zeros(len(counts), values.shape[1], dtype=torch.float64)
    return values - (sums.index_add_(0, kinds, values) / counts)[kinds]


# ----------------------------------------------------------------- the final policy


@dataclass(frozen=True)
class _Answers:
    """A network on the test images.

    Attributes:
        losses: cross-entropy, float64 [N].
        hits: whether the answer is right, bool [N].
    """

    losses: Tensor
    hits: Tensor


def difficulty(
    program: TrialProgram,
    agents: tuple[RuntimeAgent, StaticAgent],
    measurements: Sequence[Measurement],
) -> list[dict[str, float]]:
    """What the learned policy spends on easy and on hard test images.

    How hard an image is, the dense network as pretrained tells by its loss. Networks of its
    own are used: the program stays as it is, torch's random state included.

    Args:
        program: right after it has measured the learned policy.
        agents: of that policy.
        measurements: what it measured; those of other methods or other than the configured
            budgets are passed over.

    Returns:
        One row per R_r and decile, see :func:`difficulty_rows`; none without measurements.
    """
    chosen = [m for m in measurements if m.method == LEARNED and m.point.ratio is None]
    if not chosen:
        return []
    dense = _network(program, program.snapshots[PRETRAINED], methods.dense(program.setup))
    losses = _answers(program, dense, lambda count: Gate()).losses
    method = methods.learned(program.setup, *agents)
    rows: list[dict[str, float]] = []
    for measured in chosen:
        hits = _learned_hits(program, method, measured)
        ratios = measured.test.macs / program.setup.book.dense_macs
        rows += difficulty_rows(measured.point.tradeoff_rate, losses, ratios, hits)
    return rows


def difficulty_rows(
    tradeoff_rate: float, dense_losses: Tensor, macs_ratios: Tensor, hits: Tensor
) -> list[dict[str, float]]:
    """Means over the tenths of the images, from the easiest (decile 1) to the hardest (10).

    Args:
        tradeoff_rate: R_r.
        dense_losses: loss of the dense network, nats [N].
        macs_ratios: MACs of the policy, fraction of the dense network's [N].
        hits: whether the policy's answer is right, bool [N].

    Returns:
        ``tradeoff_rate``, ``decile``, ``dense_loss``, ``macs_ratio``, ``accuracy`` (fraction)
        and ``images`` of each decile; with fewer than ten images some deciles are left out.
    """
    order = torch.argsort(dense_losses, stable=True)
    decile = torch.arange(len(order)) * _DECILES // max(1, len(order))
    rows: list[dict[str, float]] = []
    for index in range(_DECILES):
        chosen = order[decile == index]
        if len(chosen) == 0:
            continue
        rows.append(
            {
                "tradeoff_rate": tradeoff_rate,
                "decile": index + 1,
                "dense_loss": float(dense_losses[chosen].double().mean()),
                "macs_ratio": float(macs_ratios[chosen].double().mean()),
                "accuracy": float(hits[chosen].double().mean()),
                "images": len(chosen),
            }
        )
    return rows


def _network(program: TrialProgram, weights: Mapping[str, Tensor], method: Method) -> GatedNetwork:
    """A network of its own in eval mode, where the program's is."""
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices):  # first weights are seeded
        network = network_of(program.config, program.images)
    network.load_state_dict(weights)
    network.set_predictors(method.predictors, method.boosted)
    return network.to(next(program.network.parameters()).device).eval()


def _learned_hits(program: TrialProgram, method: Method, measured: Measurement) -> Tensor:
    """Repeats the measurement's pass over the test images for each answer, bool [N]."""
    evaluation = program.config.evaluation
    network = _network(program, program.network.state_dict(), method)
    told = methods.with_dial(method.book.episodes([measured.point]), measured.dial)

    def gates(count: int) -> Gate:
        return method.gate(network, told.select(torch.zeros(count, dtype=torch.int64)))

    reestimate_batchnorm(
        network,
        program.images,
        gates,
        evaluation.batchnorm_images,
        evaluation.batch_size,
        [program.config.seed, 77],
    )
    return _answers(program, network, gates).hits


@torch.no_grad()
def _answers(
    program: TrialProgram, network: GatedNetwork, gates: Callable[[int], Gate]
) -> _Answers:
    """One pass over the test images."""
    images, size = program.images, program.config.evaluation.batch_size
    device = next(network.parameters()).device
    losses, hits = [], []
    for pixels, labels in iterate_batches(images.test, size, None, images.mean, images.std):
        logits = network(pixels.to(device), gates(len(labels))).cpu()
        losses.append(F.cross_entropy(logits, labels, reduction="none").double())
        hits.append(logits.argmax(1) == labels)
    return _Answers(torch.cat(losses), torch.cat(hits))
