"""Which images a shipped model finds easy: the cheapest and the dearest of a test split, drawn.

    python analysis/easy_and_hard.py FILE [--data fashion_mnist] [--root FOLDER] [--out PICTURE]

FILE is made by ``rlprune export``; a model with a budget on the mean compute (for example from
``fashion_mean_compute``) spends differently on its images. Above each image: its class, what
the model says, and the multiply-accumulates that it took, as a part of the dense network's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import rlprune
from rlprune.config import DataConfig
from rlprune.data import ImageArrays, load_image_set
from rlprune.report.canvas import drawing, save_figure

COLUMNS = 8


def spent(model: rlprune.PrunedModel, arrays: ImageArrays) -> tuple[np.ndarray, np.ndarray]:
    """(MACs over the dense network's, predicted class) of every image, [N] each."""
    macs, answers = [], []
    for start in range(0, len(arrays), 100):
        scores = model(model.normalize(arrays.images[start : start + 100]))
        macs.append(model.macs() / model.spec.costs.dense_macs)
        answers.append(scores.argmax(1).numpy())
    return np.concatenate(macs), np.concatenate(answers)


def draw(
    model: rlprune.PrunedModel, arrays: ImageArrays, macs: np.ndarray, answers: np.ndarray
) -> Figure:
    """Two rows of the cheapest images, two of the dearest."""
    order = np.argsort(macs, kind="stable")
    half = 2 * COLUMNS
    chosen = np.concatenate([order[:half], order[-half:]])
    figure = Figure(figsize=(1.5 * COLUMNS, 7.6), layout="constrained")
    axes = figure.subplots(4, COLUMNS).ravel()
    for place, index in zip(axes, chosen, strict=False):
        pixels = arrays.images[index].transpose(1, 2, 0)
        place.imshow(pixels.squeeze(), cmap="gray" if pixels.shape[2] == 1 else None)
        place.set_axis_off()
        truth, answer = model.classes[arrays.labels[index]], model.classes[answers[index]]
        said = truth if truth == answer else f"{truth}, taken\nfor {answer}"
        place.set_title(f"{macs[index]:.3f}\n{said}", fontsize=8)
    figure.suptitle(
        f"Cheapest (above) and dearest of {len(arrays):,} test images; MACs over the dense "
        f"network's, on average {macs.mean():.3f}"
    )
    return figure


def main() -> None:
    """Reads the arguments, prints costs by tenths, draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--data", default="digits", help="data.name of the configuration")
    parser.add_argument("--root", help="data.root")
    parser.add_argument("--images", type=int, default=1000, help="of the test split, at most")
    parser.add_argument("--out", type=Path, default=Path("easy_and_hard.png"))
    arguments = parser.parse_args()
    model = rlprune.PrunedModel.load(arguments.file)
    test = load_image_set(DataConfig(name=arguments.data, root=arguments.root), 0).test
    test = test.take(np.arange(min(arguments.images, len(test))))
    macs, answers = spent(model, test)
    right = answers == test.labels
    for part in np.array_split(np.argsort(macs, kind="stable"), 10):
        print(f"MACs / dense {macs[part].mean():.4f}   accuracy {right[part].mean():.3f}")
    with drawing():
        print(f"Wrote {save_figure(draw(model, test, macs, answers), arguments.out)}")


if __name__ == "__main__":
    main()
