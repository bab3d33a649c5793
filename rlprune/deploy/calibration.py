"""What ``rlprune calibrate`` measured on a machine: a JSON file beside a model, and its checks.

It changes how fast a model runs, never what it answers. It is read with the care that a
foreign file needs all the same, and only believed for the model, machine and number of
threads that it was measured with.

Legend: T prunable layers, W widths, B sizes of batches.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from rlprune.deploy import fast
from rlprune.deploy.checks import Checks
from rlprune.errors import ArtifactError

FORMAT = 2
_MOST_BYTES = 1 << 20
_MOST_TABLES, _MOST_STEPS = 64, 64
_LONGEST = 1e9  # ms
_check = Checks("calibrate again, or delete it")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerTimes:
    """One image in one layer; times are milliseconds at the table's widths.

    Attributes:
        name: of the convolution.
        torch: with torch's convolution, [W].
        compiled: with the compiled one, [W].
        compiled_up_to: share of the layer's stored channels (and of its inputs') up to which
            the compiled one is chosen; 0: never.
    """

    name: str
    torch: tuple[float, ...]
    compiled: tuple[float, ...]
    compiled_up_to: float


@dataclass(frozen=True)
class BatchTimes:
    """Batches at one compute budget.

    Attributes:
        budget: the number s, at most 1.
        gathered: milliseconds of an image, images one by one.
        masked_from: images in a batch from which computing all that is stored is faster;
            None: it is not.
    """

    budget: float
    gathered: float
    masked_from: int | None


@dataclass(frozen=True)
class Table:
    """What was measured with one number of threads.

    Attributes:
        threads: of torch.
        widths: shares of the stored channels that were kept in every layer, ascending, [W].
        layers: [T]; empty where nothing is compiled: then there is one way.
        sizes: images in a batch, ascending, [B].
        masked: milliseconds of an image in such batches, all that is stored computed, [B].
        batches: by budget, at least one.
    """

    threads: int
    widths: tuple[float, ...]
    layers: tuple[LayerTimes, ...]
    sizes: tuple[int, ...]
    masked: tuple[float, ...]
    batches: tuple[BatchTimes, ...]


@dataclass(frozen=True)
class Machine:
    """What times depend on, beside the number of threads.

    Attributes:
        cpu: model and instruction set.
        torch: its version.
        numba: its version; None: nothing is compiled.
    """

    cpu: str
    torch: str
    numba: str | None


@dataclass(frozen=True)
class Calibration:
    """The file.

    Attributes:
        model: SHA-256 of the model's file.
        machine, tables: see the classes; one table per number of threads.
    """

    model: str
    machine: Machine
    tables: tuple[Table, ...]

    def with_table(self, table: Table) -> Calibration:
        """The same with a table more, in place of one of as many threads."""
        others = [other for other in self.tables if other.threads != table.threads]
        tables = sorted([*others, table], key=lambda one: one.threads)
        return replace(self, tables=tuple(tables))


def side_file(model: str | Path) -> Path:
    """Where the calibration of a model's file lies: beside it."""
    return Path(f"{model}.calibration.json")


