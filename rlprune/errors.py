"""The one exception family of rlprune: every message names what, where and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class RlpruneError(Exception):
    """Base of every error that rlprune raises on purpose.

    The command line prints the message (no traceback) and exits with ``exit_status``.
    """

    exit_status = 1


@dataclass(frozen=True)
class Problem:
    """One violated rule.

    Attributes:
        field: dotted path of the setting, for example ``budgets.compute_max``.
        rule: what is required, in words.
        value: what was given.
        remedy: what to do about it.
    """

    field: str
    rule: str
    value: object
    remedy: str

    def __str__(self) -> str:
        return f"{self.field}: {self.rule} (got {self.value!r}). {self.remedy}"


class InvalidInputError(RlpruneError):
    """Input refused before any work started; lists all problems at once."""

    exit_status = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{count} problem{'s' if count != 1 else ''} found, nothing was started:"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]))

    def __reduce__(self) -> tuple[type[InvalidInputError], tuple[tuple[Problem, ...]]]:
        return (type(self), (self.problems,))


class ConfigError(InvalidInputError):
    """A configuration that breaks a rule: unknown key, wrong type, value out of range."""


class BudgetError(InvalidInputError):
    """A budget that no keep ratio >= alpha can meet; the message says what can be reached."""


class DataError(RlpruneError):
    """Images or labels that cannot be used; the message names the file or the class."""

    exit_status = 2


class BackboneError(RlpruneError):
    """A network that cannot be built, traced or pruned; the message names the module."""

    exit_status = 2


class CheckpointError(RlpruneError):
    """A checkpoint that is missing, damaged, or belongs to another configuration."""

    exit_status = 2


class ForeignCheckpointError(CheckpointError):
    """A checkpoint that is whole, but of another configuration or version of rlprune."""


class ArtifactError(RlpruneError):
    """A shipped model that cannot be made, read or run; the message names file and field."""

    exit_status = 2


class ResultsError(RlpruneError):
    """Result rows that cannot be written or read; the message names the file."""

    exit_status = 2


class FileAccessError(RlpruneError):
    """A file or folder, local or on object storage, that cannot be reached, read or written."""

    exit_status = 2


class ClusterError(RlpruneError):
    """A cluster that cannot be reached, refuses us, is open to all, or does not fit a sweep."""

    exit_status = 2


class RolloutError(RlpruneError):
    """Rollout workers failed or did not come back; the last good checkpoint is kept."""


class ReplicaError(RlpruneError):
    """Processes that train a network together failed or lost each other; see the message."""


class TrainingDivergedError(RlpruneError):
    """A loss became NaN or infinite; the last good checkpoint is kept."""
