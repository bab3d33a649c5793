"""``rlprune pareto``: which points nothing beats, as a table, data or a picture."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlprune.cli.clean import clean_errors

if TYPE_CHECKING:
    import pandas as pd

    from rlprune.results.query import FrontAnswer, FrontQuery


class TableFormat(str, Enum):
    """Formats of the front."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


class Seeds(str, Enum):
    """What a point is."""

    each = "each"
    mean = "mean"


class Steps(str, Enum):
    """Which measurements of a trial take part."""

    last = "last"
    all = "all"


def pareto(
    folder: Annotated[str, typer.Argument(help="Folder or URI of a run, a sweep, or results.")],
    maximize: Annotated[
        list[str] | None,
        typer.Option(help="Column that should be high (repeatable). Default validation_accuracy."),
    ] = None,
    minimize: Annotated[
        list[str] | None,
        typer.Option(help="Column that should be low (repeatable). Default storage_bytes."),
    ] = None,
    group_by: Annotated[
        list[str] | None,
        typer.Option("--group-by", help="A front for each value of this column (repeatable)."),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(help="Only these rows: \"backbone == 'resnet20' and seed < 3\"."),
    ] = None,
    seeds: Annotated[
        Seeds, typer.Option(help="Each row by itself, or the mean of rows that differ in seed.")
    ] = Seeds.each,
    steps: Annotated[
        Steps, typer.Option(help="Only each trial's last step, or all its steps.")
    ] = Steps.last,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            help="Print the hypervolume to this point: storage_bytes=1e6 (one per objective)."
        ),
    ] = None,
    table_format: Annotated[
        TableFormat | None,
        typer.Option("--format", help="Default: as --output is called, else table."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="Write the front here, not to the terminal."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw two objectives: front.png, .svg or .pdf.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out damaged or foreign files, with a warning.")
    ] = False,
) -> None:
    """Show the Pareto front: the points that no other point beats in all objectives.

    Points are chosen by validation accuracy, so that the test accuracy beside it is an
    honest report. With --maximize test_accuracy the luckiest points on the test images win
    and their accuracy is optimistic. With --seeds mean the front is one of settings, not of
    lucky seeds; errors are standard errors of the mean.

    Latencies (latency_seconds, latency_ratio) are there once rlprune bench has measured them.

    A condition knows column names, numbers, 'texts', None, == != < <= > >=, in, and, or, not
    and parentheses; rlprune schema lists the columns.

    Examples:
      rlprune pareto runs/sweep_digits --group-by backbone --plot front.png

      rlprune pareto runs/sweep --minimize macs_max --where "dataset == 'cifar10' and seed < 3"

      rlprune pareto runs/sweep --minimize latency_seconds,storage_bytes

      rlprune pareto runs/sweep --seeds mean --format csv > front.csv
    """
    with clean_errors():
        from rlprune.results.query import FrontQuery, find_front

        chosen = _format(table_format, output)
        query = FrontQuery(
            maximize=_names(maximize) or FrontQuery.maximize,
            minimize=_names(minimize) or FrontQuery.minimize,
            group_by=_names(group_by),
            where=where,
            seeds=seeds.value,
            steps=steps.value,
            reference=_reference(reference or []),
        )
        _check_plot(plot, query)
        answer = find_front(folder, query, skip_bad=skip_bad)
        _show(answer, chosen, output)
        if plot is not None:
            from rlprune.report.fronts import pareto_figure

            path = pareto_figure(answer, plot)
            typer.echo(f"Picture: {path}", err=chosen != TableFormat.table)


def _names(values: list[str] | None) -> tuple[str, ...]:
    """Repeated options, or one with commas."""
    names = [name.strip() for value in values or [] for name in value.split(",")]
    return tuple(dict.fromkeys(name for name in names if name))


def _format(given: TableFormat | None, output: str | None) -> TableFormat:
    from rlprune.errors import ResultsError

    suffix = Path(output or "").suffix.removeprefix(".")
    known = [known.value for known in TableFormat]
    chosen = given or TableFormat(suffix if suffix in known else "table")
    if chosen == TableFormat.parquet and output is None:
        raise ResultsError("--format parquet is no text. Give a file: --output front.parquet.")
    return chosen


def _reference(values: list[str]) -> dict[str, float]:
    from rlprune.errors import ResultsError

    reference = {}
    for value in (part for text in values for part in text.split(",")):
        name, separator, number = value.partition("=")
        try:
            reference[name.strip()] = float(number)
        except ValueError as error:
            raise ResultsError(
                f"--reference {value!r}: {'no number' if separator else 'no value'}. Write "
                "COLUMN=NUMBER, for example storage_bytes=1e6, once per objective."
            ) from error
    return reference


def _check_plot(plot: Path | None, query: FrontQuery) -> None:
    """Before anything is read: a mistake should not cost the reading."""
    if plot is not None:
        from rlprune.report.fronts import check_plot

        check_plot(query, plot)


def _show(answer: FrontAnswer, chosen: TableFormat, output: str | None) -> None:
    """The front where it belongs; remarks beside data go to the standard error."""
    from rlprune.report.front_table import notes

    remarks = "\n".join(notes(answer))
    data = _table_text(answer) if chosen == TableFormat.table else _data(answer.front, chosen)
    if output is not None:
        from rlprune import files

        files.write_whole(output, data if isinstance(data, bytes) else data.encode())
        typer.echo(f"{remarks}\nWritten: {output}", err=True)
    else:
        typer.echo(data, nl=False)
        typer.echo(remarks, err=chosen != TableFormat.table)


def _table_text(answer: FrontAnswer) -> str:
    """As wide as the terminal; as wide as needed where there is none."""
    import io

    from rich.console import Console

    from rlprune.report.front_table import front_table

    table = front_table(answer)
    if sys.stdout.isatty():
        console = Console()
        with console.capture() as capture:
            console.print(table)
        return capture.get()
    wide = Console(file=io.StringIO(), width=10_000)
    console = Console(file=io.StringIO(), width=wide.measure(table).maximum)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def _data(front: pd.DataFrame, chosen: TableFormat) -> str | bytes:
    """The front as data; categories are an implementation detail."""
    import io

    texts = {name: "str" for name in front if front[name].dtype == "category"}
    front = front.astype(texts)
    if chosen == TableFormat.csv:
        return front.to_csv(index=False)
    if chosen == TableFormat.json:
        return f"{front.to_json(orient='records', indent=1, double_precision=15)}\n"
    buffer = io.BytesIO()
    front.to_parquet(buffer, index=False)
    return buffer.getvalue()
