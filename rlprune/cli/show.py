"""What the commands show: progress, tables, where things are."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from rlprune.errors import ConfigError, Problem
from rlprune.presets import preset_names, preset_path, sweep_names
from rlprune.report.figures import tradeoff_figure
from rlprune.report.terminal import rich_table
from rlprune.results import COLUMNS
from rlprune.settings_reference import settings
from rlprune.training.progress import Reporter
from rlprune.training.session import RunFolder

_TITLES = {
    "pretrain": "Pretrain the backbone",
    "runtime_importance": "Train the runtime importance",
    "static_importance": "Free the static importance",
    "agents": "Train the agents (PPO updates)",
    "finetune": "Fine-tune under the agents",
}
_SHOWN = {
    "loss": "loss {:.3f}",
    "accuracy": "accuracy {:.3f}",
    "reward_runtime": "reward runtime {:.3f}",
    "reward_static": "static {:.3f}",
    "macs_ratio": "MACs {:.2f}",
    "storage_ratio": "storage {:.2f}",
    "price": "price {:.2f}",
    "best": "best {:.3f}",
}


class TerminalReporter(Reporter):
    """One bar per phase with its numbers and the time left; plain lines where no terminal is."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._live = self.console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}", justify="left"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[values]}"),
            console=self.console,
            disable=not self._live,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}

    def __enter__(self) -> TerminalReporter:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def phase(self, name: str, done: int, total: int) -> None:
        """Shows the phase's bar."""
        title = _TITLES.get(name, name.capitalize())
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(title, total=total, values="")
            self._started[name] = time.monotonic()
        self._progress.update(self._tasks[name], completed=done, total=total)

    def advance(self, name: str, done: int, total: int, values: dict[str, float]) -> None:
        """Moves the bar; prints one line at a phase's end where there is no terminal."""
        if name not in self._tasks:
            self.phase(name, 0, total)
        text = "  ".join(
            template.format(values[key]) for key, template in _SHOWN.items() if key in values
        )
        self._progress.update(self._tasks[name], completed=done, total=total, values=text)
        if not self._live and done >= total:
            seconds = time.monotonic() - self._started[name]
            title = _TITLES.get(name, name.capitalize())
            self.console.print(
                f"{title}: {done}/{total}, {seconds:.0f} s. {escape(text)}", highlight=False
            )

    def note(self, text: str) -> None:
        """Prints a line above the bars."""
        self._progress.console.print(escape(text), highlight=False)


def show_results(rows: pd.DataFrame, out: Path, results: Path | None = None) -> None:
    """Prints the table and where pictures, rows and checkpoints are.

    Args:
        rows: of one run.
        out: its folder.
        results: where the rows lie; None: in the run's folder.
    """
    folder = RunFolder(out)
    pictures = [tradeoff_figure(rows, out / "tradeoff.png")]
    if folder.training_picture.exists():
        pictures.append(folder.training_picture)
    console = Console(width=None if sys.stdout.isatty() else 120)
    first = rows.iloc[0]
    console.print(rich_table(rows, f"{first['backbone']} on {first['dataset']}, test images"))
    console.print(
        ("Budgets hold for every test image. " if rows["budgets_met"].all() else "")
        + "R_r = 1: all channels stay stored and each image "
        "picks its own; R_r = 0: the same smaller network for every image."
    )
    console.print(f"Pictures:    {', '.join(map(str, pictures))}", soft_wrap=True)
    console.print(
        f"Rows:        pandas.read_parquet({str(results or folder.results)!r})", soft_wrap=True
    )
    console.print(
        f"TensorBoard: pip install tensorboard; tensorboard --logdir {out / 'tensorboard'}",
        soft_wrap=True,
    )


def list_presets() -> None:
    """One line per preset, trials and sweeps apart: name and purpose (its first comment)."""
    console = Console()
    for kind, names in (("trial", preset_names()), ("sweep", sweep_names())):
        table = Table(kind, "purpose")
        for name in names:
            first = preset_path(name).read_text(encoding="utf-8").splitlines()[0]
            table.add_row(name, escape(first.removeprefix("#").strip()))
        console.print(table)


def print_settings(words: Sequence[str]) -> None:
    """Settings with one of the words in name, values or meaning, in any case; all without words.

    Raises:
        ConfigError: no setting has any of them.
    """
    found = [
        setting
        for setting in settings()
        if not words
        or any(
            w.lower() in f"{setting.name} {setting.values} {setting.meaning}".lower() for w in words
        )
    ]
    if not found:
        remedy = "Leave the words out: `rlprune settings` lists all."
        raise ConfigError([Problem("WORDS", "no setting has any", " ".join(words), remedy)])
    table = Table(show_lines=True)
    table.add_column("setting", no_wrap=True)
    table.add_column("values", max_width=28)
    table.add_column("default", max_width=14)
    table.add_column("meaning")
    for setting in found:
        cells = (setting.name, setting.values, setting.default, setting.meaning)
        table.add_row(*map(escape, cells))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def print_schema() -> None:
    """The columns of result rows."""
    table = Table("column", "type", "unit", "meaning")
    for column in COLUMNS:
        table.add_row(column.name, str(column.type), column.unit, escape(column.meaning))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
