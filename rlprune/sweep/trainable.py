"""A trial as Tune sees it: one iteration per unit of the trial's program."""

from __future__ import annotations

import copy
import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.result import DONE, SHOULD_CHECKPOINT

from rlprune import files
from rlprune.config import TrialConfig, config_from_dict
from rlprune.errors import CheckpointError, FileAccessError
from rlprune.results import write_rows
from rlprune.sweep import layout
from rlprune.sweep.fields import MUTABLE, set_field
from rlprune.training.checkpoint import read_checkpoint_config
from rlprune.training.pretrained import PretrainedCache, pretrained_key
from rlprune.training.program import LEARNED, PRETRAIN
from rlprune.training.progress import Reporter
from rlprune.training.rows import result_row
from rlprune.training.session import SessionReporter, write_updates

logger = logging.getLogger(__name__)

PROGRESS_FILE = "progress.json"
WAITING = "waiting for a pretrained network"
_WAIT_SECONDS = 2.0
_RENEW_SECONDS = 10.0
_CHECKPOINT = re.compile(r"checkpoint_(\d{6})")


def trial_of(config: dict[str, Any], name: str) -> TrialConfig:
    """The configuration of a point, with what a scheduler has changed since.

    Args:
        config: as Tune hands it over; population-based training replaces all of it by
            that of a better trial.
        name: of the trial itself, which stays.
    """
    values = copy.deepcopy(config["point"]["trial"])
    values["name"] = name
    for field, value in config["point"]["mutate"].items():
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

    Config keys: ``point`` (name, trial: the resolved configuration, mutate: fields that the
    scheduler changes while the trial runs, bundles) and ``sweep`` (name, uri, pretrained:
    folder of the cache, tradeoff_rate). ``shared``: handle of :class:`SharedData`.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """The trial's own process, and one bundle for each of its rollout workers."""
        return tune.PlacementGroupFactory(config["point"]["bundles"])

    def setup(self, config: dict[str, Any], shared: Any = None) -> None:
        """Builds the trial and restores its newest checkpoint, if there is one."""
        if shared is not None:
            self._shared = shared
        self._sweep = config["sweep"]
        self._trial = trial_of(config, self.trial_name)
        self._folder = files.join(self._sweep["uri"], self._trial.name)
        self._build()
        self._saves = 0
        self._leftover = self._own_checkpoints()
        if self._leftover:
            # Tune would count from zero again and write into the folders of the last session.
            self._storage.current_checkpoint_index = max(self._leftover)
        self._restore_newest()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Becomes another trial in the same process: saves importing torch and Ray again."""
        self.cleanup()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Runs one unit (or waits for a pretrained network) and writes its rows."""
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
        self._reporter.close()
        self._algorithm.stop()

    # ------------------------------------------------------------------ building

    def _build(self) -> None:
        from rlprune.training.algorithm import PruningAlgorithm, PruningAlgorithmConfig

        reference, digest = ray.get(self._shared.images.remote(self._trial.data, self._trial.seed))
        self._algorithm = PruningAlgorithm(PruningAlgorithmConfig.of(self._trial), images=reference)
        self._reporter = _TrialReporter(Path(self.logdir) / "tensorboard", self._renew)
        program = self._algorithm.program
        program.reporter = self._reporter
        self._cache = PretrainedCache(self._sweep["pretrained"])
        self._key = pretrained_key(program, digest)
        self._metrics: dict[str, float] = {}
        self._next_renewal = 0.0

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
        program = self._algorithm.program
        rows = [
            result_row(program, measured, self._sweep["name"], self._folder)
            for measured in self._algorithm.measurements
        ]
        if rows:
            write_rows(layout.results(self._sweep["uri"]), rows)
        if program.history:
            write_updates(layout.updates(self._sweep["uri"], self._trial.name), program.history)

    def _result(self, phase: str, checkpoint: bool) -> dict[str, Any]:
        program = self._algorithm.program
        self._metrics.update(_learned_metrics(self._algorithm, self._sweep["tradeoff_rate"]))
        result: dict[str, Any] = {
            "phase": phase,
            "unit": program.position,
            "units": len(program.units),
            "finished": program.finished,
            DONE: program.finished,
            SHOULD_CHECKPOINT: checkpoint,
            **self._metrics,
        }
        return result

    # --------------------------------------------------------------- checkpoints

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes rlprune's checkpoint, and how many this trial has written."""
        self._saves += 1
        self._algorithm.save_checkpoint(checkpoint_dir)
        progress = {"saves": self._saves, "unit": self._algorithm.program.position}
        Path(checkpoint_dir, PROGRESS_FILE).write_text(json.dumps(progress))

    def load_checkpoint(self, checkpoint: dict[str, Any] | str | None) -> None:
        """Takes a checkpoint that Tune hands over.

        One of this trial is no newer than what ``setup`` has found. One of another trial
        comes from a scheduler that copies weights (population-based training).
        """
        folder = str(checkpoint)
        other = read_checkpoint_config(folder)
        if other.name == self._trial.name and _saves_of(folder) <= self._saves:
            return
        self._load(folder)

    def _load(self, folder: str) -> None:
        self._algorithm.load_checkpoint(folder, may_differ=("name", *MUTABLE))
        self._saves = max(self._saves, _saves_of(folder))

    def _own_checkpoints(self) -> list[int]:
        names = files.list_folders(self._folder)
        return sorted(int(match[1]) for name in names if (match := _CHECKPOINT.fullmatch(name)))

    def _restore_newest(self) -> None:
        """Loads the newest readable checkpoint; a torn one gives way to the one before."""
        found = []
        for index in self._leftover:
            uri = files.join(self._folder, f"checkpoint_{index:06d}")
            try:
                saves = json.loads(files.read_whole(files.join(uri, PROGRESS_FILE)))["saves"]
            except (FileAccessError, ValueError, KeyError):
                continue  # killed while it was written
            found.append((int(saves), uri))
        for _, uri in sorted(found, reverse=True):
            try:
                with files.local_copy(uri) as folder:
                    self._load(str(folder))
                return
            except (CheckpointError, FileAccessError) as error:
                logger.warning("%s; trying the checkpoint before it.", error)

    def _drop_leftover(self) -> None:
        """Deletes the last session's checkpoints once this one has written its own."""
        if not self._leftover:
            return
        newer = [index for index in self._own_checkpoints() if index > max(self._leftover)]
        if newer:
            for index in self._leftover:
                files.delete_folder(files.join(self._folder, f"checkpoint_{index:06d}"))
            self._leftover = []


def _saves_of(folder: str) -> int:
    try:
        return int(json.loads(Path(folder, PROGRESS_FILE).read_text())["saves"])
    except (OSError, ValueError, KeyError):
        return 0


class _TrialReporter(SessionReporter):
    """Saves from time to time, writes TensorBoard files, and keeps the lease alive."""

    def __init__(self, folder: Path, renew: Any) -> None:
        super().__init__(Reporter(), folder)
        self._renew = renew

    def advance(self, name: str, done: int, total: int, values: dict[str, float]) -> None:
        """See :class:`Reporter`."""
        if name == PRETRAIN:
            self._renew()
        super().advance(name, done, total, values)
