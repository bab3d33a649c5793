"""The tables of ``rlprune bench``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from rlprune.deploy.bench import Timing, machine
from rlprune.deploy.layer_times import LayerTime
from rlprune.deploy.memory import Footprint, Memory
from rlprune.deploy.rivals import DENSE, MASKS, SHIPPED

_NONE = "-"
_MIB = 1024.0**2
_BUSY = 0.5  # of the cores


def show_timings(
    timings: Sequence[Timing], footprints: Mapping[str, Footprint], title: str
) -> None:
    """One line per network about its speed, one about its size, and how to read them."""
    dense_macs = timings[0].way.model.spec.costs.dense_macs
    speed = _table(
        title, "network", "ms / image", "quartiles", "images / s", "faster than dense", "fewer MACs"
    )
    for timing in timings:
        speed.add_row(
            timing.name,
            f"{1e3 * timing.median:.3f}",
            f"{1e3 * timing.low:.3f}-{1e3 * timing.high:.3f}",
            f"{1.0 / timing.median:,.0f}",
            _NONE if timing.ratio is None else f"{1.0 / timing.ratio:.2f}x",
            f"{dense_macs / timing.way.macs:.2f}x",
        )
    known = all(footprint.memory is not None for footprint in footprints.values())
    size = _table(None, "network", "file [bytes]", *(("peak memory [MiB]",) if known else ()))
    for name, footprint in footprints.items():
        memory = [] if footprint.memory is None else [_mebibytes(footprint.memory)]
        size.add_row(name, f"{footprint.file_bytes:,}", *memory)
    _print(speed, f"Measured on {machine()}.", size, *_remarks(footprints))


def busy() -> str | None:
    """A warning if the machine has other work; asked before anything is timed."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load <= _BUSY * cores:
        return None
    return (
        f"The machine is busy (load {load:.1f} on {cores} cores): milliseconds will be too long. "
        'Trust "faster than dense" more, and repeat it.'
    )


def _mebibytes(memory: Memory) -> str:
    return f"{memory.network / _MIB:.1f}"


def _remarks(footprints: Mapping[str, Footprint]) -> list[str]:
    lines, shipped = [], footprints[SHIPPED]
    if shipped.memory is not None:
        before = f"{shipped.memory.before / _MIB:.0f} MiB"
        lines.append(f"Peak memory is above the {before} that Python and torch take by themselves.")
    plain = {name: found.without_numba for name, found in footprints.items()}
    told = [f"{name} {_mebibytes(memory)} MiB" for name, memory in plain.items() if memory]
    if told:
        lines.append(f"Without numba and its compiled code: {', '.join(told)}.")
    if MASKS in footprints:
        lines.append(f"Of {MASKS} the MACs that its masks keep are counted; it computes more.")
    return lines


def show_layers(rows: Sequence[LayerTime]) -> None:
    """One line per layer: what pruning promises beside what it brings."""
    table = _table(
        "Layer by layer, medians per image",
        *("layer", "computed", f"ms, {DENSE}", f"ms, {SHIPPED}", "time / dense", "MACs / dense"),
    )
    for row in rows:
        table.add_row(
            row.name,
            _NONE if row.computed is None else f"{row.computed:.1f} of {row.channels}",
            f"{1e3 * row.dense_seconds:.3f}",
            f"{1e3 * row.seconds:.3f}",
            _ratio(row.seconds, row.dense_seconds),
            _ratio(row.macs, row.dense_macs),
        )
    _print(table, "Milliseconds of shipped hold its decisions, MACs are the convolutions' alone.")


def _ratio(mine: float | None, dense: float | None) -> str:
    return _NONE if mine is None or not dense else f"{mine / dense:.3f}"


def _table(title: str | None, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        first = heading == headings[0]
        table.add_column(heading, justify="left" if first else "right", overflow="fold")
    return table


def _print(*parts: Table | str) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    for part in parts:
        console.print(part, highlight=False)
