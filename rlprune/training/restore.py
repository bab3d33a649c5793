"""A finished run's network and agents, without Ray: for evaluation and for notebooks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlprune.agents.networks import RUNTIME, STATIC, RuntimeAgent, StaticAgent
from rlprune.config import TrialConfig
from rlprune.data import ImageSet, load_image_set
from rlprune.errors import CheckpointError
from rlprune.pruning import GatedNetwork
from rlprune.training import methods
from rlprune.training.checkpoint import (
    latest_checkpoint,
    read_checkpoint,
    read_checkpoint_config,
)
from rlprune.training.methods import Method
from rlprune.training.phases import LEARNED
from rlprune.training.program import TrialProgram
from rlprune.training.progress import Reporter
from rlprune.training.setup import TrialSetup, setup_trial


@dataclass(frozen=True)
class LearnedRun:
    """What a run has learned.

    Attributes:
        config, images, setup: as in training.
        program: the trial's program, for counters and the evaluator.
        network: with the weights after the last round.
        method: the agents' policy, ready for ``program.evaluator.measure``.
        runtime: the runtime agent.
    """

    config: TrialConfig
    images: ImageSet
    setup: TrialSetup
    program: TrialProgram
    network: GatedNetwork
    method: Method
    runtime: RuntimeAgent


def _load_agent(agent: nn.Module, state: dict[str, Any]) -> None:
    agent.load_state_dict(
        {name.removeprefix("agent."): torch.as_tensor(value) for name, value in state.items()}
    )
    agent.eval()


def load_run(run: str | Path) -> LearnedRun:
    """Loads the newest checkpoint of a run's folder.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or training is not that far yet.
    """
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        raise CheckpointError(f"{run}: no checkpoint there. Give the folder of a run (--out).")
    config = read_checkpoint_config(checkpoint)
    state = read_checkpoint(checkpoint, config)
    if LEARNED not in state["program"]["snapshots"]:
        raise CheckpointError(
            f"{run}: the learned network is not trained yet (unit "
            f"{state['program']['position']}). Finish the run with --resume first."
        )
    images = load_image_set(config.data, config.seed)
    setup = setup_trial(config, images)
    program = TrialProgram(setup, images, "cpu", Reporter())
    program.load_state_dict(state["program"])
    program.network.load_state_dict(program.snapshots[LEARNED])
    runtime, static = RuntimeAgent(setup.graph, config.agents), StaticAgent(config.agents)
    modules = state["learner"]["rl_module"]
    _load_agent(runtime, modules[RUNTIME])
    _load_agent(static, modules[STATIC])
    return LearnedRun(
        config=config,
        images=images,
        setup=setup,
        program=program,
        network=program.network,
        method=methods.learned(setup, runtime, static),
        runtime=runtime,
    )
