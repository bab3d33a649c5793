"""The report: what the page holds, that names stay text, and the figures for papers."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from rlprune.cli.main import app
from rlprune.errors import FileAccessError, ResultsError
from rlprune.report.command import reproduction
from rlprune.report.curves import MAX_POINTS, make_curve
from rlprune.report.page import json_for_script, write_page
from rlprune.report.page_data import page_data, rounded
from rlprune.report.settings import add_settings, configurations, varying
from rlprune.report.source import read_source
from rlprune.results import ResultRow, write_rows
from tests.report_rows import (
    BACKBONES,
    BUDGETS,
    EXAMPLE,
    HOSTILE,
    RATES,
    sweep_rows,
    timed,
    updates_frame,
    write_sweep,
)

TRIALS = len(BACKBONES) * len(BUDGETS) * 3
PER_TRIAL = 3 * len(RATES) + 2


class Elements(HTMLParser):
    """All elements with their attributes, and the text of scripts and styles."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.lasttag in ("script", "style") and data.strip():
            self.raw.append((self.lasttag, data))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("report") / "sweep")


@pytest.fixture(scope="module")
def page(sweep: Path) -> str:
    path = write_page(read_source(sweep), sweep.parent / "new" / "page.html", "rlprune report x")
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def elements(page: str) -> Elements:
    parser = Elements()
    parser.feed(page)
    return parser


