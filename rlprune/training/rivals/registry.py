"""Published pruning methods, made to run beside the learned policy: one registry (no Ray).

| method | what is kept | source |
| --- | --- | --- |
| fpgm | filters far from their layer's geometric median, the same share of every layer | He 2019 |
| slimming | channels of large BatchNorm scale, one threshold, after sparsity training | Liu 2017 |
| torch_pruning | groups of large norm, one threshold | Fang 2023, their package |
| legr | filters of large norm after a learned affine transform per layer | Chin 2020 |
| amc | shares per layer that a DDPG agent chooses, filters of large L1 norm | He 2018 |
| fbs | per image: the most salient channels, the same share of every layer | Gao 2019 |
| rnp | per image and layer: the first one to four of four groups, by Q-learning | Lin 2017 |

Which phases each has is in :mod:`rlprune.training.catalogue`.
"""

from __future__ import annotations

from rlprune.training.rivals import amc, dependency, fbs, legr, rnp, slimming
from rlprune.training.rivals.bench import Rival
from rlprune.training.rivals.filters import filters_of, median_distances
from rlprune.training.rivals.selection import ranked_uniform

_ALL = (
    Rival(
        "fpgm",
        make=lambda setup, _, fitted: ranked_uniform("fpgm", setup, tuple(fitted["scores"])),
        fit=lambda bench: {
            "scores": [median_distances(part).cpu() for part in filters_of(bench.network)]
        },
    ),
    Rival("slimming", slimming.make, slimming.fit, prepare=slimming.prepare),
    Rival("torch_pruning", dependency.make, dependency.fit),
    Rival("legr", legr.make, legr.fit),
    Rival("amc", amc.make, amc.fit),
    Rival("fbs", fbs.make, fbs.fit, reshapes=True),
    Rival("rnp", rnp.make, rnp.fit, improve=rnp.improve, prepare=rnp.prepare),
)
RIVALS: dict[str, Rival] = {rival.name: rival for rival in _ALL}
"""By name."""
