"""How much memory a network takes: each one in a process of its own, that runs nothing else.

Measured is the process's peak resident memory while it loads the file and runs the images,
less what it holds before: Python, torch, and the libraries that a first small convolution
loads. So it counts weights, what is prepared from them, activations, a batch's images, and,
of a model that numba accelerates, numba and its compiled code. The peak is the kernel's
(Linux: VmHWM, reset before the file is loaded; macOS: ``ru_maxrss``, which cannot be reset).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlprune.deploy import fast
from rlprune.deploy.bench import Setting, batches
from rlprune.deploy.model import PrunedModel
from rlprune.deploy.program import MASKED
from rlprune.deploy.rivals import MASKS, SHIPPED, Way
from rlprune.errors import ArtifactError

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_SECONDS = 600


@dataclass(frozen=True)
class Job:
    """What the process does.

    Attributes:
        file: of the network, as ``rlprune export`` writes one.
        images: .npy file of normalised images, float32 [N, C, H, W].
        batch, threads: as in ``bench.Setting``.
        mode, channels_last: as in ``rivals.Way``.
        accelerate: as in ``PrunedModel.load``.
    """

    file: str
    images: str
    batch: int
    threads: int
    mode: str | None
    channels_last: bool
    accelerate: bool | None = None


@dataclass(frozen=True)
class Memory:
    """What it found.

    Attributes:
        before: resident memory before the network is loaded, bytes.
        network: the peak above that, bytes.
    """

    before: int
    network: int


@dataclass(frozen=True)
class Footprint:
    """What a network takes.

    Attributes:
        file_bytes: of its file.
        memory: as it runs; None where the system does not tell.
        without_numba: the same where numba would be used but is not; else None.
    """

    file_bytes: int
    memory: Memory | None = None
    without_numba: Memory | None = None


def told() -> bool:
    """Whether this system tells a process's peak memory."""
    return _STATUS.exists() or sys.platform == "darwin"


def footprints(
    ways: Sequence[Way],
    file: Path,
    images: Tensor,
    setting: Setting,
    measure: bool = True,
    say: Callable[[str], None] = lambda _text: None,
) -> dict[str, Footprint]:
    """Bytes and peak memory of networks, by name.

    Args:
        ways: how each is run.
        file: of the shipped model; rivals are written to temporary files.
        images: as for ``compare``.
        setting: batch and threads.
        measure: whether memory is wanted; False: only bytes.
        say: told which one is measured; each takes seconds.

    Raises:
        ArtifactError: a process fails.
    """
    found: dict[str, Footprint] = {}
    with tempfile.TemporaryDirectory(prefix="rlprune-") as folder:
        pictures = Path(folder, "images.npy")
        np.save(pictures, torch.cat(batches(images, setting.batch)).numpy())
        for way in ways:
            network = file
            if way.name not in (SHIPPED, MASKS):
                network = Path(folder, f"{way.name}.safetensors")
                way.write(network)
            found[way.name] = Footprint(network.stat().st_size)
            if measure and told():
                say(f"Memory of {way.name}.")
                job = Job(
                    str(network),
                    str(pictures),
                    setting.batch,
                    setting.threads,
                    way.mode,
                    way.channels_last,
                    way.model.accelerate,
                )
                found[way.name] = _measured(found[way.name], job, way)
    return found


def _measured(footprint: Footprint, job: Job, way: Way) -> Footprint:
    one_by_one = way.model.spec.policy.kind != "none" or job.batch == 1
    compiles = one_by_one and way.mode != MASKED and job.accelerate is not False
    plain = memory_of(replace(job, accelerate=False)) if compiles and fast.available() else None
    return replace(footprint, memory=memory_of(job), without_numba=plain)


def memory_of(job: Job) -> Memory:
    """Runs a job in a new process.

    Raises:
        ArtifactError: the process fails (names its last words), or takes ten minutes.
    """
    package = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(
            [sys.executable, "-m", "rlprune.deploy.memory", json.dumps(asdict(job))],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ArtifactError(
            f"{job.file}: measuring its memory took more than {_SECONDS} s. Give fewer images."
        ) from None
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise ArtifactError(
            f"{job.file}: its memory cannot be measured: {words[0]}. Leave it out (--no-memory)."
        )
    return Memory(**json.loads(done.stdout))


@torch.inference_mode()
def run(job: Job) -> Memory:
    """Does the job in this process, which must be a new one."""
    torch.set_num_threads(job.threads)
    small = torch.zeros(1, 4, 8, 8)
    torch.nn.functional.conv2d(small, torch.zeros(4, 4, 3, 3)) + (small @ small)[..., :6, :6]
    images = np.load(job.images, mmap_mode="r")
    before = _reset()
    model = PrunedModel.load(job.file, job.accelerate)
    kind = torch.channels_last if job.channels_last else torch.contiguous_format
    for at in range(0, len(images), job.batch):
        part = torch.tensor(np.array(images[at : at + job.batch]))
        model(part.contiguous(memory_format=kind), mode=job.mode)
    return Memory(before, max(0, _peak() - before))


def _reset() -> int:
    """Resident memory in bytes, from which on the peak counts."""
    if not _STATUS.exists():
        return _peak()
    _CLEAR.write_text(_RESET_PEAK)
    return _status("VmRSS")


def _peak() -> int:
    """Peak resident memory in bytes."""
    if _STATUS.exists():
        return _status("VmHWM")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes


def _status(name: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise ArtifactError(f"{_STATUS}: says no {name}. Leave out the memory (--no-memory).")


if __name__ == "__main__":
    print(json.dumps(asdict(run(Job(**json.loads(sys.argv[1]))))))
