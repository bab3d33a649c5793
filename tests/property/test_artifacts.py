"""Damaged and forged model files: they load and run, or are refused; nothing else happens.

Loading raises ``ArtifactError`` or gives a model. Calling that model gives scores, or raises
``ArtifactError`` (the description is no program that runs) or ``ValueError`` (of the budget
and of images; NumPy's own where an array of the file does not fit). Loading takes little
memory and time, whatever the file claims.

Every test run tries a few hundred faults. Ten thousand, with the largest numbers printed:

    RLPRUNE_FAULTS=10000 python -m pytest -s tests/property/test_artifacts.py
"""

from __future__ import annotations

import os
import random
import resource
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from rlprune.deploy import PrunedModel
from rlprune.errors import ArtifactError
from tests.fuzzing import mutate
from tests.physical import InvertedResidual, Residual, ThreeLayers
from tests.shipping import Case, Setting

FAULTS = int(os.environ.get("RLPRUNE_FAULTS", "600"))
MOST_BYTES = 48 << 20
MOST_SECONDS = 5.0
SPACE = 512 << 20
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory(name: str) -> int:
    """Bytes that Linux reports for this process; 0 elsewhere."""
    if not STATUS.exists():
        return 0
    lines = [line for line in STATUS.read_text().splitlines() if line.startswith(name)]
    return int(lines[0].split()[1]) * 1024


def reset_peak() -> int:
    """Lets VmHWM begin at what is used now; returns that, 0 where it cannot be reset."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return 0
    return memory("VmRSS")


@contextmanager
def little_space() -> Iterator[None]:
    """Large allocations fail, even where nothing is written to them."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = memory("VmSize")
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + SPACE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@dataclass
class Largest:
    """What came out, and the most that loading took."""

    outcomes: Counter[str] = field(default_factory=Counter)
    memory: int = 0
    seconds: float = 0.0


def load(path: Path, largest: Largest, accelerate: bool | None) -> PrunedModel | None:
    """A model, or None where the file is refused."""
    before, started = reset_peak(), time.perf_counter()
    tracemalloc.start()  # Python's and NumPy's memory; VmHWM: torch's as well
    try:
        return PrunedModel.load(path, accelerate)
    except ArtifactError as error:
        assert str(error).startswith(f"{path}: ") and len(str(error)) < 20_000
        return None
    finally:
        largest.memory = max(largest.memory, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        largest.seconds = max(largest.seconds, time.perf_counter() - started)
        if before:
            largest.memory = max(largest.memory, memory("VmHWM") - before)


def call(model: PrunedModel) -> str:
    """Runs a loaded model both ways; what happened."""
    shape = model.spec.input_shape
    if shape[0] * shape[1] * shape[2] > 1 << 16:
        return "has large images"
    images = torch.linspace(-1, 1, 2 * shape[0] * shape[1] * shape[2]).reshape(2, *shape)
    for mode in ("masked", "gathered"):
        try:
            scores = model(images, mode=mode)
        except (ArtifactError, ValueError) as error:
            return f"loads, call raises {type(error).__name__}"
        assert scores.shape == (2, len(model.spec.classes))
        assert len(model.macs()) == 2
    return "runs"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Files of every kind of node, policy and number."""
    residual = Case(Residual((6, 5, 7)), Residual.shape, Setting(rank=3, width_affine=True))
    cases = [
        (residual, "float32"),
        (Case(InvertedResidual(), InvertedResidual.shape, Setting(rate=0.0)), "int8"),
        (Case(ThreeLayers(), ThreeLayers.shape, Setting(tradeoff="paper")), "float16"),
        (Case(ThreeLayers(), ThreeLayers.shape, Setting(policy="constant")), "float32"),
    ]
    path = tmp_path_factory.mktemp("whole") / "m.safetensors"
    contents = []
    for case, dtype in cases:
        case.model(path, dtype)(case.images(1))  # whole files run; what is compiled, is now
        contents.append(path.read_bytes())
    return contents


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # forged numbers overflow
def test_damaged_files_load_and_run_or_are_refused(files: list[bytes], tmp_path: Path) -> None:
    largest, path = Largest(), tmp_path / "m.safetensors"
    with little_space():
        for number in range(FAULTS):
            rng = random.Random(number)
            path.write_bytes(mutate(rng.choice(files), rng))
            try:
                model = load(path, largest, rng.choice((None, False)))
                outcome = "refused" if model is None else call(model)
            except Exception as error:
                raise AssertionError(f"fault {number}: {type(error).__name__}: {error}") from error
            largest.outcomes[outcome] += 1
    outcomes = ", ".join(f"{count} {what}" for what, count in largest.outcomes.most_common())
    print(
        f"\n{FAULTS} faults: {outcomes}; loading took at most {largest.seconds:.2f} s and "
        f"{largest.memory / 1e6:.1f} MB beside what was used."
    )
    assert largest.memory < MOST_BYTES
    assert largest.seconds < MOST_SECONDS
    # Neither nearly all nor nearly none: the faults reach every check.
    assert FAULTS / 4 < largest.outcomes["refused"] < FAULTS * 0.95
