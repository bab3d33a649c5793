"""Optuna as a Tune searcher that can be resumed from a journal of plain JSON lines."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlprune import files
from rlprune.errors import ConfigError, Problem
from rlprune.sweep import layout
from rlprune.sweep.spec import SweepSpec

_STUDY = "rlprune"
_SESSION_STRIDE = 1_000_003
NAME = "name"
"""Attribute of Optuna's trials: which rlprune trial it is."""


def require_optuna() -> Any:
    """The optuna module.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            [
                Problem(
                    "search.algorithm",
                    "needs the package optuna",
                    "optuna",
                    "pip install 'rlprune[optuna]', or use grid or random.",
                )
            ]
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class OptunaJournal:
    """The study of a sweep, kept as JSON lines in the experiment's folder.

    Optuna writes to a local file; :meth:`upload` copies it to where the experiment lies.
    Nothing in it is pickled.
    """

    def __init__(self, spec: SweepSpec, uri: str) -> None:
        self._optuna = require_optuna()
        self._spec = spec
        self._uri = layout.journal(uri)
        self._folder = tempfile.TemporaryDirectory(prefix="rlprune-optuna-")
        self._local = Path(self._folder.name) / "journal"
        if files.exists(self._uri):
            self._local.write_bytes(files.read_whole(self._uri))
        backend = self._optuna.storages.journal.JournalFileBackend(str(self._local))
        self.storage = self._optuna.storages.JournalStorage(backend)
        self.study = self._optuna.create_study(
            storage=self.storage,
            study_name=_STUDY,
            load_if_exists=True,
            directions=[
                "maximize" if o.mode == "max" else "minimize" for o in spec.search.objectives
            ],
        )

    def unfinished(self, over: Callable[[str], bool]) -> dict[str, dict[str, Any]]:
        """Names and parameters of trials to be run again; in the study they are closed.

        Args:
            over: whether the trial of this name is done.
        """
        again: dict[str, dict[str, Any]] = {}
        for trial in self.study.get_trials(deepcopy=False):
            name = trial.user_attrs.get(NAME, "")
            if not trial.state.is_finished():
                # study.tell refuses trials that were still waiting to be run again.
                self.storage.set_trial_state_values(
                    trial._trial_id, self._optuna.trial.TrialState.FAIL
                )
            if name and not over(name):
                again[name] = dict(trial.params)
        return again

    def searcher(self, define: Callable[[Any], dict[str, Any]], first: list[dict[str, Any]]) -> Any:
        """Tune's searcher over this study.

        Args:
            define: resolves a point from an Optuna trial (define by run).
            first: parameters to be tried before new ones.
        """
        from ray.tune.search.optuna import OptunaSearch

        class JournalledSearch(OptunaSearch):
            """Tune would pickle the searcher again and again; the journal has all of it."""

            def save(self, checkpoint_path: str) -> None:
                Path(checkpoint_path).touch()

        search = self._spec.search
        # A sampler starts from its seed in every session: it would draw the same points again.
        seed = (search.seed + _SESSION_STRIDE * len(self.study.get_trials(deepcopy=False))) % 2**32
        samplers = self._optuna.samplers
        sampler = {
            "tpe": lambda: samplers.TPESampler(seed=seed, multivariate=False),
            "nsga2": lambda: samplers.NSGAIISampler(seed=seed),
            "random": lambda: samplers.RandomSampler(seed=seed),
        }[search.sampler]()
        return JournalledSearch(
            space=define,
            metric=[objective.metric for objective in search.objectives],
            mode=[objective.mode for objective in search.objectives],
            points_to_evaluate=first or None,
            sampler=sampler,
            study_name=_STUDY,
            storage=self.storage,
        )

    def upload(self) -> None:
        """Copies the journal into the experiment's folder."""
        if self._local.exists():
            files.write_whole(self._uri, self._local.read_bytes())
