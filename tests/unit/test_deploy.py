"""Loading and running a shipped model: bad files, bad images, and nothing else imported."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from rlprune.backbones import m_cifarnet
from rlprune.cli.main import app
from rlprune.config import DatasetName
from rlprune.data.decode import EncodedImage, ImageFormat, decode_images
from rlprune.deploy import PrunedModel
from rlprune.deploy.artifact import read_artifact, write_artifact
from rlprune.deploy.picture import read_picture
from rlprune.deploy.spec import SCHEMA, Node
from rlprune.errors import ArtifactError, DataError
from rlprune.export.run import _resize
from tests.physical import Residual, ThreeLayers
from tests.shipping import Case, Setting

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def case() -> Case:
    """Followers, residual additions, an agent, low-rank predictors; something deleted."""
    setting = Setting(rank=3, width_affine=True, compute_max=0.7)
    return Case(Residual((6, 5, 7)), Residual.shape, setting, seed=5)


@pytest.fixture
def file(case: Case, tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    case.shipped.write(path)
    return path


def refused(path: Path, message: str) -> None:
    """Loading names the file and the fault."""
    with pytest.raises(ArtifactError, match=message) as caught:
        PrunedModel.load(path)
    assert str(caught.value).startswith(f"{path}: ")


Description = dict[str, Any]


def rewrite(path: Path, change: Callable[[Description], None]) -> None:
    """Changes the file's description; its numbers stay."""
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
        blocks = {name: opened.get_tensor(name).clone() for name in opened.keys()}
    plain = json.loads(zlib.decompress(blocks["description"].numpy().tobytes()))
    change(plain)
    packed = zlib.compress(json.dumps(plain).encode())
    blocks["description"] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    save_file(blocks, path, metadata)


# --- files ----------------------------------------------------------------------------------


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors", "there is no such file")


def test_a_folder(tmp_path: Path) -> None:
    refused(tmp_path, "no model of rlprune")


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, 0.5, 0.99, -1])
def test_truncated(file: Path, kept: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    refused(file, "no model of rlprune: .*Export it again, or copy it again")


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x80\x02}q\x00.", b"PK\x03\x04"])
def test_other_formats(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    refused(path, "no model of rlprune")


def test_foreign_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"weight": torch.ones(3)}, path)
    refused(path, "not one of rlprune's. Make one with `rlprune export`")
    save_file({"weight": torch.ones(3)}, path, {"rlprune_schema": str(SCHEMA)})
    refused(path, "description is damaged")
    save_file({"description": torch.ones(3)}, path, {"rlprune_schema": str(SCHEMA)})
    refused(path, "description is damaged")


