"""The report in a real browser: headless Chromium, from disk, with the network cut off."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rlprune.report.page import write_page
from rlprune.report.source import read_source
from rlprune.results import write_rows
from rlprune.results.pareto import pareto_front
from tests.report_rows import EXAMPLE, HOSTILE, sweep_rows, timed, write_sweep

sync_api = pytest.importorskip("playwright.sync_api", reason="needs: pip install playwright")

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)"
)

MARKS = 2 * 3 * (3 * 3 + 2)  # means over the seeds: per backbone and budget
POINTS = 3 * MARKS
NONE = "\u2013"  # stands where a number is missing
# Where a mark of a trace is on the screen, by plotly's own axes.
PLACE = """([method, at]) => {
  const chart = document.getElementById('front');
  const trace = chart.data.find((t) => t.meta && t.meta.method === method);
  const {xaxis, yaxis} = chart._fullLayout;
  const box = chart.getBoundingClientRect();
  return [box.left + xaxis._offset + xaxis.d2p(trace.x[at]),
          box.top + yaxis._offset + yaxis.d2p(trace.y[at])];
}"""
TRACE = """(method) => {
  const t = document.getElementById('front').data.find((t) => t.meta && t.meta.method === method);
  return {x: t.x, y: t.y, text: t.text, symbol: t.marker.symbol,
          error: t.error_y.visible ? t.error_y.array : null};
}"""
LINE = "() => { const [t] = document.getElementById('front').data; return {x: t.x, y: t.y}; }"


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_sweep(tmp_path_factory.mktemp("browser") / "sweep")
    return write_page(read_source(folder), folder / "report.html", "rlprune report x")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if root else []
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def trouble() -> list[str]:
    """What the browser complained about: must stay empty."""
    return []


@pytest.fixture(scope="module")
def opened(browser: Any, html: Path, trouble: list[str]) -> Iterator[Any]:
    """Loaded once: loading takes longer than all that is done with it."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, offline=True)
    yield open_page(context, html, trouble)
    context.close()


@pytest.fixture
def page(opened: Any, trouble: list[str]) -> Iterator[Any]:
    """The page as it opens, but for the selection."""
    yield opened
    if opened.locator("#filter-reset").is_enabled():
        opened.click("#filter-reset")
    for name in ("accuracy", "cost", "chosen", "seeds", "comparison"):
        first = opened.locator(f'input[name="{name}"]').first
        if not first.is_checked():
            first.locator("xpath=..").click()
    assert trouble == []


def open_page(context: Any, html: Path, trouble: list[str]) -> Any:
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    page.on("requestfailed", lambda request: trouble.append(f"failed: {request.url}"))
    page.on("dialog", lambda dialog: (trouble.append("a dialog"), dialog.dismiss()))
    page.on(
        "request",
        lambda request: (
            request.url.startswith(("file:", "data:", "blob:"))
            or trouble.append(f"asked for {request.url}")
        ),
    )
    page.goto(html.as_uri())
    page.wait_for_selector("#front .points path")
    return page


def expected_means() -> pd.DataFrame:
    """Computed here from the rows, without the page's code."""
    names = ("backbone", "method", "tradeoff_rate", "test_accuracy", "validation_accuracy")
    names += ("storage_bytes", "macs_mean", "compute_max_budget_macs", "config_hash")
    rows = pd.DataFrame([{name: getattr(row, name) for name in names} for row in sweep_rows()])
    rows["budget"] = rows["config_hash"].str.split("-").str[1]
    groups = rows.groupby(["backbone", "budget", "method", "tradeoff_rate"], dropna=False)
    numbers = groups[["test_accuracy", "validation_accuracy", "storage_bytes", "macs_mean"]]
    # rounded: the same numbers added in another order are still equal
    return numbers.mean().round(9).join(numbers.sem().add_suffix("_error")).reset_index()


def rows_listed(page: Any) -> Any:
    return page.locator("#table tbody tr")


