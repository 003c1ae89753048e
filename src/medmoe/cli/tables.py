"""The plain table that verbs print: ruled under its head, readable in 80 columns and in a log."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

LOG_WIDTH = 80


def plain_table(title: str, text: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    """Return an empty table: columns of text set left, then columns of numbers set right.

    Numbers are never broken over lines.
    """
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for name in text:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def width_of(console: Console) -> int:
    """Return the width to print tables in: that of the terminal, or `LOG_WIDTH` in a file."""
    return console.width if console.is_terminal else LOG_WIDTH
