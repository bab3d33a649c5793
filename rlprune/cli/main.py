"""The ``rlprune`` command. Heavy imports happen inside the commands: help stays fast."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlprune.cli.bench import bench
from rlprune.cli.calibrate import calibrate
from rlprune.cli.clean import INTERRUPTED, clean_errors
from rlprune.cli.convert import convert
from rlprune.cli.jobs import app as jobs
from rlprune.cli.jobs import preflight, submit
from rlprune.cli.pareto import pareto
from rlprune.cli.report import report
from rlprune.cli.results import app as results
from rlprune.cli.ship import export, predict
from rlprune.cli.sweep import status, sweep

if TYPE_CHECKING:
    from rlprune.config import TrialConfig

app = typer.Typer(
    name="rlprune",
    help="Prune a CNN to a storage and a compute budget, with learned per-image channel choice.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(sweep)
app.command()(status)
app.command()(submit)
app.command()(preflight)
app.add_typer(jobs, name="jobs")
app.command()(pareto)
app.command()(report)
app.command()(export)
app.command()(convert)
app.command()(predict)
app.command()(bench)
app.command()(calibrate)
app.add_typer(results, name="results")

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting: --set training.rounds=8 (repeatable)."),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Continue the run in --out from its last checkpoint.")
]


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/quickstart"),
    overrides: SetOption = None,
    resume: ResumeOption = False,
) -> None:
    """Prune a small CNN on scikit-learn's digits: minutes on two cores, nothing to download.

    Ends with a table of the learned policy beside simple baselines at equal budgets, and
    the picture tradeoff.png (accuracy and storage against R_r).

    Example: rlprune quickstart --out runs/first
    """
    from rlprune.presets import preset_path

    _train(preset_path("quickstart"), out, overrides or [], resume)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file, or the name of a preset.")],
    overrides: SetOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; default runs/<file's name>.")
    ] = None,
    resume: ResumeOption = False,
) -> None:
    """Train a pruned network as a YAML file says, with the baselines that it names.

    Examples:
      rlprune train fashion_m_cifarnet

      rlprune train my.yaml --set budgets.compute_max=0.3 --out runs/tight

      rlprune train my.yaml --out runs/tight --resume
    """
    from rlprune.presets import preset_path

    with clean_errors():
        path = config if config.exists() or config.suffix else preset_path(str(config))
    _train(path, out or Path("runs") / path.stem, overrides or [], resume)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    ratio: Annotated[
        list[float] | None,
        typer.Option(help="Also measure the learned policy at this budget s (repeatable)."),
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(help="Measure at this tradeoff rate R_r instead of the run's (repeatable)."),
    ] = None,
) -> None:
    """Measure a run's learned network again, also at budgets it was not measured at.

    Needs no Ray. Rows are added to the run's results; equal points are replaced.

    Example: rlprune evaluate runs/quickstart --ratio 0.4 --ratio 0.6 --rate 0.5
    """
    with clean_errors():
        from rlprune.cli.evaluate import evaluate_run

        evaluate_run(run, ratio or [], rate or [])


@app.command()
def presets() -> None:
    """List the configurations that come with rlprune."""
    from rlprune.cli.show import list_presets

    with clean_errors():
        list_presets()


@app.command()
def settings(
    words: Annotated[
        list[str] | None,
        typer.Argument(help="Only settings whose name, values or meaning have one of these words."),
    ] = None,
) -> None:
    """Explain every setting of a trial: values, default, meaning (for sweeps see the README).

    A YAML file nests them (budgets: {compute_max: 0.3}); --set takes them with dots.

    Examples:
      rlprune settings budgets

      rlprune settings finetune predictor

      rlprune train fashion_m_cifarnet --set budgets.compute_max=0.3 --out runs/tight
    """
    with clean_errors():
        from rlprune.cli.show import print_settings

        print_settings(words or [])


@app.command()
def schema() -> None:
    """Print the columns of the result files: name, type, unit, meaning."""
    from rlprune.cli.show import print_schema

    print_schema()


def _train(path: Path, out: Path, overrides: list[str], resume: bool) -> None:
    with clean_errors():
        from rlprune.config import load_config

        _run(load_config(path, overrides), out, resume, _resume_command(path, out, overrides))


def _resume_command(path: Path, out: Path, overrides: list[str]) -> str:
    import shlex

    parts = ["rlprune", "train", str(path)]
    for override in overrides:
        parts += ["--set", override]
    return shlex.join([*parts, "--out", str(out), "--resume"])


def _run(config: TrialConfig, out: Path, resume: bool, resume_command: str) -> None:
    from rlprune.cli.show import TerminalReporter, show_results
    from rlprune.training.session import run_trial

    with TerminalReporter() as reporter:
        rows = run_trial(config, out, resume, reporter)
    if rows is None:
        typer.echo(f"Interrupted and saved. Continue with:\n  {resume_command}", err=True)
        raise typer.Exit(INTERRUPTED)
    show_results(rows, out)


if __name__ == "__main__":
    app()