def data_of(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert match is not None
    found: dict[str, Any] = json.loads(match[1])
    return found


def column(data: dict[str, Any], name: str) -> list[Any]:
    if name in data["numbers"]:
        return list(data["numbers"][name])
    texts = data["texts"][name]
    return [texts["values"][code] for code in texts["codes"]]


def points_of(rows: list[ResultRow]) -> pd.DataFrame:
    return pd.DataFrame([dataclasses.asdict(row) for row in rows])


def with_settings(rows: list[ResultRow]) -> pd.DataFrame:
    points = points_of(rows)
    return add_settings(points, configurations(points))


def test_page_has_every_point(page: str) -> None:
    data = data_of(page)
    assert data["count"] == len(column(data, "trial")) == TRIALS * PER_TRIAL
    assert data["header"]["trials"] == TRIALS
    assert data["header"]["seeds"] == 3
    assert data["header"]["repetitions"] == [3, 3]
    assert data["header"]["experiments"] == ["sweep_example"]
    expected = {(row.trial, row.method, row.tradeoff_rate): row for row in sweep_rows()}
    names = [column(data, name) for name in ("trial", "method", "tradeoff_rate")]
    for at, key in enumerate(zip(*names, strict=True)):
        row = expected.pop(key)
        for name in ("storage_bytes", "parameters", "seed", "step"):
            assert data["numbers"][name][at] == getattr(row, name)  # whole numbers are exact
        for name in ("test_accuracy", "validation_accuracy", "macs_mean"):
            assert data["numbers"][name][at] == pytest.approx(getattr(row, name), rel=5e-6)
        assert data["numbers"]["budgets_met"][at] == int(row.budgets_met)
        lists = {name: data["lists"][codes[at]] for name, codes in data["listCodes"].items()}
        assert lists["layer_names"] == list(row.layer_names)
        assert lists["keep_ratio_mean"] == pytest.approx(list(row.keep_ratio_mean), abs=5e-5)
        assert lists["stored_ratio"] == pytest.approx(list(row.stored_ratio), abs=5e-5)
    assert not expected


def test_latencies_are_there_where_some_point_has_one(page: str, tmp_path: Path) -> None:
    data = data_of(page)
    assert not [name for part in ("texts", "numbers") for name in data[part] if "latency" in name]
    rows = timed(sweep_rows((0,)), HOSTILE)
    write_rows(tmp_path / "results", rows)
    data = data_of(write_page(read_source(tmp_path), tmp_path / "page.html").read_text())
    seconds = {(row.trial, row.method, row.tradeoff_rate): row.latency_seconds for row in rows}
    keys = zip(*(column(data, name) for name in ("trial", "method", "tradeoff_rate")), strict=True)
    for at, key in enumerate(keys):
        value = data["numbers"]["latency_seconds"][at]
        assert value == (None if seconds[key] is None else pytest.approx(seconds[key], rel=5e-6))
        assert data["numbers"]["latency_batch"][at] == (None if value is None else 1)
    assert set(column(data, "latency_machine")) == {HOSTILE, ""}


def test_names_are_never_markup(page: str, elements: Elements) -> None:
    assert HOSTILE in column(data_of(page), "trial")
    assert HOSTILE not in page
    tags = [tag for tag, _ in elements.found]
    assert tags.count("script") == 3
    assert "img" not in tags
    assert not [name for _, given in elements.found for name in given if name.startswith("on")]


def test_experiment_in_the_title_is_escaped(tmp_path: Path) -> None:
    write_rows(tmp_path / "results", [dataclasses.replace(EXAMPLE, experiment="</title><b>&")])
    text = write_page(read_source(tmp_path), tmp_path / "page.html").read_text()
    assert "<title>&lt;/title&gt;&lt;b&gt;&amp;: accuracy against cost</title>" in text


def test_page_loads_nothing(page: str, elements: Elements) -> None:
    for tag, given in elements.found:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form"), tag
        assert "src" not in given and "srcset" not in given, (tag, given)
        assert not (given.get("href") or "#").strip("#").startswith(("http", "//", "data"))
    (style,) = [text for tag, text in elements.raw if tag == "style"]
    assert "url(" not in style and "@import" not in style
    policy = next(given["content"] for _, given in elements.found if "http-equiv" in given)
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy and "'unsafe-eval'" not in policy


def test_policy_allows_exactly_our_two_scripts(page: str) -> None:
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(scripts) == 2
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in scripts]
    (policy,) = re.findall(r'Policy" content="([^"]*)"', page)
    allowed = re.findall(r"sha256-([A-Za-z0-9+/=]+)", policy)
    assert allowed == [digest.decode() for digest in digests]
    assert page.count("* plotly.js v") == 1


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "a\u2028b", "&lt;", '"\\'])
def test_json_can_stand_in_a_script(text: str) -> None:
    written = json_for_script({"name": text})
    assert json.loads(written) == {"name": text}
    assert not set(written) & set("<>&\u2028\u2029")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.123456789, 0.123457),
        (517152.0, 517152),
        (123456789.0, 123457000),
        (402_476_123, 402_476_123),
        (float("nan"), None),
        (float("inf"), None),
        (None, None),
        (True, 1),
        (1e-9 / 3, 3.33333e-10),
    ],
)
def test_numbers_have_six_digits(value: object, expected: float | None) -> None:
    assert rounded(value) == expected


def test_equal_lists_are_stored_once(page: str) -> None:
    data = data_of(page)
    lists = [json.dumps(values) for values in data["lists"]]
    assert len(lists) == len(set(lists))
    assert len(data["listCodes"]["layer_names"]) == data["count"]
    assert len(set(data["listCodes"]["layer_names"])) == len(BACKBONES)


def test_commands() -> None:
    row = {
        "method": "learned",
        "checkpoint_uri": "runs/a b/checkpoints/checkpoint_000040",
        "tradeoff_rate": 1 / 3,
        "budget_s": 0.4,
    }
    assert reproduction(row).command == (
        "rlprune evaluate 'runs/a b' --rate 0.3333333333333333 --ratio 0.4"
    )
    assert "relative to there" in reproduction(row).note
    new = {**row, "checkpoint_uri": "/runs/x/trial", "budget_s": float("nan")}
    assert reproduction(new).command.startswith("rlprune evaluate /runs/x/trial --rate")
    assert "--ratio" not in reproduction(new).command
    assert "Copy the folder" in reproduction({**row, "checkpoint_uri": "s3://bucket/t"}).note
    baseline = reproduction({**row, "method": "uniform"})
    assert baseline.command == ""
    assert "Only learned networks are kept" in baseline.note
    assert reproduction({**row, "checkpoint_uri": None}).command == ""