def test_a_later_version(file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        blocks = {name: opened.get_tensor(name).clone() for name in opened.keys()}
    save_file(blocks, file, {"rlprune_schema": str(SCHEMA + 1)})
    refused(file, rf"of format '{SCHEMA + 1}', this rlprune reads format {SCHEMA}\. Update rlprune")


def test_a_bomb_is_not_unpacked(file: Path) -> None:
    """A description that claims to be 64 MB."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(b" " * (1 << 20)) for _ in range(64)) + packer.flush()
    with safe_open(file, framework="pt") as opened:
        blocks = {name: opened.get_tensor(name).clone() for name in opened.keys()}
    blocks["description"] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    save_file(blocks, file, {"rlprune_schema": str(SCHEMA)})
    assert file.stat().st_size < 200_000
    refused(file, "description is damaged")


def test_an_existing_file_is_replaced_whole(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"older")
    case.shipped.write(path)
    PrunedModel.load(path)
    assert list(tmp_path.iterdir()) == [path]  # nothing partial is left
    with pytest.raises(ArtifactError, match="cannot be written"):
        case.shipped.write(tmp_path / "no" / "folder.safetensors")


# --- numbers --------------------------------------------------------------------------------


def test_every_missing_or_misshapen_tensor_is_refused(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    spec, tensors = case.shipped.spec, case.shipped.tensors
    kinds = {name.split(".")[-1] for name in tensors}
    assert {"filter", "channel", "predictor", "code", "index", "encoder", "weight"} <= kinds
    for name, tensor in tensors.items():
        others = {key: value for key, value in tensors.items() if key != name}
        write_artifact(path, spec, others)
        refused(path, name.split(".bias")[0])
        for wrong in (torch.cat([tensor, tensor[:1]]), tensor[:, None], tensor.flatten()[:1]):
            if wrong.shape != tensor.shape:
                write_artifact(path, spec, {**others, name: wrong.clone()})
                refused(path, name.removesuffix(".bias"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(case: Case, value: float, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for name, tensor in case.shipped.tensors.items():
        if tensor.is_floating_point():
            wrong = tensor.clone()
            wrong.view(-1)[-1] = value
            write_artifact(path, case.shipped.spec, {**case.shipped.tensors, name: wrong})
            refused(path, f"{name}: holds numbers that are not finite")


@pytest.mark.parametrize("places", [[0, 1, 1], [2, 1, 3], [-1, 0, 1], [0, 1, 200]])
def test_places_must_be_ascending_and_in_range(
    case: Case, places: list[int], tmp_path: Path
) -> None:
    tensors = dict(case.shipped.tensors)
    stored = len(tensors["0.index"])
    wrong = torch.arange(stored, dtype=torch.int16)
    wrong[:2] = torch.tensor(places[:2])
    wrong[-1] = places[-1]
    write_artifact(tmp_path / "m.safetensors", case.shipped.spec, {**tensors, "0.index": wrong})
    refused(tmp_path / "m.safetensors", r"0\.index: damaged")


def test_whole_numbers_stand_only_for_places(case: Case, tmp_path: Path) -> None:
    path, tensors = tmp_path / "m.safetensors", case.shipped.tensors
    write_artifact(path, case.shipped.spec, {**tensors, "0.filter": tensors["0.filter"].int()})
    refused(path, r"0\.filter: torch.int32 is no type for it")
    write_artifact(path, case.shipped.spec, {**tensors, "0.index": tensors["0.index"].float()})
    refused(path, r"0\.index: torch.float32 is no type for it")


def test_int8_needs_its_scales(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    case.shipped.write(path, "int8")
    spec, tensors = read_artifact(path)
    write_artifact(path, spec, {k: v for k, v in tensors.items() if k != "0.filter.scale"})
    refused(path, r"0\.filter\.scale: missing or damaged")
    write_artifact(path, spec, {**tensors, "0.filter.scale": torch.ones(1)})
    refused(path, r"0\.filter\.scale: missing or damaged")


# --- descriptions ---------------------------------------------------------------------------


def edit(*keys: Any, value: Any) -> Callable[[Description], None]:
    """Sets one entry, deep inside the model's description."""

    def change(plain: Description) -> None:
        target: Any = plain["model"]
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("dtype", value="float8"), "dtype: must be one of float32"),
        (edit("extra", value=1), "model: must be an object with"),
        (edit("resize", value="fold"), "resize: must be one of"),
        (edit("mean", value=[0.5]), "mean: must be one per channel"),
        (edit("std", value=[0.25, 0.0]), "std: must be positive"),
        (edit("std", value=[0.25, 10**400]), "std: must be a finite number"),
        (edit("input_shape", value=[2, 4]), "input_shape: must be a list of 3"),
        (edit("input_shape", value=[2, 4, 1 << 40]), "input_shape: must be a whole number"),
        (edit("classes", value=[1, 2, 3]), "classes: must be text"),
        (edit("layers", 0, 1, value=True), r"layers\[0\]\.channels: must be a whole number"),
        (edit("layers", 0, 2, value=7), r"layers\[0\]: must be no more channels stored"),
        (edit("layers", 1, 3, value=[[1, 6]]), r"layers\[1\]\.inputs: must be earlier layers"),
        (edit("layers", 1, 3, value=[]), r"layers\[1\]\.inputs: must be a list of at least one"),
        (edit("layers", 1, value=[]), r"layers\[1\]: must be a list of 14"),
        (edit("layers", 1, 10, value=None), "layers|1\\.channel"),
        (edit("budget", "alpha", value=0.0), r"budget\.alpha: must be from"),
        (edit("budget", "tradeoff_rate", value=1.5), r"budget\.tradeoff_rate: must be from 0 to 1"),
        (edit("budget", "cap_dial", value=0.0), r"budget\.cap_dial: must be from 0\.1 to 1"),
        (edit("budget", "compute_max", value="much"), r"budget\.compute_max: must be a finite"),
        (edit("budget", "tradeoff", value="other"), r"budget\.tradeoff: must be one of"),
        (edit("policy", "kind", value="eval"), r"policy\.kind: must be one of"),
        (edit("policy", "hidden", value=0), r"policy\.hidden: must be at least 1"),
        (edit("policy", "hidden", value=9), r"0\.encoder: must have the shape"),
        (edit("costs", "linear", value=[1.0]), r"costs\.linear: must be a list of 5"),
        (edit("costs", "pairwise", 0, 0, value=4), r"costs\.pairwise: must be pairs of layers"),
        (edit("program", value=[]), "program: must go from input to output"),
        (edit("program", 0, 0, value="eval"), "program: must be one of input, gated"),
        (edit("program", -1, 0, value="call"), "program: must go from input to output"),
        (edit("program", 1, 1, value=1), "program: must call each layer once, in order"),
        (edit("program", 1, 2, value=[{"r": 1}]), "call 1 reads value 1, which is not there yet"),
        (edit("program", 1, 2, value=[{"r": -1}]), "call 1 reads value -1"),
        (edit("program", 1, 2, value=[{"q": 0}]), "damaged argument"),
        (edit("program", 1, 2, value=[]), "gated without a value"),
        (edit("program", 2, 1, value="system"), "unknown operation 'system'"),
        (edit("program", 2, 1, value="__import__"), "unknown operation '__import__'"),
    ],
)
def test_an_edited_description_is_refused(
    file: Path, change: Callable[[Description], None], message: str
) -> None:
    rewrite(file, change)
    refused(file, message)


