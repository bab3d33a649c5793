"""A sweep in the terminal: states, best so far, front, time left."""

from __future__ import annotations

import time
from types import TracebackType

import pandas as pd
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from rlprune.errors import ResultsError
from rlprune.results import load
from rlprune.results.pareto import pareto_front
from rlprune.sweep import layout
from rlprune.sweep import status as states
from rlprune.sweep.status import SweepStatus, TrialState

_STYLES = {
    states.RUNNING: "cyan",
    states.FINISHED: "green",
    states.STOPPED: "yellow",
    states.FAILED: "red",
    states.INTERRUPTED: "yellow",
    states.PENDING: "dim",
}
_REDRAW_SECONDS = 0.5
_LINE_SECONDS = 30.0
_SHOWN_RUNNING = 8


def duration(seconds: float) -> str:
    """Seconds as "42 s", "3 min 5 s", "2 h 7 min" or "3 d 4 h"."""
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def state_counts(status: SweepStatus) -> Text:
    """How many trials are in each state; only states that occur, for example "3 running"."""
    text = Text()
    for state, count in status.counts().items():
        if count:
            text.append(", " if text else "")
            text.append(f"{count} {state}", style=_STYLES[state])
    return text


def trial_progress(trial: TrialState) -> str:
    """For example "unit 4/13, static_l1"; empty before the trial's first unit."""
    return f"unit {trial.unit}/{trial.units}, {trial.phase}" if trial.units else ""


