"""``rlprune convert``: a shipped model for other runtimes, as it is or frozen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlprune.cli.clean import clean_errors

if TYPE_CHECKING:
    from rlprune.export.freeze import Frozen


def convert(
    file: Annotated[Path, typer.Argument(help="A file made by rlprune export.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="model.onnx or model.pt2.")],
    images: Annotated[
        list[Path] | None, typer.Argument(help="Image files to freeze the model on.")
    ] = None,
    freeze: Annotated[
        bool,
        typer.Option(
            "--freeze",
            help="One fixed choice of channels, from what the agent does on the images.",
        ),
    ] = False,
    run: Annotated[
        Path | None,
        typer.Option(help="Freeze on the validation images of the model's own run."),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Compute budget s in place of the file's own.")
    ] = None,
    multiple: Annotated[
        int,
        typer.Option(min=1, help="Fill channel counts up to a multiple (static models only)."),
    ] = 1,
) -> None:
    """Write a shipped model for other runtimes: ONNX, or torch's exported program.

    Input "pixels": float32 in [0, 1], [B, C, H, W]; output "scores". At R_r = 0 this is a
    plain small network. With a runtime agent all stored channels are computed and those
    that an image prunes are multiplied by zero: equal answers, but no time is saved.

    With --freeze a model with an agent becomes a plain small network too: each layer keeps
    as many channels as the images compute on average, those that most of them compute. Its
    answers are not those of the dynamic model; how many classes agree is printed. It can
    also be written as .safetensors, for rlprune itself.

    Examples:
      rlprune convert digits.safetensors -o digits.onnx

      rlprune convert small.safetensors --freeze --run runs/sweep_fashion -o small.onnx

      rlprune convert small.safetensors *.png --freeze --multiple 8 -o small.pt2
    """
    with clean_errors():
        from rlprune.deploy import PrunedModel
        from rlprune.export.interchange import write_model

        _check_convert(file, output, freeze, bool(images), run is not None, multiple)
        if not freeze:
            size = write_model(PrunedModel.load(file), output, budget, multiple)
            typer.echo(_converted(file, output, size))
            return
        frozen = _frozen(file, images or [], run, budget)
        if output.suffix == ".safetensors":
            size = frozen.shipped.write(output, frozen.shipped.spec.dtype)
        else:
            size = write_model(frozen.model, output, multiple=multiple)
        typer.echo(_converted(file, output, size))
        _say_frozen(frozen)


def _check_convert(
    file: Path, output: Path, freeze: bool, images: bool, run: bool, multiple: int
) -> None:
    from rlprune.errors import ArtifactError

    suffixes = (".onnx", ".pt2", *((".safetensors",) if freeze else ()))
    if output.suffix not in suffixes:
        further = "" if freeze else ", with --freeze also .safetensors"
        raise ArtifactError(
            f"{output}: must end in {' or '.join(suffixes)}{further}. Choose another -o."
        )
    if not output.parent.is_dir():
        raise ArtifactError(f"{output.parent}: there is no such folder. Make it, or change -o.")
    if output.absolute() == file.absolute():
        raise ArtifactError(f"{output}: is the file to convert. Choose another -o.")
    if freeze and images == run:
        raise ArtifactError("--freeze needs images: either image files or --run RUN, not both.")
    if not freeze and (images or run):
        raise ArtifactError("images and --run are for --freeze. Add it, or leave them out.")
    if multiple > 1 and output.suffix == ".safetensors":
        raise ArtifactError("--multiple is for .onnx and .pt2. Leave it out or choose another -o.")


def _converted(file: Path, output: Path, size: int) -> str:
    return f"{output}: {size:,} bytes ({file.stat().st_size:,} in {file})."


def _frozen(file: Path, paths: list[Path], run: Path | None, budget: float | None) -> Frozen:
    """The frozen model; its test accuracy is measured where there is a run."""
    import numpy as np
    from rich.console import Console

    from rlprune.deploy import PrunedModel
    from rlprune.deploy.picture import read_picture
    from rlprune.errors import ArtifactError
    from rlprune.export.freeze import freeze, with_accuracy

    spec = PrunedModel.load(file).spec
    with Console(stderr=True).status("Watching what the agent does.") as status:
        try:
            if run is None:
                pictures = [
                    read_picture(path, spec.input_shape, spec.resize).numpy() for path in paths
                ]
                return freeze(file, np.concatenate(pictures), budget)
            from rlprune.export.run import images_of

            images = images_of(run, spec)
            watched = images.validation.take(np.arange(len(images.validation)))
            frozen = freeze(file, watched.images, budget)
            status.update("Measuring the test accuracy.")
            test = images.test.take(np.arange(len(images.test)))
            return with_accuracy(frozen, test.images, test.labels)
        except ValueError as error:  # the budget is out of range
            raise ArtifactError(f"{file}: {error}. Leave it out or change it.") from None


def _say_frozen(frozen: Frozen) -> None:
    """How the frozen model compares with the dynamic one."""
    dense, measured = frozen.model.spec.costs.dense_macs, frozen.shipped.spec.measured
    count = len(frozen.before.classes)
    typer.echo(
        f"Frozen to what {count:,} image{'s' * (count > 1)} compute: every image now takes "
        f"{measured['macs_mean'] / dense:.3f} of the dense network's MACs (dynamic: "
        f"{frozen.before.macs.mean() / dense:.3f} on average)."
    )
    typer.echo(
        f"Its answers are its own: the class is the dynamic model's for {frozen.agreement:.1%} "
        "of these images."
    )
    if "test_accuracy" in measured:
        typer.echo(
            f"Test accuracy {measured['test_accuracy']:.4f} (dynamic: "
            f"{measured['dynamic_test_accuracy']:.4f})."
        )
