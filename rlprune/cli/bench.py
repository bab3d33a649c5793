"""``rlprune bench``: how fast shipped models are, and their latencies as results."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlprune.cli.clean import clean_errors

if TYPE_CHECKING:
    from torch import Tensor

    from rlprune.deploy import PrunedModel
    from rlprune.deploy.bench import Setting, Timing
    from rlprune.export.timing import Point

_IMAGES = 32
"""Distinct images that are run, or two batches."""


class Rival(str, Enum):
    """What a model is compared with."""

    dense = "dense"
    static = "static"
    masked = "masked"


@dataclass(frozen=True)
class _Request:
    """What the user asks for.

    Attributes:
        file: a file, or the folder of a run or sweep.
        images: image files.
        rivals: None for all.
        layers, memory, every: as the options.
        results: folder of a run or sweep, None: nothing is noted.
    """

    file: Path
    images: list[Path]
    rivals: list[str] | None
    layers: bool
    memory: bool
    results: Path | None
    every: bool


def bench(
    file: Annotated[
        Path, typer.Argument(help="A file made by rlprune export; with --all a run or sweep.")
    ],
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Image files that decide what is computed; none: random pixels (with --results "
            "and --all: test images of the run)."
        ),
    ] = None,
    against: Annotated[
        list[Rival] | None,
        typer.Option(help="Compare with this (repeatable). Default: all; with --all: dense."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images per call.")] = 1,
    repeats: Annotated[int, typer.Option(min=3, help="Interleaved repeats.")] = 40,
    layers: Annotated[bool, typer.Option("--layers", help="Also time layer by layer.")] = False,
    memory: Annotated[
        bool, typer.Option(help="Measure peak memory, of each network in its own process.")
    ] = True,
    results: Annotated[
        Path | None,
        typer.Option(help="Note the latency on the row of this run or sweep that the file is of."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Time all learned points of a run or sweep, for pareto.")
    ] = False,
) -> None:
    """Time a shipped model beside the dense network and a static one of the same widths.

    "dense" is the original network as torch runs it, BatchNorm folded. "static" is the practical
    limit: a plain network with the channels that are computed on average. "masked" computes all
    that is stored and multiplies by zero. Networks take turns, each turn with other images;
    "faster than dense" is a median over turns. Peak memory is what a process takes at most
    above what torch alone takes.

    With --results or --all the medians become columns of the results (latency_seconds,
    latency_ratio to the dense network, and how they were taken), which rlprune pareto takes
    as objectives. A row has one latency, the last.

    Examples:
      rlprune bench small.safetensors --layers

      rlprune bench small.safetensors *.png --batch 16 --threads 2 --against dense

      rlprune bench small.safetensors --results runs/sweep_fashion

      rlprune bench runs/sweep_fashion --all

      rlprune pareto runs/sweep_fashion --minimize latency_seconds
    """
    with clean_errors():
        from rlprune.cli.bench_tables import busy
        from rlprune.deploy.bench import Setting

        setting = Setting(batch, threads, repeats)
        rivals = [rival.value for rival in dict.fromkeys(against)] if against else None
        asked = _Request(file, images or [], rivals, layers, memory, results, every)
        _check(asked)
        if warning := busy():
            typer.echo(warning, err=True)
        if every:
            _time_run(asked, setting)
        else:
            _time_file(asked, setting)


def _check(asked: _Request) -> None:
    from rlprune.errors import ArtifactError

    if asked.every and (asked.images or asked.layers or asked.results is not None):
        raise ArtifactError(
            "--all times the points of a run on its own test images and notes them there. "
            "Leave out image files, --layers and --results."
        )
    if asked.file.exists() and asked.every != asked.file.is_dir():
        raise ArtifactError(
            f"{asked.file}: is a {'file' if asked.every else 'folder'}. Give a file made by "
            "rlprune export, or the folder of a run or sweep and --all."
        )
    if asked.layers and asked.rivals is not None and Rival.dense.value not in asked.rivals:
        raise ArtifactError("--layers compares with the dense network. Add --against dense.")


# --- one file ------------------------------------------------------------------------------


def _time_file(asked: _Request, setting: Setting) -> None:
    from rlprune.cli.bench_tables import show_layers, show_timings
    from rlprune.deploy import PrunedModel
    from rlprune.deploy.bench import compare
    from rlprune.deploy.layer_times import layer_times
    from rlprune.deploy.memory import footprints

    model = PrunedModel.load(asked.file)
    point = _point(model, asked)
    x = model.normalize(_pixels(model, asked, setting, point))
    with _Line() as line:
        timings = compare(model, x, setting, asked.rivals, line.repeats)
        ways = {timing.name: timing.way for timing in timings}
        rows = []
        if asked.layers:
            rows = layer_times(ways["shipped"], ways["dense"], x, setting, line.repeats)
        sizes = footprints(list(ways.values()), asked.file, x, setting, asked.memory, line.say)
    show_timings(timings, sizes, f"{asked.file.name}: {_words(setting)}")
    if rows:
        show_layers(rows)
    if point is not None:
        _note(point, timings, setting)


def _point(model: PrunedModel, asked: _Request) -> Point | None:
    if asked.results is None:
        return None
    from rlprune.export.timing import find_point

    return find_point(model.spec, asked.file, str(asked.results))


def _pixels(model: PrunedModel, asked: _Request, setting: Setting, point: Point | None) -> Tensor:
    """What is run, uint8 [N, C, H, W]."""
    import torch

    from rlprune.deploy.picture import read_picture

    count, shape = max(_IMAGES, 2 * setting.batch), model.spec.input_shape
    if asked.images:
        return torch.cat([read_picture(path, shape, model.spec.resize) for path in asked.images])
    if point is not None:
        from rlprune.export.timing import pixels_of

        return pixels_of(point.row, count)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)


def _note(point: Point, timings: list[Timing], setting: Setting) -> None:
    from rlprune.export.timing import timed_rows
    from rlprune.results import write_rows

    rows = timed_rows(point, timings, setting)
    write_rows(point.results, rows)
    also = " and on that of its dense network" if len(rows) > 1 else ""
    typer.echo(
        f"Noted in {point.results}, on the row of trial {rows[0].trial} at "
        f"R_r = {rows[0].tradeoff_rate:g}{also}."
    )


def _words(setting: Setting) -> str:
    threads = f"{setting.threads} thread{'s' * (setting.threads > 1)}"
    return f"batch {setting.batch}, {threads}, {setting.repeats} repeats"


class _Line:
    """A line of progress on a terminal, drawn between the repeats.

    Nothing of its own runs beside them: a spinner's thread made the first call of each turn
    wait for up to ten milliseconds.
    """

    def __enter__(self) -> _Line:
        self._shown = sys.stderr.isatty()
        return self

    def __exit__(self, *_: object) -> None:
        self.say("")

    def say(self, text: str) -> None:
        """In place of what stood there."""
        if self._shown:
            sys.stderr.write(f"\r\033[K{text}")
            sys.stderr.flush()

    def repeats(self, done: int, total: int) -> None:
        """As ``compare`` reports."""
        self.say(f"{done} of {total} repeats." if done else "Warming up.")


# --- all points of a run -------------------------------------------------------------------


def _time_run(asked: _Request, setting: Setting) -> None:
    from rlprune.export.timing import Plan, time_all

    plan = Plan(setting, asked.rivals or [Rival.dense.value], max(_IMAGES, 2 * setting.batch))
    count = 0
    with _Line() as line:
        for timed in time_all(asked.file, plan, line.say, line.repeats):
            line.say("")
            row, shipped = timed.rows[0], timed.timings[0]
            rate = f"R_r = {row.tradeoff_rate:g}"
            at = "" if row.budget_s is None else f", s = {row.budget_s:g}"
            than = "" if shipped.ratio is None else f", {1 / shipped.ratio:.2f}x dense"
            typer.echo(f"{row.trial}, {rate}{at}: {1e3 * shipped.median:.3f} ms per image{than}")
            count += 1
    typer.echo(f"{count} points timed ({_words(setting)}) and noted in {asked.file}.")
    typer.echo(f"Try it:  rlprune pareto {asked.file} --minimize latency_seconds")
