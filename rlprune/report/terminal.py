"""The summary table for the terminal."""

from __future__ import annotations

import pandas as pd
from rich.table import Table

from rlprune.results.table import summary_table

_FORMATS = {
    "R_r": "{:g}",
    "s": "{:g}",
    "test accuracy [%]": "{:.1f}",
    "MACs ratio (mean)": "{:.3f}",
    "max MACs / budget": "{:.3f}",
    "storage bytes": "{:,.0f}",
    "storage ratio": "{:.3f}",
}


def rich_table(df: pd.DataFrame, title: str | None = None) -> Table:
    """``rlprune.results.summary_table`` of the rows, formatted; the learned rows are bold.

    Args:
        df: rows as ``rlprune.results.load_rows`` gives them.
        title: above the table, None for none.
    """
    summary = summary_table(df)
    table = Table(title=title)
    for name in summary.columns:
        table.add_column(name, justify="right" if name in _FORMATS else "left")
    for record in summary.to_dict("records"):
        cells = [_cell(str(name), value) for name, value in record.items()]
        table.add_row(*cells, style="bold" if record["method"] == "learned" else None)
    return table


def _cell(column: str, value: object) -> str:
    if pd.isna(value):  # type: ignore[call-overload]
        return "-"
    if column == "budget met":
        return {"yes": "[green]yes[/]", "no": "[red]no[/]"}.get(str(value), str(value))
    return _FORMATS.get(column, "{}").format(value)
