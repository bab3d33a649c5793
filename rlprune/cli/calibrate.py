"""``rlprune calibrate``: which way to run a shipped model is fastest on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlprune.cli.clean import clean_errors

if TYPE_CHECKING:
    from torch import Tensor

    from rlprune.deploy.calibration import Table


def calibrate(
    file: Annotated[Path, typer.Argument(help="A file made by rlprune export.")],
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Image files that decide how much is computed; none: noise."),
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of torch; once for each number that you use.")
    ] = 1,
) -> None:
    """Measure which way to run a shipped model is fastest here: layers, and batches.

    Takes seconds. FILE.calibration.json beside the file keeps it; the model uses it where
    file, machine, versions and threads are the same. Scores do not change.

    Examples:
      rlprune calibrate small.safetensors

      rlprune calibrate small.safetensors *.png --threads 2
    """
    with clean_errors():
        import torch
        from rich.progress import Progress

        from rlprune.deploy.calibrate import calibrate as measure
        from rlprune.deploy.calibration import side_file

        torch.set_num_threads(threads)
        pixels = _read(file, images) if images else None
        with Progress(transient=True) as progress:
            task = progress.add_task("Calibrating", total=1.0)
            table = measure(file, pixels, lambda done: progress.update(task, completed=done))
        _show_layers(table)
        _show_batches(table)
        typer.echo(f"{side_file(file)}: used from now on with {_threads(table)}.")


def _threads(table: Table) -> str:
    return f"{table.threads} thread{'s' * (table.threads > 1)}"


def _read(file: Path, images: list[Path]) -> Tensor:
    import torch

    from rlprune.deploy import PrunedModel
    from rlprune.deploy.picture import read_picture

    spec = PrunedModel.load(file, calibrated=False).spec
    return torch.cat([read_picture(path, spec.input_shape, spec.resize) for path in images])


def _show_layers(table: Table) -> None:
    """Two lines for each layer; what is chosen at a width has a star."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid

    if not table.layers:
        typer.echo("numba is not installed: there is one way to compute a layer.")
        return
    title = "One image: ms by the share of channels kept (* chosen)"
    grid = Grid(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    grid.add_column("layer", overflow="ellipsis", no_wrap=True)
    grid.add_column("way", no_wrap=True)
    for width in table.widths:
        grid.add_column(f"{width:g}", justify="right", no_wrap=True)
    grid.add_column("up to", justify="right", no_wrap=True)
    for layer in table.layers:
        limit = layer.compiled_up_to
        chosen = [width <= limit for width in table.widths]
        ours = [_marked(ms, mine) for ms, mine in zip(layer.compiled, chosen, strict=True)]
        other = [_marked(ms, not mine) for ms, mine in zip(layer.torch, chosen, strict=True)]
        grid.add_row(layer.name, "compiled", *ours, f"{limit:.2f}" if limit else "never")
        grid.add_row("", "torch", *other, "")
    Console().print(grid)


def _marked(milliseconds: float, chosen: bool) -> str:
    return f"{milliseconds:.3f}{'*' if chosen else ' '}"


def _show_batches(table: Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid

    grid = Grid(title="Batches: ms of an image", box=box.SIMPLE)
    for heading in ("budget s", "image by image", "all at once from"):
        grid.add_column(heading, justify="right")
    for row in table.batches:
        least = "never" if row.masked_from is None else f"{row.masked_from} images"
        grid.add_row(f"{row.budget:g}", f"{row.gathered:.3f}", least)
    Console().print(grid)
    pairs = zip(table.sizes, table.masked, strict=True)
    sizes = ", ".join(f"{ms:.3f} ({size})" for size, ms in pairs)
    typer.echo(f"All at once, ms of an image (images in the batch): {sizes}")
