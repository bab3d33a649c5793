"""Where what is in the arrays that the compiled functions get; ``deploy.tables`` fills them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Single = NDArray[np.float32]
Double = NDArray[np.float64]
Whole = NDArray[np.int64]

# Places in a layer's ``shape``, whole numbers.
LAYER, CHANNELS, IN_CHANNELS, VOTES, PERMANENT, DECIDES, AGENT, CHANGE, PROJECTED = range(9)
SHAPE = 9
# Places in a layer's ``rules``: numbers of the model, then of ``budget.LayerCosts``.
RATE, ALPHA, OFFSET, LINEAR, SLOPE_AFTER, LEAST, LEAST_AFTER, LINEAR_AFTER, SQUARE_AFTER = range(9)
RULES = 9
# Rows of a layer's ``terms``, products with the counts of earlier layers.
EACH, LEAST_TERMS, WIDE_TERMS = range(3)
# Places in ``budget``; no cap is infinity.
CAP, COMPUTE_DIAL, STORAGE_DIAL, CAP_DIAL, ANCHOR = range(5)
# Places in an image's ``numbers``; the counts of the layers so far follow.
SPENT, PREVIOUS, COUNTS = range(3)
# Rows of ``channel``.
BETA, MEAN, STATIC, BIAS, WIDTH_SCALE, WIDTH_SHIFT = range(6)
