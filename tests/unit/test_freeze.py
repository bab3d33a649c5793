"""Frozen models: one choice of channels for all images, and what is left of the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from rlprune.backbones import CifarResNet, m_cifarnet, resnet20
from rlprune.cli.main import app
from rlprune.deploy import PrunedModel
from rlprune.errors import ArtifactError
from rlprune.export.freeze import (
    Frozen,
    channel_counts,
    freeze,
    most_computed,
    observe,
    static_macs,
    with_accuracy,
)
from rlprune.export.interchange import PlainModel, write_model
from rlprune.pruning import CostModel
from tests.physical import InvertedResidual, ThreeLayers
from tests.shipping import Case, Setting

BACKBONES = {
    "three": (ThreeLayers, ThreeLayers.shape),
    "inverted": (InvertedResidual, InvertedResidual.shape),
    "m_cifarnet": (lambda: m_cifarnet(width=0.25), (3, 8, 8)),
    "resnet20": (lambda: resnet20(width=0.5), (3, 8, 8)),
    "resnet8": (lambda: CifarResNet(1, 10, 3, 0.5), (3, 8, 8)),  # exporters take minutes for 20
}
COMPARED = [name for name in BACKBONES if name != "resnet8"]
SETTINGS = {
    "capped": Setting(1.0),
    "half": Setting(0.5),
    "paper": Setting(0.5, "paper"),
    "mean": Setting(0.5, rank=2, width_affine=True, compute_max=None, compute_mean=1.0),
    "constant": Setting(0.5, policy="constant", rank=4, width_affine=True),
    "soft": Setting(1.0, projected=False),
    "boosted": Setting(0.5, boosted=True),
}


def made(backbone: str, setting: str, folder: Path, dtype: str = "float32") -> tuple[Case, Path]:
    make, shape = BACKBONES[backbone]
    network: nn.Module = make()
    case, file = Case(network, shape, SETTINGS[setting], seed=3), folder / "dynamic.safetensors"
    case.shipped.write(file, dtype)
    return case, file


def pictures(shape: tuple[int, ...], count: int) -> np.ndarray:
    """uint8 noise of different contrast."""
    noise = np.random.default_rng(3).uniform(-1.0, 1.0, (count, *shape))
    contrast = np.linspace(0.2, 1.0, count)[:, None, None, None]
    return np.uint8(127.5 + 127.0 * noise * contrast)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


# --- which channels -------------------------------------------------------------------------


def test_channels_that_most_images_compute() -> None:
    times, static = np.array([3, 0, 5, 3, 3]), np.float32([0.1, 9.0, -1.0, 0.5, 0.1])
    assert most_computed(times, static, 1).tolist() == [2]
    assert most_computed(times, static, 2).tolist() == [2, 3]  # equal: the larger u_s
    assert most_computed(times, static, 3).tolist() == [0, 2, 3]  # equal again: the first
    assert most_computed(times, static, 5).tolist() == [0, 1, 2, 3, 4]


def test_counts_are_averages_rounded_within_the_cap(tmp_path: Path) -> None:
    """ThreeLayers, 3x3 at 6x6 of 2; 3x3 at 3x3; 1x1 at 3x3; predictors; linear 3."""
    case, _ = made("three", "capped", tmp_path)
    spec = case.shipped.spec

    def by_hand(a: int, b: int, c: int) -> int:
        convolutions = 2 * a * 9 * 36 + a * b * 9 * 9 + b * c * 9
        return convolutions + 2 * a + a * b + b * c + 3 * c

    assert static_macs(spec, [3, 2, 4]) == by_hand(3, 2, 4)
    mean = np.array([2.6, 2.49, 0.3])
    assert channel_counts(spec, mean, None) == [3, 2, 1]
    assert channel_counts(spec, mean, by_hand(3, 2, 1)) == [3, 2, 1]
    # in proportion: 2.6 is below 2.5 first, then 2.49 below 1.5
    assert channel_counts(spec, mean, by_hand(3, 2, 1) - 1) == [2, 2, 1]
    assert channel_counts(spec, mean, by_hand(2, 2, 1) - 1) == [2, 1, 1]
    assert channel_counts(spec, mean, 0.0) == [1, 1, 1]


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_layer_keeps_what_images_compute_most(setting: str, tmp_path: Path) -> None:
    case, file = made("m_cifarnet", setting, tmp_path)
    pixels = pictures(case.shape, 40)
    model, frozen = PrunedModel.load(file), freeze(file, pixels)
    told = model.explain(model.normalize(pixels))
    mean = np.array([[len(kept) for kept in image.kept] for image in told]).mean(0)
    counts = [layer.stored for layer in frozen.shipped.spec.layers]
    most = np.floor(mean + 0.5)
    assert (counts <= most).all() and (counts >= 0.9 * mean - 1).all()
    caps = (case.shipped.spec.budget.compute_max, case.shipped.spec.budget.compute_mean)
    if setting in ("soft", "constant"):
        assert counts == most.tolist()
    assert setting == "soft" or frozen.after.macs[0] <= min(cap for cap in caps if cap)
    kept = frozen.model.explain(model.normalize(pixels[:1]))[0].kept
    for layer, places in enumerate(kept):
        times = np.zeros(model.spec.layers[layer].channels)
        for image in told:
            times[list(image.kept[layer])] += 1
        rest = np.delete(times, places)
        assert not len(rest) or times[list(places)].min() >= rest.max()


def test_a_budget_on_the_mean_holds_for_the_frozen_model(tmp_path: Path) -> None:
    """Also where the images happen to cost more than the average one may."""
    setting = Setting(0.5, compute_max=None, compute_mean=0.5)
    case, file = Case(ThreeLayers(), ThreeLayers.shape, setting, seed=3), tmp_path / "m.safetensors"
    case.shipped.write(file)
    frozen, budget = freeze(file, pictures(case.shape, 6)), case.shipped.spec.budget.compute_mean
    assert budget is not None
    assert frozen.after.macs[0] <= budget < frozen.before.macs.min()
    # What the agent is told instead is not known to be a budget.
    assert freeze(file, pictures(case.shape, 6), 1.0).after.macs[0] > budget


# --- what is left ---------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("backbone", COMPARED)
def test_frozen_on_one_image_answers_it_as_before(
    backbone: str, setting: str, tmp_path: Path
) -> None:
    case, file = made(backbone, setting, tmp_path)
    dynamic, pixels = PrunedModel.load(file), pictures(case.shape, 3)[1:2]
    frozen, x = freeze(file, pixels).model, dynamic.normalize(pixels)
    expected = dynamic(x)
    counts = dynamic.last[0].counts
    for mode in ("masked", "gathered"):
        assert_close(frozen(x, mode=mode), expected)
        assert frozen.last[0].counts == counts
    assert frozen.macs()[0] < dynamic.macs()[0]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("backbone", COMPARED)
@torch.no_grad()
def test_frozen_is_the_original_network_under_fixed_masks(
    backbone: str, setting: str, tmp_path: Path
) -> None:
    case, file = made(backbone, setting, tmp_path)
    pixels = pictures(case.shape, 8)
    frozen = freeze(file, pixels).model
    x = frozen.normalize(pixels)
    told, gate = frozen.explain(x), case.expected(x).gate
    masks = []
    for layer in case.network.channels.layers:
        mask = torch.zeros(len(x), layer.out_channels, dtype=torch.bool)
        mask[:, list(told[0].kept[layer.index])] = True
        masks.append(mask)
    gate.decide = lambda layer, pooled, importance: masks[layer]  # type: ignore[method-assign]
    expected = case.network(x, gate)
    assert_close(torch.stack([image.scores for image in told]), expected)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("backbone", COMPARED)
def test_costs_are_those_of_a_network_without_agent(
    backbone: str, setting: str, tmp_path: Path
) -> None:
    case, file = made(backbone, setting, tmp_path)
    frozen = freeze(file, pictures(case.shape, 8))
    costs = CostModel(case.network.channels, design=case.rules.costs.design)
    counts = torch.tensor([[layer.stored for layer in frozen.shipped.spec.layers]])
    assert frozen.after.macs.tolist() == [float(costs.static_macs().total(counts))] * 8
    numbers = sum(t.numel() for n, t in frozen.shipped.tensors.items() if "index" not in n)
    assert numbers == int(costs.parameters().total(counts))
    assert frozen.shipped.spec.measured["macs_mean"] == frozen.after.macs[0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("backbone", ["m_cifarnet", "resnet20"])
def test_a_frozen_file_keeps_its_numbers_to_the_bit(
    backbone: str, dtype: str, tmp_path: Path
) -> None:
    case, file = made(backbone, "mean", tmp_path, dtype)
    frozen = freeze(file, pictures(case.shape, 8))
    written, small = frozen.shipped.spec.dtype, tmp_path / "small.safetensors"
    assert written == dtype
    assert frozen.shipped.write(small, dtype) < file.stat().st_size
    read = PrunedModel.load(small)
    assert read.spec.policy.kind == "none" and read.spec.measured["agreement_images"] == 8
    assert read.numbers.keys() == frozen.model.numbers.keys()
    for name, value in read.numbers.items():
        assert torch.equal(value, frozen.model.numbers[name]), name
    dynamic = PrunedModel.load(file)
    rows = [frozen.model.numbers.get(f"{t}.index") for t in range(len(read.layers))]
    before = [dynamic.numbers.get(f"{t}.index") for t in range(len(read.layers))]
    for layer, whole in zip(read.layers, dynamic.layers, strict=True):
        kept, old = rows[layer.index], before[layer.index]
        assert kept is not None
        known = list(range(whole.spec.stored)) if old is None else old.tolist()
        places = [known.index(place) for place in kept.tolist()]
        assert torch.equal(layer.beta, whole.beta[places])
    with pytest.raises(ValueError, match="no runtime agent"):
        read(read.normalize(pictures(case.shape, 1)), 0.5)


def test_another_budget_freezes_another_network(tmp_path: Path) -> None:
    case, file = made("m_cifarnet", "capped", tmp_path)
    pixels = pictures(case.shape, 8)
    small, large = freeze(file, pixels, 0.25), freeze(file, pixels)
    assert small.after.macs[0] < 0.5 * large.after.macs[0]
    assert small.after.macs[0] <= case.book.macs_at(0.25)
    assert small.shipped.spec.budget.compute_max == case.book.macs_at(0.25)


def test_agreement_and_accuracy_by_hand(tmp_path: Path) -> None:
    case, file = made("m_cifarnet", "half", tmp_path)
    pixels = pictures(case.shape, 30)
    frozen = freeze(file, pixels)
    before = observe(PrunedModel.load(file), pixels).classes
    after = observe(frozen.model, pixels).classes
    assert frozen.agreement == np.mean(before == after) == frozen.shipped.spec.measured["agreement"]
    labels = before.copy()
    labels[:6] = (labels[:6] + 1) % 10
    noted = with_accuracy(frozen, pixels, labels).shipped.spec.measured
    assert noted["dynamic_test_accuracy"] == 0.8
    assert noted["test_accuracy"] == np.mean(after == labels)
    assert noted["test_images"] == 30


def test_static_models_are_not_frozen(tmp_path: Path) -> None:
    case, file = made("three", "half", tmp_path)
    freeze(file, pictures(case.shape, 2)).shipped.write(file)
    with pytest.raises(ArtifactError, match=r"static already .* Leave --freeze out"):
        freeze(file, pictures(case.shape, 2))


# --- other runtimes -------------------------------------------------------------------------


def plain_shapes(frozen: Frozen, multiple: int) -> set[tuple[int, ...]]:
    """Shapes of filters, matrices and vectors of a network of these widths."""
    wide = [-(-layer.stored // multiple) * multiple for layer in frozen.shipped.spec.layers]
    shapes: set[tuple[int, ...]] = set()
    for layer, width in zip(frozen.model.layers, wide, strict=True):
        inputs = sum(run.channels if run.layer is None else wide[run.layer] for run in layer.runs)
        rank = layer.spec.rank
        shapes |= {(width, inputs, *layer.spec.kernel), (width, rank or inputs), (width,)}
        shapes |= {(rank, inputs)} if rank else set()
    classes, features = len(frozen.model.classes), frozen.model.numbers["classifier.weight"]
    (linear,) = (node for node in frozen.model.spec.program if node.kind == "linear")
    runs = linear.kwargs["runs"]
    last = sum(channels if layer is None else wide[layer] for layer, channels in runs)
    return shapes | {(classes, last * (features.shape[1] // last or 1)), (classes,)}


@pytest.mark.parametrize(("backbone", "multiple"), [("m_cifarnet", 1), ("resnet8", 8)])
def test_onnx_of_a_frozen_model_is_a_plain_small_network(
    backbone: str, multiple: int, tmp_path: Path
) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="pip install onnxruntime onnxscript")
    pytest.importorskip("onnxscript", reason="pip install 'rlprune[onnx]'")
    import onnx

    case, file = made(backbone, "half", tmp_path)
    pixels, small = pictures(case.shape, 9), tmp_path / "frozen.onnx"
    frozen = freeze(file, pixels)
    size = write_model(frozen.model, small, multiple=multiple)
    assert size == small.stat().st_size
    if multiple == 1:
        assert size < 0.8 * file.stat().st_size
    session = runtime.InferenceSession(str(small), providers=["CPUExecutionProvider"])
    expected = frozen.model(frozen.model.normalize(pixels))
    given = np.float32(pixels / 255.0)
    assert_close(PlainModel(frozen.model, multiple=multiple)(torch.from_numpy(given)), expected)
    for count in (1, 9):
        found = session.run(None, {"pixels": given[:count]})[0]
        assert_close(torch.from_numpy(found), expected[:count])
    graph = onnx.load(str(small)).graph
    numbers = [value for value in graph.initializer if value.data_type == onnx.TensorProto.FLOAT]
    shapes = {tuple(value.dims) for value in numbers if np.prod(value.dims) > 3}
    expected_shapes = plain_shapes(frozen, multiple)
    assert shapes <= expected_shapes, shapes - expected_shapes
    filters = {tuple(value.dims) for value in numbers if len(value.dims) == 4}
    assert filters == {shape for shape in expected_shapes if len(shape) == 4}
    # nobody ranks or masks channels any more
    assert not {node.op_type for node in graph.node} & {"TopK", "Ceil", "Floor", "Tanh", "Cumsum"}


@pytest.mark.parametrize("backbone", ["m_cifarnet", "resnet8"])
def test_exported_program_of_a_frozen_model(backbone: str, tmp_path: Path) -> None:
    case, file = made(backbone, "paper", tmp_path)
    pixels, small = pictures(case.shape, 5), tmp_path / "frozen.pt2"
    frozen = freeze(file, pixels)
    write_model(frozen.model, small)
    exported = torch.export.load(small)
    expected = frozen.model(frozen.model.normalize(pixels))
    assert_close(exported.module()(torch.from_numpy(np.float32(pixels / 255.0))), expected)
    called = {str(node.target) for node in exported.graph.nodes}
    assert "aten.conv2d.default" in called
    assert not called & {"aten.tril.default", "aten.ceil.default", "aten.tanh.default"}
    assert str(Path(__file__).parents[2]) not in small.read_bytes().decode("latin1")


# --- the command ----------------------------------------------------------------------------


def convert(*command: object, status: int = 0) -> str:
    done = CliRunner().invoke(app, ["convert", *map(str, command)])
    assert done.exit_code == status, done.output
    assert "Traceback" not in done.output
    return " ".join(done.output.split())


def saved(folder: Path, pixels: np.ndarray) -> list[Path]:
    files = [folder / f"{number}.png" for number in range(len(pixels))]
    for file, picture in zip(files, pixels, strict=True):
        Image.fromarray(picture.transpose(1, 2, 0)).save(file)
    return files


def test_convert_freezes_on_image_files(tmp_path: Path) -> None:
    case, file = made("m_cifarnet", "half", tmp_path)
    pixels, small = pictures(case.shape, 5), tmp_path / "small.safetensors"
    frozen = freeze(file, pixels)
    said = convert(file, *saved(tmp_path, pixels), "--freeze", "-o", small)
    assert f"{small}: {small.stat().st_size:,} bytes ({file.stat().st_size:,} in {file})." in said
    dense = case.shipped.spec.costs.dense_macs
    share = f"{frozen.after.macs[0] / dense:.3f}"
    assert f"Frozen to what 5 images compute: every image now takes {share} of" in said
    assert f"(dynamic: {frozen.before.macs.mean() / dense:.3f} on average)" in said
    assert f"for {frozen.agreement:.1%} of these images" in said
    assert "Test accuracy" not in said
    read, x = PrunedModel.load(small), frozen.model.normalize(pixels)
    assert torch.equal(read(x), frozen.model(x))
    # A frozen file is a static one: it converts and fills up as it is.
    plain = tmp_path / "plain.pt2"
    convert(small, "-o", plain, "--multiple", 8)
    found = torch.export.load(plain).module()(torch.from_numpy(np.float32(pixels / 255.0)))
    assert_close(found, frozen.model(x))


def test_convert_says_what_is_wrong(tmp_path: Path) -> None:
    case, file = made("m_cifarnet", "half", tmp_path)
    picture = saved(tmp_path, pictures(case.shape, 1))[0]
    static, out = tmp_path / "static.safetensors", tmp_path / "x.onnx"
    freeze(file, pictures(case.shape, 2)).shipped.write(static)
    present = sorted(tmp_path.iterdir())
    for command, message in (
        ((file, "-o", tmp_path / "x.safetensors"), "with --freeze also .safetensors"),
        ((file, "-o", tmp_path / "none" / "x.onnx"), "none: there is no such folder"),
        ((file, picture, "--freeze", "-o", file), "is the file to convert"),
        ((file, "--freeze", "-o", out), "--freeze needs images: either image files or --run"),
        ((file, picture, "--freeze", "--run", tmp_path, "-o", out), "not both"),
        ((file, picture, "-o", out), "images and --run are for --freeze"),
        ((static, picture, "--freeze", "-o", out), "static already"),
        ((file, picture, "--freeze", "--budget", 3, "-o", out), "budget must be from 0.1 to 1"),
        ((file, "--budget", 3, "-o", out), "--budget: must be from 0.1 to 1 (got 3)"),
        ((static, "--budget", 0.5, "-o", out), "compute is fixed"),
        ((file, "--multiple", 8, "-o", out), "Export at R_r = 0, or --freeze it"),
        ((file, file, "--freeze", "-o", out), "cannot be read as an image"),
        ((file, "--freeze", "--run", tmp_path, "-o", out), "no checkpoint there"),
    ):
        assert message in convert(*command, status=2)
    options = ("--freeze", "--multiple", 8, "-o", tmp_path / "x.safetensors")
    assert "--multiple is for .onnx and .pt2" in convert(file, picture, *options, status=2)
    assert sorted(tmp_path.iterdir()) == present
