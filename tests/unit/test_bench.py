"""The rivals of a shipped model, and how they are compared (not how fast they are)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from rlprune.backbones import m_cifarnet, resnet20
from rlprune.cli.main import app
from rlprune.deploy import PrunedModel, bench
from rlprune.deploy.bench import Setting, batches, compare, machine, take_turns
from rlprune.deploy.layer_times import layer_times
from rlprune.deploy.memory import Job, Memory, footprints, memory_of
from rlprune.deploy.rivals import Way, static_like, ways_to_run
from rlprune.errors import ArtifactError
from tests.physical import InvertedResidual, ThreeLayers
from tests.shipping import Case
from tests.shipping import Setting as Pruning

QUICK = Setting(repeats=3, warmup=1)


def three_layers(folder: Path, rate: float = 0.5) -> PrunedModel:
    case = Case(ThreeLayers(), ThreeLayers.shape, Pruning(rate))
    return case.model(folder / "m.safetensors")


def test_a_static_rival_has_the_widths_asked_for(tmp_path: Path) -> None:
    rival = static_like(three_layers(tmp_path), [2, 3, 1])
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
    model = Case(backbone(), shape, Pruning(rate)).model(tmp_path / "m.safetensors")
    done: list[tuple[int, int]] = []
    images = torch.randn(2, *shape)
    timings = compare(model, images, QUICK, report=lambda *n: done.append(n))
    assert done == [(0, 3), (0, 3), (1, 3), (2, 3), (3, 3)]  # two batches to warm up
    names = [timing.name for timing in timings]
    assert names == ["shipped", *(["masked"] if rate > 0 else []), "static", "dense"]
    assert all(0.0 < t.low <= t.median <= t.high for t in timings)
    by_name = {timing.name: timing for timing in timings}
    model(images)
    macs = {name: timing.way.macs for name, timing in by_name.items()}
    assert macs["shipped"] == pytest.approx(float(model.macs().mean()))
    assert macs["dense"] == model.spec.costs.dense_macs
    assert macs["static"] < macs["dense"]
    assert by_name["dense"].ratio == 1.0
    assert all(timing.ratio is not None and timing.ratio > 0 for timing in timings)


def test_rivals_are_those_asked_for(tmp_path: Path) -> None:
    images = torch.randn(1, *ThreeLayers.shape)
    model = three_layers(tmp_path)
    for rivals in (["masked"], ["static", "masked"], []):
        names = [timing.name for timing in compare(model, images, QUICK, rivals)]
        assert names == ["shipped", *(n for n in ("masked", "static") if n in rivals)]
    assert compare(model, images, QUICK, ["static"])[0].ratio is None  # to what?
    with pytest.raises(ArtifactError, match="no runtime agent, so that there are no masks"):
        compare(three_layers(tmp_path, rate=0.0), images, QUICK, ["dense", "masked"])


def test_threads_are_set_and_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    call = Way.__call__

    def noting(way: Way, images: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return call(way, images)

    monkeypatch.setattr(Way, "__call__", noting)
    compare(
        three_layers(tmp_path), torch.randn(1, *ThreeLayers.shape), Setting(threads=2), ["dense"]
    )
    assert set(seen) == {2} and torch.get_num_threads() == 1


# --- taking turns ---------------------------------------------------------------------------


def test_turns_rotate_over_ways_and_batches() -> None:
    called: list[tuple[str, int]] = []

    def run(name: str) -> Callable[[int], Sequence[float]]:
        def one(part: int) -> Sequence[float]:
            called.append((name, part))
            return float(len(called)), 0.5

        return one

    found = take_turns([run("a"), run("b")], 2, Setting(repeats=3, warmup=1))
    # two turns of warming up (as many as there are batches), then three that count
    turns = [called[at : at + 2] for at in range(0, 10, 2)]
    assert turns == [
        [("a", 0), ("b", 0)], [("b", 1), ("a", 1)],
        [("a", 0), ("b", 0)], [("b", 1), ("a", 1)], [("a", 0), ("b", 0)],
    ]  # fmt: skip
    assert found[..., 0].tolist() == [[5, 8, 9], [6, 7, 10]]
    assert found[..., 1].tolist() == [[0.5] * 3] * 2


def test_garbage_is_not_collected_meanwhile() -> None:
    import gc

    seen: list[bool] = []

    def run(_part: int) -> Sequence[float]:
        seen.append(gc.isenabled())
        return (1.0,)

    take_turns([run], 1, QUICK)
    assert set(seen) == {False} and gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        take_turns([lambda _part: (1 / 0,)], 1, QUICK)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [(5, 2, [[0, 1], [2, 3]]), (2, 5, [[0, 1, 0, 1, 0]]), (3, 1, [[0], [1], [2]])],
)
def test_whole_batches(count: int, size: int, expected: list[list[int]]) -> None:
    images = torch.arange(count).reshape(count, 1, 1, 1)
    assert [part.flatten().tolist() for part in batches(images, size)] == expected


def test_the_faster_way_counts_and_ratios_are_of_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: two images a batch; the machine is three times as slow in the second turn."""
    seconds = {  # of each turn, by name and memory format
        ("shipped", False): [2.0, 6.0, 2.0, 4.0],
        ("dense", False): [9.0, 9.0, 9.0, 9.0],
        ("dense", True): [4.0, 12.0, 8.0, 8.0],
    }

    def timed(way: Way, parts: Sequence[torch.Tensor]) -> Callable[[int], Sequence[float]]:
        mine = iter([0.0, *seconds[way.name, way.channels_last]])
        return lambda _part: (next(mine),)

    monkeypatch.setattr(bench, "timed", timed)
    images, setting = torch.randn(2, *ThreeLayers.shape), Setting(2, repeats=4, warmup=1)
    shipped, dense = compare(three_layers(tmp_path), images, setting, ["dense"])
    assert dense.way.channels_last and dense.median == 4.0  # 8 for two images
    assert (shipped.low, shipped.median, shipped.high) == (1.0, 1.5, 2.25)
    assert shipped.ratio == 0.5  # of 1/2, 1/2, 1/4, 1/2


