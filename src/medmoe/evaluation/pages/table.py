"""The one table of pages and terminal: text that is ready to print, drawn by either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Begins a cell that a reader should not trust at sight; the table's notes say why.
FAILS = "▽ "


@dataclass(frozen=True)
class Table:
    """A table; the first ``text_columns`` are set left, the numbers after them right.

    Attributes:
        rows: One value per column, ready to print. A number with its interval reads ``91.6
            (88.9–94.1)``: the bracket may stand below it.
        notes: Sentences that stand below the table.
        by_first: Whether rows with the same first cell belong together: where there is little room
            each such group is a table of its own.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    text_columns: int = 1
    notes: Sequence[str] = ()
    by_first: bool = False
