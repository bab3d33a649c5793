"""A process that dies while it passes from one trial to the next; in Ray itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle, tune
from ray.tune.search.basic_variant import BasicVariantGenerator

from rlprune.sweep.patches import trials_survive_a_lost_process_between_two

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_instance")]
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it


class Dies(tune.Trainable):
    """Ends after one step; its process dies at its first change of trials."""

    def setup(self, config: dict[str, Any]) -> None:
        self._flag = Path(config["flag"])

    def step(self) -> dict[str, Any]:
        return {"done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        if not self._flag.exists():
            self._flag.touch()
            os._exit(1)
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        pass

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        pass


def two_trials(folder: Path) -> tune.ResultGrid:
    tuner = tune.Tuner(
        Dies,
        param_space={"flag": str(folder / "died"), "number": tune.grid_search([1, 2])},
        tune_config=tune.TuneConfig(
            search_alg=BasicVariantGenerator(max_concurrent=1), reuse_actors=True
        ),
        run_config=tune.RunConfig(
            storage_path=str(folder),
            failure_config=tune.FailureConfig(max_failures=3),
            verbose=0,
        ),
    )
    return tuner.fit()


def test_the_next_trial_is_tried_again(tmp_path: Path) -> None:
    with trials_survive_a_lost_process_between_two():
        results = two_trials(tmp_path)
    assert (tmp_path / "died").exists()
    assert len(results) == 2 and results.num_errors == 0


def test_without_it_the_next_trial_fails_for_good(tmp_path: Path) -> None:
    """Fails when Tune learns to handle it itself: then the patch can go."""
    results = two_trials(tmp_path)
    assert (tmp_path / "died").exists() and results.num_errors == 1
