"""Published pruning methods, made to run beside the learned policy (no Ray here)."""

from rlprune.training.rivals.bench import Fitted, Rival
from rlprune.training.rivals.registry import RIVALS

__all__ = ["RIVALS", "Fitted", "Rival"]