@pytest.mark.parametrize(
    "changed",
    [
        {"each": 1 << 40},
        {"each": 1 << 18},
        {"each": 0},
        {"runs": [[None, 1 << 40]]},
        {"runs": [[None, 1 << 19]] * 3},
        {"runs": [[0, 10**400]]},
        {"runs": []},
    ],
)
@pytest.mark.parametrize("kind", ["expand", "linear"])
def test_sizes_are_checked_before_memory_is_taken(
    file: Path, kind: str, changed: dict[str, Any]
) -> None:
    def enlarge(plain: Description) -> None:
        node = next(node for node in plain["model"]["program"] if node[0] == kind)
        node[3].update(changed)

    rewrite(file, enlarge)
    refused(file, "damaged channel runs|does not fit the program")


def test_an_unchanged_description_is_not(file: Path) -> None:
    rewrite(file, lambda plain: None)
    PrunedModel.load(file)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (None, "layout is damaged"),
        ([], "holds numbers that nothing describes"),
        ([["0.filter", "float32"]], "layout is damaged"),
        ([["0.filter", "float64", [1]]], r"0\.filter: does not lie in the file"),
        ([["0.filter", "float32", [1 << 40]]], r"0\.filter: does not lie in the file"),
        ([["0.filter", "float32", [-1]]], r"0\.filter: does not lie in the file"),
        ([["0.filter", "float32", [0, 1 << 30, 1 << 30]]], r"does not lie in the file"),
        ([["a", "float32", [1]], ["a", "float32", [1]]], "a: is described twice"),
    ],
)
def test_an_edited_layout_is_refused(file: Path, layout: Any, message: str) -> None:
    rewrite(file, lambda plain: plain.update(layout=layout))
    refused(file, message)


def test_deep_nesting_is_refused(file: Path) -> None:
    """Lists in lists, more than Python can walk through."""

    def nest(plain: Description) -> None:
        value: Any = 1
        for _ in range(900):
            value = [value]
        plain["model"]["program"][2][2].append(value)

    rewrite(file, nest)
    model = None
    try:
        model = PrunedModel.load(file)
    except ArtifactError:
        pass
    if model is not None:
        with pytest.raises(ArtifactError):
            model(torch.randn(1, *model.spec.input_shape))


