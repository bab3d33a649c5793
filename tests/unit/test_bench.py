"""The rivals of a shipped model, and how they are compared (not how fast they are)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlprune.backbones import m_cifarnet, resnet20
from rlprune.deploy.bench import compare, static_like
from tests.physical import InvertedResidual, ThreeLayers
from tests.shipping import Case, Setting


def test_a_static_rival_has_the_widths_asked_for(tmp_path: Path) -> None:
    model = Case(ThreeLayers(), ThreeLayers.shape, Setting(0.5)).model(tmp_path / "m.safetensors")
    rival = static_like(model, [2, 3, 1])
    told = rival.explain(torch.randn(1, *ThreeLayers.shape))[0]
    assert [len(kept) for kept in told.kept] == [2, 3, 1]
    # 3x3 x 2 in x 2 out x 36 pixels; 3x3 x 2 x 3 x 9; 1x1 x 3 x 1 x 9
    assert told.layer_macs == (1296, 486, 27)


@pytest.mark.parametrize(
    ("backbone", "shape"),
    [
        (InvertedResidual, InvertedResidual.shape),
        (lambda: resnet20(width=0.25), (3, 32, 32)),
        (lambda: m_cifarnet(width=0.125), (3, 32, 32)),
    ],
)
@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_all_rivals_are_timed_on_the_same_images(
    backbone: Callable[[], torch.nn.Module],
    shape: tuple[int, int, int],
    rate: float,
    tmp_path: Path,
) -> None:
    model = Case(backbone(), shape, Setting(rate)).model(tmp_path / "m.safetensors")
    done: list[tuple[int, int]] = []
    images = torch.randn(2, *shape)
    timings = compare(model, images, repeats=3, warmup=1, report=lambda *n: done.append(n))
    assert done == [(1, 3), (2, 3), (3, 3)]
    names = [timing.name for timing in timings]
    assert names == ["shipped", *(["masked"] if rate > 0 else []), "static", "dense"]
    assert all(0.0 < t.low <= t.median <= t.high for t in timings)
    by_name = {timing.name: timing for timing in timings}
    model(images)
    assert by_name["shipped"].macs == pytest.approx(float(model.macs().mean()))
    assert by_name["dense"].macs == model.spec.costs.dense_macs
    assert by_name["static"].macs < by_name["dense"].macs