class SweepView:
    """Shows a running sweep: a live view on a terminal, a line now and then elsewhere."""

    def __init__(self, uri: str) -> None:
        self.console = Console(stderr=True)
        self._uri = uri
        self._live = Live(console=self.console, transient=True, auto_refresh=False)
        self._started = time.monotonic()
        self._done_at_start: float | None = None
        self._next = 0.0
        self._told: dict[str, str] = {}
        self._announced = False

    def __enter__(self) -> SweepView:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def __call__(self, status: SweepStatus) -> None:
        """Shows the state; cheap when called often."""
        if not self._announced:
            self._announced = True
            text = f"Experiment {self._uri}; watch it with: rlprune status {self._uri}"
            self.console.print(text, soft_wrap=True, highlight=False)
            # What a resumed sweep had done before is no news.
            self._told = {trial.name: trial.state for trial in status.trials.values()}
        self._tell_changes(status)
        now = time.monotonic()
        if now < self._next:
            return
        if self.console.is_terminal:
            self._next = now + _REDRAW_SECONDS
            self._live.update(self._picture(status), refresh=True)
        else:
            self._next = now + _LINE_SECONDS
            self.console.print(state_counts(status), self._left(status), highlight=False)

    def _tell_changes(self, status: SweepStatus) -> None:
        """One line when a trial ends or fails."""
        for trial in status.trials.values():
            before = self._told.get(trial.name, states.PENDING)
            if trial.state == before:
                continue
            self._told[trial.name] = trial.state
            again = (before, trial.state) == (states.RUNNING, states.PENDING)
            if not again and trial.state not in (*states.OVER, states.FAILED):
                continue
            failed = again or trial.state == states.FAILED
            style = _STYLES[states.FAILED if failed else trial.state]
            word = "failed, will be tried again" if again else trial.state
            detail = f": {trial.reason}" if failed else _accuracy(trial)
            self.console.print(
                f"[{style}]{word:>9}[/]  {escape(trial.name)}{escape(detail)}",
                soft_wrap=True,
                highlight=False,
            )

    def _picture(self, status: SweepStatus) -> Group:
        progress = Progress(
            TextColumn("Sweep"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn(self._left(status)),
        )
        progress.add_task("", total=1000, completed=round(1000 * _done(status)))
        running = Table.grid(padding=(0, 2))
        shown = status.in_state(states.RUNNING)
        for trial in shown[:_SHOWN_RUNNING]:
            running.add_row("", escape(trial.name), trial_progress(trial), _accuracy(trial)[2:])
        if len(shown) > _SHOWN_RUNNING:
            running.add_row("", f"and {len(shown) - _SHOWN_RUNNING} more")
        return Group(progress, state_counts(status), running, _best_so_far(status))

    def _left(self, status: SweepStatus) -> str:
        done = _done(status)
        if self._done_at_start is None:
            self._done_at_start = done
        elapsed, gained = time.monotonic() - self._started, done - self._done_at_start
        if gained < 0.02:
            return f"after {duration(elapsed)}"
        return f"after {duration(elapsed)}, about {duration(elapsed * (1 - done) / gained)} left"


def _done(status: SweepStatus) -> float:
    """Fraction of all units that are done; trials that are over count whole."""
    if not status.total:
        return 0.0
    done = 0.0
    for trial in status.trials.values():
        if trial.state in (*states.OVER, states.FAILED):
            done += 1.0
        elif trial.units:
            done += trial.unit / trial.units
    return min(1.0, done / status.total)


def _accuracy(trial: TrialState) -> str:
    value = trial.metrics.get("validation_accuracy")
    return "" if value is None else f", validation accuracy {100 * value:.1f} %"


def _best_so_far(status: SweepStatus) -> Text:
    """The most accurate learned policy, and how many lie on the front."""
    known = [t for t in status.trials.values() if "validation_accuracy" in t.metrics]
    if not known:
        return Text("No policy measured yet.", style="dim")
    frame = pd.DataFrame([trial.metrics for trial in known])
    best = known[int(frame["validation_accuracy"].argmax())]
    front = pareto_front(frame, maximize=["validation_accuracy"], minimize=["storage_bytes"])
    return Text(
        f"Best so far (validation): {100 * best.metrics['validation_accuracy']:.1f} % with "
        f"{best.metrics['storage_bytes']:,.0f} bytes, {best.name}. "
        f"Front of accuracy and storage: {len(front)} of {len(known)} trials."
    )


def status_table(status: SweepStatus, uri: str) -> Table:
    """Every trial: state, progress, best learned row on validation, age of the last news."""
    table = Table()
    table.add_column("trial", overflow="fold")
    for title in ("state", "progress", "best row (by validation)", "last news"):
        table.add_column(title)
    best = _best_rows(uri)
    now = time.time()
    for trial in status.trials.values():
        state = trial.state
        if state == states.RUNNING and (status.silent or not status.running):
            state = states.INTERRUPTED
        age = f"{duration(now - trial.updated)} ago" if trial.updated else "-"
        table.add_row(
            escape(trial.name),
            Text(state, style=_STYLES[state]),
            trial_progress(trial),
            best.get(trial.name, "-"),
            age,
        )
    return table


def _best_rows(uri: str) -> dict[str, str]:
    """Per trial: its learned row with the best validation accuracy, in words."""
    columns = ["trial", "method", "tradeoff_rate", "validation_accuracy", "storage_bytes"]
    try:
        rows = load(uri, columns=columns, skip_bad=True)
    except ResultsError:
        return {}
    rows = rows[rows["method"] == "learned"]
    if rows.empty:
        return {}
    rows = rows.sort_values("validation_accuracy", kind="stable").drop_duplicates(
        "trial", keep="last"
    )
    return {
        str(row["trial"]): f"{100 * row['validation_accuracy']:.1f} %, "
        f"{row['storage_bytes']:,.0f} bytes, R_r {row['tradeoff_rate']:g}"
        for row in rows.to_dict("records")
    }


def failure_table(failed: list[TrialState], uri: str) -> Table:
    """Which trials failed, why, and where the log is."""
    table = Table(title="Failed trials", caption=f"Logs lie below {uri}")
    table.add_column("failed trial", overflow="fold")
    table.add_column("why", overflow="fold")
    table.add_column("log", overflow="fold")
    for trial in failed:
        log = layout.error("", trial.name)  # below the folder that the caption names
        table.add_row(escape(trial.name), escape(trial.reason), escape(log))
    return table
