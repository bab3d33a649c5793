"""The file beside a model that says which way to run it: chosen, checked, never wrongly used."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rlprune.backbones import m_cifarnet, resnet20
from rlprune.cli.main import app
from rlprune.deploy import PrunedModel, calibrate, fast
from rlprune.deploy.calibrate import batch_from, break_even
from rlprune.deploy.calibration import (
    BatchTimes,
    Calibration,
    LayerTimes,
    Machine,
    Table,
    fingerprint,
    read_calibration,
    side_file,
    this_machine,
    write_calibration,
)
from rlprune.deploy.chain import Chain
from rlprune.deploy.program import GATHERED, MASKED, Program
from rlprune.deploy.ways import Ways, pairs_at
from rlprune.errors import ArtifactError
from tests.physical import Residual, ThreeLayers
from tests.shipping import Case, Setting

SETTINGS = {
    "agent": Setting(rate=0.5),
    "whole": Setting(rate=1.0, storage_max=None),
    "mean": Setting(rate=0.5, compute_max=None, compute_mean=0.5),
    "paper": Setting(rate=0.5, tradeoff="paper", rank=3, width_affine=True),
    "static": Setting(rate=0.0),
}


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(Residual((6, 5, 7)), Residual.shape, Setting(compute_max=0.7), seed=5)


@pytest.fixture
def file(case: Case, tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    case.shipped.write(path)
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few repeats: the numbers do not matter here."""
    monkeypatch.setattr(calibrate, "_MOST", 3)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def made_by_hand(
    names: list[str], up_to: float = 0.5, masked_from: int | None = None, threads: int = 1
) -> Table:
    """A table that says what to choose; times that nobody reads."""
    layers = tuple(LayerTimes(name, (1.0,), (1.0,), up_to) for name in names)
    batches = (BatchTimes(0.5, 1.0, masked_from),)
    return Table(threads, (1.0,), layers, (1,), (1.0,), batches)


def written(file: Path, **changed: Any) -> Path:
    """A calibration of a model on this machine, and what is to be wrong with it."""
    names = [layer.name for layer in PrunedModel.load(file).spec.layers]
    known = Calibration(fingerprint(file), this_machine(True), (made_by_hand(names),))
    write_calibration(side_file(file), replace(known, **changed))
    return side_file(file)


# --- what is chosen -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([0.5, 0.4, 0.3], 1.0),
        ([-0.5, -0.4, -0.3], 0.0),
        ([0.5, 0.0, -0.5], 0.5),  # even at 0.5: there the line crosses zero
        ([0.5, 0.2, -0.2], 0.75),  # as much faster at 0.5 as slower at 1
        ([0.5, 0.3, -0.1], 0.875),
        ([-0.02, 0.4, 0.4], 1.0),  # noise at a narrow width
        ([0.7, -0.18, 0.1], 1.0),  # by 0.04 faster beyond: not clearly
        ([0.7, -0.3, 0.1], 0.425),  # 0.25 + 0.25 * 0.7 / 1.0
        ([0.5, 0.5, -0.04], 1.0),
    ],
)
def test_the_break_even_share_by_hand(gains: list[float], expected: float) -> None:
    assert break_even((0.25, 0.5, 1.0), gains) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("masked", "expected"),
    [
        ([0.5, 0.4, 0.3, 0.2], 1),
        ([2.0, 0.9, 0.5, 0.4], 2),
        ([2.0, 0.9, 0.96, 0.4], 8),  # four percent are not clearly faster
        ([2.0, 0.9, 0.8, 1.1], None),
    ],
)
def test_the_batch_from_which_all_is_computed_at_once(
    masked: list[float], expected: int | None
) -> None:
    assert batch_from([1, 2, 4, 8], masked, 1.0) == expected


def test_pairs_of_channels_by_hand(tmp_path: Path) -> None:
    """The image's channels are always there; those of layers are as narrow as the layer."""
    setting = Setting(rate=1.0, storage_max=None)
    model = Case(ThreeLayers(), ThreeLayers.shape, setting).model(tmp_path / "m.safetensors")
    first, second, third = model.layers  # 2 -> 4 -> 6 -> 5 channels
    assert [pairs_at(layer, 1.0) for layer in (first, second, third)] == [8, 24, 30]
    assert [pairs_at(layer, 0.5) for layer in (first, second, third)] == [4, 6, 7]
    assert [pairs_at(layer, 0.0) for layer in (first, second, third)] == [0, 0, 0]


