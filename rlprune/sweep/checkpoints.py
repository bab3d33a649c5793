"""A trial's checkpoints in its own folder, wherever that lies (no Ray here)."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field

from rlprune import files
from rlprune.errors import FileAccessError

PROGRESS_FILE = "progress.json"
_CHECKPOINT = re.compile(r"checkpoint_(\d{6})")


@dataclass(frozen=True)
class Progress:
    """What is noted in a checkpoint besides the trial's state.

    Attributes:
        saves: how many checkpoints the trial has written, this one included: the newest
            has the highest number.
        session: of the sweep, in which it was written.
        metrics: what schedulers and searchers know of the trial.
    """

    saves: int
    session: str
    metrics: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """As :func:`read_progress` reads it."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Found:
    """A checkpoint folder; ``progress`` is None where it was not written to the end."""

    index: int
    uri: str
    progress: Progress | None


def read_progress(uri: str) -> Progress | None:
    """What is noted in a checkpoint folder; None if that is missing or torn.

    Raises:
        FileAccessError: it is there, or may be, but cannot be read now.
    """
    try:
        return Progress(**json.loads(files.read_whole(files.join(uri, PROGRESS_FILE))))
    except FileAccessError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    except (ValueError, TypeError):
        return None


def find_checkpoints(trial_uri: str) -> list[Found]:
    """All checkpoint folders of a trial, the newest first, unfinished ones last.

    Raises:
        FileAccessError: the folder cannot be read.
    """
    found = []
    for name in files.list_folders(trial_uri):
        match = _CHECKPOINT.fullmatch(name)
        if match is not None:
            uri = files.join(trial_uri, name)
            found.append(Found(int(match[1]), uri, read_progress(uri)))
    return sorted(found, key=lambda f: f.progress.saves if f.progress else -1, reverse=True)
