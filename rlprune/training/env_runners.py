"""One spot of RLlib 2.60 that rollout workers need otherwise: how they get their configuration.

Ray is pinned to 2.60 in pyproject.toml: read this again before raising it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import ray
from ray.rllib.algorithms import algorithm
from ray.rllib.env.env_runner_group import EnvRunnerGroup


class SelfContainedEnvRunners(EnvRunnerGroup):
    """Hands every worker the configuration itself, not a reference into the object store.

    RLlib stores it, for configurations may be large (ours: 20 KB). A worker that is started again
    then depends on an object that may be lost (https://github.com/ray-project/ray/issues/53727),
    and Ray says so on the terminal whenever a trial starts.
    """

    def _make_worker(self, *, config: Any, **arguments: Any) -> Any:
        if isinstance(config, ray.ObjectRef):
            config = self._remote_config
        return super()._make_worker(config=config, **arguments)


@contextlib.contextmanager
def self_contained_env_runners() -> Iterator[None]:
    """Makes the Algorithm that is set up inside use :class:`SelfContainedEnvRunners`."""
    usual = algorithm.EnvRunnerGroup
    algorithm.EnvRunnerGroup = SelfContainedEnvRunners
    try:
        yield
    finally:
        algorithm.EnvRunnerGroup = usual