def fingerprint(model: str | Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits.

    Raises:
        ArtifactError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(model, "rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise ArtifactError(f"{model}: cannot be read: {error.strerror}.") from None
    return digest.hexdigest()


def this_machine(compiled: bool) -> Machine:
    """The machine that we run on.

    Args:
        compiled: whether numba is used where it is installed.
    """
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
            name = models[0] if models else name
    except OSError:  # not Linux
        pass
    capability = torch.backends.cpu.get_cpu_capability()
    numba = fast.version() if compiled else None
    return Machine(f"{name}, {capability}", str(torch.__version__), numba)


def tables_for(model: str | Path, compiled: bool, layers: Sequence[str]) -> tuple[Table, ...]:
    """The tables measured for this file on this machine; none, and a warning, if others were.

    Args:
        model: its file.
        compiled: whether it uses numba where that is installed.
        layers: names of its layers, [T].

    Raises:
        ArtifactError: the file beside the model is damaged or edited.
    """
    side = side_file(model)
    if not os.path.lexists(side):
        return ()
    found = read_calibration(side)
    wrong = _difference(found, this_machine(compiled), fingerprint(model))
    if wrong:
        _log.warning(
            "%s: not used: %s. The usual choices are made; for better ones run: "
            "rlprune calibrate %s",
            *(side, wrong, model),
        )
        return ()
    for table in found.tables:
        names = tuple(layer.name for layer in table.layers)
        if names not in ((), tuple(layers)):
            raise ArtifactError(f"{side}: of other layers than the model's. Calibrate again.")
    return found.tables


def _difference(found: Calibration, machine: Machine, model: str) -> str:
    """Why a calibration does not count here; empty: it does."""
    if found.model != model:
        return "it was measured for another file, or the file has been written anew"
    for field in fields(Machine):
        then, now = getattr(found.machine, field.name), getattr(machine, field.name)
        if then != now:
            return f"it was measured with {field.name} {then or 'absent'}, here is {now or 'none'}"
    return ""


def write_calibration(side: Path, calibration: Calibration) -> None:
    """Writes the file; one that is there is replaced at once.

    Raises:
        ArtifactError: it cannot be written, or would be too large to be read.
    """
    text = json.dumps({"format": FORMAT, **asdict(calibration)}, allow_nan=False, indent=1)
    if len(text) > _MOST_BYTES:
        raise ArtifactError(f"{side}: would be larger than {_MOST_BYTES:,} bytes. Delete it first.")
    partial = side.with_name(f".{side.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, side)
    except OSError as error:
        raise ArtifactError(
            f"{side}: cannot be written: {error.strerror}. Copy the model to a folder where "
            "it can, and calibrate it there."
        ) from error


def read_calibration(side: Path) -> Calibration:
    """Reads and checks the file.

    Raises:
        ArtifactError: it is no such file, damaged, edited, or of a later version.
    """
    try:
        if not side.is_file():
            raise ArtifactError("is no file. Remove it.")
        with side.open("rb") as opened:
            content = opened.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ArtifactError(f"is larger than {_MOST_BYTES:,} bytes. Delete it.")
        return _calibration(json.loads(content))
    except ArtifactError as error:
        raise ArtifactError(f"{side}: {error}") from None
    except OSError as error:
        raise ArtifactError(f"{side}: cannot be read: {error.strerror}. Delete it.") from None
    except (ValueError, RecursionError):
        raise ArtifactError(f"{side}: is no JSON. Calibrate again, or delete it.") from None


# --- checks -----------------------------------------------------------------------------------


def _names(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}


def _calibration(value: Any) -> Calibration:
    version = _check.mapping(value, "calibration").get("format")
    if isinstance(version, int) and version > FORMAT:
        raise ArtifactError(
            f"of format {version}, this rlprune reads format {FORMAT}. Update rlprune, or "
            "calibrate again."
        )
    _check.require(version == FORMAT and version is not True, "format", f"{FORMAT}")
    given = _check.mapping(value, "calibration", {"format", *_names(Calibration)})
    machine = _check.mapping(given["machine"], "machine", _names(Machine))
    numba = machine["numba"]
    tables = tuple(_table(item) for item in _check.items(given["tables"], "tables"))
    threads = {table.threads for table in tables}
    unique = len(threads) == len(tables) <= _MOST_TABLES
    _check.require(unique, "tables", "one for each number of threads")
    return Calibration(
        model=_check.text(given["model"], "model"),
        machine=Machine(
            cpu=_check.text(machine["cpu"], "machine.cpu"),
            torch=_check.text(machine["torch"], "machine.torch"),
            numba=None if numba is None else _check.text(numba, "machine.numba"),
        ),
        tables=tables,
    )


def _table(value: Any) -> Table:
    given = _check.mapping(value, "tables", _names(Table))
    widths = _check.numbers(given["widths"], "widths")
    sizes = [_check.count(size, "sizes", 1) for size in _check.items(given["sizes"], "sizes")]
    for name, steps in (("widths", widths), ("sizes", tuple(sizes))):
        ascending = all(low < high for low, high in pairwise(steps))
        _check.require(ascending and len(steps) <= _MOST_STEPS, name, "a few, ascending")
    inside = all(0.0 < width <= 1.0 for width in widths)
    _check.require(inside, "widths", "above 0 and at most 1")
    batches = tuple(_batch(item) for item in _check.items(given["batches"], "batches"))
    _check.require(0 < len(batches) <= _MOST_STEPS, "batches", "a few")
    layers = _check.items(given["layers"], "layers")
    return Table(
        threads=_check.count(given["threads"], "threads", 1),
        widths=widths,
        layers=tuple(_layer(item, len(widths)) for item in layers),
        sizes=tuple(sizes),
        masked=_times(given["masked"], "masked", len(sizes)),
        batches=batches,
    )


def _layer(value: Any, widths: int) -> LayerTimes:
    given = _check.mapping(value, "layers", _names(LayerTimes))
    return LayerTimes(
        name=_check.text(given["name"], "layers.name"),
        torch=_times(given["torch"], "torch", widths),
        compiled=_times(given["compiled"], "compiled", widths),
        compiled_up_to=_check.between(given["compiled_up_to"], "compiled_up_to", 0.0, 1.0),
    )


def _batch(value: Any) -> BatchTimes:
    given = _check.mapping(value, "batches", _names(BatchTimes))
    least = given["masked_from"]
    return BatchTimes(
        budget=_check.between(given["budget"], "budget", 0.0, 1.0),
        gathered=_time(given["gathered"], "gathered"),
        masked_from=None if least is None else _check.count(least, "masked_from", 1),
    )


def _time(value: Any, field: str) -> float:
    return _check.between(value, field, 0.0, _LONGEST)


def _times(value: Any, field: str, length: int) -> tuple[float, ...]:
    return tuple(_time(item, field) for item in _check.items(value, field, length))
