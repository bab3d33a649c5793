"""Running one trial in a folder: Ray, checkpoints, rows, resuming."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pandas as pd
import yaml

from rlprune.config import TrialConfig, config_to_dict
from rlprune.data import ImageSet, load_image_set
from rlprune.errors import CheckpointError, RlpruneError
from rlprune.results import load_rows, write_rows
from rlprune.training.checkpoint import latest_checkpoint, read_checkpoint, save_numbered
from rlprune.training.cluster import private_ray
from rlprune.training.log import TrainingLog
from rlprune.training.progress import Interrupted, Reporter, Values
from rlprune.training.rows import result_row
from rlprune.training.setup import network_of, setup_trial, warn_if_unshippable

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 300.0
_HISTOGRAM_BINS = 30


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what.

    Attributes:
        root: the folder itself; ``config.yaml``, pictures and ``updates.parquet`` lie there.
    """

    root: Path

    @property
    def results(self) -> Path:
        """Parquet rows, one file per method."""
        return self.root / "results"

    @property
    def checkpoints(self) -> Path:
        """The last two checkpoints."""
        return self.root / "checkpoints"

    @property
    def updates(self) -> Path:
        """One row per PPO update."""
        return self.root / "updates.parquet"

    @property
    def difficulty(self) -> Path:
        """MACs of the learned policy on easy and on hard images."""
        return self.root / "difficulty.parquet"

    @property
    def training_picture(self) -> Path:
        """The picture of the agents' training."""
        return self.root / "training.png"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"


class SessionReporter(Reporter):
    """Passes progress on, writes TensorBoard files, and interrupts to save or to stop."""

    def __init__(self, inner: Reporter, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self.inner = inner
        self.stop = threading.Event()
        self._writer = SummaryWriter(str(folder))
        self._next_save = time.monotonic() + CHECKPOINT_SECONDS

    def phase(self, name: str, done: int, total: int) -> None:
        """See :class:`Reporter`."""
        self.inner.phase(name, done, total)

    def advance(self, name: str, done: int, total: int, values: dict[str, float]) -> None:
        """See :class:`Reporter`; raises Interrupted if a save or a stop is due."""
        self.inner.advance(name, done, total, values)
        if self.stop.is_set() or time.monotonic() > self._next_save:
            self._next_save = time.monotonic() + CHECKPOINT_SECONDS
            raise Interrupted

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """See :class:`Reporter`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def histograms(self, step: int, values: Mapping[str, Values]) -> None:
        """See :class:`Reporter`."""
        for name, numbers in values.items():
            self._writer.add_histogram(name, numbers, step, bins=_HISTOGRAM_BINS)

    def note(self, text: str) -> None:
        """See :class:`Reporter`."""
        self.inner.note(text)

    def flush(self) -> None:
        """Writes what TensorBoard files still lack."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes the TensorBoard files."""
        self._writer.close()


@contextmanager
def _stop_on_sigint(reporter: SessionReporter) -> Iterator[None]:
    """The first Ctrl-C asks to stop after the current step, the second stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_signal: int, _frame: FrameType | None) -> None:
        reporter.note("Stopping after this step and saving (Ctrl-C again: stop at once).")
        reporter.stop.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def prepare_folder(config: TrialConfig, out: Path, resume: bool) -> Path | None:
    """Checks the run's folder and writes the resolved configuration into it.

    Returns:
        The checkpoint to resume from, None to start anew.

    Raises:
        CheckpointError: the folder holds a run and ``resume`` is false; nothing to resume;
            or the checkpoint belongs to another configuration.
    """
    folder, checkpoint = RunFolder(out), latest_checkpoint(out)
    if checkpoint is not None and not resume:
        raise CheckpointError(
            f"{out} already holds a run. Add --resume to continue it, or choose another --out."
        )
    if checkpoint is not None:
        read_checkpoint(checkpoint, config)
    elif resume and not folder.config.exists():
        raise CheckpointError(f"{out} holds no run to resume. Leave out --resume to start one.")
    elif folder.results.exists() and not resume:
        raise CheckpointError(
            f"{out} already holds results. Choose another --out, or add --resume."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder.config.write_text(yaml.safe_dump(config_to_dict(config), sort_keys=False))
    except OSError as error:
        raise CheckpointError(
            f"{out}: cannot be written ({error}). Choose another --out."
        ) from None
    return checkpoint


def run_trial(
    config: TrialConfig,
    out: str | Path,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> pd.DataFrame | None:
    """Runs (or resumes) a trial to its end, in its own private Ray instance.

    Args:
        config: what to do.
        out: folder of the run.
        resume: continue from the folder's last checkpoint.
        reporter: watches; None: nobody does.

    Returns:
        The result rows, or None if the run was interrupted (Ctrl-C) and saved.

    Raises:
        InvalidInputError, DataError, BackboneError: refused before Ray starts.
        CheckpointError: see :func:`prepare_folder`.
        TrainingDivergedError: a loss became NaN; the last checkpoint is kept.
    """
    folder, inner = RunFolder(Path(out)), reporter or Reporter()

    def loading(what: str, done: int, total: int) -> None:
        inner.advance(what, done, total, {})

    images = load_image_set(config.data, config.seed, progress=loading)
    setup_trial(config, images)
    warn_if_unshippable(network_of(config, images))
    checkpoint = prepare_folder(config, folder.root, resume)
    watching = SessionReporter(inner, folder.root / "tensorboard")
    splits = (images.train, images.validation, images.test)
    try:
        with (
            _stop_on_sigint(watching),
            private_ray(
                num_cpus=logical_cpus(config),
                store_bytes=sum(split.nbytes for split in splits),
            ),
        ):
            finished = _run(config, images, folder, checkpoint, watching)
    finally:
        watching.close()
    if not finished:
        return None
    return load_rows(folder.results)


def logical_cpus(config: TrialConfig) -> int:
    """CPUs that a run's own Ray must have for its processes, busy at the same time or not."""
    workers = config.resources.cnn_workers
    training = 0 if workers == 1 else workers * (config.resources.cpus or 1)
    return max(2, 1 + config.rollouts.num_env_runners + training)


def _run(
    config: TrialConfig,
    images: ImageSet,
    folder: RunFolder,
    checkpoint: Path | None,
    reporter: SessionReporter,
) -> bool:
    """Trains until the end (True) or until stopped (False); saves after every unit."""
    algorithm = _build(config, images)
    try:
        program = algorithm.program
        program.reporter = reporter
        log = TrainingLog(folder.updates, folder.difficulty, folder.training_picture)
        if checkpoint is not None:
            algorithm.load_checkpoint(str(checkpoint))
            reporter.note(f"Resumed from {checkpoint}.")
        while not program.finished and not reporter.stop.is_set():
            algorithm.train()
            uri = str(folder.root.absolute())
            rows = [result_row(program, m, config.name, uri) for m in algorithm.measurements]
            if rows:
                write_rows(folder.results, rows)
            log.write(algorithm)
            save_numbered(folder.checkpoints, program.position, algorithm.save_checkpoint)
        return bool(program.finished)
    finally:
        algorithm.stop()


def _build(config: TrialConfig, images: ImageSet) -> Any:
    import ray

    from rlprune.training.algorithm import PruningAlgorithm
    from rlprune.training.algorithm_config import PruningAlgorithmConfig

    try:
        return PruningAlgorithm(PruningAlgorithmConfig.of(config), images=images)
    except ray.exceptions.RayActorError as error:
        raise RlpruneError(f"A rollout worker could not start: {error}") from error