def test_a_call_that_fails_names_itself(case: Case, file: Path) -> None:
    """What only running can show: the description is sound, but a flatten is gone."""

    def replace(plain: Description) -> None:
        for node in plain["model"]["program"]:
            if node[:2] == ["call", "per_channel"]:
                node[1] = "neg"

    rewrite(file, replace)
    model = PrunedModel.load(file)
    for mode in ("masked", "gathered"):
        with pytest.raises(ArtifactError, match=r"program: call \d+ \(call neg\) fails: "):
            model(case.images(1), mode=mode)


def test_a_program_with_another_output_says_so(case: Case, tmp_path: Path) -> None:
    program = list(case.shipped.spec.program)
    program[-1] = Node("output", "", ({"r": 0},), {})
    spec = dataclasses.replace(case.shipped.spec, program=tuple(program))
    write_artifact(tmp_path / "m.safetensors", spec, case.shipped.tensors)
    model = PrunedModel.load(tmp_path / "m.safetensors")
    with pytest.raises(ArtifactError, match=r"its output has not the shape \(1, 3\)"):
        model(case.images(1))


# --- images ---------------------------------------------------------------------------------


@pytest.fixture
def model(file: Path) -> PrunedModel:
    return PrunedModel.load(file)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 4, 4),
        torch.zeros(1, 3, 4, 4),
        torch.zeros(1, 2, 4, 5),
        torch.zeros(0, 2, 4, 4),
        torch.zeros(1, 1, 2, 4, 4),
        torch.zeros(()),
    ],
)
def test_images_of_another_shape_are_refused(model: PrunedModel, images: Tensor) -> None:
    for mode in ("masked", "gathered", None):
        with pytest.raises(ValueError, match=r"x must have the shape \('B', 2, 4, 4\)"):
            model(images, mode=mode)
    with pytest.raises(ValueError):
        model.explain(images)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.float16, torch.int64])
def test_images_of_another_type_are_refused(model: PrunedModel, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"x must be a float32 tensor; model\.normalize"):
        model(torch.zeros(1, 2, 4, 4, dtype=dtype))
    with pytest.raises(ValueError, match="x must be a float32 tensor"):
        model(np.zeros((1, 2, 4, 4), dtype=np.float32))  # type: ignore[arg-type]


def test_modes_have_names(model: PrunedModel) -> None:
    with pytest.raises(ValueError, match=r"mode must be 'gathered' or 'masked' \(got 'fast'\)"):
        model(torch.zeros(1, 2, 4, 4), mode="fast")


def test_pixels_are_normalised_by_hand(model: PrunedModel) -> None:
    pixels = np.zeros((2, 2, 4, 4), dtype=np.uint8)
    pixels[1] = 255
    found = model.normalize(pixels)  # (0 - 0.5) / 0.25 and (1 - 0.5) / 0.25
    assert found.dtype == torch.float32
    assert torch.equal(found[0], torch.full((2, 4, 4), -2.0))
    assert torch.equal(found[1], torch.full((2, 4, 4), 2.0))
    assert torch.equal(model.normalize(torch.from_numpy(pixels)), found)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 2, 4, 4), dtype=np.float32),
        np.zeros((2, 4, 4), dtype=np.uint8),
        np.zeros((1, 1, 4, 4), dtype=np.uint8),  # would otherwise be spread over the channels
        np.zeros((1, 4, 4, 2), dtype=np.uint8),
    ],
)
def test_pixels_of_another_shape_or_type_are_refused(model: PrunedModel, images: Any) -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 of shape \('B', 2, 4, 4\)"):
        model.normalize(images)


def test_each_image_is_decided_alone(case: Case, model: PrunedModel) -> None:
    """Scores and MACs do not depend on what else is in the batch, nor on calls before."""
    images = case.images(5)
    together, macs = model(images), model.macs()
    for row in range(5):
        alone = model(images[row : row + 1])
        torch.testing.assert_close(alone[0], together[row])
        assert model.macs()[0] == macs[row]
    assert torch.equal(model(images), together)
    assert not together.requires_grad


