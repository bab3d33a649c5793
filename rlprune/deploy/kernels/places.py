"""Where what is in the arrays that the compiled functions get; ``deploy.tables`` fills them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Single = NDArray[np.float32]
Double = NDArray[np.float64]
Whole = NDArray[np.int64]

# Places in a layer's ``shape``, whole numbers.
LAYER, CHANNELS, IN_CHANNELS, VOTES, PERMANENT, DECIDES, AGENT, CHANGE, PROJECTED = range(9)
RECTIFIED, BOOSTED, PLAIN = 9, 10, 11
SHAPE = 12
# Places in a layer's ``rules``: numbers of the model, then of ``budget.LayerCosts``.
RATE, ALPHA, OFFSET, LINEAR, SLOPE_AFTER, LEAST, LEAST_AFTER, LINEAR_AFTER, SQUARE_AFTER = range(9)
RULES = 9
# Rows of a layer's ``terms``, products with the counts of earlier layers.
EACH, LEAST_TERMS, WIDE_TERMS = range(3)
# Places in ``budget``; no cap is infinity.
CAP, COMPUTE_DIAL, STORAGE_DIAL, CAP_DIAL, ANCHOR = range(5)
# Places in an image's ``numbers``; the counts of the layers so far follow.
SPENT, PREVIOUS, COUNTS = range(3)
# Rows of ``channel``; a plain layer has what is added to each output and LANES more instead.
BETA, MEAN, STATIC, BIAS, WIDTH_SCALE, WIDTH_SHIFT = range(6)
CHANNEL_ROWS = 6
# Places in ``sizes`` of an input: its own, and how many zeros lie on each side of it.
HEIGHT, WIDTH, PAD_Y, PAD_X = range(4)
SIZES = 4
# Places in a layer's row of ``jobs``: addresses of its arrays, then sizes of these.
SHAPE_AT, RULES_AT, TERMS_AT, FILTERS_AT, TABLE_AT, CODE_AT, PREDICTOR_AT, CHANNEL_AT = range(8)
VOTES_AT, ENCODER_AT, AGENT_AT, SIZES_AT, STARTS_AT, TAPS_AT = range(8, 14)
LAYERS, STORED, TABLE_WIDTH, INPUTS, TAPS, RANK, HIDDEN, STARTS, PIXELS = range(14, 23)
JOB = 23
