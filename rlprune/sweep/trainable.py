"""A trial as Tune sees it: one iteration per unit of the trial's program."""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.result import DONE, SHOULD_CHECKPOINT

from rlprune import files
from rlprune.config import TrialConfig, config_from_dict
from rlprune.errors import CheckpointError, ForeignCheckpointError
from rlprune.results import write_rows
from rlprune.sweep import layout
from rlprune.sweep.checkpoints import (
    PROGRESS_FILE,
    Found,
    Progress,
    find_checkpoints,
    read_progress,
)
from rlprune.sweep.fields import MUTABLE, set_field
from rlprune.training.checkpoint import read_checkpoint_config
from rlprune.training.log import TrainingLog
from rlprune.training.phases import LEARNED, PRETRAIN
from rlprune.training.pretrained import PretrainedCache, pretrained_key
from rlprune.training.progress import Reporter, Values
from rlprune.training.rows import result_row
from rlprune.training.session import SessionReporter

logger = logging.getLogger(__name__)

WAITING = "waiting for a pretrained network"
_WAIT_SECONDS = 2.0
_RENEW_SECONDS = 10.0
_OUTAGE_SECONDS = 600.0


def trial_of(point: dict[str, Any], name: str) -> TrialConfig:
    """The configuration of a point, with what a scheduler has changed since.

    Args:
        point: as Tune hands it over; population-based training replaces it by that of a
            better trial.
        name: of the trial itself, which stays.
    """
    values = copy.deepcopy(point["trial"])
    values["name"] = name
    for field, value in point["mutate"].items():
        set_field(values, field, value)
    return config_from_dict(values)


def _learned_metrics(algorithm: Any, tradeoff_rate: float | None) -> dict[str, float]:
    """What schedulers and searchers go by: the learned policy on the validation images.

    Args:
        algorithm: after an iteration.
        tradeoff_rate: the R_r to report; None: the last of ``evaluation.tradeoff_rates``.
    """
    program = algorithm.program
    if tradeoff_rate is None:
        tradeoff_rate = program.config.evaluation.tradeoff_rates[-1]
    found = {v.tradeoff_rate: v.result for v in program.validations}
    for measured in algorithm.measurements:
        if measured.method == LEARNED and measured.point.ratio is None:
            found[measured.point.tradeoff_rate] = measured.validation
    result = found.get(tradeoff_rate)
    if result is None:
        return {}
    rounds = program.counters.rl_updates // max(1, program.config.training.updates_per_round)
    return {
        "validation_accuracy": result.accuracy,
        "validation_loss": result.loss,
        "storage_bytes": float(result.storage_bytes),
        "macs_mean": float(result.macs.mean()),
        "macs_max": float(result.macs.max()),
        "round": float(rounds),
    }