def test_repetitions_differ_in_the_seed_alone() -> None:
    points = with_settings(sweep_rows())
    assert points["family"].nunique() == len(BACKBONES) * len(BUDGETS)
    assert points["setting_label"].nunique() == len(BACKBONES) * len(BUDGETS)
    assert (points.groupby("setting")["seed"].nunique() == 3).all()
    text = json.loads(sweep_rows()[0].configuration or "")
    text["agents"]["learning_rate"] = 0.1
    other = dataclasses.replace(
        sweep_rows()[0], config_hash="other", trial="other", configuration=json.dumps(text)
    )
    points = with_settings([*sweep_rows(), other])
    assert points["family"].nunique() == len(BACKBONES) * len(BUDGETS) + 1
    label = points.loc[points["config_hash"] == "other", "setting_label"].item()
    assert label.endswith("agents.learning_rate 0.1")


def test_rows_without_configuration_are_told_apart_by_budgets() -> None:
    rows = [dataclasses.replace(row, configuration=None) for row in sweep_rows()]
    known, unknown = with_settings(sweep_rows()), with_settings(rows)
    assert unknown["setting"].tolist() == known["setting"].tolist()
    assert "m_cifarnet, stores ≤ 97.9 to 326 KB, any image ≤ 9.45 % MACs" in set(
        unknown["setting_label"]
    )


def test_swept_budgets_are_settings_of_one_family() -> None:
    dense = dataclasses.replace(
        EXAMPLE,
        method="dense",
        tradeoff_rate=None,
        storage_budget_bytes=None,
        compute_max_budget_macs=None,
    )
    swept = dataclasses.replace(EXAMPLE, budget_s=0.3)
    points = with_settings([EXAMPLE, swept, dense])
    assert points["family"].tolist() == [0, 0, 0]
    assert points["setting"].tolist() == [0, 1, 0]
    assert points["setting_label"].iloc[1].startswith("m_cifarnet, s = 0.3, stores ≤ 60 KB")


def test_varying_fields() -> None:
    assert varying([{"a": 1, "b": [1]}, {"a": 1, "b": [2], "c": None}]) == ["b"]
    assert varying([]) == []


def test_damaged_configuration_is_absent() -> None:
    rows = [dataclasses.replace(EXAMPLE, configuration=text) for text in ("{", "[1]")]
    assert configurations(points_of(rows)) == {}


def test_curves_are_thinned_to_means() -> None:
    short = make_curve("t", "f", updates_frame(0, 120))
    assert (len(short.frame), short.updates_per_point) == (120, 1)
    frame = updates_frame(0, 1201).sample(frac=1, random_state=0)
    long = make_curve("t", "f", frame)
    assert (len(long.frame), long.updates_per_point) == (401, 3)
    assert long.frame["update"].tolist()[:2] == [2, 5]
    first = frame.sort_values("update")["loss"].head(3).mean()
    assert long.frame["loss"].iloc[0] == pytest.approx(first)
    assert "keep_ratio_0" not in long.frame
    assert len(make_curve("t", "f", updates_frame(0, 50_000)).frame) <= MAX_POINTS
    assert len(make_curve("t", "f", updates_frame(0, 5_000), curves=1000).frame) <= 50


def test_updates_of_a_sweep_and_of_a_run(sweep: Path, tmp_path: Path) -> None:
    curves = read_source(sweep).curves
    assert len(curves) == TRIALS - 1  # one trial's name cannot be a file's
    write_rows(tmp_path / "results", [EXAMPLE])
    assert read_source(tmp_path).curves == []
    updates_frame(0).to_parquet(tmp_path / "updates.parquet")
    (curve,) = read_source(tmp_path).curves
    assert curve.trial == "trial"


