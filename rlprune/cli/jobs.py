"""``rlprune submit``, ``rlprune preflight`` and ``rlprune jobs``: sweeps on a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlprune.cli.clean import INTERRUPTED, clean_errors
from rlprune.jobs import WAIT_SECONDS

if TYPE_CHECKING:
    from rich.table import Table

    from rlprune.jobs.submit import Shipment
    from rlprune.jobs.watch import Job, JobState

app = typer.Typer(
    help="List, follow and stop the jobs that `rlprune submit` has started.",
    no_args_is_help=True,
)

AddressOption = Annotated[
    str,
    typer.Option(
        envvar="RAY_API_SERVER_ADDRESS", help="Ray's dashboard, for example http://127.0.0.1:8265."
    ),
]
OpenOption = Annotated[
    bool,
    typer.Option(
        "--allow-unauthenticated",
        help="Accept a cluster that asks for no token; only on this machine (loopback).",
    ),
]
SpecArgument = Annotated[
    str, typer.Argument(help="YAML file, or the name of a preset (rlprune presets).")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting: --set trial.training.rounds=8."),
]
StorageOption = Annotated[
    str | None,
    typer.Option(help="URI (s3://bucket/folder) or shared folder for the experiment's folder."),
]
CodeOption = Annotated[
    Path | None,
    typer.Option(help="Folder with your modules (a backbone's factory), at most 100 MiB."),
]
EnvOption = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        help="NAME of a variable to pass on from this shell; its value is shown nowhere, but can "
        "be read by whoever has the cluster's token. Better: set it on the cluster's nodes.",
    ),
]
InstalledOption = Annotated[
    bool,
    typer.Option(
        "--installed", help="Use the rlprune that the nodes have; do not ship the one here."
    ),
]


def submit(
    spec: SpecArgument,
    address: AddressOption,
    storage_path: StorageOption = None,
    overrides: SetOption = None,
    code: CodeOption = None,
    env: EnvOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show the job's output until it ends.")
    ] = False,
    no_preflight: Annotated[
        bool,
        typer.Option("--no-preflight", help="Neither check the nodes first nor wait for more."),
    ] = False,
    wait_for_nodes: Annotated[
        int, typer.Option(help="Seconds that the check waits for nodes on which a trial fits.")
    ] = WAIT_SECONDS,
    installed: InstalledOption = False,
    allow_unauthenticated: OpenOption = False,
) -> None:
    """Start a sweep on a Ray cluster, or go on with the one that lies in its storage.

    Ships the specification, rlprune itself and your --code; never data. The job first checks
    every node (rlprune preflight), survives failures of Ray and of the storage, and needs no
    connection to this machine. The cluster must ask for a token, which is taken from
    RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH (a file of mode 0600) or ~/.ray/auth_token.

    With --follow the exit status is the job's: 0 all trials finished, 1 a trial failed,
    2 refused, 75 Ray or the storage failed too often, 130 stopped.

    Example:
      rlprune submit sweep_digits --address http://127.0.0.1:8265 --storage-path s3://bucket/sweeps
    """
    with clean_errors():
        from rlprune.jobs.submit import submit as submit_job

        job = submit_job(
            spec,
            address,
            overrides=overrides or [],
            storage_path=storage_path,
            shipment=_shipment(code, env, installed),
            preflight=not no_preflight,
            wait_for_nodes=wait_for_nodes,
            allow_unauthenticated=allow_unauthenticated,
        )
        _warn(job)
        typer.echo(f"Submitted {job.id}.")
        if follow:
            _follow(job)
        typer.echo(f"Follow it:  {_command('logs', job)} --follow")
        typer.echo(f"Stop it:    {_command('stop', job)}")


def preflight(
    spec: SpecArgument,
    address: AddressOption,
    storage_path: StorageOption = None,
    overrides: SetOption = None,
    code: CodeOption = None,
    env: EnvOption = None,
    wait_for_nodes: Annotated[
        int, typer.Option(help="Seconds to wait for nodes on which a trial fits.")
    ] = 0,
    installed: InstalledOption = False,
    allow_unauthenticated: OpenOption = False,
) -> None:
    """Check a cluster from every one of its nodes: would this sweep run there?

    Storage shared and writable, images readable, versions equal, enough CPUs, GPUs, memory and
    /dev/shm for a trial, authentication on. Exit status 2 if anything is wrong.

    Example:
      rlprune preflight sweep_digits --address http://127.0.0.1:8265 --storage-path s3://bucket/s
    """
    with clean_errors():
        from rlprune.jobs.submit import submit_preflight

        job = submit_preflight(
            spec,
            address,
            overrides=overrides or [],
            storage_path=storage_path,
            shipment=_shipment(code, env, installed),
            wait_for_nodes=wait_for_nodes,
            allow_unauthenticated=allow_unauthenticated,
        )
        _warn(job)
        _follow(job)


@app.command("list")
def list_all(address: AddressOption, allow_unauthenticated: OpenOption = False) -> None:
    """Show the jobs that rlprune has submitted to a cluster, the oldest first."""
    with clean_errors():
        from rich.console import Console

        from rlprune.jobs.access import connect
        from rlprune.jobs.watch import list_jobs

        found = list_jobs(connect(address, allow_unauthenticated))
        if not found:
            typer.echo("No jobs.")
            return
        Console(width=None if typer.get_text_stream("stdout").isatty() else 160).print(
            _job_table(found)
        )


@app.command()
def logs(
    job: Annotated[str, typer.Argument(help="Its id, for example sweep_digits-r1.")],
    address: AddressOption,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends; exit as it does.")
    ] = False,
    allow_unauthenticated: OpenOption = False,
) -> None:
    """Show what a job has printed."""
    with clean_errors():
        found = _job(job, address, allow_unauthenticated)
        if follow:
            _follow(found)
        typer.echo(found.logs(), nl=False)


@app.command()
def stop(
    job: Annotated[str, typer.Argument(help="Its id, for example sweep_digits-r1.")],
    address: AddressOption,
    allow_unauthenticated: OpenOption = False,
) -> None:
    """Stop a job; trials save their state first. Submit the sweep again to go on with it."""
    with clean_errors():
        found = _job(job, address, allow_unauthenticated)
        found.stop()
        typer.echo(f"Stopping {job} (trials save their state; up to a minute) ...")
        state = found.wait_for_end()
        typer.echo(f"{job}: {state.status}.")
        if state.experiment:
            typer.echo(f"What was done lies in {state.experiment}; submit it again to go on.")


def _shipment(code: Path | None, env: list[str] | None, installed: bool) -> Shipment:
    from rlprune.jobs.submit import Shipment

    return Shipment(code=code, rlprune=not installed, environment=tuple(env or ()))


def _job(id: str, address: str, allow_unauthenticated: bool) -> Job:
    from rlprune.jobs.access import connect
    from rlprune.jobs.watch import Job

    return Job(connect(address, allow_unauthenticated), id)


def _warn(job: Job) -> None:
    for warning in job.cluster.warnings:
        typer.echo(f"rlprune: {warning}", err=True)


def _command(name: str, job: Job) -> str:
    unsafe = "" if job.cluster.token is not None else " --allow-unauthenticated"
    return f"rlprune jobs {name} {job.id} --address {job.cluster.address}{unsafe}"


def _follow(job: Job) -> None:
    """Shows the job's output; exits with its status. Ctrl-C leaves the job alone."""
    try:
        status = job.follow(lambda text: typer.echo(text, nl=False))
    except KeyboardInterrupt:
        typer.echo(f"\n{job.id} goes on. Follow it:  {_command('logs', job)} --follow", err=True)
        typer.echo(f"Stop it:  {_command('stop', job)}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    state = job.state()
    typer.echo(f"{job.id}: {state.status}{'' if status == 0 else f' (status {status})'}.")
    raise typer.Exit(status)


def _job_table(jobs: list[JobState]) -> Table:
    from datetime import datetime

    from rich.markup import escape
    from rich.table import Table

    from rlprune.cli.watch import duration

    table = Table()
    for title in ("job", "status", "started", "took", "experiment"):
        table.add_column(title, overflow="fold")
    for job in jobs:
        started, took = "-", "-"
        if job.started is not None:
            started = datetime.fromtimestamp(job.started).strftime("%Y-%m-%d %H:%M:%S")
            ended = job.ended if job.ended is not None else datetime.now().timestamp()
            took = duration(ended - job.started)
        failed = f" ({job.exit_status})" if job.exit_status else ""
        table.add_row(job.id, job.status + failed, started, took, escape(job.experiment))
    return table
