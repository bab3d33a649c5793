"""``rlprune report``: the page and the figures of an experiment."""

from __future__ import annotations

import shlex
import webbrowser
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlprune.cli.clean import clean_errors

if TYPE_CHECKING:
    from rlprune.report.source import ReportSource


class FigureFormat(str, Enum):
    """Formats of ``--figures``."""

    png = "png"
    svg = "svg"
    pdf = "pdf"


def report(
    folder: Annotated[str, typer.Argument(help="Folder or URI of a run or a sweep.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path(
        "report.html"
    ),
    figures: Annotated[
        Path | None, typer.Option(help="Also write the pictures for papers into this folder.")
    ] = None,
    figure_format: Annotated[
        FigureFormat, typer.Option("--format", help="Format of --figures.")
    ] = FigureFormat.png,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out damaged or foreign files, with a warning.")
    ] = False,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser.")
    ] = False,
) -> None:
    """Write one HTML page of an experiment: fronts, comparisons, learning curves, all points.

    The page needs no network and no server. It can be made while a sweep still runs.

    Examples:
      rlprune report runs/sweep_digits -o report.html --open

      rlprune report runs/sweep_digits --figures figures --format pdf
    """
    with clean_errors():
        from rlprune.report.page import write_page
        from rlprune.report.paper_figures import write_figures
        from rlprune.report.source import read_source

        source = read_source(folder, skip_bad=skip_bad)
        command = _command_line(folder, out, figures, figure_format, skip_bad)
        path = write_page(source, out, command)
        typer.echo(f"Page:    {path} ({_contents(source, path)})")
        if figures is not None:
            written = write_figures(source, figures, figure_format.value)
            typer.echo(f"Figures: {', '.join(map(str, written))}")
        if open_page:
            _open(path)


def _command_line(
    folder: str, out: Path, figures: Path | None, figure_format: FigureFormat, skip_bad: bool
) -> str:
    """The command line that makes the page again."""
    parts = ["rlprune", "report", folder, "-o", str(out)]
    if figures is not None:
        parts += ["--figures", str(figures), "--format", figure_format.value]
    return shlex.join([*parts, *(["--skip-bad"] if skip_bad else [])])


def _contents(source: ReportSource, path: Path) -> str:
    trials = source.points.groupby(["experiment", "trial", "config_hash"]).ngroups
    return (
        f"{path.stat().st_size / 1e6:.1f} MB, {len(source.points):,} points of {trials:,} "
        f"trial{'' if trials == 1 else 's'}; open it in a browser, no network needed"
    )


def _open(path: Path) -> None:
    if not webbrowser.open(path.resolve().as_uri()):
        typer.echo(f"No browser was found. Open {path} by hand.", err=True)
