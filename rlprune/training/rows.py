"""From measurements to result rows (no Ray here)."""

from __future__ import annotations

import json

import torch

from rlprune.config import config_hash, config_to_dict
from rlprune.results import ResultRow
from rlprune.training.catalogue import CATALOGUE
from rlprune.training.evaluate import Measurement
from rlprune.training.phases import (
    ALTERNATE,
    LEARNED,
    PRETRAIN,
    RUNTIME_IMPORTANCE,
    STATIC_IMPORTANCE,
)
from rlprune.training.program import TrialProgram


def _effort(program: TrialProgram, method: str) -> dict[str, float]:
    """Images and seconds that went into a method's network."""
    images, seconds = program.counters.cnn_images, program.counters.seconds
    facts = CATALOGUE.get(method)
    own = [ALTERNATE if facts is None else method]
    if facts is not None and facts.preparation is not None:
        own.append(facts.preparation)
    phases = [PRETRAIN]
    if facts is None or not facts.plain:
        phases += [RUNTIME_IMPORTANCE, STATIC_IMPORTANCE]
    fitting = program.choices.fits.effort(method).seconds
    agents = seconds.get("agents", 0.0) if facts is None else fitting
    return {
        "training_images": sum(images.get(phase, 0) for phase in (*phases, *own)),
        "finetune_images": sum(images.get(phase, 0) for phase in own),
        "seconds_pretrain": seconds.get(PRETRAIN, 0.0),
        "seconds_importance": sum(seconds.get(phase, 0.0) for phase in phases[1:]),
        "seconds_agents": agents,
        "seconds_finetune": max(0.0, sum(seconds.get(phase, 0.0) for phase in own) - agents),
    }


def _costs(program: TrialProgram, measured: Measurement) -> dict[str, object]:
    book, test = program.setup.book, measured.test
    quantiles = torch.quantile(test.macs, torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64))
    channels = program.setup.costs.channels.double()
    ratios = test.computed / channels
    return {
        "macs_mean": float(test.macs.mean()),
        "macs_p5": float(quantiles[0]),
        "macs_p50": float(quantiles[1]),
        "macs_p95": float(quantiles[2]),
        "macs_max": float(test.macs.max()),
        "macs_dense": float(book.dense_macs),
        "macs_mean_ratio": float(test.macs.mean()) / book.dense_macs,
        "parameters": test.parameters,
        "storage_bytes": test.storage_bytes,
        "storage_dense_bytes": book.dense_bytes,
        "storage_ratio": test.storage_bytes / book.dense_bytes,
        "layer_names": tuple(layer.name for layer in program.setup.graph.layers),
        "keep_ratio_mean": tuple(ratios.mean(0).tolist()),
        "keep_ratio_std": tuple(ratios.std(0, correction=0).tolist()),
        "image_dependent_ratio": None
        if test.varying is None
        else tuple((test.varying / channels).tolist()),
        "stored_ratio": tuple((test.stored / channels).tolist()),
    }


def result_row(
    program: TrialProgram,
    measured: Measurement,
    experiment: str,
    checkpoint_uri: str | None,
) -> ResultRow:
    """One row; ``step`` is the program's position, so that a repeated unit overwrites it.

    Args:
        program: the trial.
        measured: the evaluation point.
        experiment: name of the run or sweep.
        checkpoint_uri: folder of the trial, None if it has none.
    """
    config, point, learned = program.config, measured.point, measured.method == LEARNED
    unpruned = measured.method == "dense"
    facts, effort = CATALOGUE.get(measured.method), program.choices.fits.effort(measured.method)
    fixed = facts is not None and not facts.has_rate
    return ResultRow(
        experiment=experiment,
        trial=config.name,
        step=program.position,
        method=measured.method,
        seed=config.seed,
        backbone=config.backbone.factory or config.backbone.name,
        width=config.backbone.width,
        dataset=config.data.name,
        tradeoff=config.pruning.tradeoff,
        tradeoff_rate=None if fixed else point.tradeoff_rate,
        budget_s=None if unpruned else point.ratio,
        storage_budget_bytes=None if unpruned else point.storage_bytes,
        compute_max_budget_macs=None if unpruned else point.compute_max,
        compute_mean_budget_macs=None if unpruned else point.compute_mean,
        budget_rule=config.budgets.rule if learned else "projected",
        budgets_met=measured.budgets_met,
        validation_accuracy=measured.validation.accuracy,
        test_accuracy=measured.test.accuracy,
        test_accuracy_top5=measured.test.accuracy_top5,
        validation_loss=measured.validation.loss,
        test_loss=measured.test.loss,
        rl_updates=program.counters.rl_updates if learned else effort.updates,
        rollouts=program.counters.rollouts if learned else effort.rollouts,
        seconds_evaluate=measured.seconds,
        checkpoint_uri=checkpoint_uri,
        config_hash=config_hash(config),
        configuration=json.dumps(config_to_dict(config), sort_keys=True),
        **_effort(program, measured.method),  # type: ignore[arg-type]
        **_costs(program, measured),  # type: ignore[arg-type]
    )
