"""The compiled convolution and gathering alone, against torch and NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("numba", reason="numba is not installed: pip install 'rlprune[fast]'")

from rlprune.deploy.chain import _Move
from rlprune.deploy.kernels import convolve, filters, jit, vectors
from rlprune.deploy.kernels.compute import compute
from rlprune.deploy.layer import Geometry

SHAPES = {
    # input and output channels, size of the input, kernel, geometry
    "3 x 3": (32, 32, (9, 7), (3, 3), Geometry((1, 1), (1, 1), (1, 1))),
    "no padding": (3, 40, (8, 8), (3, 3), Geometry((1, 1), (0, 0), (1, 1))),
    "strides": (7, 65, (11, 6), (3, 5), Geometry((2, 3), (1, 2), (1, 1))),
    "dilated": (5, 17, (9, 9), (3, 3), Geometry((1, 1), (2, 1), (2, 1))),
    "1 x 1": (16, 130, (4, 4), (1, 1), Geometry((1, 1), (0, 0), (1, 1))),
    "one pixel": (6, 1, (3, 3), (3, 3), Geometry((1, 1), (0, 0), (1, 1))),
    "padding on one axis": (4, 9, (2, 12), (1, 5), Geometry((1, 1), (0, 2), (1, 1))),
}


class Layer:
    """As much of a ``GatedLayer`` as ``_Move`` looks at."""

    def __init__(self, kernel: tuple[int, int], geometry: Geometry) -> None:
        self.geometry = geometry
        self.spec = type("Spec", (), {"kernel": kernel})()


@pytest.mark.parametrize("rectify", [0, 1])
@pytest.mark.parametrize("name", SHAPES)
def test_the_convolution_is_torchs(name: str, rectify: int) -> None:
    present, count, size, kernel, geometry = SHAPES[name]
    torch.manual_seed(len(name))
    x = torch.randn(1, present, *size)
    weight, shift = torch.randn(count, present, *kernel), torch.randn(count)
    expected = geometry.convolve(x, weight, shift)[0].permute(1, 2, 0).flatten(0, 1)
    if rectify:
        expected = expected.relu()
    move: Any = _Move(Layer(kernel, geometry), size, convolve.PIXELS)  # type: ignore[arg-type]
    sizes, starts, taps, pixels = move.arrays
    rows = np.ascontiguousarray(x[0].permute(1, 2, 0).flatten(0, 1).numpy())
    around = np.full(move.around * present, np.nan, dtype=np.float32)
    if move.around:
        convolve.surround(rows, sizes, around)
    given = around if move.around else rows.reshape(-1)
    stride = convolve.row_stride(count)
    weights = np.full(len(taps) * present * stride + 16, 9.0, dtype=np.float32)
    table = weights[: len(taps) * present * stride].reshape(-1, stride)
    table[:, :count] = weight.permute(2, 3, 1, 0).reshape(-1, count).numpy()
    padded = np.zeros(count + convolve.LANES, dtype=np.float32)
    padded[:count] = shift.numpy()
    out = np.full(pixels * count + 1, -7.0, dtype=np.float32)
    convolve.convolve(given, present, starts, taps, weights, padded, count, rectify, pixels, out)
    found = torch.from_numpy(out[:-1]).view(pixels, count)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert out[-1] == -7.0  # nothing is written behind the end


def test_what_is_not_a_number_stays_visible() -> None:
    x = torch.full((1, 2, 3, 3), float("nan"))
    move: Any = _Move(Layer((1, 1), SHAPES["1 x 1"][-1]), (3, 3), convolve.PIXELS)  # type: ignore[arg-type]
    out = np.zeros(9 * 3, dtype=np.float32)
    rows, weights = x.permute(0, 2, 3, 1).reshape(-1).numpy(), np.ones(64, dtype=np.float32)
    convolve.convolve(rows, 2, *move.arrays[1:3], weights, weights, 3, 1, 9, out)
    assert np.isnan(out).all()


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_registers_of_every_width(lanes: int) -> None:
    """Other processors than this one: LLVM makes do with the registers that there are."""
    from numba import njit

    size = vectors.Registers(lanes, 3, 2)
    inner = vectors.block(size, 2)
    random = np.random.default_rng(lanes)
    present, taps, count = 5, np.array([0, 2], dtype=np.int64), lanes + 3
    x = random.standard_normal((6, present)).astype(np.float32)
    weight = random.standard_normal((2 * present, 2 * lanes)).astype(np.float32)
    shift = random.standard_normal(2 * lanes).astype(np.float32)
    starts = np.array([0, 3, 1], dtype=np.int64)
    targets = np.array([2 * count, 0, count], dtype=np.int64)
    out = np.zeros(3 * count, dtype=np.float32)
    job = np.zeros(vectors.JOB, dtype=np.int64)
    arrays = {"INPUT": x, "STARTS": starts, "TAPS": taps, "FILTERS": weight, "SHIFT": shift}
    for place, array in (arrays | {"OUTPUT": out, "TARGETS": targets}).items():
        job[getattr(vectors, place)] = array.ctypes.data
    job[vectors.TAP_COUNT], job[vectors.PRESENT], job[vectors.STRIDE] = 2, present, 2 * lanes
    job[vectors.LAST] = 3

    @njit  # type: ignore[untyped-decorator]
    def run(job: Any) -> None:
        inner(job.ctypes.data)

    run(job)
    for start, target in zip(starts, targets, strict=True):
        read = np.concatenate([x[start], x[start + 2]])
        expected = (shift + read @ weight)[:count]
        np.testing.assert_allclose(out[target : target + count], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kept", [1, 5, 16, 21, 40])
def test_gathering_for_both_convolutions(kept: int) -> None:
    """Every way picks the same numbers; what AVX-512 writes too much is written over."""
    random = np.random.default_rng(kept)
    stored, inputs, taps = 40, 11, 3
    rows = random.standard_normal((stored, taps, inputs)).astype(np.float32)
    table = np.zeros((taps, inputs, 48), dtype=np.float32)
    table[..., :stored] = rows.transpose(1, 2, 0)
    chosen = np.sort(random.permutation(stored)[:kept])
    scale = random.standard_normal(kept).astype(np.float32)
    columns = np.array([0, 3, 4, 10])
    expected = rows[chosen][:, :, columns] * scale[:, None, None]
    weights = np.empty(kept * taps * 4, dtype=np.float32)
    filters.gather_filters(rows, scale, chosen, columns, weights)
    np.testing.assert_array_equal(weights.reshape(kept, taps, 4), expected)
    stride = convolve.row_stride(kept)
    ways = [filters.pick_inputs, *([filters.press_inputs] if vectors.HAS_AVX512 else [])]
    for gather in ways:
        weights = np.full(taps * 4 * stride + 16, np.nan, dtype=np.float32)
        gather(table, scale, chosen, columns, stride, weights)
        found = weights[: taps * 4 * stride].reshape(taps, 4, stride)[..., :kept]
        np.testing.assert_array_equal(found, expected.transpose(1, 2, 0))


def test_what_numba_keeps_is_found_by_all_source_files() -> None:
    """Otherwise a change of one file would leave functions of another as they were."""
    (cell,) = compute.py_func.__closure__
    assert cell.cell_contents == jit._digest() and len(jit._digest()) == 64