def test_the_machine_is_described() -> None:
    words = machine()
    assert f"torch {torch.__version__}" in words and "cores" in words and "numba" in words
    assert words == machine()


def test_static_is_compiled_like_the_model_and_dense_never(tmp_path: Path) -> None:
    three_layers(tmp_path)
    images = torch.randn(1, *ThreeLayers.shape)
    for accelerate in (None, False):
        model = PrunedModel.load(tmp_path / "m.safetensors", accelerate)
        ways = ways_to_run(model, images, ["static", "dense"])
        asked = [(way.name, way.model.accelerate) for way in ways]
        static = [("static", None)] if accelerate is None else []
        torchs = [(name, False) for name in ("static", "dense") for _ in range(2)]
        assert asked == [("shipped", accelerate), *static, *torchs]


# --- layers ---------------------------------------------------------------------------------


def test_layers_side_by_side(tmp_path: Path) -> None:
    model = three_layers(tmp_path)
    images = torch.randn(3, *ThreeLayers.shape)
    ways = {way.name: way for way in ways_to_run(model, images)}
    *layers, rest = layer_times(ways["shipped"], ways["dense"], images, QUICK)
    told = model.explain(images)
    assert [layer.name for layer in layers] == list(told[0].layer_names)
    for at, layer in enumerate(layers):
        assert layer.channels == model.spec.layers[at].channels
        assert layer.computed == pytest.approx(sum(len(i.kept[at]) for i in told) / 3)
        assert layer.macs == pytest.approx(sum(image.layer_macs[at] for image in told) / 3)
    dense = [layer.dense_macs for layer in layers]
    assert dense == list(ways["dense"].model.explain(images)[0].layer_macs)
    assert (rest.name, rest.macs) == ("the rest", None)
    assert all(row.seconds > 0 and row.dense_seconds > 0 for row in (*layers, rest))
    # nothing is left on the models
    assert not any({"gathered", "masked"} & set(vars(layer)) for layer in model.layers)


def test_a_slow_layer_is_found(tmp_path: Path) -> None:
    import time

    model = three_layers(tmp_path)
    images = torch.randn(1, *ThreeLayers.shape)
    ways = {way.name: way for way in ways_to_run(model, images)}
    slow, gathered = model.layers[1], model.layers[1].gathered

    def waiting(*arguments: object) -> torch.Tensor:
        time.sleep(0.05)
        return gathered(*arguments)  # type: ignore[arg-type]

    slow.gathered = waiting  # type: ignore[method-assign]
    rows = layer_times(ways["shipped"], ways["dense"], images, QUICK)
    assert max(rows, key=lambda row: row.seconds) is rows[1]
    assert rows[1].seconds >= 0.05
    assert sum(row.seconds for row in rows) - rows[1].seconds < 0.05


# --- memory ---------------------------------------------------------------------------------


