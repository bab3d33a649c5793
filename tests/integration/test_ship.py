"""A finished run's points as files: exported, used and installed as a user would."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import TINY
from PIL import Image
from processes import finish, start
from shipped import all_test_images, masked_scores
from torch import Tensor
from typer.testing import CliRunner

from rlprune.cli.main import app
from rlprune.deploy import PrunedModel
from rlprune.errors import ArtifactError
from rlprune.results import load_rows, write_rows
from rlprune.results.schema import LATENCY, row_from
from rlprune.training.restore import LearnedRun, load_run

ROOT = Path(__file__).resolve().parents[2]
RATES = (1.0, 0.5, 0.0)


def here(*command: object, status: int = 0) -> str:
    """What a command prints (a process of its own would take seconds to start)."""
    done = CliRunner().invoke(app, [str(part) for part in command])
    assert done.exit_code == status, done.output
    assert "Traceback" not in done.output
    return done.output


@dataclass(frozen=True)
class Finished:
    """A run and what was exported from it.

    Attributes:
        folder: of the run.
        rows: of the learned network, by R_r.
        files: by R_r.
        said: what each export printed.
        learned: the run's network and agents.
    """

    folder: Path
    rows: pd.DataFrame
    files: dict[float, Path]
    said: dict[float, str]
    learned: LearnedRun


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A tiny trial on digits in a process of its own, and three exports."""
    folder = tmp_path_factory.mktemp("ship")
    values = {**TINY, "evaluation": {**TINY["evaluation"], "baselines": ["uniform"]}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    code, _, err = finish(start("train", "tiny.yaml", "--out", "run", cwd=folder))
    assert code == 0, err
    files, said = {}, {}
    for rate in RATES:
        files[rate] = folder / f"{rate:g}.safetensors"
        command = ("export", folder / "run", "-o", files[rate], "--rate", f"{rate:g}")
        if rate == 0.5:
            code, said[rate], err = finish(start(*command, cwd=folder))
            assert code == 0, err
        else:
            said[rate] = here(*command)
    rows = load_rows(folder / "run").query("method == 'learned'").set_index("tradeoff_rate")
    return Finished(folder / "run", rows, files, said, load_run(folder / "run"))


@pytest.fixture(scope="module")
def tested(run: Finished) -> tuple[Tensor, Tensor]:
    return all_test_images(run.learned)


@pytest.mark.parametrize("rate", RATES)
def test_a_file_says_what_the_run_measured(run: Finished, rate: float) -> None:
    row, file = run.rows.loc[rate], run.files[rate]
    model = PrunedModel.load(file)
    measured, origin = model.spec.measured, model.spec.origin
    assert measured["test_accuracy"] == row["test_accuracy"]
    assert measured["validation_accuracy"] == row["validation_accuracy"]
    assert measured["macs_mean"] == pytest.approx(row["macs_mean"], rel=1e-12)
    assert measured["macs_max"] == row["macs_max"]
    assert measured["storage_bytes"] == row["storage_bytes"]
    assert measured["test_images"] == len(run.learned.images.test)
    assert origin["config_hash"] == row["config_hash"]
    assert (origin["backbone"], origin["dataset"]) == ("m_cifarnet", "digits")
    assert model.spec.budget.tradeoff_rate == rate
    assert model.spec.policy.kind == ("none" if rate == 0.0 else "agent")
    assert model.classes == tuple(run.learned.images.class_names)
    # The network is tiny: header and description are a larger part than usual.
    assert row["storage_bytes"] < file.stat().st_size + 4 * 8 * len(model.spec.layers)
    assert file.stat().st_size < row["storage_bytes"] + 8_000
    assert f"Test accuracy {row['test_accuracy']:.4f} (as measured in training" in run.said[rate]
    assert f"{file.name}: {file.stat().st_size:,} bytes" in run.said[rate]


def test_smaller_rates_make_smaller_files(run: Finished) -> None:
    sizes = [run.files[rate].stat().st_size for rate in RATES]
    assert sizes == sorted(sizes, reverse=True) and sizes[2] < 0.8 * sizes[0]


@pytest.mark.parametrize("rate", RATES)
def test_the_whole_test_split_is_answered_as_in_training(
    run: Finished, tested: tuple[Tensor, Tensor], rate: float
) -> None:
    """Both ways to run; one image may differ where two scores are equal up to rounding."""
    pixels, labels = tested
    expected, macs = masked_scores(run.learned, rate, pixels)
    model = PrunedModel.load(run.files[rate])
    size = float(expected.abs().max())
    for mode in ("masked", "gathered"):
        scores = model(pixels, mode=mode)
        apart = (scores - expected).abs().amax(1) / size
        assert float(apart.max()) <= 1e-4, (mode, int((apart > 1e-4).sum()))
        np.testing.assert_array_equal(model.macs(), macs.numpy())
        right = int((scores.argmax(1) == labels).sum())
        assert abs(right - run.rows["test_accuracy"][rate] * len(labels)) <= 1 + 1e-6
    assert model.macs().mean() == pytest.approx(run.rows["macs_mean"][rate], rel=1e-12)
    assert model.macs().max() == run.rows["macs_max"][rate]


def test_limits_choose_the_point(
    run: Finished, tested: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    limit, out = int(run.rows["storage_bytes"][0.0]), tmp_path / "small.safetensors"
    options = ("--max-storage", limit, "--dtype", "int8-weights", "-o", out)
    said = here("export", run.folder, *options)
    model = PrunedModel.load(out)
    assert model.spec.budget.tradeoff_rate == 0.0 and model.spec.dtype == "int8"
    pixels, labels = tested
    accuracy = float((model(pixels, mode="masked").argmax(1) == labels).double().mean())
    assert model.spec.measured["test_accuracy"] == pytest.approx(accuracy)
    assert f"Test accuracy {accuracy:.4f} (as measured in training" in said
    assert out.stat().st_size < 0.7 * run.files[0.0].stat().st_size


def test_what_cannot_be_exported_is_said(run: Finished, tmp_path: Path) -> None:
    for extra, message in (
        (("--rate", "0.75"), "Measured are R_r = 0, 0.5, 1."),
        (("--max-storage", "10"), "no measured point keeps --max-storage 10. The nearest: trial"),
        (("--max-macs", "5Q"), "--max-macs: must be an amount"),
    ):
        said = here("export", run.folder, "-o", tmp_path / "x", *extra, status=2)
        assert message in " ".join(said.split())
    assert "no results there" in here("export", tmp_path, "-o", tmp_path / "x", status=2)
    assert not list(tmp_path.iterdir())


def test_predict_on_pictures(
    run: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The classes printed are those of the scores; a budget makes images cheaper."""
    images = run.learned.images
    names, pictures = [], images.test.images[:6]
    for number, picture in enumerate(pictures):
        names.append(f"{number}.png")
        Image.fromarray(picture[0], "L").save(tmp_path / names[-1])
    file = shutil.copy(run.files[0.5], tmp_path / "m.safetensors")
    model = PrunedModel.load(file)
    told = model.explain(model.normalize(pictures))
    code, out, err = finish(start("predict", "m.safetensors", *names, cwd=tmp_path))
    assert code == 0, err
    lines = [line for line in out.splitlines() if ".png" in line]
    for line, name, image in zip(lines, names, told, strict=True):
        cells = [cell.strip() for cell in line.strip("│ ").split("│")]
        chance = image.scores.softmax(0)
        assert cells[0] == name
        assert cells[1] == model.classes[int(chance.argmax())]
        assert cells[2] == f"{float(chance.max()):.1%}"
        assert cells[3] == f"{image.macs:,.0f}"
    cheap = model.explain(model.normalize(pictures), 0.3)
    monkeypatch.chdir(tmp_path)
    lines = here("predict", file, *names, "--budget", "0.3").splitlines()
    macs = [line.split("│")[4].strip() for line in lines if ".png" in line]
    assert macs == [f"{image.macs:,.0f}" for image in cheap]
    assert sum(image.macs for image in cheap) < sum(image.macs for image in told)


def test_predict_says_what_is_wrong(run: Finished, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(run.files[0.5].read_bytes()[:-1])
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (9, 9)).save(tmp_path / "one.png")
    whole = run.files[0.5]
    for command, message in (
        (("broken.safetensors", "text.png"), "no model of rlprune"),
        ((whole, "text.png"), "text.png: cannot be read as an image"),
        ((whole, "none.png"), "none.png: there is no such file"),
        ((whole, "one.png", "--budget", "3"), "budget must be from 0.1 to 1 (got 3.0)"),
        ((run.files[0.0], "one.png", "--budget", "0.5"), "no runtime agent: its compute is fixed"),
    ):
        said = here("predict", *(tmp_path / part for part in command[:2]), *command[2:], status=2)
        assert message in " ".join(said.split())


def test_a_checkpoint_that_is_gone_is_named(run: Finished, tmp_path: Path) -> None:
    from rlprune.export.run import export_run
    from rlprune.export.select import Limits

    shutil.copytree(run.folder / "results", tmp_path / "run" / "results")
    rows = load_rows(tmp_path / "run")
    assert len(rows)
    moved = run.folder.rename(run.folder.with_name("moved"))
    try:
        with pytest.raises(ArtifactError, match=r"the checkpoints of trial .* are not there"):
            export_run(tmp_path / "run", Limits(), tmp_path / "x", "float32", lambda _: None)
    finally:
        moved.rename(run.folder)


# --- timed ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timed(run: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run, all points of which were timed by a process of their own."""
    folder = tmp_path_factory.mktemp("timed")
    shutil.copytree(run.folder, folder / "run")
    code, out, err = finish(start("bench", "run", "--all", "--repeats", "3", cwd=folder))
    assert code == 0, err
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == [
        f"tiny, R_r = {rate:g}" for rate in sorted(RATES)
    ]
    assert all("ms per image" in line and "x dense" in line for line in lines[:3])
    assert "3 points timed (batch 1, 1 thread, 3 repeats) and noted in run." in out
    return folder / "run"


def test_all_points_get_a_latency_and_nothing_else_changes(run: Finished, timed: Path) -> None:
    before, after = load_rows(run.folder), load_rows(timed)
    others = [name for name in before if name not in (*LATENCY, "created_at")]
    pd.testing.assert_frame_equal(after[others], before[others])
    learned = after[after["method"] == "learned"]
    assert len(learned) == 3 and learned["latency_seconds"].between(1e-5, 1).all()
    assert (learned["latency_p25_seconds"] <= learned["latency_seconds"]).all()
    assert learned["latency_ratio"].notna().all()
    assert after.loc[after["method"] == "uniform", "latency_seconds"].isna().all()
    # the trial's rows lie in one file, which was replaced: no reader sees a point twice
    assert len(pd.read_parquet(timed / "results")) == len(before)


def test_latency_is_an_objective_then(timed: Path) -> None:
    said = " ".join(here("pareto", timed, "--minimize", "latency_seconds").split())
    assert "latency [ms per image]" in said
    assert "3 points lack an objective and were left out" in said  # uniform's


def test_a_file_is_timed_into_its_row_also_after_a_compaction(
    run: Finished, timed: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(timed, tmp_path / "run")
    here("results", "compact", folder)
    rows = load_rows(folder)
    options = ("--batch", 2, "--repeats", 3, "--no-memory", "--against", "static")
    said = here("bench", run.files[0.5], "--results", folder, *options)
    assert "on the row of trial tiny at R_r = 0.5." in " ".join(said.split())
    now = load_rows(folder)
    assert len(now) == len(rows)
    (changed,) = np.flatnonzero(rows["created_at"] != now["created_at"])
    row = now.iloc[changed]
    assert (row["method"], row["tradeoff_rate"], row["latency_batch"]) == ("learned", 0.5, 2)
    assert pd.isna(row["latency_ratio"])  # dense was not timed
    here("evaluate", folder, "--rate", "0.5")
    again = load_rows(folder).set_index("row_id").loc[row["row_id"]]
    assert again["latency_seconds"] == row["latency_seconds"]
    assert again["created_at"] > row["created_at"]


def test_a_file_of_another_run_is_refused(run: Finished, timed: Path, tmp_path: Path) -> None:
    other = shutil.copytree(timed, tmp_path / "run")
    shutil.rmtree(other / "results")
    rows = [row_from(row) for row in load_rows(timed).to_dict("records")]
    write_rows(other / "results", [replace(row, config_hash="other") for row in rows])
    said = here("bench", run.files[0.5], "--results", other, status=2)
    assert "no row of" in said and "export it again" in " ".join(said.split())
    out = tmp_path / "half.safetensors"
    here("export", run.folder, "--rate", 0.5, "--dtype", "float16", "-o", out)
    said = here("bench", out, "--results", timed, status=2)
    assert "rows describe float32 weights, these are float16" in " ".join(said.split())


# --- installed ------------------------------------------------------------------------------

INSTALLED = """
import importlib.metadata, sys

WHEEL, SITE = sys.argv[1], sys.argv[2]
sys.path[:0] = [WHEEL]
sys.path.append(SITE)
PACKAGES = {  # torch, numpy, safetensors, and what torch itself imports
    "torch", "numpy", "safetensors", "torchgen", "functorch", "typing_extensions", "filelock",
    "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "packaging", "setuptools",
    "triton", "nvidia", "cuda", "rlprune", *sys.stdlib_module_names,
}

class Installed:  # a finder as it would be if only these were installed
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        allowed = top in PACKAGES or top.startswith("_")
        return self.finder.find_spec(name, path, target) if allowed else None

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Installed(finder) for finder in sys.meta_path]
import rlprune
from rlprune.deploy import PrunedModel
assert rlprune.__file__.startswith(WHEEL), rlprune.__file__

import numpy as np
import torch
torch.set_num_threads(1)
model = PrunedModel.load(sys.argv[3])
images = model.normalize(np.load(sys.argv[4]))
told = model.explain(images)
np.save(sys.argv[5], np.stack([image.scores.numpy() for image in told]))
cheap = model.explain(images, 0.3)
assert sum(i.macs for i in cheap) < sum(i.macs for i in told)
assert model.classes[int(told[0].scores.argmax())] in model.classes
try:
    model(images, 0.01)
except ValueError as error:
    assert "budget must be from" in str(error)
print(importlib.metadata.version("rlprune"))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, as pip unpacks it, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    try:
        import hatchling  # noqa: F401

        building = ["--no-build-isolation"]
    except ImportError:  # pip fetches it, as for any source package
        building = []
    command = [*pip, "wheel", "--no-deps", *building, "-w", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=240)
    if built.returncode and "hatchling" in built.stderr:
        pytest.skip("hatchling is neither installed nor to be had: pip install hatchling")
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    command = [*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def test_the_installed_wheel_runs_with_torch_numpy_and_safetensors(
    run: Finished, installed: Path, tmp_path: Path
) -> None:
    pictures = run.learned.images.test.images[:5]
    np.save(tmp_path / "images.npy", pictures)
    places = (run.files[0.5], tmp_path / "images.npy", tmp_path / "scores.npy")
    site = Path(np.__file__).resolve().parents[1]
    done = subprocess.run(
        # -S: without the site-packages folder and its .pth files, so without this checkout
        [sys.executable, "-I", "-S", "-c", INSTALLED, installed, site, *places],
        cwd=tmp_path, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = PrunedModel.load(run.files[0.5])
    expected = model(model.normalize(pictures))
    found = torch.from_numpy(np.load(tmp_path / "scores.npy"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert done.stdout.strip()
