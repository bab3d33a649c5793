"""Compiled decisions against the NumPy ones: same channels, same scores."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlprune.backbones import m_cifarnet, resnet20, vgg16_bn
from rlprune.deploy import PrunedModel
from rlprune.errors import ArtifactError
from tests.shipping import Case, Setting, assert_same

BACKBONES: dict[str, Any] = {
    "m_cifarnet": lambda: m_cifarnet(width=0.25),
    "resnet20": lambda: resnet20(width=0.5),
    "vgg16_bn": lambda: vgg16_bn(width=0.125),
}
SETTINGS = {
    "rate 1": Setting(rate=1.0, storage_max=None),
    "rate 0.5": Setting(rate=0.5),
    "rate 0.7, low rank": Setting(rate=0.7, rank=4, width_affine=True),
    "low rank, whole": Setting(rate=1.0, rank=4, storage_max=None),
    "paper": Setting(rate=0.5, tradeoff="paper"),
    "paper, affine": Setting(rate=0.3, tradeoff="paper", width_affine=True, compute_max=0.6),
    "mean": Setting(rate=0.5, compute_max=None, compute_mean=0.5),
    "mean and cap": Setting(rate=1.0, storage_max=None, compute_max=0.6, compute_mean=0.5),
    "soft": Setting(rate=0.5, projected=False),
    "constant": Setting(rate=0.5, policy="constant"),
    "constant, paper": Setting(rate=0.6, policy="constant", tradeoff="paper"),
    "boosted": Setting(rate=0.5, boosted=True),
    "boosted, low rank, affine": Setting(rate=1.0, rank=4, width_affine=True, boosted=True),
    "static": Setting(rate=0.0),
    "static, low rank, affine": Setting(rate=0.0, rank=4, width_affine=True),
    "plain": Setting(rate=0.0, policy="l1"),
}


def both(case: Case, folder: Path) -> tuple[PrunedModel, PrunedModel]:
    """The same model (compiled, not compiled)."""
    pytest.importorskip("numba", reason="numba is not installed: pip install 'rlprune[fast]'")
    file = folder / "model.safetensors"
    case.shipped.write(file)
    return PrunedModel.load(file, accelerate=True), PrunedModel.load(file, accelerate=False)


def assert_equal_decisions(fast: PrunedModel, plain: PrunedModel) -> None:
    for one, other in zip(fast.last, plain.last, strict=True):
        assert one.counts == other.counts
        assert one.kept.keys() == other.kept.keys()
        for layer, positions in one.kept.items():
            np.testing.assert_array_equal(positions, other.kept[layer], f"layer {layer}")


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", BACKBONES)
def test_same_channels_and_scores(name: str, setting: str, tmp_path: Path) -> None:
    case = Case(BACKBONES[name](), (3, 32, 32), SETTINGS[setting], seed=len(name + setting))
    fast, plain = both(case, tmp_path)
    images = case.images(6)
    static = case.setting.rate == 0.0
    for budget in (None,) if static else (None, 0.35):
        expected = plain(images, budget, "gathered")
        for mode in ("gathered", "masked"):
            found = fast(images, budget, mode)
            assert_equal_decisions(fast, plain)
            np.testing.assert_array_equal(fast.macs(), plain.macs())
            size = float(expected.abs().max())
            assert float((found - expected).abs().max()) <= 2e-5 * size, mode
    assert static or any(kept is not None for kept in fast.last[0].kept.values())  # pruned


def test_images_differ_in_what_they_compute(tmp_path: Path) -> None:
    """Otherwise the tests above would compare little."""
    setting = Setting(rate=1.0, storage_max=None, compute_max=None, compute_mean=0.5)
    case = Case(m_cifarnet(width=0.25), (3, 32, 32), setting)
    fast, plain = both(case, tmp_path)
    fast(case.images(8)), plain(case.images(8))
    assert len({tuple(image.counts) for image in fast.last}) > 1
    assert_equal_decisions(fast, plain)


class Twice(nn.Module):
    """Reads a convolution's output before and after its ReLU, and again later."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 6, 3, stride=2)
        self.classifier = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = F.relu(y) + self.second(y) - y
        return self.classifier(F.relu(self.last(z)).mean((2, 3)))


def test_a_relu_leaves_what_others_read(tmp_path: Path) -> None:
    case = Case(Twice(), (3, 8, 8), Setting(rate=1.0, storage_max=None, compute_max=0.8))
    fast, plain = both(case, tmp_path)
    images = case.images(4)
    for model in (fast, plain):
        assert_same(model, images, case.expected(images))


def test_threads_share_a_model(tmp_path: Path) -> None:
    case = Case(m_cifarnet(width=0.25), (3, 32, 32), SETTINGS["rate 0.5"])
    fast, _ = both(case, tmp_path)
    images = [case.images(4, seed) for seed in range(6)]
    expected = [fast(part) for part in images]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(fast, images))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_input_in_either_memory_format(tmp_path: Path) -> None:
    case = Case(m_cifarnet(width=0.25), (3, 32, 32), SETTINGS["rate 0.5"])
    fast, _ = both(case, tmp_path)
    images = case.images(2)
    rows = fast(images.contiguous(memory_format=torch.channels_last))
    np.testing.assert_allclose(rows.numpy(), fast(images).numpy(), rtol=1e-5, atol=1e-6)


