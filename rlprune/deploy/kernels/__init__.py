"""A layer for one image, compiled with numba: decisions, filters and the convolution.

The same steps as ``GatedLayer.gathered`` and ``Decisions.decide``, in one call: there, each of
some thirty small operations costs more in its call than in its work. Importing this package
loads numba (a second); the first call compiles (half a minute, once per installation).

Numbers are float32 where the NumPy version has float32, and costs are float64; sums run in
another order. tests/unit/test_deploy_fast.py holds the decisions of one against the other.
"""

from rlprune.deploy.kernels.classify import average, classify
from rlprune.deploy.kernels.compute import choose_all, compute

__all__ = ["average", "choose_all", "classify", "compute"]
