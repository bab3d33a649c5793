"""``rlprune export``, ``predict``: a point as a file, at work."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from rlprune.cli.clean import clean_errors


class Dtype(str, Enum):
    """How weights are stored."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    int8_weights = "int8-weights"


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run or of a sweep.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: x.safetensors.")],
    trial: Annotated[str | None, typer.Option(help="Only this trial of a sweep.")] = None,
    rate: Annotated[float | None, typer.Option(help="Only this tradeoff rate R_r.")] = None,
    max_storage: Annotated[
        str | None, typer.Option(help="Most bytes: 300KB, 1.5MB, 40% or 0.4 of the dense ones.")
    ] = None,
    max_macs: Annotated[
        str | None, typer.Option(help="Most MACs of an image on average: 12M, 40% or 0.4.")
    ] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(help="Least validation accuracy (0.9); then the smallest file is taken."),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="How weights are stored; the accuracy is measured with it.")
    ] = Dtype.float32,
) -> None:
    """Write a measured point as one small file that runs with torch alone.

    Of the points that keep the limits the one of highest validation accuracy is taken.
    What is pruned for good is removed; runtime predictors and the agent stay.

    Examples:
      rlprune export runs/quickstart -o digits.safetensors

      rlprune export runs/sweep_fashion --max-storage 300KB --max-macs 50% -o small.safetensors

      rlprune export runs/quickstart --rate 0 --dtype int8-weights -o tiny.safetensors
    """
    with clean_errors():
        from rich.console import Console

        from rlprune.export.run import export_run
        from rlprune.export.select import Limits

        console = Console(stderr=True)
        limits = Limits(trial, rate, max_storage, max_macs, min_accuracy)
        kind = "int8" if dtype is Dtype.int8_weights else dtype.value
        with console.status("Reading the results.") as status:
            done = export_run(run, limits, output, kind, lambda text: status.update(text))
        row = done.row
        macs = float(row["macs_mean"]) / float(row["macs_dense"])
        typer.echo(f"{done.file}: {done.file_bytes:,} bytes ({_share(done.file_bytes, row)}).")
        typer.echo(
            f"Test accuracy {done.test_accuracy:.4f} (as measured in training: "
            f"{row['test_accuracy']:.4f}), {macs:.3f} of the dense network's MACs per image."
        )
        if done.note is not None:
            typer.echo(done.note, err=True)
        typer.echo(f"Try it:  rlprune predict {done.file} IMAGE...")


def _share(size: int, row: object) -> str:
    dense = float(row["storage_dense_bytes"])  # type: ignore[index]
    return f"{size / dense:.1%} of the dense network's {dense:,.0f}"


def predict(
    file: Annotated[Path, typer.Argument(help="A file made by rlprune export.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    budget: Annotated[
        float | None,
        typer.Option(help="Compute budget s for these images in place of the file's own."),
    ] = None,
) -> None:
    """Classify images, and say what each one cost.

    Examples:
      rlprune predict digits.safetensors three.png seven.png

      rlprune predict digits.safetensors *.png --budget 0.3
    """
    with clean_errors():
        from rich.console import Console
        from rich.table import Table

        from rlprune.deploy import PrunedModel
        from rlprune.deploy.picture import read_picture
        from rlprune.errors import ArtifactError

        model = PrunedModel.load(file)
        pixels = [read_picture(path, model.spec.input_shape, model.spec.resize) for path in images]
        table = Table("image", "class", "confidence", "MACs", "of dense", "channels kept")
        for path, picture in zip(images, pixels, strict=True):
            try:
                told = model.explain(model.normalize(picture), budget)[0]
            except ValueError as error:  # the budget: out of range, or not to be changed
                raise ArtifactError(f"{file}: {error}. Leave it out or change it.") from None
            chance = told.scores.softmax(0)
            best = int(chance.argmax())
            kept = sum(map(len, told.kept)) / sum(told.channels)
            table.add_row(
                str(path),
                model.classes[best],
                f"{float(chance[best]):.1%}",
                f"{told.macs:,.0f}",
                f"{told.macs / told.dense_macs:.3f}",
                f"{kept:.0%}",
            )
        Console().print(table)
