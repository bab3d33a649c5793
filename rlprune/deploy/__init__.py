"""Models that have left training: one file, loaded and run with torch alone.

:class:`PrunedModel` is all that an application needs. Nothing in this package imports Ray,
pydantic, pandas or rlprune's training code.
"""

from rlprune.deploy.model import Explanation, PrunedModel

__all__ = ["Explanation", "PrunedModel"]
