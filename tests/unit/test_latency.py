"""Latencies on the rows of results: written, kept, found for a file, and as objectives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from result_rows import NOW, make_row
from typer.testing import CliRunner, Result

from rlprune.backbones import m_cifarnet
from rlprune.cli.main import app
from rlprune.data import ImageArrays
from rlprune.deploy import PrunedModel
from rlprune.deploy.bench import Setting, Timing, machine
from rlprune.deploy.rivals import ways_to_run
from rlprune.errors import ArtifactError, ResultsError
from rlprune.export.timing import find_point, pixels_of, some, timed_rows
from rlprune.results import ResultRow, compact, load, load_rows, write_rows
from rlprune.results.latency import Latency, keep_latencies, with_latency
from rlprune.results.query import FrontQuery, find_front
from rlprune.results.schema import LATENCY
from tests.physical import ThreeLayers
from tests.shipping import Case
from tests.shipping import Setting as Pruning

LATER = NOW + timedelta(days=1)
TIMED = Latency(0.004, 0.003, 0.005, 0.008, 0.5, 1, 1, "EPYC, 2 cores", LATER)


def first(folder: Path, **where: Any) -> dict[Any, Any]:
    frame = load_rows(folder)
    for name, value in where.items():
        frame = frame[frame[name] == value]
    return frame.iloc[0].to_dict()


# --- rows -----------------------------------------------------------------------------------


def test_columns_are_those_of_the_schema() -> None:
    assert tuple(TIMED.columns()) == LATENCY


@pytest.mark.parametrize("compacted", [False, True])
def test_a_row_with_its_latency_replaces_the_row(tmp_path: Path, compacted: bool) -> None:
    rows = [make_row(tradeoff_rate=rate) for rate in (1.0, 0.5, 0.0)]
    write_rows(tmp_path, rows)
    if compacted:
        compact(tmp_path)
    timed = with_latency(first(tmp_path, tradeoff_rate=0.5), TIMED)
    write_rows(tmp_path, [timed])
    for _ in range(2):  # as written, and after a compaction
        frame = load_rows(tmp_path).set_index("tradeoff_rate")
        assert len(frame) == 3
        assert frame["latency_seconds"].notna().tolist() == [False, True, False]
        assert frame["latency_ratio"][0.5] == 0.5 and frame["latency_batch"][0.5] == 1
        # nothing else has changed
        others = [name for name in frame if name not in (*LATENCY, "created_at")]
        before = pd.DataFrame([{n: getattr(row, n) for n in others} for row in rows])
        assert frame["test_loss"].tolist() == before["test_loss"].tolist()
        assert (
            dataclasses.replace(timed, **dict.fromkeys(LATENCY), created_at=rows[1].created_at)
            == rows[1]
        )
        assert compact(tmp_path).files_after == 1
    again = dataclasses.replace(TIMED, seconds=0.002)
    write_rows(tmp_path, [with_latency(first(tmp_path, tradeoff_rate=0.5), again)])
    assert first(tmp_path, tradeoff_rate=0.5)["latency_seconds"] == 0.002
    found = load(tmp_path, filters=[("latency_seconds", ">", 0.003)])
    assert found.empty  # the old latency does not come back


def test_a_row_from_the_future_is_replaced_as_well(tmp_path: Path) -> None:
    ahead = datetime.now(timezone.utc) + timedelta(days=400)
    write_rows(tmp_path, [make_row(created_at=ahead), make_row(tradeoff_rate=1.0)])
    row = with_latency(first(tmp_path, tradeoff_rate=0.5), TIMED)
    assert row.created_at == ahead + timedelta(microseconds=1)
    write_rows(tmp_path, [row])
    assert first(tmp_path, tradeoff_rate=0.5)["latency_seconds"] == 0.004


def test_what_is_measured_again_keeps_its_latency(tmp_path: Path) -> None:
    timed = TIMED.columns()
    write_rows(tmp_path, [make_row(tradeoff_rate=rate, **timed) for rate in (1.0, 0.5)])
    new = [
        make_row(tradeoff_rate=1.0, test_accuracy=0.5, created_at=LATER),
        make_row(tradeoff_rate=0.5, macs_mean=251.0, created_at=LATER),  # another network
        make_row(tradeoff_rate=0.0),
    ]
    kept = keep_latencies(tmp_path, new)
    assert [row.latency_seconds for row in kept] == [0.004, None, None]
    assert kept[0] == dataclasses.replace(new[0], **timed)
    assert kept[1:] == new[1:]
    assert keep_latencies(tmp_path / "nothing", new) == new


# --- the row of a file ----------------------------------------------------------------------


@pytest.fixture
def case() -> Case:
    return Case(ThreeLayers(), ThreeLayers.shape, Pruning(0.5))


def origin_of(row: ResultRow) -> dict[str, Any]:
    names = ("experiment", "trial", "config_hash", "step", "method", "tradeoff_rate", "budget_s")
    return {name: getattr(row, name) for name in names}


def shipped(case: Case, row: ResultRow, **changes: Any) -> Any:
    measured = {"storage_bytes": row.storage_bytes}
    spec = dataclasses.replace(case.shipped.spec, measured=measured, origin=origin_of(row))
    return dataclasses.replace(spec, **changes)


@pytest.mark.parametrize("budget", [None, 0.3])
def test_a_file_finds_its_row_and_the_dense_one(
    case: Case, tmp_path: Path, budget: float | None
) -> None:
    row = make_row(budget_s=budget)
    dense = {"method": "dense", "tradeoff_rate": None, "budget_s": None}
    others = [make_row(budget_s=0.9), make_row(step=3), make_row(config_hash="other")]
    others += [make_row(step=step, **dense) for step in (1, 2)]
    others += [make_row(config_hash="other", step=9, **dense), make_row(method="uniform")]
    run = tmp_path / "run"
    write_rows(run / "results", [row, *others])
    for place in (run, run / "trial"):  # a sweep's trial: the rows lie above it
        point = find_point(shipped(case, row), Path("m"), str(place))
        assert Path(point.results) == run / "results"
        assert point.row["row_id"] == row.row_id
        assert point.dense is not None and point.dense["step"] == 2
        assert point.dense["config_hash"] == row.config_hash


def change(**origin: Any) -> Callable[[Any], Any]:
    return lambda spec: dataclasses.replace(spec, origin={**spec.origin, **origin})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change(step=5), "no row of .* matches it: trial trial of experiment quickstart, step 5"),
        (change(config_hash="zzz"), "no row of .* configuration zzz"),
        (change(step="four"), "its origin is damaged or was edited"),
        (change(trial=["x"]), "no row of .* matches it"),
        (change(tradeoff_rate="half"), "its origin is damaged"),
        (
            lambda spec: dataclasses.replace(spec, origin={"trial": "trial"}),
            r"does not say which row it came from \(experiment, config_hash, step, .*Export it",
        ),
        (lambda spec: dataclasses.replace(spec, dtype="int8"), "these are int8"),
        (
            lambda spec: dataclasses.replace(spec, measured={"storage_bytes": 39_999}),
            "now of a network of 40,000 bytes: it was trained again since",
        ),
    ],
)
def test_a_file_without_its_row_is_refused(
    case: Case, tmp_path: Path, edit: Callable[[Any], Any], message: str
) -> None:
    write_rows(tmp_path / "results", [make_row()])
    with pytest.raises(ArtifactError, match=f"m.safetensors: .*{message}") as caught:
        find_point(edit(shipped(case, make_row())), Path("m.safetensors"), str(tmp_path))
    assert caught.value.exit_status == 2


def test_rows_of_timings(case: Case, tmp_path: Path) -> None:
    write_rows(tmp_path, [make_row(), make_row(method="dense", tradeoff_rate=None, step=1)])
    model = case.model(tmp_path / "m.safetensors")
    ways = {way.name: way for way in ways_to_run(model, torch.randn(1, *ThreeLayers.shape))}

    def timing(name: str, median: float, ratio: float | None) -> Timing:
        return Timing(ways[name], median, 0.9 * median, 1.1 * median, ratio)

    write_rows(tmp_path / "run" / "results", [make_row(), make_row(method="dense", step=1)])
    point = find_point(shipped(case, make_row()), Path("m"), str(tmp_path / "run"))
    setting = Setting(batch=8, threads=2)
    timings = [timing("shipped", 0.004, 0.5), timing("static", 0.002, 0.25)]
    timings.append(timing("dense", 0.009, 1.0))
    mine, dense = timed_rows(point, timings, setting)
    assert (mine.method, mine.latency_seconds, mine.latency_ratio) == ("learned", 0.004, 0.5)
    assert (mine.latency_dense_seconds, mine.latency_p25_seconds) == (0.009, pytest.approx(0.0036))
    assert (mine.latency_batch, mine.latency_threads) == (8, 2)
    assert mine.latency_machine == machine()
    assert (dense.method, dense.latency_seconds, dense.latency_ratio) == ("dense", 0.009, 1.0)
    assert datetime.now(timezone.utc) - mine.created_at < timedelta(minutes=1)
    (alone,) = timed_rows(point, [timing("shipped", 0.004, None)], setting)
    assert alone.latency_dense_seconds is None and alone.latency_ratio is None
    (alone,) = timed_rows(dataclasses.replace(point, dense=None), timings, setting)
    assert alone.latency_dense_seconds == 0.009


def test_images_are_picked_from_all_of_the_test_images() -> None:
    import numpy as np

    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    arrays = ImageArrays(images, np.arange(10))
    assert some(arrays, 4).flatten().tolist() == [0, 3, 6, 9]
    assert some(arrays, 99).flatten().tolist() == list(range(10))
    row = vars(make_row(configuration='{"seed": 0, "data": {"name": "digits"}}'))
    assert tuple(pixels_of(row, 5).shape) == (5, 1, 8, 8)
    with pytest.raises(ArtifactError, match=r"tells no configuration.*Give image files"):
        pixels_of(vars(make_row(configuration=None)), 5)


def test_bench_notes_a_latency(tmp_path: Path) -> None:
    """The command, with a file that says it is of a row."""
    case = Case(m_cifarnet(width=0.125), (3, 32, 32), Pruning(0.5))
    row, file = make_row(), tmp_path / "m.safetensors"
    write_rows(tmp_path / "results", [row])
    spec = shipped(case, row)
    dataclasses.replace(case.shipped, spec=spec).write(file)
    assert PrunedModel.load(file).spec.origin["step"] == 4
    picture = tmp_path / "one.png"
    Image.new("RGB", (40, 30)).save(picture)
    arguments = ["bench", str(file), str(picture), "--results", str(tmp_path), "--no-memory"]
    done = CliRunner().invoke(app, [*arguments, "--repeats", "3", "--against", "dense"])
    assert done.exit_code == 0, done.output
    assert "on the row of trial trial at R_r = 0.5." in " ".join(done.output.split())
    found = first(tmp_path)
    assert 0 < found["latency_p25_seconds"] <= found["latency_seconds"]
    assert found["latency_ratio"] > 0 and found["latency_machine"] == machine()


# --- as an objective ------------------------------------------------------------------------


def timed_row(seconds: float | None, accuracy: float, **changes: Any) -> ResultRow:
    if seconds is not None:
        latency = dataclasses.replace(TIMED, seconds=seconds, ratio=seconds / 0.008)
        changes = {**latency.columns(), **changes}
    return make_row(validation_accuracy=accuracy, trial=f"at {accuracy}", **changes)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Three timed points, one of them beaten, and one that is not timed but the best."""
    rows = [timed_row(0.004, 0.9), timed_row(0.003, 0.8), timed_row(0.005, 0.85)]
    write_rows(tmp_path / "results", [*rows, timed_row(None, 0.99, storage_bytes=1)])
    return str(tmp_path)


