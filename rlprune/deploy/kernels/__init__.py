"""What a gated layer does for one image before its convolution, compiled with numba.

The same steps as ``GatedLayer.gathered`` and ``Decisions.decide``, in one call: there, each of
some thirty small operations costs more in its call than in its work. Importing this package
loads numba (a second); the first call compiles (seconds, once per installation).

Numbers are float32 where the NumPy version has float32, and costs are float64; sums run in
another order. tests/unit/test_deploy_fast.py holds the decisions of one against the other.
"""

from rlprune.deploy.kernels.choose import choose, choose_all

__all__ = ["choose", "choose_all"]
