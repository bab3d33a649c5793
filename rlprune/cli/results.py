"""``rlprune results``: care for the folders that hold result rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rlprune.cli.clean import clean_errors

if TYPE_CHECKING:
    from rlprune.results import CompactReport

app = typer.Typer(help="Care for the folders that hold result rows.", no_args_is_help=True)


@app.command()
def compact(
    folder: Annotated[str, typer.Argument(help="Folder or URI of a run, a sweep or its results.")],
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave damaged or foreign files as they are.")
    ] = False,
) -> None:
    """Merge the many small files of a folder into few large, sorted ones.

    Safe at any time, also while a sweep writes and when it is killed: files are deleted only
    after their rows are stored elsewhere. Files of older versions become current ones.

    Examples:
      rlprune results compact runs/sweep_digits

      rlprune results compact s3://bucket/sweep_cifar10
    """
    with clean_errors():
        from rich.console import Console
        from rich.progress import Progress

        from rlprune.results import compact

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("Merge files", total=None)
            report = compact(
                folder,
                skip_bad=skip_bad,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        for line in _summary(report):
            typer.echo(line)


@app.command()
def schema() -> None:
    """Print the columns of the result files: name, type, unit, meaning."""
    from rlprune.cli.show import print_schema

    print_schema()


def _summary(report: CompactReport) -> list[str]:
    lines = [
        f"Files: {report.files_before} -> {report.files_after}",
        f"Bytes: {report.bytes_before:,} -> {report.bytes_after:,}",
    ]
    counts = {
        "rows removed that newer ones replace": report.duplicates,
        "files of older versions rewritten": report.upgraded,
        "files left for the next time (they changed meanwhile)": report.changed,
        "temporary files of killed writers removed": report.temporary,
    }
    lines += [f"{count} {what}" for what, count in counts.items() if count]
    return lines + [f"Skipped: {reason}" for reason in report.skipped]