def list_all(page: Any) -> None:
    button = page.locator("#table-more button", has_text="List all")
    if button.count():
        button.click()


def set_radio(page: Any, name: str, value: str) -> None:
    page.locator(f'input[name="{name}"][value="{value}"]').locator("xpath=..").click()


def test_header_and_marks(page: Any) -> None:
    assert page.title() == "sweep_example: accuracy against cost"
    facts = page.inner_text("#facts")
    assert "18 trials · 198 measured points · 3 seeds (n = 3 per learned setting)" in facts
    assert page.locator("#front .points path").count() >= MARKS
    boxes = [path.bounding_box() for path in page.locator("#front .points path").all()[:20]]
    assert all(box["width"] > 3 and box["height"] > 3 for box in boxes)
    for chart in ("tradeoff-accuracy", "tradeoff-storage", "methods"):
        assert page.locator(f"#{chart} .points path").count() > 3
    assert page.locator("#curves .lines path").count() >= 6
    assert page.inner_text("#curves-note").startswith("17 trials.")


def test_marks_are_means_with_standard_errors(page: Any) -> None:
    means = expected_means().query("method == 'learned'").sort_values("test_accuracy")
    drawn = pd.DataFrame(page.evaluate(TRACE, "learned")).sort_values("y")
    assert drawn["y"].tolist() == pytest.approx((100 * means["test_accuracy"]).tolist(), rel=1e-5)
    error = (100 * means["test_accuracy_error"]).tolist()
    assert drawn["error"].tolist() == pytest.approx(error, rel=1e-3)
    symbols = {page.evaluate(TRACE, name)["symbol"] for name in ("learned", "uniform", "random")}
    assert len(symbols) == 3


@pytest.mark.parametrize(
    ("cost", "scale", "chosen"),
    [
        ("storage_bytes", 1e-3, "validation_accuracy"),
        ("macs_mean", 1e-6, "validation_accuracy"),
        ("storage_bytes", 1e-3, "test_accuracy"),
    ],
)
def test_front_is_that_of_the_library(page: Any, cost: str, scale: float, chosen: str) -> None:
    set_radio(page, "cost", cost)
    set_radio(page, "chosen", chosen)
    front = pareto_front(expected_means(), maximize=chosen, minimize=cost).sort_values(cost)
    line = page.evaluate(LINE)
    drawn = sorted(zip(line["x"], line["y"], strict=True))
    # means of numbers that were rounded to six digits
    assert [x for x, _ in drawn] == pytest.approx((scale * front[cost]).tolist(), rel=1e-5)
    expected = sorted((100 * front["test_accuracy"]).tolist())
    assert sorted(y for _, y in drawn) == pytest.approx(expected, rel=1e-5)


def test_toggles_change_what_is_drawn(page: Any) -> None:
    test, storage = (page.evaluate(TRACE, "learned")[axis] for axis in "yx")
    set_radio(page, "accuracy", "validation_accuracy")
    assert page.evaluate(TRACE, "learned")["y"] != test
    assert "validation accuracy [%]" in page.text_content("#front .ytitle")
    set_radio(page, "cost", "macs_max")
    assert page.evaluate(TRACE, "learned")["x"] != storage
    assert "most expensive image" in page.text_content("#front .xtitle")
    assert len(page.evaluate(TRACE, "learned")["x"]) == 18
    set_radio(page, "seeds", "each")
    assert len(page.evaluate(TRACE, "learned")["x"]) == 54
    assert page.evaluate(TRACE, "learned")["error"] is None
    set_radio(page, "comparison", "difference")
    assert "minus learned" in page.text_content("#methods .xtitle")