# --- image files ----------------------------------------------------------------------------


def save(path: Path, pixels: Any, mode: str) -> Path:
    Image.fromarray(np.asarray(pixels, dtype=np.uint8), mode).save(path)
    return path


def test_pictures_by_hand(tmp_path: Path) -> None:
    rgb = np.arange(24).reshape(2, 4, 3) * 10
    path = save(tmp_path / "rgb.png", rgb, "RGB")
    found = read_picture(path, (3, 2, 4))
    assert found.dtype == torch.uint8
    assert torch.equal(found, torch.from_numpy(rgb.astype(np.uint8)).permute(2, 0, 1)[None])
    grey = read_picture(path, (1, 2, 4))
    luma = (rgb @ np.array([0.299, 0.587, 0.114])).round()
    assert grey.shape == (1, 1, 2, 4)
    assert np.abs(grey[0, 0].numpy() - luma).max() <= 1
    same = save(tmp_path / "grey.png", [[0, 100], [200, 255]], "L")
    assert read_picture(same, (1, 2, 2))[0, 0].tolist() == [[0, 100], [200, 255]]
    assert read_picture(same, (3, 2, 2))[0].tolist() == [[[0, 100], [200, 255]]] * 3


def test_transparency_is_black(tmp_path: Path) -> None:
    rgba = [[[200, 100, 50, 255], [200, 100, 50, 0]]]
    found = read_picture(save(tmp_path / "rgba.png", rgba, "RGBA"), (3, 1, 2))
    assert found[0, :, 0, 0].tolist() == [200, 100, 50]
    assert found[0, :, 0, 1].tolist() == [0, 0, 0]
    grey = save(tmp_path / "la.png", [[[200, 255], [200, 0]]], "LA")
    assert read_picture(grey, (1, 1, 2))[0, 0].tolist() == [[200, 0]]


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (40, 20)])
def test_other_sizes_are_resized(tmp_path: Path, size: tuple[int, int]) -> None:
    path = save(tmp_path / "one.png", np.full((*size, 3), (10, 20, 30)), "RGB")
    found = read_picture(path, (3, 5, 6))
    assert found.shape == (1, 3, 5, 6)
    assert found.amax((0, 2, 3)).tolist() == found.amin((0, 2, 3)).tolist() == [10, 20, 30]


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("size", [(100, 200), (64, 64), (71, 64), (30, 31)])
def test_pictures_of_a_model_trained_on_files_are_what_it_has_seen(
    tmp_path: Path, size: tuple[int, int], grey: bool
) -> None:
    """To the bit, against the images' own decoder; transparency as there."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 4))
    path = save(tmp_path / "one.png", pixels, "RGBA")
    wanted = ImageFormat(grey, 64, 64, resize=True)
    trained = decode_images([[EncodedImage("one", path)]], 1, wanted, "images", None)
    found = read_picture(path, wanted.shape, "crop")
    assert torch.equal(found, torch.from_numpy(trained))
    assert not torch.equal(found, read_picture(path, wanted.shape))


@pytest.mark.parametrize("name", get_args(DatasetName))
def test_models_of_image_files_say_how_these_were_resized(name: str) -> None:
    assert _resize(name) == ("crop" if name in ("imagefolder", "parquet") else "stretch")


@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_predict_reads_images_as_the_model_says(tmp_path: Path, resize: str) -> None:
    """Left and right of the square in the centre lies what only stretching sees."""
    pixels = np.zeros((32, 96, 3))
    pixels[:, :32], pixels[:, 64:] = 255, (255, 0, 0)
    picture, file = save(tmp_path / "wide.png", pixels, "RGB"), tmp_path / "m.safetensors"
    shipped = Case(m_cifarnet(width=0.1), (3, 32, 32), Setting(rate=0.0)).shipped
    dataclasses.replace(shipped, spec=dataclasses.replace(shipped.spec, resize=resize)).write(file)
    model, chances = PrunedModel.load(file), {}
    for way in ("crop", "stretch"):
        read = read_picture(picture, (3, 32, 32), way)
        chances[way] = f"{float(model(model.normalize(read)).softmax(1).amax()):.1%}"
    assert chances["crop"] != chances["stretch"]
    done = CliRunner().invoke(app, ["predict", str(file), str(picture)])
    assert done.exit_code == 0 and chances[resize] in done.output, done.output


def test_bad_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.png: there is no such file"):
        read_picture(tmp_path / "none.png", (3, 2, 2))
    with pytest.raises(DataError, match="cannot be read as an image"):
        read_picture(tmp_path, (3, 2, 2))
    text = tmp_path / "text.png"
    text.write_text("hello")
    with pytest.raises(DataError, match=r"text\.png: cannot be read as an image"):
        read_picture(text, (3, 2, 2))
    whole = save(tmp_path / "whole.png", np.zeros((64, 64, 3)), "RGB").read_bytes()
    text.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read as an image"):
        read_picture(text, (3, 2, 2))
    with pytest.raises(ArtifactError, match="the model wants 2 channels"):
        read_picture(text, (2, 2, 2))


# --- nothing else ---------------------------------------------------------------------------

ALONE = """
import sys

