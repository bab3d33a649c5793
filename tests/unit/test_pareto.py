"""Fronts, hypervolume, best, means over seeds, dominance and `rlprune pareto`, by hand."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from result_rows import make_row
from typer.testing import CliRunner, Result

from rlprune.cli.main import app
from rlprune.errors import ResultsError
from rlprune.report.fronts import pareto_figure
from rlprune.results import (
    aggregate_seeds,
    best,
    dominance,
    hypervolume,
    load,
    pareto_front,
    parse_where,
    write_rows,
)
from rlprune.results.query import FrontQuery, find_front

GOALS: dict[str, Any] = {"maximize": ["acc"], "minimize": ["bytes"]}


def points(*rows: tuple[float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["acc", "bytes"])


# --- front ---------------------------------------------------------------------------------


def test_front_by_hand() -> None:
    df = points((0.9, 100), (0.8, 50), (0.8, 60), (0.7, 50), (0.9, 100), (0.6, 10), (0.5, 10))
    front = pareto_front(df.assign(name=list("abcdefg")), **GOALS)
    assert front["name"].tolist() == ["a", "b", "e", "f"]  # a and e are equal: both stay
    assert front.index.tolist() == [0, 1, 4, 5]


def test_missing_values_are_never_on_the_front_and_infinities_can_be() -> None:
    df = points((math.nan, 1), (0.9, math.nan), (0.5, 100), (-math.inf, 50), (0.4, math.inf))
    assert pareto_front(df, **GOALS).index.tolist() == [2, 3]


def test_one_and_three_objectives() -> None:
    df = points((0.9, 3), (0.9, 2), (0.8, 1)).assign(macs=[1, 2, 3], loss=[1, 1, 2])
    assert pareto_front(df, maximize="acc").index.tolist() == [0, 1]
    assert pareto_front(df, minimize="loss").index.tolist() == [0, 1]
    assert pareto_front(df, **{**GOALS, "minimize": ["bytes", "macs"]}).index.tolist() == [0, 1, 2]
    with_worst = pd.concat([df, pd.DataFrame([{"acc": 0.8, "bytes": 2, "macs": 3, "loss": 1}])])
    front = pareto_front(with_worst, maximize="acc", minimize=["bytes", "macs"])
    assert len(front) == 3


def test_each_group_has_a_front_and_missing_is_a_group() -> None:
    df = points((0.9, 1), (0.5, 1), (0.6, 2), (0.4, 1), (0.3, 1))
    df["backbone"] = pd.Categorical(["a", "b", "b", None, None])
    assert pareto_front(df, **GOALS, group_by="backbone").index.tolist() == [0, 1, 2, 3]
    assert pareto_front(df.iloc[:0], **GOALS, group_by=["backbone"]).empty


def test_integers_beyond_float64_are_told_apart() -> None:
    df = pd.DataFrame({"x": np.array([2**53, 2**53 + 1], dtype=np.int64)})
    assert pareto_front(df, maximize="x").index.tolist() == [1]
    assert pareto_front(df, minimize="x").index.tolist() == [0]


def test_nullable_and_unsigned_numbers() -> None:
    df = pd.DataFrame({"x": pd.array([1, None, 3], dtype="Int64"), "y": np.uint8([1, 0, 2])})
    assert pareto_front(df, maximize="x").index.tolist() == [2]
    assert pareto_front(df, minimize="y").index.tolist() == [1]


@pytest.mark.parametrize(
    ("goals", "message"),
    [
        ({}, "no objective: name at least one column"),
        ({"maximize": ["ac"]}, "column ac: no such column. Did you mean acc?"),
        ({"maximize": ["name"]}, "column name is str, not numeric"),
        ({"maximize": ["acc"], "minimize": ["acc"]}, "column acc cannot be both"),
        ({"maximize": ["acc"], "group_by": "nam"}, "column nam: no such column. Did you mean name"),
        ({"maximize": ["acc"], "group_by": []}, "group_by: no column is named"),
    ],
)
def test_wrong_objectives_are_named(goals: dict[str, Any], message: str) -> None:
    df = points((0.5, 1)).assign(name=pd.Series(["x"], dtype="str"))
    with pytest.raises(ResultsError, match=message):
        pareto_front(df, **goals)


def test_a_doubled_column_is_refused() -> None:
    df = pd.DataFrame([[1, 2]], columns=["acc", "acc"])
    with pytest.raises(ResultsError, match="column acc appears 2 times"):
        pareto_front(df, maximize="acc")


# --- hypervolume ---------------------------------------------------------------------------


def test_hypervolume_by_hand() -> None:
    df = points((0.9, 100), (0.8, 50), (0.7, 200), (0.1, 10), (math.nan, 1))
    # reference 0.2, 150: 0.7 x 50 above 50 saved bytes, then 0.6 x 50; the last three add none
    value = hypervolume(df, **GOALS, reference={"acc": 0.2, "bytes": 150})
    assert value == pytest.approx(0.7 * 50 + 0.6 * 50)
    assert hypervolume(df.iloc[:0], **GOALS, reference={"acc": 0, "bytes": 1}) == 0.0
    infinite = points((0.9, -math.inf))
    assert hypervolume(infinite, **GOALS, reference={"acc": 0, "bytes": 1}) == math.inf


def test_hypervolume_in_three_dimensions() -> None:
    df = pd.DataFrame({"a": [2, 1], "b": [1, 2], "c": [1, 3]})
    # 2x1x1 and 1x2x3 share 1x1x1
    assert hypervolume(df, maximize=["a", "b", "c"], reference=dict.fromkeys("abc", 0)) == 7.0


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"acc": 0.0}, "reference: bytes is missing"),
        ({"acc": 0.0, "bytes": 1.0, "x": 1.0}, "reference x: not an objective"),
        ({"acc": math.nan, "bytes": 1.0}, "reference acc must be finite"),
    ],
)
def test_wrong_references_are_named(reference: dict[str, float], message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        hypervolume(points((0.5, 1)), **GOALS, reference=reference)


# --- best ----------------------------------------------------------------------------------


def candidates() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "trial": list("abcde"),
            "validation_accuracy": [0.9, 0.8, 0.8, 0.7, math.nan],
            "test_accuracy": [0.7, 0.9, 0.6, 0.8, 1.0],
            "storage_bytes": [100, 60, 50, 10, 1],
            "macs_max": [10.0, 20.0, 30.0, 5.0, 1.0],
            "macs_mean": [9.0, 1.0, 1.0, 1.0, 1.0],
        }
    )


def test_best_chooses_on_validation_within_the_limits() -> None:
    df = candidates()
    assert best(df)["trial"] == "a"
    assert best(df, max_storage_bytes=99)["trial"] == "c"  # as accurate as b, smaller
    assert best(df, max_storage_bytes=99, max_macs=25)["trial"] == "b"
    assert best(df, max_storage_bytes=50)["trial"] == "c"  # at most, not below
    assert best(df, max_macs=5)["trial"] == "d"
    assert best(df, max_macs=1, macs="macs_mean")["trial"] == "c"
    assert best(df, accuracy="test_accuracy")["trial"] == "e"


def test_best_names_the_nearest_where_nothing_fits() -> None:
    with pytest.raises(ResultsError) as caught:
        best(candidates(), max_storage_bytes=9, max_macs=4)
    message = str(caught.value)
    assert "no row with storage_bytes <= 9 and macs_max <= 4" in message
    # 10 / 9 and 5 / 4; e is smaller still, but was never measured
    assert "trial d) has storage_bytes 10, macs_max 5, validation_accuracy 0.7" in message
    with pytest.raises(ResultsError, match="no row has a value of validation_accuracy"):
        best(candidates().iloc[4:])
    with pytest.raises(ResultsError, match="limit of macs_max must be above 0"):
        best(candidates(), max_macs=0)


# --- seeds ---------------------------------------------------------------------------------


def seed_rows() -> pd.DataFrame:
    """Two settings of which one has no R_r; three seeds and one."""
    return pd.DataFrame(
        {
            "method": ["learned", "dense", "learned", "learned"],
            "tradeoff_rate": [0.5, math.nan, 0.5, 0.5],
            "seed": [0, 0, 1, 2],
            "test_accuracy": [0.5, 0.9, 0.6, 0.7],
            "storage_bytes": [10, 40, 10, 10],
            "budgets_met": [True, True, False, True],
        }
    )


def test_means_and_standard_errors_by_hand() -> None:
    result = aggregate_seeds(seed_rows())
    assert result["method"].tolist() == ["learned", "dense"]
    assert result["n"].tolist() == [3, 1]
    assert result["test_accuracy"].tolist() == pytest.approx([0.6, 0.9])
    # deviations -0.1, 0, 0.1: variance 0.02 / 2, error sqrt(0.01 / 3)
    assert result["test_accuracy_se"][0] == pytest.approx(math.sqrt(0.01 / 3))
    assert math.isnan(result["test_accuracy_se"][1])
    assert result["storage_bytes_se"][0] == 0.0
    assert result["budgets_met"].tolist() == [False, True]
    front = pareto_front(result, maximize="test_accuracy", minimize="storage_bytes")
    assert len(front) == 2


def test_a_missing_value_is_not_averaged_away() -> None:
    df = seed_rows()
    df.loc[2, "test_accuracy"] = math.nan
    result = aggregate_seeds(df)
    assert result["test_accuracy"].isna().tolist() == [True, False]
    assert result["test_accuracy_se"].isna().all()


def test_a_seed_is_not_counted_twice() -> None:
    df = seed_rows().assign(step=[1, 1, 1, 1])
    doubled = pd.concat([df, df.iloc[[3]].assign(step=2)])
    with pytest.raises(ResultsError, match=r"seed 2 appears 2 times .*differ in step\.") as caught:
        aggregate_seeds(doubled)
    assert "by=[...]" in str(caught.value)
    assert aggregate_seeds(doubled, by=["method", "step"])["n"].tolist() == [3, 1, 1]
    with pytest.raises(ResultsError, match="by cannot name the seed"):
        aggregate_seeds(df, by=["seed"])
    with pytest.raises(ResultsError, match="column sed: no such column"):
        aggregate_seeds(df, by=["sed"])


def test_configurations_that_differ_in_more_than_the_seed_stay_apart() -> None:
    values = [
        {"seed": seed, "name": f"t{seed}", "rate": rate} for rate in (1, 2) for seed in (0, 1)
    ]
    df = pd.DataFrame(
        {
            "seed": [0, 1, 0, 1],
            "configuration": pd.Categorical([json.dumps(value) for value in values]),
            "test_accuracy": [0.1, 0.3, 0.5, 0.7],
        }
    )
    result = aggregate_seeds(df)
    assert result["test_accuracy"].tolist() == pytest.approx([0.2, 0.6])
    assert result["settings_hash"].nunique() == 2


# --- dominance -----------------------------------------------------------------------------


def method_rows() -> pd.DataFrame:
    """Learned beats uniform by 0.1, 0.2, 0.3 at R_r = 1 and by 0, -0.1, 0.1 at R_r = 0."""
    gaps = {1.0: (0.1, 0.2, 0.3), 0.0: (0.0, -0.1, 0.1)}
    rows = []
    for rate, by_seed in gaps.items():
        for seed, gap in enumerate(by_seed):
            common = {"tradeoff_rate": rate, "seed": seed, "storage_budget_bytes": 100.0}
            rows.append({**common, "method": "uniform", "test_accuracy": 0.5 + 0.1 * seed})
            rows.append({**common, "method": "learned", "test_accuracy": 0.5 + 0.1 * seed + gap})
    for seed in range(3):
        missing = {"tradeoff_rate": math.nan, "storage_budget_bytes": math.nan}
        rows.append({**missing, "seed": seed, "method": "dense", "test_accuracy": 0.9})
    return pd.DataFrame(rows).sample(frac=1.0, random_state=0)


def test_dominance_by_hand() -> None:
    table = dominance(method_rows(), "learned", "uniform")
    settings = table.drop(index="total").set_index("tradeoff_rate")
    assert settings["n"].tolist() == [3, 3]
    assert settings["difference"][1.0] == pytest.approx(0.2)
    assert settings["difference_se"][1.0] == pytest.approx(0.1 / math.sqrt(3))
    assert settings["difference"][0.0] == pytest.approx(0.0)
    assert settings.loc[1.0, ["wins", "losses", "undecided"]].tolist() == [1, 0, 0]
    assert settings.loc[0.0, ["wins", "losses", "undecided"]].tolist() == [0, 0, 1]
    # the seeds' means over both settings: 0.05, 0.05, 0.2
    total = table.loc["total"]
    assert total["n"] == 3
    assert total["difference"] == pytest.approx(0.1)
    assert total["difference_se"] == pytest.approx(math.sqrt(0.0075 / 3))
    assert total[["wins", "losses", "undecided"]].tolist() == [1, 0, 1]
    turned = dominance(method_rows(), "uniform", "learned").loc["total"]
    assert turned["difference"] == pytest.approx(-0.1)
    assert turned[["wins", "losses", "undecided"]].tolist() == [0, 1, 1]
    strict = dominance(method_rows(), "learned", "uniform", standard_errors=4.0).loc["total"]
    assert strict["undecided"] == 2


def test_dense_is_compared_at_every_budget_and_one_seed_decides_nothing() -> None:
    df = method_rows()
    table = dominance(df, "dense", "learned")
    assert table.drop(index="total")["tradeoff_rate"].tolist() in ([1.0, 0.0], [0.0, 1.0])
    # 0.9 minus (0.6, 0.8, 1.0) and minus (0.5, 0.5, 0.8)
    assert table.loc["total", "difference"] == pytest.approx((0.3 + 0.9) / 6)
    single = dominance(df[df["seed"] == 0], "learned", "uniform")
    assert single["difference_se"].isna().all()
    assert single.loc["total", "undecided"] == 2


def test_unpaired_and_doubled_rows_are_refused() -> None:
    df = method_rows()
    with pytest.raises(ResultsError, match="no rows of method 'lerned'; there are dense, learned"):
        dominance(df, "lerned", "uniform")
    apart = df[(df["method"] == "learned") == (df["seed"] == 0)]
    with pytest.raises(ResultsError, match="have no row with the same seed"):
        dominance(apart, "learned", "uniform")
    with pytest.raises(ResultsError, match=r"dominance, learned: seed \d appears 2 times"):
        dominance(pd.concat([df, df]), "learned", "uniform")


# --- where ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """2 backbones x 3 seeds; learned at R_r 1 and 0 (better by 0.01 per seed), dense."""
    rows = []
    for backbone, size in (("resnet20", 80_000), ("m_cifarnet", 40_000)):
        for seed in range(3):
            trial = {
                "trial": f"{backbone} {seed}", "seed": seed, "config_hash": f"{backbone}{seed}",
                "backbone": backbone, "configuration": json.dumps({"seed": seed, "b": backbone}),
            }  # fmt: skip
            for rate in (1.0, 0.0):
                accuracy = 0.7 + 0.1 * rate + 0.01 * seed + size / 1e6
                learned = {
                    "tradeoff_rate": rate, "validation_accuracy": accuracy,
                    "test_accuracy": 1.0 - accuracy, "storage_bytes": size * (1 + int(rate)),
                }  # fmt: skip
                rows += [make_row(**trial, **learned)]
                rows += [make_row(**trial, **{**learned, "validation_accuracy": 0.99}, step=1)]
            dense = {"method": "dense", "tradeoff_rate": None, "storage_bytes": 3 * size}
            rows.append(make_row(**trial, **dense, validation_accuracy=0.95))
    path = tmp_path_factory.mktemp("pareto") / "sweep"
    write_rows(path / "results", rows)
    return str(path)


@pytest.mark.parametrize(
    ("condition", "count"),
    [
        ("backbone == 'resnet20'", 15),
        ("'resnet20' != backbone and seed < 2", 10),
        ("0 <= seed < 2.5 and not (seed == 1)", 20),
        ("backbone in ['resnet20', 'x'] or seed in (2,)", 20),
        ("seed not in (0, 1)", 10),
        ("tradeoff_rate == None", 6),
        ("tradeoff_rate is not None", 24),
        ("tradeoff_rate != 1", 12),  # a missing value is not different, as in SQL
        ("not tradeoff_rate in (1, 0)", 0),
        ("tradeoff_rate not in (1, None)", 12),
        ("budgets_met and storage_bytes > -1", 30),
        ("not budgets_met", 0),
        ("macs_max <= compute_max_budget_macs", 30),
        ("created_at >= '2026-01-02' and created_at < '2026-01-03 00:00:00'", 30),
        ("seed in (" + ", ".join(map(str, range(2, 3000))) + ")", 10),
    ],
)
def test_conditions_select(folder: str, condition: str, count: int) -> None:
    for columns in (["seed"], None):
        assert len(load(folder, columns=columns, filters=parse_where(condition))) == count


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("bakbone == 'x'", "there is no column bakbone. Did you mean backbone?"),
        ("backbone == resnet20", "there is no column resnet20.* Texts need quotes"),
        ("seed == '1'", "seed is a number and '1' a text"),
        ("backbone < 3", "backbone is a text and 3 a number"),
        ("layer_names == 'x'", "column layer_names holds lists"),
        ("created_at > 'yesterday'", "'yesterday' is no time"),
        ("seed", "'seed' is not a condition"),
        ("1 < 2", "hold no column"),
        ("seed + 1 > 2", "'seed \\+ 1' cannot be compared"),
        ("seed in ()", "Write: column in"),
        ("seed is 3", "'is' is for None"),
        ("seed < None", "None can only be compared with a column"),
        ("seed == 99999999999999999999", "cannot be compared"),
        ("seed ==", "cannot be read"),
        ("", "cannot be read"),
        ("not " * 5000 + "seed > 1", "cannot be read|is too deep"),
        ("__import__('os').system('true')", "is not a condition"),
        ("[seed for seed in (1,)]", "is not a condition"),
        ("(lambda: 1)() == seed", "cannot be compared"),
        ("seed.real == 1", "cannot be compared"),
        ("f'{seed}' == 'x'", "cannot be compared"),
        ("(seed := 3) == 3", "cannot be compared"),
    ],
)
def test_other_conditions_are_refused(condition: str, message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        parse_where(condition)


# --- query ---------------------------------------------------------------------------------


def test_earlier_steps_do_not_count_unless_asked(folder: str) -> None:
    last = find_front(folder, FrontQuery(where="method == 'learned'"))
    assert set(last.front["step"]) == {4} and len(last.points) == 12
    every = find_front(folder, FrontQuery(where="method == 'learned'", steps="all"))
    assert set(every.front["step"]) == {1} and len(every.points) == 24


def test_reading_in_two_steps_gives_the_same(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query = FrontQuery(group_by=("backbone",), where="seed < 2")
    at_once = find_front(folder, query)
    monkeypatch.setattr("rlprune.results.query._SMALL_BYTES", 0)
    in_two = find_front(folder, query)
    pd.testing.assert_frame_equal(at_once.front, in_two.front)
    assert set(in_two.points) == {
        "validation_accuracy", "storage_bytes", "backbone", "row_id",
        "experiment", "trial", "config_hash", "method", "step",
    }  # fmt: skip


def test_picture_of_a_front(folder: str, tmp_path: Path) -> None:
    answer = find_front(folder, FrontQuery(group_by=("backbone",), seeds="mean"))
    for suffix, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        path = pareto_figure(answer, tmp_path / f"front.{suffix}")
        assert path.read_bytes().startswith(start)
    text = (tmp_path / "front.svg").read_text()
    for word in ("validation accuracy [%]", "storage [KB]", "m_cifarnet (3 on the front)"):
        assert f"<!-- {word} -->" in text
    many = answer.points.loc[answer.points.index.repeat(5)].assign(
        backbone=[str(number) for number in range(30)]
    )
    crowded = type(answer)(answer.query, many, answer.front, None)
    with pytest.raises(ResultsError, match=r"32 groups by backbone are too many"):
        pareto_figure(crowded, tmp_path / "crowded.png")


# --- command line --------------------------------------------------------------------------


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["pareto", *arguments])


def test_table_is_not_truncated_and_names_units(folder: str) -> None:
    result = run(folder, "--where", "backbone == 'm_cifarnet'")
    assert result.exit_code == 0, result.output
    assert "…" not in result.stdout
    assert "validation accuracy [%]" in result.stdout and "storage [bytes]" in result.stdout
    assert "backbone m_cifarnet" in result.stdout  # the same for all: in the title
    rows = [line.split("│")[1:-1] for line in result.stdout.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert [row[:2] for row in cells] == [
        ["m_cifarnet 0", "dense"], ["m_cifarnet 1", "dense"], ["m_cifarnet 2", "dense"],
        ["m_cifarnet 2", "learned"], ["m_cifarnet 2", "learned"],
    ]  # fmt: skip
    assert cells[3][4:6] == ["86.00", "80,000"]
    assert "5 of 9 points: high validation_accuracy, low storage_bytes." in result.stdout


def test_means_groups_and_hypervolume(folder: str) -> None:
    result = run(
        folder, "--seeds", "mean", "--group-by", "backbone", "--where", "method == 'learned'",
        "--reference", "validation_accuracy=0.5,storage_bytes=100000",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "75.00 ± 0.58" in result.stdout  # 74, 75, 76: 1 / sqrt(3)
    assert "4 of 4 settings (means over seeds)" in result.stdout
    # 0.35 x 20,000 and, for the smaller one, 0.25 x 40,000
    assert "Hypervolume of m_cifarnet: 17000 (" in result.stdout
    assert "Hypervolume of resnet20: 5800 (" in result.stdout  # only 80,000 bytes, 0.79


def test_csv_and_json_are_clean(folder: str) -> None:
    csv = run(folder, "--format", "csv", "--maximize", "test_accuracy")
    frame = pd.read_csv(io.StringIO(csv.stdout))
    assert csv.exit_code == 0 and len(frame) >= 1
    assert {"trial", "test_accuracy", "storage_bytes", "checkpoint_uri"} <= set(frame)
    assert "optimistic" in csv.stderr
    records = json.loads(run(folder, "--format", "json", "--maximize", "test_accuracy").stdout)
    assert [record["row_id"] for record in records] == frame["row_id"].tolist()
    assert [record["test_accuracy"] for record in records] == frame["test_accuracy"].tolist()
    assert records[0]["budget_s"] is None


def test_files_and_picture_are_written(folder: str, tmp_path: Path) -> None:
    target, picture = tmp_path / "front.parquet", tmp_path / "new" / "front.png"
    result = run(folder, "--output", str(target), "--plot", str(picture))
    assert result.exit_code == 0, result.output
    assert result.stdout == "" and str(target) in result.stderr
    frame = pd.read_parquet(target)
    assert "category" not in set(map(str, frame.dtypes))
    expected = find_front(folder, FrontQuery()).front
    assert frame["row_id"].tolist() == expected["row_id"].tolist()
    assert picture.read_bytes().startswith(b"\x89PNG")
    table = tmp_path / "front.txt"
    assert run(folder, "--output", str(table)).exit_code == 0
    assert "validation accuracy [%]" in table.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--maximize", "acuracy"], "no column 'acuracy'"),
        (["--maximize", "trial"], "column trial is category, not numeric"),
        (["--maximize", "storage_bytes"], "cannot be both maximised and minimised"),
        (["--where", "bakbone == 'x'"], "Did you mean backbone?"),
        (["--where", "seed > 7"], "there are no rows with this condition"),
        (["--format", "parquet"], "--output front.parquet"),
        (["--reference", "storage_bytes"], "--reference 'storage_bytes': no value"),
        (["--reference", "storage_bytes=x"], "no number"),
        (["--reference", "storage_bytes=1"], "validation_accuracy is missing"),
        (["--plot", "front.gif"], "unknown format. Use one of png, svg, pdf"),
        (["--plot", "x.png", "--minimize", "macs_max,storage_bytes"], "needs two objectives"),
        (["--seeds", "mean", "--minimize", "seed"], "column seed has no mean over seeds"),
        (["--seeds", "mean", "--group-by", "trial"], "column trial has no mean over seeds"),
    ],
)
def test_mistakes_are_one_line(folder: str, arguments: list[str], message: str) -> None:
    result = run(folder, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr


def test_the_script_with_plain_pandas_finds_the_same(folder: str) -> None:
    script = Path(__file__).resolve().parents[2] / "analysis" / "pareto_front.py"
    done = subprocess.run(
        [sys.executable, str(script), f"{folder}/results"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    front = find_front(folder, FrontQuery(steps="all")).front
    different = front.drop_duplicates(["validation_accuracy", "storage_bytes"])
    sizes = [int(line.split()[-2]) for line in done.stdout.splitlines()[1:]]
    assert sizes == sorted(different["storage_bytes"])


def test_bad_files_are_named_or_skipped(tmp_path: Path) -> None:
    write_rows(tmp_path / "results", [make_row()])
    (tmp_path / "results" / "torn.parquet").write_bytes(b"PAR1 torn")
    refused = run(str(tmp_path))
    assert refused.exit_code == 2 and "torn.parquet" in refused.stderr
    skipped = run(str(tmp_path), "--skip-bad")
    assert skipped.exit_code == 0 and "1 of 1 points" in skipped.stdout
    assert run(str(tmp_path / "nothing")).exit_code == 2
