"""Making shipped models: what is pruned for good is removed, the rest is described.

The files are read and run by :mod:`rlprune.deploy`, which needs none of this.
"""

from rlprune.export.make import Pixels, Shipped, ship

__all__ = ["Pixels", "Shipped", "ship"]
