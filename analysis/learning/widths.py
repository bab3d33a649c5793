"""One network under many widths: does a scale that follows the inputs' width help?

A pretrained network is trained further under random keep ratios per image and layer, once
as in the paper and once with ``pruning.width_affine``, with the same images; then it is
measured at uniform ratios. The network's predictors are those of the paper in both cases.

    python analysis/learning/widths.py --seeds 0 1 2

writes ``results/widths.parquet`` (duration not measured yet).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from rlprune.config import TrialConfig, config_from_dict
from rlprune.data import ImageSet, load_image_set
from rlprune.pruning import Gate, GatedNetwork
from rlprune.replicas import Share
from rlprune.training import methods
from rlprune.training.cnn import CnnSchedule, CnnTrainer
from rlprune.training.evaluate import Evaluator
from rlprune.training.setup import TrialSetup, network_of

RATIOS = (0.2, 0.3, 0.5, 0.7)
OUT = Path(__file__).parent / "results" / "widths.parquet"


def trial(seed: int, width_affine: bool) -> TrialConfig:
    """Everything but the training, which is written out below."""
    return config_from_dict(
        {
            "seed": seed,
            "data": {"name": "fashion_mnist", "augment": "none"},
            "backbone": {"width": 0.25},
            "pruning": {"width_affine": width_affine},
            "budgets": {"storage_max": None, "compute_max": 0.3},
            "evaluation": {"tradeoff_rates": [1.0], "batchnorm_images": 2000, "batch_size": 500},
        }
    )


def train(
    network: GatedNetwork, images: ImageSet, epochs: float, phase: int, seed: int, gates: object
) -> None:
    """Adam along a cosine; every variant sees the same images in the same order."""
    steps = round(epochs * (len(images.train) // 128))
    rate, frozen = 2e-3, ["static_importance"]
    if phase == 1:
        rate, frozen = 3e-3, ["runtime_predictor.weight", *frozen]
    schedule = CnnSchedule(rate, steps, 128, 40.0, 0.0)
    trainer = CnnTrainer(network, images, schedule, [seed, phase], tuple(frozen))
    trainer.run(steps, gates)  # type: ignore[arg-type]


def measure(seed: int, pretrain: float, epochs: float) -> list[dict[str, float]]:
    """Rows of one seed."""
    images = load_image_set(trial(seed, False).data, seed)
    pretrained = network_of(trial(seed, False), images)
    train(pretrained, images, pretrain, 1, seed, None)
    rows = []
    for affine in (False, True):
        config = trial(seed, affine)
        network = network_of(config, images)
        network.load_state_dict(pretrained.state_dict(), strict=False)  # the rest starts at zero
        setup = TrialSetup.of(config, network.channels)

        def varied(share: Share, rng: np.random.Generator, s: TrialSetup = setup) -> Gate:
            return methods.varied_ratio_gate(s, network, share, rng)  # noqa: B023

        train(network, images, epochs, 2, seed, varied)
        evaluator = Evaluator(images, config.evaluation, seed)
        for ratio in RATIOS:
            point = setup.book.point(1.0, ratio)
            found = evaluator.measure(network, methods.uniform(setup), point)
            rows.append(
                {
                    "seed": seed,
                    "width_affine": affine,
                    "ratio": ratio,
                    "validation_accuracy": found.validation.accuracy,
                    "test_accuracy": found.test.accuracy,
                    "macs_ratio": float(found.test.macs.mean()) / setup.book.dense_macs,
                    "pretrain_epochs": pretrain,
                    "epochs": epochs,
                }
            )
            print({k: round(v, 4) for k, v in rows[-1].items()}, flush=True)
    return rows


def main() -> None:
    """Reads the arguments, writes one row per seed, variant and ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--pretrain", type=float, default=4.0, help="epochs")
    parser.add_argument("--epochs", type=float, default=1.0, help="under varied ratios")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    rows: list[dict[str, float]] = []
    for seed in arguments.seeds:
        rows += measure(seed, arguments.pretrain, arguments.epochs)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_parquet(arguments.out, index=False)
    print(f"Wrote {arguments.out}")


if __name__ == "__main__":
    main()