def test_memory_is_that_of_weights_and_images(tmp_path: Path) -> None:
    """Two real processes: the dense network, and the same with a larger batch."""
    case = Case(m_cifarnet(), (3, 32, 32), Pruning(0.5))
    model = case.model(tmp_path / "m.safetensors")
    images = torch.randn(64, 3, 32, 32)
    dense = next(way for way in ways_to_run(model, images[:1], ["dense"]) if way.name == "dense")
    said: list[str] = []
    small, large = (
        footprints([dense], tmp_path / "m.safetensors", images[:n], Setting(n), say=said.append)
        for n in (1, 64)
    )
    assert said == ["Memory of dense."] * 2
    size, few, many = small["dense"].file_bytes, small["dense"].memory, large["dense"].memory
    assert size == pytest.approx(model.spec.costs.dense_bytes, rel=0.01)
    assert few is not None and many is not None
    assert size <= few.network < 60 << 20
    # the first layer's output alone: 64 x 64 x 30 x 30 floats
    assert many.network - few.network > 64 * 64 * 30 * 30 * 4
    assert few.before > 50 << 20  # torch itself
    assert small["dense"].without_numba is None


def test_only_what_numba_accelerates_is_measured_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []

    def noting(job: Job) -> Memory:
        jobs.append(job)
        assert Path(job.images).exists() and PrunedModel.load(job.file)
        return Memory(1, len(jobs))

    monkeypatch.setattr("rlprune.deploy.memory.memory_of", noting)
    monkeypatch.setattr("rlprune.deploy.fast.available", lambda: True)
    model, file = three_layers(tmp_path), tmp_path / "m.safetensors"
    images = torch.randn(1, *ThreeLayers.shape)
    sizes = footprints(ways_to_run(model, images), file, images, Setting())
    assert [(job.mode, job.accelerate) for job in jobs] == [
        (None, False), (None, None), ("masked", None),  # shipped, masked
        (None, False), (None, None), (None, False), (None, False),  # static
        (None, False), (None, False),  # dense
    ]  # fmt: skip
    assert sizes["shipped"].without_numba == Memory(1, 1)
    assert sizes["shipped"].file_bytes == sizes["masked"].file_bytes == file.stat().st_size
    assert not any(Path(job.images).exists() for job in jobs)
    jobs.clear()
    footprints(ways_to_run(model, images), file, images, Setting(), measure=False)
    assert jobs == []


def test_a_process_that_fails_is_told(tmp_path: Path) -> None:
    job = Job(str(tmp_path / "none.safetensors"), str(tmp_path / "x.npy"), 1, 1, None, False)
    with pytest.raises(ArtifactError, match=r"memory cannot be measured: .*x\.npy.*--no-memory"):
        memory_of(job)


# --- command line ---------------------------------------------------------------------------


def run(*arguments: object, status: int = 0) -> str:
    done = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    assert done.exit_code == status, done.output
    assert "Traceback" not in done.output
    return " ".join(done.output.split())


def test_the_tables_show_what_was_measured(tmp_path: Path) -> None:
    model, file = three_layers(tmp_path), tmp_path / "m.safetensors"
    said = run(file, "--repeats", 3, "--layers", "--no-memory", "--batch", 2)
    assert "m.safetensors: batch 2, 1 thread, 3 repeats" in said
    for name in ("shipped", "masked", "static", "dense", "1.00x", *machine().split(", ")):
        assert name in said
    for layer in model.spec.layers:
        assert f"│ {layer.name} " in said
    assert f"{file.stat().st_size:,}" in said
    assert "memory" not in said
    said = run(file, "--repeats", 3, "--no-memory", "--against", "static", "--threads", 2)
    assert "masked" not in said and "│ dense" not in said and "2 threads" in said


@pytest.mark.parametrize(("load", "warned"), [(0.9, False), (1.1, True)])
def test_a_busy_machine_is_told(
    load: float, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_layers(tmp_path)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 9.0, 9.0))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    said = run(tmp_path / "m.safetensors", "--repeats", 3, "--no-memory")
    assert ("The machine is busy (load 1.1 on 2 cores)" in said) == warned


def test_mistakes_are_refused(tmp_path: Path) -> None:
    three_layers(tmp_path, rate=0.0)
    file = tmp_path / "m.safetensors"
    for arguments, message in (
        ((file, "--against", "masked"), "no runtime agent"),
        ((file, "--layers", "--against", "static"), "--layers compares with the dense network"),
        ((tmp_path,), "is a folder. Give a file made by rlprune export, or the folder of a run"),
        ((file, "--all"), "is a file. Give"),
        ((tmp_path, "--all", "--layers"), "Leave out image files, --layers and --results"),
        ((tmp_path, "--all"), "no results there"),
        ((tmp_path / "none.safetensors",), "there is no such file"),
        ((file, "--results", tmp_path / "nowhere"), "no results there"),
    ):
        assert message in run(*arguments, status=2), arguments
