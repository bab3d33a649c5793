"""Exporting a point of a finished run or sweep: find it, measure it again, write it, check it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rlprune import __version__
from rlprune.data import Images, ImageSet, iterate_batches, load_image_set
from rlprune.deploy import PrunedModel
from rlprune.deploy.spec import ModelSpec
from rlprune.errors import ArtifactError
from rlprune.export.make import Pixels, Shipped, ship
from rlprune.export.select import Limits, choose
from rlprune.mdp import StaticPlan
from rlprune.results import load_rows
from rlprune.training.checkpoint import latest_checkpoint, read_checkpoint_config
from rlprune.training.evaluate import Measurement
from rlprune.training.methods import with_dial
from rlprune.training.phases import LEARNED
from rlprune.training.restore import LearnedRun, load_run

_CHECKED = 64
_TOLERANCE = 1e-4
Say = Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        file: where.
        file_bytes: its size.
        storage_bytes: what the results store reports for the point.
        test_accuracy: of the network with its weights as stored in the file.
        row: the chosen row.
        note: what the user should know, or None.
    """

    file: Path
    file_bytes: int
    storage_bytes: int
    test_accuracy: float
    row: pd.Series
    note: str | None


def export_run(run: Path, limits: Limits, file: Path, dtype: str, say: Say) -> Exported:
    """Exports the best measured point that keeps the limits.

    Args:
        run: folder of a run, of a sweep, or of one of a sweep's trials.
        limits: of the user.
        file: to be written.
        dtype: of the stored weights.
        say: told what is going on.

    Raises:
        ArtifactError: no point keeps the limits, or the network cannot be shipped.
        CheckpointError, ResultsError: see the messages.
    """
    rows, trials = rows_of(run)
    row = choose(rows, limits)
    folder = trial_folder(trials, row)
    say(f"Point: trial {row['trial']}, R_r = {row['tradeoff_rate']:g}. Loading {folder}.")
    return export_point(load_run(folder), row, file, dtype, say)


def export_point(learned: LearnedRun, row: pd.Series, file: Path, dtype: str, say: Say) -> Exported:
    """Exports one measured point of a loaded run.

    Args:
        learned: the run; its network is left with the point's BatchNorm statistics.
        row: the point.
        file, dtype, say: as for :func:`export_run`.

    Raises:
        ArtifactError: the network cannot be shipped.
    """
    learned.network.load_state_dict(learned.program.snapshots[LEARNED])
    shipped, measured = _shipped(learned, row, say)
    accuracy = measured.test.accuracy
    unchecked = file.with_name(f".{file.name}.unchecked")  # what is there stays until ours is right
    try:
        shipped.write(unchecked, dtype)
        model = PrunedModel.load(unchecked)
        if dtype == "float32":
            _compare(model, learned, measured)
        else:
            say(f"Measuring the test accuracy with {dtype} weights.")
            accuracy = accuracy_of(model, learned.images, learned.images.test)
    finally:
        unchecked.unlink(missing_ok=True)
    size = shipped.noting(test_accuracy=accuracy).write(file, dtype)
    return Exported(file, size, measured.test.storage_bytes, accuracy, row, _note(measured, row))


def _note(measured: Measurement, row: pd.Series) -> str | None:
    """Says so where measuring again gave another accuracy than the run reports."""
    if abs(measured.test.accuracy - float(row["test_accuracy"])) <= 1e-9:
        return None
    return (
        f"Note: the run reports a test accuracy of {row['test_accuracy']:.4f}, measured here it "
        f"is {measured.test.accuracy:.4f} (another machine or version rounds otherwise)."
    )


def rows_of(run: Path) -> tuple[pd.DataFrame, Path]:
    """Rows of a run or sweep, and the folder above its trials; of a trial only its own.

    Raises:
        ArtifactError: there are no results.
    """
    if (run / "results").exists():
        return load_rows(run), run
    if (run.parent / "results").exists():
        rows = load_rows(run.parent)
        return rows[rows["trial"] == run.name], run.parent
    raise ArtifactError(f"{run}: no results there. Give the folder of a run or of a sweep.")


def trial_folder(run: Path, row: pd.Series) -> Path:
    """Where the row's checkpoints lie: beside the results, or where they were written.

    Raises:
        ArtifactError: they are in neither place.
    """
    for folder in (run / str(row["trial"]), run, Path(str(row["checkpoint_uri"]))):
        if (folder / "checkpoints").exists() or any(folder.glob("checkpoint_*")):
            return folder
    raise ArtifactError(f"{run}: the checkpoints of trial {row['trial']} are not there.")