@pytest.mark.parametrize("method", ["uniform", "learned"])
def test_click_selects(page: Any, method: str) -> None:
    set_radio(page, "seeds", "each")
    page.evaluate("() => document.getElementById('front').scrollIntoView()")
    at = alone(page, method)
    drawn = page.evaluate(TRACE, method)
    page.mouse.click(*page.evaluate(PLACE, [method, at]))
    page.wait_for_function(
        f"document.querySelector('#panel .kind').innerText.startsWith('{method}')"
    )
    trial, words = page.inner_text("#panel-title"), page.inner_text("#panel .kind")
    rate = float(words.split("=")[1].split(",")[0])
    (chosen,) = [
        row
        for row in sweep_rows()
        if (row.trial, row.method, row.tradeoff_rate) == (trial, method, rate)
    ]
    assert drawn["y"][at] == pytest.approx(100 * chosen.test_accuracy, rel=1e-5)
    assert drawn["x"][at] == pytest.approx(chosen.storage_bytes / 1000)
    assert f"{100 * chosen.test_accuracy:.2f} %" in page.inner_text("#panel dl >> nth=0")
    bars = page.evaluate("() => document.getElementById('layers').data.map((t) => t.y)")
    assert bars[0] == pytest.approx([100 * value for value in chosen.stored_ratio], abs=0.01)
    assert bars[1] == pytest.approx([100 * value for value in chosen.keep_ratio_mean], abs=0.01)
    ring = page.evaluate("() => document.getElementById('front').layout.shapes")
    assert [(round(r["xanchor"], 3), r["yanchor"]) for r in ring] == [
        (round(drawn["x"][at], 3), drawn["y"][at])
    ]
    row = page.locator('#table tr[aria-selected="true"]')
    assert row.count() == 1
    assert row.locator("button").get_attribute("title") == trial
    note = (
        "Only learned networks are kept" if method == "uniform" else "Loads the newest checkpoint"
    )
    assert note in page.inner_text(".command")


def alone(page: Any, method: str) -> int:
    """The mark that is farthest from any other, so that a click can only mean it."""
    methods = ("learned", "uniform", "random", "static_l1", "dense")
    places = {
        (name, at): page.evaluate(PLACE, [name, at])
        for name in methods
        for at in range(len(page.evaluate(TRACE, name)["x"]))
    }

    def gap(at: int) -> float:
        own = places[method, at]
        others = (place for key, place in places.items() if key != (method, at))
        return min(math.dist(own, place) for place in others)

    return max((at for name, at in places if name == method), key=gap)


def test_row_selects_and_gives_the_command(page: Any) -> None:
    assert page.inner_text("#panel .kind").startswith("learned")
    row = rows_listed(page).filter(has_text="learned").filter(has_text="resnet20").nth(3)
    name = row.locator("button").get_attribute("title")
    rate = float(row.locator("td").nth(3).inner_text())
    row.locator("button").focus()
    page.keyboard.press("Enter")
    assert page.inner_text("#panel-title") == name
    budget, seed = name.split("=")[1].split("_")[0], name[-1]
    assert page.inner_text("#panel .command code") == (
        f"rlprune evaluate runs/sweep_example/resnet20-{budget}-{seed} --rate {rate}"
    )
    page.click("#panel summary >> text=Configuration")
    assert "budgets.storage_max" in page.inner_text("#panel")
    assert "agents.learning_rate" in page.inner_text("#panel")


def test_filter_hides_points_and_rows(page: Any) -> None:
    list_all(page)
    assert rows_listed(page).count() == POINTS
    page.uncheck('#filters input[name="filter-backbone"][value="resnet20"]')
    assert rows_listed(page).count() == POINTS / 2
    assert rows_listed(page).filter(has_text="resnet20").count() == 0
    assert len(page.evaluate(TRACE, "learned")["x"]) == 9
    assert max(page.evaluate(LINE)["x"]) < 400  # the front is that of what is left
    page.uncheck('#filters input[name="filter-method"][value="dense"]')
    assert page.evaluate(TRACE, "dense")["x"] == []
    page.uncheck('#filters input[name="filter-seed"][value="0"]')
    assert rows_listed(page).count() == 3 * 10 * 2
    assert "66 marks" not in page.inner_text("#front-note")
    page.click("#filter-reset")
    assert rows_listed(page).count() == POINTS
    for method in ("learned", "uniform", "random", "static_l1", "dense"):
        page.uncheck(f'#filters input[name="filter-method"][value="{method}"]')
    assert rows_listed(page).count() == 0
    assert "Nothing is left by the filters." in page.text_content("#front")


