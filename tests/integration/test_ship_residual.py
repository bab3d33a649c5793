"""Real runs of a residual network under both trade-off rules, exported at every R_r."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_config
from shipped import all_test_images, masked_scores

from rlprune.deploy import PrunedModel
from rlprune.export.run import export_point
from rlprune.training.restore import LearnedRun, load_run
from rlprune.training.session import run_trial

RULES = ("permanent", "paper")
RATES = (1.0, 0.5, 0.0)


@dataclass(frozen=True)
class Exported:
    """A run and its points as files.

    Attributes:
        learned: the run's network and agents.
        rows: of the learned network, by R_r.
        files: by R_r.
    """

    learned: LearnedRun
    rows: pd.DataFrame
    files: dict[float, Path]


@pytest.fixture(scope="module", params=RULES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """resnet20 on digits: pretrained, two rounds of PPO and fine-tuning, all points exported."""
    folder = tmp_path_factory.mktemp(request.param)
    config = tiny_config(
        backbone={"name": "resnet20", "width": 0.25},
        pruning={"tradeoff": request.param},
        evaluation__baselines=(),
        data__max_train_images=None,
        training__pretrain_epochs=8,
        training__finetune_epochs=2,
    )
    rows = run_trial(config, folder / "run")
    assert rows is not None
    rows = rows[rows["method"] == "learned"].set_index("tradeoff_rate")
    learned, files = load_run(folder / "run"), {}
    for rate in RATES:
        files[rate] = folder / f"{rate:g}.safetensors"
        row = rows.reset_index().set_index("tradeoff_rate", drop=False).loc[rate]
        export_point(learned, row, files[rate], "float32", lambda _: None)
    return Exported(learned, rows, files)


@pytest.mark.parametrize("rate", RATES)
def test_every_test_image_is_answered_as_by_the_masked_network(
    exported: Exported, rate: float
) -> None:
    """Scores within 1e-4, the same classes and MACs; what the file says is what the run says."""
    pixels, labels = all_test_images(exported.learned)
    assert len(pixels) == 359
    expected, macs = masked_scores(exported.learned, rate, pixels)
    model, row = PrunedModel.load(exported.files[rate]), exported.rows.loc[rate]
    assert model.spec.origin["backbone"] == "resnet20"
    rule = exported.learned.config.pruning.tradeoff
    assert (model.spec.budget.tradeoff, model.spec.budget.tradeoff_rate) == (rule, rate)
    for mode in ("masked", "gathered"):
        scores = model(pixels, mode=mode)
        size = max(float(expected.abs().max()), 1.0)
        assert float((scores - expected).abs().max()) <= 1e-4 * size, mode
        assert scores.argmax(1).tolist() == expected.argmax(1).tolist(), mode
        np.testing.assert_array_equal(model.macs(), macs.numpy(), mode)
        right = float((scores.argmax(1) == labels).double().mean())
        assert right == pytest.approx(row["test_accuracy"], abs=1e-9), mode
    measured = model.spec.measured
    assert measured["test_accuracy"] == row["test_accuracy"]
    assert measured["macs_mean"] == pytest.approx(row["macs_mean"], rel=1e-12)
    assert measured["macs_max"] == row["macs_max"] == macs.max()
    assert measured["storage_bytes"] == row["storage_bytes"]
    assert row["test_accuracy"] > 0.15  # of ten classes: it has learned something


def test_permanently_pruned_channels_are_not_in_the_file(exported: Exported) -> None:
    """Bytes fall with R_r; by the paper's rule only R_r = 0 deletes anything."""
    sizes = [exported.files[rate].stat().st_size for rate in RATES]
    stored = [
        sum(layer.stored for layer in PrunedModel.load(exported.files[rate]).spec.layers)
        for rate in RATES
    ]
    if exported.learned.config.pruning.tradeoff == "permanent":
        assert sizes[0] > sizes[1] > sizes[2] and stored[0] > stored[1] > stored[2]
    else:
        assert stored[0] == stored[1] > stored[2] and sizes[1] > sizes[2]
