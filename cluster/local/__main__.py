"""The commands ``cluster/local/up``, ``down``, ``status`` and ``node``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cluster.local import machines, network, service
from cluster.local.state import Shape, StateFolder
from rlprune.errors import RlpruneError

NameOption = Annotated[str, typer.Option(help="Name of the cluster; several may run at once.")]
NodeArgument = Annotated[str, typer.Argument(help="head, worker1, worker2, ... or s3.")]
_NAME = "rlprune"

app = typer.Typer(
    name="cluster/local/",
    help="A Ray cluster of several pretended machines on this Linux computer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
node = typer.Typer(help="Break and mend single machines.", no_args_is_help=True)
app.add_typer(node, name="node")


@app.command()
def up(
    name: NameOption = _NAME,
    workers: Annotated[int, typer.Option(min=1, max=9, help="Worker nodes.")] = 2,
    cpus: Annotated[int, typer.Option(min=1, help="Logical CPUs of each worker.")] = 1,
    head_cpus: Annotated[int, typer.Option(min=0, help="Logical CPUs of the head.")] = 0,
    store_mb: Annotated[int, typer.Option(min=80, help="Object store per node [MB].")] = 150,
    memory_gb: Annotated[float, typer.Option(help="Memory of a node for Ray [GiB].")] = 4.0,
    s3: Annotated[bool, typer.Option("--s3", help="Also start an S3 server (moto).")] = False,
    env: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE for all nodes (repeatable).")
    ] = None,
) -> None:
    """Start the cluster, or whatever of it does not run.

    Example: cluster/local/up --s3
    """
    folder = StateFolder(name)
    running = folder.read_shape() if folder.path.exists() else None
    shape = Shape(
        network=running.network if running else network.choose_network(name),
        workers=workers,
        cpus=cpus,
        head_cpus=head_cpus,
        store_mb=store_mb,
        memory_gb=memory_gb,
        storage=s3,
        environment=dict(_variable(text) for text in env or []),
    )
    if running and shape != running:
        typer.echo("It was started with other options; these stay until cluster/local/down.")
    _explain(folder, service.up(folder, shape, typer.echo))


@app.command()
def down(name: NameOption = _NAME) -> None:
    """Kill every machine of the cluster and remove its folder (Ray's logs, S3 objects)."""
    count = service.down(StateFolder(name))
    typer.echo(f"{count} machines were running, none is now.")


@app.command()
def status(name: NameOption = _NAME) -> None:
    """Show the machines; the exit status is 1 unless all are alive."""
    views = service.status(StateFolder(name))
    table = Table()
    for heading in ("machine", "address", "process", "state", "CPUs"):
        table.add_column(heading)
    for view in views:
        process = "off" if view.pid is None else str(view.pid)
        table.add_row(view.name, view.address, process, view.state, str(view.cpus))
    Console().print(table)
    if any(view.pid is None or view.state not in ("alive", "answers") for view in views):
        raise typer.Exit(1)


@node.command()
def kill(machine: NodeArgument, name: NameOption = _NAME) -> None:
    """SIGKILL for all that runs on a machine, as if its power were cut."""
    service.kill_one(StateFolder(name), machine)


@node.command()
def start(machine: NodeArgument, name: NameOption = _NAME) -> None:
    """Switch a machine on again."""
    service.start_one(StateFolder(name), machine)


@node.command()
def cut(machine: NodeArgument, name: NameOption = _NAME) -> None:
    """Pull a machine's network cable; what runs there goes on."""
    service.cut(StateFolder(name), machine)


@node.command()
def join(machine: NodeArgument, name: NameOption = _NAME) -> None:
    """Plug a machine's network cable in again."""
    service.join(StateFolder(name), machine)


@node.command(context_settings={"ignore_unknown_options": True})
def run(
    machine: NodeArgument,
    command: Annotated[list[str], typer.Argument(help="Command and arguments, after --.")],
    name: NameOption = _NAME,
) -> None:
    """Run a command on a machine: cluster/local/node run head -- ray status."""
    raise typer.Exit(service.run_on(StateFolder(name), machine, command))


def _variable(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE")
    return name, value


def _explain(folder: StateFolder, shape: Shape) -> None:
    address = machines.client_environment(folder, shape)["RAY_API_SERVER_ADDRESS"]
    option = "" if folder.name == _NAME else f" --name {folder.name}"
    storage = f" --storage-path s3://{machines.BUCKET}/runs" if shape.storage else ""
    typer.echo(
        f"Cluster {folder.name!r} is up: head and {shape.workers} workers, "
        f"{shape.cpus} CPU each.\n"
        f"  jobs and dashboard  {address}\n"
        f"  token               {folder.token}\n"
        "In a shell that is to use it:\n"
        f"  . {folder.env_file}\n"
        f"  rlprune submit sweep_digits{storage} --follow\n"
        f"Look: cluster/local/status{option}   End: cluster/local/down{option}"
    )


def main() -> None:
    """Runs a command; mistakes end with a message and exit status 2."""
    try:
        app()
    except RlpruneError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
