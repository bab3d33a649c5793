"""``rlprune evaluate``: measure a run's learned network again."""

from __future__ import annotations

from pathlib import Path

from rlprune.cli.show import TerminalReporter, show_results
from rlprune.errors import ConfigError, Problem
from rlprune.results import load_rows, write_rows
from rlprune.results.latency import keep_latencies
from rlprune.sweep import layout
from rlprune.training.phases import LEARNED
from rlprune.training.restore import load_run
from rlprune.training.rows import result_row


def _check(ratios: list[float], rates: list[float]) -> None:
    problems = [
        Problem("--ratio", "must be above 0 and at most 1", value, "Give for example 0.5.")
        for value in ratios
        if not 0.0 < value <= 1.0
    ]
    problems += [
        Problem("--rate", "must be between 0 and 1", value, "Give for example 0.5.")
        for value in rates
        if not 0.0 <= value <= 1.0
    ]
    if problems:
        raise ConfigError(problems)


def _home(run: Path, name: str) -> tuple[str, Path]:
    """Experiment and results folder of a run: a sweep's trials keep their rows together."""
    sweep = run.absolute().parent
    if Path(layout.spec(str(sweep))).exists():
        return sweep.name, Path(layout.results(str(sweep)))
    return name, run / "results"


def evaluate_run(run: Path, ratios: list[float], rates: list[float]) -> None:
    """Measures the learned policy at the given budgets and rates, and shows all rows.

    Raises:
        ConfigError, BudgetError, CheckpointError: see the messages.
    """
    _check(ratios, rates)
    learned = load_run(run)
    rates = rates or list(learned.config.evaluation.tradeoff_rates)
    points = [learned.setup.book.point(rate, s) for s in (None, *ratios) for rate in rates]
    learned.setup.book.check_reachable(points)
    program = learned.program
    program.position = 1 + next(
        index for index, unit in enumerate(program.units) if unit.phase == LEARNED
    )
    weights = program.snapshots[LEARNED]
    experiment, results = _home(run, learned.config.name)
    rows = []
    with TerminalReporter() as reporter:
        reporter.phase("measure learned", 0, len(points))
        for index, point in enumerate(points):
            learned.network.load_state_dict(weights)
            measured = program.evaluator.measure(learned.network, learned.method, point)
            rows.append(result_row(program, measured, experiment, str(run.absolute())))
            reporter.advance(
                "measure learned", index + 1, len(points), {"accuracy": measured.test.accuracy}
            )
    write_rows(results, keep_latencies(results, rows))
    everything = load_rows(results)
    show_results(everything[everything["trial"] == learned.config.name], run, results)