def test_the_nearest_budget_decides_over_batches() -> None:
    rows = (BatchTimes(0.25, 1.0, None), BatchTimes(0.5, 1.0, 16), BatchTimes(1.0, 1.0, 4))
    ways = Ways((), rows)
    assert [ways.masks(images, 0.6, False) for images in (1, 15, 16, 64)] == [False] * 2 + [
        True
    ] * 2
    assert not ways.masks(1000, 0.3, True)
    assert ways.masks(4, 1.7, False)  # a dial of a mean budget may be above 1
    assert Ways(()).masks(2, 0.5, True) and not Ways(()).masks(2, 0.5, False)


# --- the scores are the same ----------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["m_cifarnet", "resnet20"])
def test_scores_do_not_depend_on_the_way(
    name: str, setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = m_cifarnet(width=0.25) if name == "m_cifarnet" else resnet20(width=0.5)
    case = Case(backbone, (3, 32, 32), SETTINGS[setting], seed=3)
    model = case.model(tmp_path / "m.safetensors")
    images = case.images(3)
    expected = case.expected(images)
    size = float(expected.scores.abs().max())
    names = [layer.name for layer in model.spec.layers]
    torchs: list[int] = []
    modes: list[str] = []
    by_torch, run = Chain._by_torch, Program.run

    def spy(chain: Chain, x: torch.Tensor, layer: Any, count: int) -> torch.Tensor:
        torchs.append(count)
        return by_torch(chain, x, layer, count)

    monkeypatch.setattr(Chain, "_by_torch", spy)
    monkeypatch.setattr(
        Program, "run", lambda program, x, of, mode: modes.append(mode) or run(program, x, of, mode)
    )
    calls = {}
    for up_to in (0.0, 0.5, 1.0):
        for masked_from in (None, 2, 4):
            model.use([made_by_hand(names, up_to, masked_from)])
            torchs.clear(), modes.clear()
            scores = model(images)
            assert float((scores - expected.scores).abs().max()) <= 1e-4 * size
            counts = [image.counts for image in model.last]
            assert counts == expected.counts.tolist()
            assert modes == ([MASKED] if masked_from == 2 else ["gathered"] * 3)
            calls[up_to, masked_from] = len(torchs)
    pytest.importorskip("numba", reason="numba is not installed: pip install 'rlprune[fast]'")
    assert all(count == 0 for (up_to, least), count in calls.items() if up_to == 1 or least == 2)
    assert calls[0.0, None] == calls[0.0, 4] == len(images) * len(names)
    if setting in ("agent", "whole"):  # these keep about a half, some layers more, some less
        assert 0 < calls[0.5, None] < calls[0.0, None]


def test_each_layer_has_its_own_limit(case: Case, file: Path) -> None:
    pytest.importorskip("numba", reason="numba is not installed: pip install 'rlprune[fast]'")
    model = PrunedModel.load(file, accelerate=True)
    names = [layer.name for layer in model.spec.layers]
    table = made_by_hand(names, 0.0)
    layers = [
        replace(layer, compiled_up_to=float(at == 1)) for at, layer in enumerate(table.layers)
    ]
    model.use([replace(table, layers=tuple(layers))])
    model(case.images(1))
    whole = [pairs_at(layer, 1.0) for layer in model.layers]
    assert model.last[0].limits.tolist() == [n * (at == 1) for at, n in enumerate(whole)]


# --- measured -------------------------------------------------------------------------------


def quiet(caplog: pytest.LogCaptureFixture) -> bool:
    return not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("setting", SETTINGS)
def test_measured_written_and_used(
    setting: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case(Residual((6, 5, 7)), Residual.shape, SETTINGS[setting], seed=5)
    file = tmp_path / "m.safetensors"
    case.shipped.write(file)
    done: list[float] = []
    table = calibrate.calibrate(file, report=done.append)
    assert done == sorted(done) and done[-1] == 1.0 and done[0] > 0.0
    found = read_calibration(side_file(file))
    assert found == Calibration(fingerprint(file), this_machine(True), (table,))
    names = [layer.name for layer in case.shipped.spec.layers]
    if fast.available():
        assert [layer.name for layer in table.layers] == names
        assert table.widths == ((1.0,) if setting == "static" else calibrate.WIDTHS)
        times = [ms for layer in table.layers for ms in (*layer.torch, *layer.compiled)]
        assert all(0.0 < ms < 1e3 for ms in times)
    own = min(case.shipped.spec.budget.compute_dial, 1.0)
    dials = {1.0} if setting == "static" else {0.25, 0.5, 0.75, 1.0, own}
    assert [row.budget for row in table.batches] == sorted(dials)
    model, images = PrunedModel.load(file), case.images(5)
    assert model._choice.now().batches == table.batches
    size = float(case.expected(images).scores.abs().max())
    assert float((model(images) - case.expected(images).scores).abs().max()) <= 1e-4 * size
    assert quiet(caplog)
    assert list(tmp_path.iterdir()) in ([file, side_file(file)], [side_file(file), file])


def test_widths_are_forced_as_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of what is stored, in the layer and in its inputs, whatever the budget."""
    pytest.importorskip("numba", reason="numba is not installed: pip install 'rlprune[fast]'")
    case = Case(m_cifarnet(width=0.25), (3, 32, 32), Setting(rate=0.5, compute_max=0.3))
    file = tmp_path / "m.safetensors"
    case.shipped.write(file)
    seen: set[tuple[int, int, int]] = set()
    by_torch = Chain._by_torch

    def spy(chain: Chain, x: torch.Tensor, layer: Any, count: int) -> torch.Tensor:
        seen.add((layer.layer.index, count, x.shape[1]))
        return by_torch(chain, x, layer, count)

    monkeypatch.setattr(Chain, "_by_torch", spy)
    calibrate._layers(file, torch.randn(1, 3, 32, 32), lambda done: None)
    stored = [layer.stored for layer in case.shipped.spec.layers]
    assert min(stored) < min(layer.channels for layer in case.shipped.spec.layers)
    expected = set()
    for width in calibrate.WIDTHS:
        kept = [-int(-width * count // 1) for count in stored]
        expected |= {(t, kept[t], kept[t - 1] if t else 3) for t in range(len(stored))}
    assert seen == expected


def test_each_number_of_threads_has_a_table(
    case: Case, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calibrate.calibrate(file)
    torch.set_num_threads(2)
    calibrate.calibrate(file)
    again = calibrate.calibrate(file)
    tables = read_calibration(side_file(file)).tables
    assert [table.threads for table in tables] == [1, 2]
    assert tables[1] == again
    model = PrunedModel.load(file)
    assert model._choice.now().batches == tables[1].batches
    torch.set_num_threads(1)
    assert model._choice.now().batches == tables[0].batches
    assert quiet(caplog)
    torch.set_num_threads(3)
    for _ in range(3):
        assert model._choice.now().batches == ()
    text = "calibrated with 1, 2 threads, but torch uses 3: the usual choices are made"
    assert caplog.text.count(text) == 1


def test_without_numba_only_batches_are_measured(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fast, "available", lambda: False)
    table = calibrate.calibrate(file)
    assert table.layers == () and len(table.batches) >= 4
    assert read_calibration(side_file(file)).machine.numba is None
    model = PrunedModel.load(file)
    assert model._choice.now().pairs == tuple(pairs_at(layer, 1.0) for layer in model.layers)
    assert quiet(caplog)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    setting = Setting(rate=0.0, policy="l1")
    Case(ThreeLayers(), ThreeLayers.shape, setting).shipped.write(tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_without_numba_a_plain_network_has_nothing_to_choose(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast, "available", lambda: False)
    with pytest.raises(ArtifactError, match="one way to run it, nothing to calibrate"):
        calibrate.calibrate(plain)
    assert not side_file(plain).exists()


def test_a_plain_network_may_take_either_convolution(plain: Path) -> None:
    pytest.importorskip("numba", reason="numba is not installed: pip install 'rlprune[fast]'")
    table = calibrate.calibrate(plain)
    assert table.widths == (1.0,) and [len(layer.compiled) for layer in table.layers] == [1, 1, 1]
    model = PrunedModel.load(plain)
    assert model._choice.now().pairs == tuple(
        pairs_at(layer, times.compiled_up_to)
        for layer, times in zip(model.layers, table.layers, strict=True)
    )
    assert all(times.compiled_up_to in (0.0, 1.0) for times in table.layers)


def test_two_threads_of_torch_compute_a_plain_network(plain: Path) -> None:
    """Its filters lie ready for torch as well; the compiled convolution has one thread."""
    pytest.importorskip("numba", reason="numba is not installed: pip install 'rlprune[fast]'")
    model = PrunedModel.load(plain)
    torch.set_num_threads(1)
    assert model._mode(1, model._own_budget) == GATHERED
    torch.set_num_threads(2)
    assert model._mode(1, model._own_budget) == MASKED


# --- of another model, machine or version -----------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "0" * 64}, "measured for another file, or the file has been written anew"),
        (
            {"machine": replace(this_machine(True), cpu="another")},
            "measured with cpu another, here is",
        ),
        (
            {"machine": replace(this_machine(True), torch="1.0")},
            rf"measured with torch 1.0, here is {torch.__version__}",
        ),
        ({"machine": Machine("x", "y", "0.1")}, "measured with cpu x"),
        ({"machine": replace(this_machine(True), numba="0.1")}, "measured with numba 0.1"),
    ],
)
def test_what_was_measured_elsewhere_is_not_used(
    file: Path, changed: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    side = written(file, **changed)
    caplog.clear()
    model = PrunedModel.load(file)
    assert f"{side}: not used: it was {message}" in caplog.text
    assert f"rlprune calibrate {file}" in caplog.text
    assert model._choice.now() == PrunedModel.load(file, calibrated=False)._choice.now()


def test_a_model_without_numba_does_not_use_what_was_measured_with_it(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("numba", reason="numba is not installed: pip install 'rlprune[fast]'")
    written(file)
    PrunedModel.load(file, accelerate=False)
    assert f"measured with numba {fast.version()}, here is none" in caplog.text


def test_it_can_be_left_out(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    side = written(file)
    assert PrunedModel.load(file)._choice.now().batches != ()
    assert PrunedModel.load(file, calibrated=False)._choice.now().batches == ()
    side.write_text("damaged")
    PrunedModel.load(file, calibrated=False)
    assert quiet(caplog)


def test_calibrating_again_replaces_what_does_not_count(file: Path) -> None:
    side = written(file, model="0" * 64)
    table = calibrate.calibrate(file)
    assert read_calibration(side).tables == (table,)
    side.write_text("damaged")
    table = calibrate.calibrate(file)
    assert read_calibration(side) == Calibration(fingerprint(file), this_machine(True), (table,))


# --- bad files ------------------------------------------------------------------------------


def edited(side: Path, change: Callable[[Any], Any]) -> None:
    plain = json.loads(side.read_text())
    change(plain)
    side.write_text(json.dumps(plain))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(format=3), "of format 3, this rlprune reads format 2. Update rlprune"),
        (lambda p: p.update(format=True), "format: must be 2"),
        (lambda p: p.pop("format"), "format: must be 2"),
        (lambda p: p.update(code="import os"), "calibration: must be an object with"),
        (lambda p: p.update(model=3), "model: must be text"),
        (lambda p: p.update(tables={}), "tables: must be a list"),
        (lambda p: p["tables"].append(p["tables"][0]), "one for each number of threads"),
        (lambda p: p["machine"].pop("cpu"), "machine: must be an object with"),
        (lambda p: p["machine"].update(numba=1), "machine.numba: must be text"),
        (lambda p: p["tables"][0].update(threads=0), "threads: must be a whole number from 1"),
        (lambda p: p["tables"][0].update(widths=[2.0]), "widths: must be above 0 and at most 1"),
        (lambda p: p["tables"][0].update(widths=[1.0, 0.5]), "widths: must be a few, ascending"),
        (lambda p: p["tables"][0].update(widths=[0.5, 1.0]), "torch: must be a list of 2"),
        (lambda p: p["tables"][0].update(sizes=[1, 2]), "masked: must be a list of 2"),
        (lambda p: p["tables"][0].update(batches=[]), "batches: must be a few"),
        (lambda p: p["tables"][0]["batches"][0].update(masked_from=0), "masked_from: must be"),
        (lambda p: p["tables"][0]["batches"][0].update(budget=2), "budget: must be from 0 to 1"),
        (lambda p: p["tables"][0]["layers"][0].update(name="x"), "of other layers than the model"),
        (lambda p: p["tables"][0]["layers"].pop(), "of other layers than the model"),
        (
            lambda p: p["tables"][0]["layers"][0].update(compiled_up_to=float("nan")),
            "compiled_up_to: must be a finite number",
        ),
        (
            lambda p: p["tables"][0]["layers"][0].update(compiled_up_to=-0.1),
            "compiled_up_to: must be from 0 to 1",
        ),
        (
            lambda p: p["tables"][0]["layers"][0].update(compiled=[10**400]),
            "compiled: must be a finite number",
        ),
    ],
)
def test_an_edited_file_is_refused(file: Path, change: Callable[[Any], Any], message: str) -> None:
    side = written(file)
    edited(side, change)
    with pytest.raises(ArtifactError) as caught:
        PrunedModel.load(file)
    assert str(caught.value).startswith(f"{side}: ")
    assert message in str(caught.value)
    assert any(word in str(caught.value).lower() for word in ("calibrate again", "update rlprune"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b"\xff\xfe\x00", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[]", "calibration: must be an object"),
        (b"null", "calibration: must be an object"),
        (b"9" * 5000, "is no JSON"),
        (b" " * (1 << 20) + b"{}", "is larger than 1,048,576 bytes"),
    ],
)
def test_other_files_are_refused(file: Path, content: bytes, message: str) -> None:
    side_file(file).write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        PrunedModel.load(file)


def test_no_file_at_all(file: Path, tmp_path: Path) -> None:
    side_file(file).mkdir()
    with pytest.raises(ArtifactError, match=r"is no file\. Remove it"):
        PrunedModel.load(file)
    side_file(file).rmdir()
    side_file(file).symlink_to(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match=r"is no file\. Remove it"):
        PrunedModel.load(file)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_value_in_any_place_is_read_or_refused(data: st.DataObject) -> None:
    """A place of a sound file is drawn, and what stands there instead."""
    known = Calibration("0" * 64, Machine("a", "b", None), (made_by_hand(["c"]),))
    with TemporaryDirectory() as folder:
        side = Path(folder) / "m.calibration.json"
        write_calibration(side, known)
        inside: Any = json.loads(side.read_text())
        whole, at = [inside], 0
        parent: Any = whole
        while isinstance(parent[at], dict | list) and parent[at] and data.draw(st.booleans()):
            parent = parent[at]
            keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
            at = data.draw(st.sampled_from(keys))
        parent[at] = data.draw(_JSON)
        side.write_text(json.dumps(whole[0]))
        try:
            found = read_calibration(side)
        except ArtifactError as error:
            assert str(error).startswith(f"{side}: ")
            return
    for table in found.tables:
        assert table.threads >= 1 and table.batches
        assert all(0.0 <= layer.compiled_up_to <= 1.0 for layer in table.layers)


# --- the command ------------------------------------------------------------------------------


def test_the_command_prints_the_table_and_keeps_it(file: Path) -> None:
    done = CliRunner().invoke(app, ["calibrate", str(file), "--threads", "1"])
    assert done.exit_code == 0, done.output
    assert "compiled" in done.output or not fast.available()
    assert "all at once from" in done.output
    assert f"{side_file(file)}: used from now on with 1 thread." in done.output.replace("\n", "")
    table = read_calibration(side_file(file)).tables[0]
    assert f"{table.batches[0].gathered:.3f}" in done.output


def test_the_command_says_what_is_wrong(tmp_path: Path, file: Path) -> None:
    done = CliRunner().invoke(app, ["calibrate", str(tmp_path / "none.safetensors")])
    assert done.exit_code == 2 and "there is no such file" in done.output
    done = CliRunner().invoke(app, ["calibrate", str(file), str(tmp_path / "none.png")])
    assert done.exit_code == 2 and "image files have 1 or 3" in done.output
    done = CliRunner().invoke(app, ["calibrate", str(file), "--threads", "0"])
    assert done.exit_code == 2
    written(file)
    side_file(file).write_text("damaged")
    done = CliRunner().invoke(app, ["predict", str(file), str(tmp_path / "none.png")])
    assert done.exit_code == 2 and "Calibrate again, or delete it" in done.output
