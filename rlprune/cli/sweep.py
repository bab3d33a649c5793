"""``rlprune sweep`` and ``rlprune status``."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from rlprune.cli.clean import BROKEN_OFF, INTERRUPTED, clean_errors

if TYPE_CHECKING:
    from rich.console import Console

    from rlprune.sweep.spec import SweepSpec
    from rlprune.sweep.status import SweepStatus


def sweep(
    spec: Annotated[
        str | None, typer.Argument(help="YAML file, or the name of a preset (rlprune presets).")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a setting: --set trial.training.rounds=8."),
    ] = None,
    storage_path: Annotated[
        str | None,
        typer.Option(help="Folder or URI (s3://bucket/folder) in which the experiment's lies."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(help="Go on with the experiment in this folder or URI."),
    ] = None,
    restore: Annotated[
        bool,
        typer.Option(
            "--restore", help="Go on with SPEC's sweep if it lies in the storage already."
        ),
    ] = False,
    logger: Annotated[
        list[str] | None,
        typer.Option(help="Where curves go: tensorboard (default), wandb, mlflow, comet."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the trials and what they need; start nothing.")
    ] = False,
) -> None:
    """Sweep budgets, backbones, seeds or any other setting with Ray Tune.

    Every trial trains a pruned network with all its baselines; the rows of all trials lie in
    one Parquet folder. Ctrl-C or a crash loses nothing: --resume keeps finished trials,
    continues interrupted ones from their checkpoints and tries failed ones again.

    Exit status: 0 all trials finished, 1 a trial failed, 2 refused, 75 Ray or the storage broke
    it off (nothing is lost), 130 interrupted.

    Examples:
      rlprune sweep sweep_digits --dry-run

      rlprune sweep sweep_digits --set name=first

      rlprune sweep --resume runs/first
    """
    with clean_errors():
        from rlprune.errors import FileAccessError
        from rlprune.sweep.run import experiment_uri

        given = list(overrides or [])
        if storage_path is not None:
            given.append(f"storage_path={storage_path}")
        if logger:
            given.append(f"loggers=[{', '.join(logger)}]")
        loaded = _load(spec, given, resume)
        if dry_run:
            _dry_run(loaded)
            return
        uri = experiment_uri(loaded)
        again = "the same command" if restore else f"rlprune sweep --resume {uri}"
        with _broken_off(again, FileAccessError) if restore else _broken_off(again):
            resuming = _restored(loaded, uri) if restore else resume is not None
            _run(loaded, uri, resuming, again)


def status(
    experiment: Annotated[str, typer.Argument(help="Folder or URI of an experiment.")],
) -> None:
    """Show what a sweep is doing or has done, from its files alone.

    Works while it runs, after it was killed, and from any machine that sees the folder.

    Example: rlprune status runs/sweep_digits
    """
    with clean_errors():
        import time

        from rich.console import Console

        from rlprune.cli.watch import duration, failure_table, state_counts, status_table
        from rlprune.sweep import status as states
        from rlprune.sweep.layout import absolute
        from rlprune.sweep.status import read_status

        uri = absolute(experiment)
        found = read_status(uri)
        console = Console(width=None if sys.stdout.isatty() else 160)
        console.print(status_table(found, uri))
        console.print(state_counts(found))
        failed = found.in_state(states.FAILED)
        if failed:
            console.print(failure_table(failed, uri))
        age = duration(time.time() - found.updated)
        if found.silent or (not found.running and _unfinished(found)):
            console.print(
                f"Nothing runs (last news {age} ago). Go on with: rlprune sweep --resume {uri}",
                soft_wrap=True,
            )
        elif found.running:
            console.print(f"Running; last news {age} ago.")


def _load(spec: str | None, overrides: list[str], resume: str | None) -> SweepSpec:
    from rlprune.errors import ConfigError, Problem
    from rlprune.sweep.layout import absolute
    from rlprune.sweep.run import read_spec
    from rlprune.sweep.spec import load_spec

    if resume is not None:
        if spec is not None or overrides:
            remedy = "Give only --resume DIR: the specification lies in the folder."
            rule = "cannot be combined with a specification or overrides"
            raise ConfigError([Problem("--resume", rule, resume, remedy)])
        return read_spec(absolute(resume))
    if spec is None:
        remedy = "For example: rlprune sweep sweep_digits."
        raise ConfigError([Problem("SPEC", "must be given (or --resume DIR)", None, remedy)])
    return load_spec(spec, overrides)


def _dry_run(spec: SweepSpec) -> None:
    from rich.console import Console

    from rlprune.sweep.plan import check_schedulable, plan_sweep, print_plan
    from rlprune.sweep.run import available_nodes

    plan = plan_sweep(spec)
    print_plan(plan, Console(width=None if sys.stdout.isatty() else 200))
    check_schedulable(plan, available_nodes())


def _restored(spec: SweepSpec, uri: str) -> bool:
    """Whether there is a sweep to go on with; nobody else runs it then."""
    from rlprune.sweep.run import is_begun, wait_until_left

    if not is_begun(spec):
        return False
    wait_until_left(uri, lambda text: typer.echo(text, err=True))
    return True


@contextlib.contextmanager
def _broken_off(again: str, *kinds: type[Exception]) -> Iterator[None]:
    """Tells what ended a sweep that is not to blame for it, and exits with a status of its own.

    Args:
        again: what to do to go on.
        kinds: rlprune's errors that count as such; all that are not rlprune's do.
    """
    from rlprune.errors import RlpruneError

    try:
        yield
    except Exception as error:
        if isinstance(error, typer.Exit | RlpruneError) and not isinstance(error, kinds):
            raise
        if isinstance(error, RlpruneError):
            typer.echo(f"rlprune: {error}", err=True)
        else:
            traceback.print_exc()
        text = "The sweep was broken off; what trials have saved is not lost. Go on with:"
        typer.echo(f"{text}\n  {again}", err=True)
        raise typer.Exit(BROKEN_OFF) from None


def _run(spec: SweepSpec, uri: str, resume: bool, again: str) -> None:
    from rich.console import Console

    from rlprune.cli.watch import SweepView, failure_table, state_counts
    from rlprune.sweep import status as states
    from rlprune.sweep.run import run_sweep

    console = Console(width=None if sys.stdout.isatty() else 160)
    with SweepView(uri) as view:
        found = run_sweep(spec, resume, view)
    console.print(state_counts(found))
    _show_next(uri, console)
    failed = found.in_state(states.FAILED)
    if failed:
        console.print(failure_table(failed, uri))
        console.print(f"Try them again with: {again}", soft_wrap=True)
        raise typer.Exit(1)
    if _unfinished(found):
        typer.echo(f"Interrupted. Continue with:\n  {again}", err=True)
        raise typer.Exit(INTERRUPTED)


def _unfinished(found: SweepStatus) -> bool:
    from rlprune.sweep.status import OVER

    counts = found.counts()
    return sum(counts.values()) > sum(counts[state] for state in OVER)


def _show_next(uri: str, console: Console) -> None:
    """The front of what was measured, and the commands to go on with."""
    from rlprune import files
    from rlprune.report.front_table import front_table, notes
    from rlprune.results.query import FrontQuery, find_front
    from rlprune.sweep.layout import results

    if not files.list_files(results(uri), ".parquet"):
        return
    answer = find_front(uri, FrontQuery(), skip_bad=True)
    console.print(front_table(answer))
    for note in notes(answer):
        console.print(note)
    console.print(f"All rows:  pandas.read_parquet({results(uri)!r})", soft_wrap=True)
    console.print(f"Fronts:    rlprune pareto {uri} --help", soft_wrap=True)
    console.print(f"Page:      rlprune report {uri} -o report.html", soft_wrap=True)