def pareto(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["pareto", *arguments])


def test_latency_is_an_objective(folder: str) -> None:
    answer = find_front(folder, FrontQuery(minimize=("latency_seconds",)))
    assert answer.front["latency_seconds"].tolist() == [0.004, 0.003]
    assert len(answer.points) == 4
    default = find_front(folder, FrontQuery())
    assert default.front["validation_accuracy"].tolist() == [0.99]
    assert default.timed is None and "latency_seconds" not in default.front


def test_the_table_says_what_is_missing_and_how_to_get_it(folder: str) -> None:
    done = pareto(folder, "--minimize", "latency_seconds,storage_bytes")
    assert done.exit_code == 0, done.output
    words = " ".join(done.stdout.split())
    assert "latency [ms per image]" in words and "│ 4.000 │" in words
    assert "1 points lack an objective and were left out. `rlprune bench RUN --all` times" in words
    assert "Latency: batch 1, threads 1, EPYC, 2 cores." in words
    assert "bench" not in pareto(folder).stdout


def test_without_any_latency_the_command_says_how_to_get_one(tmp_path: Path) -> None:
    write_rows(tmp_path / "results", [make_row()])
    done = pareto(str(tmp_path), "--minimize", "latency_ratio")
    assert done.exit_code == 2 and done.stdout == ""
    assert "latency_ratio: none of 1 rows has a value. `rlprune bench RUN --all`" in done.stderr
    with pytest.raises(ResultsError, match=r"test_accuracy_top5: none of 1 rows.*Choose another"):
        find_front(tmp_path, FrontQuery(maximize=("test_accuracy_top5",)))