def test_bad_updates_are_named_or_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_rows(tmp_path / "results", [EXAMPLE])
    path = tmp_path / "updates.parquet"
    path.write_bytes(b"PAR1 torn")
    with pytest.raises(ResultsError, match=r"updates\.parquet: cannot be read .*--skip-bad"):
        read_source(tmp_path)
    pd.DataFrame({"update": [1]}).to_parquet(path)
    with pytest.raises(ResultsError, match="needs the column update and one of reward_runtime"):
        read_source(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert read_source(tmp_path, skip_bad=True).curves == []
    assert "updates.parquet" in caplog.text


def test_configuration_beside_rows_without_one(tmp_path: Path) -> None:
    write_rows(tmp_path / "results", [dataclasses.replace(EXAMPLE, configuration=None)])
    (tmp_path / "config.yaml").write_text("seed: 3\nbudgets:\n  storage_max: 0.5\n")
    source = read_source(tmp_path)
    assert source.configuration == {"abc": {"seed": 3, "budgets.storage_max": 0.5}}
    assert source.again.startswith("rlprune train ")
    assert source.again.endswith("/config.yaml --out runs/sweep_example_again")


def test_earlier_steps_are_left_out(tmp_path: Path) -> None:
    early = dataclasses.replace(EXAMPLE, step=1, test_accuracy=0.1)
    write_rows(tmp_path / "results", [early, EXAMPLE])
    assert read_source(tmp_path).points["step"].tolist() == [4]


def test_configurations_are_split_into_common_and_varying(sweep: Path) -> None:
    found = page_data(read_source(sweep), "")["configuration"]
    assert found["common"]["agents.hidden"] == 16
    assert found["varying"] == [
        "backbone.name",
        "budgets.compute_max",
        "budgets.storage_max",
        "name",
        "seed",
    ]
    assert found["trials"]["resnet20-0.5-1"] == [
        "resnet20",
        0.5,
        0.5,
        "resnet20_storage_max=0.5_seed=1",
        1,
    ]


def test_no_rows_is_an_error_and_no_page(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    with pytest.raises(ResultsError, match=r"there are no result rows\. Give the folder of a run"):
        read_source(tmp_path)
    result = CliRunner().invoke(app, ["report", str(tmp_path), "-o", str(tmp_path / "page.html")])
    assert result.exit_code == 2
    assert not (tmp_path / "page.html").exists()


def test_command_writes_page_and_figures(tmp_path: Path) -> None:
    write_rows(tmp_path / "run" / "results", [EXAMPLE])
    (tmp_path / "run" / "results" / "torn.parquet").write_bytes(b"PAR1")
    out, figures = tmp_path / "page.html", tmp_path / "figures"
    arguments = ["report", str(tmp_path / "run"), "-o", str(out), "--figures", str(figures)]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert "torn.parquet" in refused.output
    result = CliRunner().invoke(app, [*arguments, "--format", "svg", "--skip-bad"])
    assert result.exit_code == 0, result.output
    size = out.stat().st_size / 1e6
    assert f"Page:    {out} ({size:.1f} MB, 1 points of 1 trial;" in result.output
    assert "front_digits.svg" in result.output
    command = data_of(out.read_text())["made"]["with"]
    assert command.startswith(f"rlprune report {tmp_path / 'run'} -o {out}")
    assert command.endswith("--format svg --skip-bad")


def test_page_that_cannot_be_written(tmp_path: Path) -> None:
    write_rows(tmp_path / "results", [EXAMPLE])
    (tmp_path / "file").write_text("")
    with pytest.raises(FileAccessError, match="cannot be written"):
        write_page(read_source(tmp_path), tmp_path / "file" / "page.html")