def _shipped(learned: LearnedRun, row: pd.Series, say: Say) -> tuple[Shipped, Measurement]:
    book, ratio = learned.setup.book, row["budget_s"]
    point = book.point(float(row["tradeoff_rate"]), None if pd.isna(ratio) else float(ratio))
    say("Measuring the point again.")
    evaluator = learned.program.evaluator
    measured = evaluator.measure(learned.network, learned.method, point)
    budgets = with_dial(learned.method.book.episodes([point]), measured.dial)
    assert learned.method.static is not None and learned.method.runtime is not None
    plan = StaticPlan(learned.setup.rules, budgets, learned.method.static())
    images, config = learned.images, learned.config
    shipped = ship(
        learned.network,
        learned.setup.rules,
        plan,
        learned.runtime,
        Pixels(images.mean, images.std, images.class_names, _resize(config.data.name)),
        (book.dense_macs, book.dense_bytes),
        measured={
            "test_accuracy": measured.test.accuracy,
            "validation_accuracy": measured.validation.accuracy,
            "test_loss": measured.test.loss,
            "macs_mean": float(measured.test.macs.mean()),
            "macs_max": float(measured.test.macs.max()),
            "storage_bytes": measured.test.storage_bytes,
            "test_images": len(images.test),
        },
        origin={
            "rlprune": __version__,
            "config_hash": str(row["config_hash"]),
            "experiment": str(row["experiment"]),
            "trial": str(row["trial"]),
            "step": int(row["step"]),
            "method": str(row["method"]),
            "tradeoff_rate": float(row["tradeoff_rate"]),
            "budget_s": None if pd.isna(ratio) else float(ratio),
            "backbone": str(row["backbone"]),
            "width": config.backbone.width,
            "dataset": str(row["dataset"]),
            "seed": config.seed,
            "budgets": json.loads(str(row["configuration"]))["budgets"],
        },
    )
    return shipped, measured


def _resize(dataset: str) -> str:
    """How ``rlprune.data`` brings files of an image set to one size; other sets have no files."""
    return "crop" if dataset in ("imagefolder", "parquet") else "stretch"


def images_of(run: Path, spec: ModelSpec) -> ImageSet:
    """The images of the run or sweep that a shipped model came from.

    Raises:
        ArtifactError: other images than the model was trained on.
        CheckpointError, DataError: see the messages.
    """
    trial = run / str(spec.origin.get("trial"))
    folder = trial if trial.exists() else run
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:
        raise ArtifactError(f"{folder}: no checkpoint there. Give the folder of the model's run.")
    config = read_checkpoint_config(checkpoint)
    images = load_image_set(config.data, config.seed)
    if (images.mean, images.std, images.class_names) != (spec.mean, spec.std, spec.classes):
        raise ArtifactError(
            f"{folder}: has other images ({images.name}) than the model was trained on "
            f"({spec.origin.get('dataset')}). Give the folder of the model's own run."
        )
    return images


def accuracy_of(model: PrunedModel, images: ImageSet, arrays: Images) -> float:
    """Top-1 accuracy of a shipped model."""
    right = 0
    for pixels, labels in iterate_batches(arrays, 250, None, images.mean, images.std):
        right += int((model(pixels, mode="masked").argmax(1) == labels).sum())
    return right / len(arrays)


@torch.no_grad()
def _compare(model: PrunedModel, learned: LearnedRun, measured: Measurement) -> None:
    """The file's answers on a few validation images against the measured network's.

    Raises:
        ArtifactError: they differ by more than rounding.
    """
    images = learned.images
    some = images.validation.take(np.arange(min(_CHECKED, len(images.validation))))
    pixels, _ = next(iter(iterate_batches(some, _CHECKED, None, images.mean, images.std)))
    budgets = with_dial(learned.method.book.episodes([measured.point]), measured.dial)
    learned.network.set_predictors(learned.method.predictors, learned.method.boosted)
    gate = learned.method.gate(
        learned.network, budgets.select(torch.zeros(len(pixels), dtype=torch.int64))
    )
    expected = learned.network(pixels, gate)
    found = model(pixels)
    apart = (found - expected).abs().amax(1) / expected.abs().max().clamp(min=1.0)
    # A channel at the very edge of being kept may fall to the other side by rounding.
    if float((apart > _TOLERANCE).float().mean()) > 0.05:
        raise ArtifactError(
            f"the written model answers otherwise than the network that was measured (by up "
            f"to {float(apart.max()):.2g}). Nothing was written; please report this."
        )
