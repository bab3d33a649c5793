"""What mostly follows the last convolution, for one image: averages and the classifier.

Legend: P pixels, I stored channels, i computed ones, K classes.
"""

from __future__ import annotations

import numpy as np

from rlprune.deploy.kernels.importances import add_scaled, averages
from rlprune.deploy.kernels.jit import entry
from rlprune.deploy.kernels.places import Single, Whole


@entry
def average(x: Single) -> Single:
    """[P, i] -> [i]."""
    return averages(x)


@entry
def classify(x: Single, columns: Whole, weight: Single, bias: Single) -> Single:
    """Scores [K].

    Args:
        x: [i].
        columns: which stored channels those are, [i].
        weight: [I, K].
        bias: [K].
    """
    scores = np.empty(len(bias), np.float32)
    for k in range(len(bias)):
        scores[k] = bias[k]
    for j in range(len(columns)):
        add_scaled(weight[columns[j]], x[j], scores)
    return scores