DEPENDENCIES = {  # of torch itself
    "torchgen", "functorch", "typing_extensions", "filelock", "sympy", "mpmath", "networkx",
    "jinja2", "markupsafe", "fsspec", "packaging", "setuptools", "triton", "nvidia", "cuda",
}
ALLOWED = {"torch", "numpy", "safetensors", *DEPENDENCIES, *sys.stdlib_module_names}
OURS = ("rlprune", "rlprune.errors", "rlprune.deploy")

class Without:  # a finder as it would be if only the allowed packages were installed
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        ours = name in OURS or name.startswith("rlprune.deploy.")
        allowed = ours if top == "rlprune" else top in ALLOWED or top.startswith("_")
        return self.finder.find_spec(name, path, target) if allowed else None

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import numpy as np
import torch
from rlprune.deploy import PrunedModel

torch.set_num_threads(1)
model = PrunedModel.load(sys.argv[1])
images = torch.from_numpy(np.load(sys.argv[2]))
np.save(sys.argv[3], np.stack([model(images, mode=m).numpy() for m in ("gathered", "masked")]))
model.explain(images, 0.5)
FOREIGN = ("ray", "pandas", "pydantic", "torchvision", "PIL", "numba")
foreign = [n for n in sys.modules if n.split(".")[0] in FOREIGN]
assert not foreign, foreign
"""


def test_runs_with_torch_numpy_and_safetensors_alone(
    case: Case, file: Path, tmp_path: Path
) -> None:
    images = case.images(3)
    np.save(tmp_path / "images.npy", images.numpy())
    out = tmp_path / "scores.npy"
    run = subprocess.run(
        [sys.executable, "-c", ALONE, str(file), str(tmp_path / "images.npy"), str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    expected = case.expected(images).scores
    for scores in np.load(out):
        torch.testing.assert_close(torch.from_numpy(scores), expected, rtol=1e-4, atol=1e-4)


def test_the_file_names_operations_and_holds_no_code(file: Path) -> None:
    """No pickle: the bytes are a safetensors header, numbers, and JSON."""
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert set(header) == {"__metadata__", "description", "float32", "uint8"}
    assert header["__metadata__"] == {"rlprune_schema": str(SCHEMA)}


def test_small_files_of_large_descriptions_load(tmp_path: Path) -> None:
    """Text is packed about five times: what it may unpack to must leave room for that."""
    case = Case(ThreeLayers(), ThreeLayers.shape, Setting(rate=0.0))
    spec = dataclasses.replace(case.shipped.spec, origin={"notes": "x" * 200_000})
    path = tmp_path / "m.safetensors"
    assert write_artifact(path, spec, case.shipped.tensors) < 10_000
    assert len(PrunedModel.load(path).spec.origin["notes"]) == 200_000