def test_missed_budgets_are_marked_in_plot_and_table(page: Any) -> None:
    missed = sum(not row.budgets_met for row in sweep_rows())
    list_all(page)
    assert page.locator("#table td.bad").count() == missed == 18
    drawn = page.evaluate(
        "() => document.getElementById('front').data.find((t) => t.name === 'budget not met').x"
    )
    assert len(drawn) == missed / 3
    page.locator("#table tr.missed button").first.click()
    assert "budget NOT met" in page.inner_text("#panel .badges")


def test_sorting_by_mouse_and_keyboard(page: Any) -> None:
    list_all(page)

    def storage() -> list[float]:
        return [
            float(text) for text in page.locator("#table tbody td:nth-child(8)").all_inner_texts()
        ]

    def sorted_as() -> str | None:
        found: str | None = page.locator("#table thead th", has_text="Storage").get_attribute(
            "aria-sort"
        )
        return found

    page.click("#sort-storage")
    assert storage() == sorted(storage(), reverse=True)
    assert sorted_as() == "descending"
    page.keyboard.press("Enter")  # the heading keeps the focus
    assert storage() == sorted(storage())
    assert sorted_as() == "ascending"
    page.click("#sort-rate")
    rates = page.locator("#table tbody td:nth-child(5)").all_inner_texts()
    assert rates[0] == "1"
    assert rates[-36:] == [NONE] * 36  # those without an R_r stay at the end
    page.click("#sort-rate")
    rates = page.locator("#table tbody td:nth-child(5)").all_inner_texts()
    assert rates[0] == "0"
    assert rates[-36:] == [NONE] * 36


def test_hostile_name_is_only_text(page: Any) -> None:
    list_all(page)
    row = page.locator("#table button.pick", has_text="onerror").first
    assert row.get_attribute("title") == HOSTILE
    row.click()
    assert page.inner_text("#panel-title") == HOSTILE
    set_radio(page, "seeds", "each")
    text = page.evaluate(TRACE, "dense")["text"]
    page.evaluate("() => document.getElementById('front').scrollIntoView()")
    at = next(number for number, words in enumerate(text) if "onerror" in words)
    assert "&lt;/script&gt;&lt;img" in text[at]
    page.mouse.move(*page.evaluate(PLACE, ["dense", at]))
    page.wait_for_selector("#front .hovertext")
    assert page.locator("img").count() == 0
    assert page.title() == "sweep_example: accuracy against cost"


def test_narrow_page_does_not_scroll_sideways(browser: Any, html: Path, trouble: list[str]) -> None:
    context = browser.new_context(viewport={"width": 420, "height": 800}, offline=True)
    page = open_page(context, html, trouble)
    width = page.evaluate("() => document.documentElement.scrollWidth")
    assert width <= 420
    assert page.locator("#front .points path").count() >= MARKS
    context.close()
    assert trouble == []


def test_one_run_of_one_point(browser: Any, tmp_path: Path, trouble: list[str]) -> None:
    """Nothing to filter, no curves, one seed, no configuration."""
    write_rows(tmp_path / "results", [EXAMPLE])
    html = write_page(read_source(tmp_path), tmp_path / "report.html")
    context = browser.new_context(offline=True, color_scheme="dark")
    page = open_page(context, html, trouble)
    assert rows_listed(page).count() == 1
    assert page.locator("#filters").is_hidden()
    assert "no updates.parquet" in page.inner_text("#curves-note")
    assert page.locator('input[name="seeds"]').count() == 0
    context.close()
    assert trouble == []