def test_latencies_of_two_machines_are_told_apart(folder: str) -> None:
    other = {"latency_machine": "slow", "latency_batch": 8}
    write_rows(Path(folder) / "results", [timed_row(0.002, 0.7, **other)])
    words = " ".join(pareto(folder, "--minimize", "latency_seconds").stdout.split())
    assert "Latencies of 2 settings (batch 1, threads 1, EPYC, 2 cores; batch 8," in words
    assert "Compare like with like: --group-by latency_machine --group-by latency_batch." in words
    apart = ("--group-by", "latency_machine,latency_batch")
    words = " ".join(pareto(folder, "--minimize", "latency_seconds", *apart).stdout.split())
    assert "Latencies of 2 settings" in words and "Compare like" not in words
    only = ("--where", "latency_machine != 'slow'")
    words = " ".join(pareto(folder, "--minimize", "latency_seconds", *only).stdout.split())
    assert "Latency: batch 1" in words


def test_means_over_seeds_and_a_picture(tmp_path: Path) -> None:
    rows = []
    for seed, seconds in ((0, 0.003), (1, 0.005)):
        config = {"seed": seed, "config_hash": str(seed), "configuration": '{"a": 1}'}
        latency = dataclasses.replace(TIMED, seconds=seconds)
        rows.append(make_row(**config, **latency.columns()))
        rows.append(make_row(**config, tradeoff_rate=0.0, **(latency.columns() if seed else {})))
    write_rows(tmp_path / "results", rows)
    query = FrontQuery(minimize=("latency_seconds",), seeds="mean")
    (point,) = find_front(tmp_path, query).front.to_dict("records")
    assert point["latency_seconds"] == pytest.approx(0.004)
    assert point["latency_seconds_se"] == pytest.approx(0.001)  # sqrt(2) ms / sqrt(2)
    assert (point["tradeoff_rate"], point["n"]) == (0.5, 2)  # of the other one seed is missing
    picture = tmp_path / "front.svg"
    done = pareto(str(tmp_path), "--minimize", "latency_seconds", "--plot", str(picture))
    assert done.exit_code == 0, done.output
    assert "<!-- latency [ms per image] -->" in picture.read_text()