class TrialTrainable(tune.Trainable):
    """Runs one point of a sweep; Tune's checkpoints of it are rlprune's.

    A trial finds its newest checkpoint in its own folder by itself. It therefore goes on
    where it stopped in a new session as well, and nothing of Tune's own (pickled) state
    has to be read.

    Config keys: ``sweep`` (name, uri, session, pretrained: folder of the cache,
    tradeoff_rate, tensorboard: whether to write curves), and one of ``point`` (name, trial:
    the resolved configuration, mutate: fields that a scheduler changes while the trial runs,
    bundles), ``index`` (of a point in ``points``) and ``cell`` (index, mutate).

    Attributes:
        points: of the sweep, where they are known in advance.
    """

    points: Sequence[dict[str, Any]] = ()

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """The trial's own process, and one bundle for each of its CNN and rollout workers."""
        return tune.PlacementGroupFactory(cls.point_of(config)["bundles"])

    @classmethod
    def point_of(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The point that Tune's configuration stands for."""
        if "point" in config:
            return dict(config["point"])
        cell = config.get("cell") or {"index": config["index"], "mutate": {}}
        return {**cls.points[cell["index"]], "mutate": cell["mutate"]}

    def setup(self, config: dict[str, Any], shared: Any = None) -> None:
        """Notes what to do; the trial is built when it first runs (see ``reset_config``)."""
        if shared is not None:
            self._shared = shared
        self._sweep = config["sweep"]
        self._trial = trial_of(self.point_of(config), self.trial_name)
        self._folder = layout.trial(self._sweep["uri"], self._trial.name)
        self._algorithm: Any = None
        self._progress = Progress(0, self._sweep["session"])
        self._leftover: list[Found] = []
        # A trial that has failed because its storage did not answer starts anew at once. Tune
        # would fetch its checkpoint next, fail, and use up all its failures within seconds.
        self._wait_for_storage()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Becomes another trial in the same process: saves importing torch and Ray again.

        Tune takes an exception here for the new trial's and never tries that again, so
        nothing is built yet, and trouble in ending the old trial is only logged.
        """
        try:
            self.cleanup()
        except Exception:
            logger.exception("Ending the trial before this one failed.")
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Runs one unit (or waits for a pretrained network) and writes its rows."""
        self._begin()
        self._drop_leftover()
        program = self._algorithm.program
        if not self._may_train():
            time.sleep(_WAIT_SECONDS)
            return self._result(phase=WAITING, checkpoint=False)
        phase = "" if program.finished else program.units[program.position].phase
        self._algorithm.train()
        self._write()
        self._publish_pretrained()
        return self._result(phase=phase, checkpoint=True)

    def cleanup(self) -> None:
        """Ends the trial's workers."""
        if self._algorithm is not None:
            self._drop_leftover()
            self._reporter.close()
            self._algorithm.stop()
            self._algorithm = None

    # ------------------------------------------------------------------ building

    def _begin(self) -> None:
        """Builds the trial and restores its newest checkpoint, if there is one."""
        if self._algorithm is not None:
            return
        self._build()
        found = find_checkpoints(self._folder)
        if found:
            # Tune would count from zero again and write into the folders of the last session.
            self._storage.current_checkpoint_index = max(f.index for f in found)
        session = self._sweep["session"]
        self._leftover = [f for f in found if not f.progress or f.progress.session != session]
        self._restore_newest(found)

    def _build(self) -> None:
        from rlprune.training.algorithm import PruningAlgorithm
        from rlprune.training.algorithm_config import PruningAlgorithmConfig

        reference, digest = ray.get(self._shared.images.remote(self._trial.data, self._trial.seed))
        own = self.point_of(self.config)["bundles"][0]["CPU"]
        config = PruningAlgorithmConfig.of(self._trial, cpus_per_cnn_worker=own)
        self._algorithm = PruningAlgorithm(config, images=reference)
        self._reporter = _TrialReporter(
            Path(self.logdir) / "tensorboard", self._renew, self._sweep["tensorboard"]
        )
        program = self._algorithm.program
        program.reporter = self._reporter
        self._log = TrainingLog(
            layout.updates(self._sweep["uri"], self._trial.name),
            layout.difficulty(self._sweep["uri"], self._trial.name),
            layout.picture(self._sweep["uri"], self._trial.name),
        )
        self._cache = PretrainedCache(self._sweep["pretrained"])
        self._key = pretrained_key(program, digest)
        self._next_renewal = 0.0

    def _wait_for_storage(self) -> None:
        """Spends an outage of the storage here, where it is no failure of the trial."""
        if files.wait_until_reachable(self._folder, 0.0):
            return
        logger.warning("%s does not answer: waiting %.0f s.", self._folder, _OUTAGE_SECONDS)
        if not files.wait_until_reachable(self._folder, _OUTAGE_SECONDS):
            logger.warning("%s did not answer again.", self._folder)

    # --------------------------------------------------------------- pretraining

    def _pretraining(self) -> bool:
        program = self._algorithm.program
        return self._key is not None and (
            program.position < program.config.training.pretrain_epochs
        )

    def _may_train(self) -> bool:
        """Whether to run a unit now; takes a network that another trial has pretrained."""
        if not self._pretraining():
            return True
        state = self._cache.load(str(self._key))
        if state is not None:
            self._algorithm.program.adopt_pretrained(state)
            self._reporter.note("Took the pretrained network from the cache.")
            return True
        return bool(ray.get(self._shared.claim.remote(self._key, self._trial.name)))

    def _renew(self) -> None:
        if self._pretraining() and time.monotonic() > self._next_renewal:
            self._next_renewal = time.monotonic() + _RENEW_SECONDS
            self._shared.claim.remote(self._key, self._trial.name)

    def _publish_pretrained(self) -> None:
        state = self._algorithm.program.pretrained_state()
        if self._key is not None and state is not None:
            self._cache.save(self._key, state)
            self._shared.release.remote(self._key, self._trial.name)

    # -------------------------------------------------------------------- output

    def _write(self) -> None:
        self._wait_for_storage()  # the unit is trained: an outage must not cost it
        program = self._algorithm.program
        rows = [
            result_row(program, measured, self._sweep["name"], self._folder)
            for measured in self._algorithm.measurements
        ]
        if rows:
            write_rows(layout.results(self._sweep["uri"]), rows)
        self._log.write(self._algorithm)

    def _result(self, phase: str, checkpoint: bool) -> dict[str, Any]:
        program = self._algorithm.program
        known = _learned_metrics(self._algorithm, self._sweep["tradeoff_rate"])
        self._progress.metrics.update(known)
        result: dict[str, Any] = {
            "phase": phase,
            "unit": program.position,
            "units": len(program.units),
            "finished": program.finished,
            DONE: program.finished,
            SHOULD_CHECKPOINT: checkpoint,
            **self._progress.metrics,
        }
        return result

    # --------------------------------------------------------------- checkpoints

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes rlprune's checkpoint, and what must be known to find the newest one."""
        self._begin()
        self._wait_for_storage()  # Tune uploads the checkpoint next
        self._reporter.flush()
        self._progress = dataclasses.replace(self._progress, saves=self._progress.saves + 1)
        self._algorithm.save_checkpoint(checkpoint_dir)
        Path(checkpoint_dir, PROGRESS_FILE).write_text(self._progress.to_json())

    def load_checkpoint(self, checkpoint: dict[str, Any] | str | None) -> None:
        """Takes a checkpoint that Tune hands over.

        One of this trial is no newer than what :meth:`_begin` finds by itself. One of another
        trial comes from a scheduler that copies weights (population-based training).
        """
        self._begin()
        folder = str(checkpoint)
        progress = read_progress(folder) or Progress(0, "")
        other = read_checkpoint_config(folder)
        if other.name != self._trial.name or progress.saves > self._progress.saves:
            self._load(folder, progress)

    def _load(self, folder: str, progress: Progress) -> None:
        self._algorithm.load_checkpoint(folder, may_differ=("name", *MUTABLE))
        self._progress = Progress(
            max(self._progress.saves, progress.saves),
            self._sweep["session"],
            dict(progress.metrics),
        )

    def _restore_newest(self, found: list[Found]) -> None:
        """Loads the newest checkpoint; one that is torn gives way to the one before.

        Raises:
            ForeignCheckpointError: it is whole, but of another configuration or version.
            FileAccessError: it cannot be read now; nothing is lost by trying again later.
        """
        for checkpoint in found:
            if checkpoint.progress is None:
                continue
            try:
                with files.local_copy(checkpoint.uri) as folder:
                    self._load(str(folder), checkpoint.progress)
                return
            except ForeignCheckpointError:
                raise
            except CheckpointError as error:
                logger.warning("%s; trying the checkpoint before it.", error)

    def _drop_leftover(self) -> None:
        """Deletes other sessions' checkpoints once this one has written its own."""
        newest = max((found.index for found in self._leftover), default=0)
        names = files.list_folders(self._folder) if self._leftover else []
        if any(name > f"checkpoint_{newest:06d}" for name in names if "checkpoint_" in name):
            for found in self._leftover:
                files.delete_folder(found.uri)
            self._leftover = []


class _TrialReporter(SessionReporter):
    """Saves from time to time, writes TensorBoard files, and keeps the lease alive."""

    def __init__(self, folder: Path, renew: Callable[[], None], curves: bool) -> None:
        super().__init__(Reporter(), folder)
        self._renew = renew
        self._curves = curves

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """See :class:`Reporter`."""
        if self._curves:
            super().scalars(step, values)

    def histograms(self, step: int, values: Mapping[str, Values]) -> None:
        """See :class:`Reporter`."""
        if self._curves:
            super().histograms(step, values)

    def advance(self, name: str, done: int, total: int, values: dict[str, float]) -> None:
        """See :class:`Reporter`."""
        if name == PRETRAIN:
            self._renew()
        super().advance(name, done, total, values)
