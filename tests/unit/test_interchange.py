"""Shipped models for other runtimes: equal answers from torch.export and from ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlprune.backbones import m_cifarnet, resnet20, vgg16_bn
from rlprune.deploy import PrunedModel
from rlprune.errors import ArtifactError
from rlprune.export.interchange import PlainModel, to_onnx, to_program
from tests.physical import InvertedResidual, ThreeLayers
from tests.shipping import Case, Setting

BACKBONES = {
    "three": (ThreeLayers, ThreeLayers.shape),
    "inverted": (InvertedResidual, InvertedResidual.shape),
    "m_cifarnet": (lambda: m_cifarnet(width=0.125), (3, 32, 32)),
    "resnet20": (lambda: resnet20(width=0.5), (3, 32, 32)),
    "vgg16_bn": (lambda: vgg16_bn(width=0.0625), (3, 32, 32)),
}
SETTINGS = {
    "capped": Setting(1.0),
    "half": Setting(0.5),
    "paper": Setting(0.5, "paper"),
    "mean": Setting(1.0, rank=2, width_affine=True, compute_max=None, compute_mean=0.5),
    "mean_half": Setting(0.5, compute_max=None, compute_mean=0.5),
    "constant": Setting(0.5, policy="constant"),
    "soft": Setting(1.0, projected=False),
    "boosted": Setting(0.5, rank=2, width_affine=True, boosted=True),
    "static": Setting(0.0, rank=2, width_affine=True),
    "l1": Setting(0.0, policy="l1"),
}


def shipped(backbone: str, setting: str, folder: Path) -> tuple[PrunedModel, Tensor]:
    """A model, and pixels in [0, 1] that differ in contrast."""
    make, shape = BACKBONES[backbone]
    network: nn.Module = make()
    model = Case(network, shape, SETTINGS[setting]).model(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand(6, *shape, generator=generator)
    contrast = torch.linspace(0.2, 1.0, 6)[:, None, None, None]
    return model, 0.5 + (pixels - 0.5) * contrast


def scores(model: PrunedModel, pixels: Tensor, budget: float | None = None) -> Tensor:
    mean = torch.tensor(model.spec.mean)[:, None, None]
    std = torch.tensor(model.spec.std)[:, None, None]
    return model((pixels - mean) / std, budget, "masked")


def assert_equal(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("setting", SETTINGS)
@torch.no_grad()
def test_a_plain_module_answers_as_the_model(backbone: str, setting: str, tmp_path: Path) -> None:
    model, pixels = shipped(backbone, setting, tmp_path)
    assert_equal(PlainModel(model)(pixels), scores(model, pixels))


@torch.no_grad()
def test_a_budget_of_its_own_can_be_built_in(tmp_path: Path) -> None:
    model, pixels = shipped("m_cifarnet", "capped", tmp_path)
    expected = scores(model, pixels, 0.3)
    assert not torch.allclose(expected, scores(model, pixels))
    assert_equal(PlainModel(model, budget=0.3)(pixels), expected)


@pytest.mark.parametrize("backbone", ["inverted", "m_cifarnet", "resnet20"])
@torch.no_grad()
def test_channels_filled_up_change_nothing(backbone: str, tmp_path: Path) -> None:
    model, pixels = shipped(backbone, "static", tmp_path)
    plain = PlainModel(model, multiple=8)
    assert_equal(plain(pixels), scores(model, pixels))
    filters = [value for value in plain.buffers() if value.dim() == 4 and value.shape[1] > 3]
    assert filters
    assert all(len(value) % 8 == 0 for value in filters)


def test_only_static_models_can_be_filled_up(tmp_path: Path) -> None:
    model, _ = shipped("three", "capped", tmp_path)
    with pytest.raises(ArtifactError, match="static"):
        PlainModel(model, multiple=8)


@pytest.mark.parametrize("setting", ["static", "half"])
def test_an_exported_program_takes_any_batch(setting: str, tmp_path: Path) -> None:
    model, pixels = shipped("three", setting, tmp_path)
    torch.export.save(to_program(model), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    for count in (1, 6):
        assert_equal(program(pixels[:count]), scores(model, pixels[:count]))


@pytest.mark.parametrize(
    ("backbone", "setting", "multiple"),
    [("inverted", "static", 8), ("m_cifarnet", "l1", 1), ("three", "half", 1)],
)
def test_onnx_runtime_answers_as_the_model(
    backbone: str, setting: str, multiple: int, tmp_path: Path
) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="pip install onnxruntime onnxscript")
    pytest.importorskip("onnxscript", reason="pip install 'rlprune[onnx]'")
    model, pixels = shipped(backbone, setting, tmp_path)
    file = tmp_path / "model.onnx"
    assert to_onnx(model, file, multiple=multiple) == file.stat().st_size
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for count in (1, 6):
        found: np.ndarray = session.run(None, {"pixels": pixels[:count].numpy()})[0]
        assert_equal(torch.from_numpy(found), scores(model, pixels[:count]))