def test_latency_is_a_cost_where_it_was_measured(
    browser: Any, page: Any, tmp_path: Path, trouble: list[str]
) -> None:
    assert page.locator('input[name="cost"]').count() == 3  # of rows without any
    rows = timed([row for row in sweep_rows() if row.trial != HOSTILE])
    rows += timed([row for row in sweep_rows() if row.trial == HOSTILE], HOSTILE)
    write_rows(tmp_path / "results", rows)
    html = write_page(read_source(tmp_path), tmp_path / "report.html")
    context = browser.new_context(viewport={"width": 1400, "height": 900}, offline=True)
    page = open_page(context, html, trouble)
    set_radio(page, "cost", "latency_seconds")
    assert "latency [ms per image]" in page.text_content("#front .xtitle")
    names = ["backbone", "method", "tradeoff_rate", "config_hash", "latency_seconds"]
    frame = pd.DataFrame([{name: getattr(row, name) for name in names} for row in rows])
    frame["budget"] = frame["config_hash"].str.split("-").str[1]
    learned = frame[frame["method"] == "learned"]
    means = learned.groupby(["backbone", "budget", "tradeoff_rate"])["latency_seconds"].mean()
    drawn = page.evaluate(TRACE, "learned")
    assert sorted(drawn["x"]) == pytest.approx(sorted(1000 * means), rel=1e-5)
    assert all("latency " in text and " ms" in text for text in drawn["text"])
    assert set(page.evaluate(TRACE, "uniform")["x"]) == {None}
    line = page.evaluate(LINE)
    assert None not in line["x"] and len(line["x"]) >= 2
    legend = page.inner_text("#front-legend")
    assert "learned" in legend and "uniform" not in legend and "budget" not in legend
    note = page.inner_text("#front-note")
    assert f"timed in 2 ways (batch 1, 1 thread, {HOSTILE}; batch 1, 1 thread, EPYC" in note
    # uniform and random at three rates, static_l1 once: for each backbone and budget
    assert "42 marks without a latency: rlprune bench RUN --all" in note
    panel = page.inner_text("#panel dl >> nth=0")
    assert "ms per image (" in panel and "% of dense; batch 1, 1 thread" in panel
    page.click("#sort-latency")
    cells = page.locator("#table tbody tr td:nth-child(13)").all_inner_texts()
    shown = [float(text) for text in cells if text != NONE]
    assert shown == sorted(shown, reverse=True) and max(shown) == pytest.approx(5.06)
    context.close()
    assert trouble == []


def test_one_data_set_at_a_time(browser: Any, tmp_path: Path, trouble: list[str]) -> None:
    """Accuracies on different images never share a picture; without learned rows it works too."""
    rows = [
        replace(row, layer_names=(), keep_ratio_mean=(), keep_ratio_std=(), stored_ratio=())
        for row in sweep_rows((0,))
        if row.method == "uniform"
    ]
    other = [replace(row, dataset="fashion_mnist", test_accuracy=0.5) for row in rows[:3]]
    other = [replace(row, trial=f"other {row.trial}") for row in other]
    write_rows(tmp_path / "results", [*rows, *other])
    html = write_page(read_source(tmp_path), tmp_path / "report.html")
    context = browser.new_context(offline=True)
    page = open_page(context, html, trouble)
    assert rows_listed(page).count() == len(rows) == 18
    assert "No point selected" in page.inner_text("#panel")
    assert "No learned points" in page.text_content("#methods")
    page.check('#filters input[name="filter-dataset"][value="fashion_mnist"]')
    assert rows_listed(page).count() == 3
    assert page.evaluate(TRACE, "uniform")["y"] == [50, 50, 50]
    rows_listed(page).first.locator("button").click()
    assert "No layers were recorded." in page.text_content("#layers")
    context.close()
    assert trouble == []