def test_images_that_are_not_finite(tmp_path: Path) -> None:
    case = Case(m_cifarnet(width=0.25), (3, 32, 32), SETTINGS["rate 0.5"])
    images = case.images(1)
    images[0, 0, 0, 0] = float("nan")
    batch = torch.cat([case.images(3), images])
    for model in both(case, tmp_path):
        with pytest.raises(ValueError, match=r"features\.0\.conv: its input .* not finite"):
            model(images)
        for mode in ("gathered", "masked"):
            with pytest.raises(ValueError, match="not finite"):
                model(batch, mode=mode)


def test_one_image_of_a_static_model_is_compiled(tmp_path: Path) -> None:
    """Nothing is decided at R_r = 0, but importances are still predicted: the scores need them."""
    fast, plain = both(Case(m_cifarnet(width=0.25), (3, 32, 32), Setting(rate=0.0)), tmp_path)
    images = torch.randn(3, 3, 32, 32)
    calls: list[int] = []
    for layer in fast.layers:
        compiled = layer.fast
        assert compiled is not None

        def run(x: Tensor, image: Any, compiled: Any = compiled) -> Tensor:
            calls.append(len(x))
            return compiled(x, image)

        layer.fast = run
    torch.testing.assert_close(fast(images[:1]), plain(images[:1]), rtol=1e-4, atol=1e-4)
    assert calls == [1] * len(fast.layers)
    fast(images)  # all stored channels of a batch at once
    assert calls == [1] * len(fast.layers)
    assert all(layer.fast is None for layer in plain.layers)


def test_the_order_is_stable() -> None:
    """Ties keep their order, -0 equals 0, NaN comes last: as NumPy's stable sort."""
    pytest.importorskip("numba", reason="numba is not installed: pip install 'rlprune[fast]'")
    from rlprune.deploy.kernels.votes import ascending

    scores = np.array([0.5, -0.0, -2.0, np.inf, 0.0, 0.5, -2.0, np.nan, -np.inf, 1e-40], "f4")
    assert ascending(scores).tolist() == [8, 2, 6, 1, 4, 9, 0, 5, 3, 7]
    scores[7] = -np.nan
    assert ascending(scores).tolist() == [8, 2, 6, 1, 4, 9, 0, 5, 3, 7]
    many = np.random.default_rng(0).integers(-20, 20, 500).astype(np.float32)
    np.testing.assert_array_equal(ascending(many), many.argsort(kind="stable"))


@pytest.mark.parametrize("name", BACKBONES)
def test_sums_of_costs_at_a_layer(name: str, tmp_path: Path) -> None:
    """The terms given to the kernels add up to what ``Costs`` says."""
    case = Case(BACKBONES[name](), (3, 32, 32), Setting(rate=0.5))
    costs = case.model(tmp_path / "model.safetensors")._rules.costs
    random = np.random.default_rng(0)
    counts = [int(random.integers(1, c + 1)) for c in costs.channels]
    for layer in range(len(counts)):
        terms, before = costs.at_layer(layer), np.array(counts[:layer])
        each = terms.linear + before @ np.array(terms.each)
        assert each == pytest.approx(costs.each(counts, layer), rel=1e-12)
        after = terms.least_after + before @ np.array(terms.least_terms)
        budget = after + 3.25 * (each + terms.slope_after)
        most = max(3, costs.least[layer])
        assert costs.largest_count(counts, layer, 0.0, budget) == most
        linear = terms.linear_after + before @ np.array(terms.wide_terms)
        budget = 0.25 * terms.square_after + 0.5 * linear
        assert costs.proportional_share(counts, layer, 0.0, budget) == pytest.approx(0.5)


def test_numba_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(m_cifarnet(width=0.25), (3, 32, 32), SETTINGS["rate 0.5"])
    file = tmp_path / "model.safetensors"
    case.shipped.write(file)
    images = case.images(2)
    expected = PrunedModel.load(file, accelerate=False)(images)
    monkeypatch.setitem(sys.modules, "rlprune.deploy.kernels", None)  # fails to import
    monkeypatch.delattr("rlprune.deploy.kernels", raising=False)
    with pytest.raises(ArtifactError, match=r"pip install 'rlprune\[fast\]'"):
        PrunedModel.load(file, accelerate=True)
    assert torch.equal(PrunedModel.load(file)(images), expected)


def test_layers_that_follow_each_other_are_one_call(tmp_path: Path) -> None:
    """Unless something else stands in a layer's place; residual streams end a row."""
    fast, plain = both(Case(m_cifarnet(width=0.25), (3, 32, 32), SETTINGS["paper"]), tmp_path)
    assert [row.layers for row in fast._program.in_rows] == [tuple(range(8))]
    images, calls = plain.normalize(torch.randint(0, 256, (1, 3, 32, 32)).to(torch.uint8)), []
    (chain,) = fast._program.chains.values()
    chains = [chain, *(layer.fast._alone for layer in fast.layers)]  # type: ignore[union-attr]
    for one in chains:
        compute = one._compute

        def run(jobs: Any, *given: Any, compute: Any = compute) -> int:
            calls.append(len(jobs))
            return compute(jobs, *given)

        one._compute = run
    expected = plain(images)
    torch.testing.assert_close(fast(images), expected, rtol=1e-4, atol=1e-4)
    assert calls == [8]
    calls.clear()
    middle = fast.layers[4]
    compiled: Any = middle.fast
    middle.fast = lambda x, image: compiled(x, image)
    torch.testing.assert_close(fast(images), expected, rtol=1e-4, atol=1e-4)
    assert calls == [1] * 8
    case = Case(resnet20(width=0.5), (3, 32, 32), SETTINGS["paper"])
    rows = [row.layers for row in case.model(tmp_path / "r.safetensors")._program.in_rows]
    assert len(rows) >= 9 and all(len(row) == 2 for row in rows)
