"""Tables in the terminal: ruled under their head, readable in 80 columns and in a log."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from medmoe.cli.table_formats import take
from medmoe.evaluation.pages.table import Table

if TYPE_CHECKING:
    from typing import Any

LOG_WIDTH = 80
#: Characters that a column of words has at least.
_LEAST_WORDS = 10


def draw_words(titles: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """Print a table of words, and of numbers on the right; a row of a log is one line.

    Args:
        rows: Of texts as they are, or with colours.
    """
    right = [
        number > 1 and all(str(row[number])[:1].isdigit() for row in rows)
        for number in range(len(titles))
    ]
    words = right.index(True) if any(right) else len(titles)
    if take(Table(titles, [[str(cell) for cell in row] for row in rows], "", words)):
        return
    drawn = RichTable(box=None, pad_edge=False)
    for title, number in zip(titles, right, strict=True):
        drawn.add_column(title, overflow="fold", justify="right" if number else "left")
    for row in rows:
        drawn.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = 1000
    console.print(drawn)


class Screen:
    """The terminal, or a log of `LOG_WIDTH` columns, as tables and sentences are printed to it."""

    def __init__(self) -> None:
        self._console = Console()
        self._is_terminal = self._console.is_terminal
        self._width = self._console.width if self._is_terminal else LOG_WIDTH

    def table(self, table: Table) -> None:
        """Print the same table that stands on a page, and its notes below it."""
        if take(table):
            return
        if not table.by_first:
            self.draw(table.title, table.columns, table.rows, table.text_columns)
        else:
            for name in dict.fromkeys(row[0] for row in table.rows):
                rows = [row[1:] for row in table.rows if row[0] == name]
                title = f"{table.title}: {name}" if table.title else name
                self.draw(title, table.columns[1:], rows, table.text_columns - 1)
        self.lines(table.notes)

    def draw(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1
    ) -> None:
        """Print rows whose first ``text`` columns are words and the others numbers.

        Numbers are never cut: where they leave no room for the words, a row is several lines.
        """
        if take(Table(columns, rows, title, text)):
            return
        natural = sum(max(map(len, cells)) + 2 for cells in zip(columns, *rows, strict=True))
        wide = natural > self._width
        # Brackets of numbers stand below them where room is short.
        rows = [
            [*row[:text], *(c.replace(" (", "\n(") if wide else c for c in row[text:])]
            for row in rows
        ]
        room = [
            max(len(part) for cell in (*name.split(), *cells) for part in cell.split("\n"))
            for name, *cells in zip(columns, *rows, strict=True)
        ]
        if text * _LEAST_WORDS + sum(room[text:]) + len(columns) > self._width:
            self._list(title, columns, rows, text)
            return
        drawn = RichTable(
            title=Text(title) if title else None,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 0 if wide else 1, 0, 0),
        )
        for name in columns[:text]:
            drawn.add_column(Text(name), overflow="fold")
        for name, width in zip(columns[text:], room[text:], strict=True):
            head = Text(textwrap.fill(name, width))
            drawn.add_column(head, justify="right", no_wrap=True, overflow="fold")
        for row in rows:
            drawn.add_row(*map(Text, row))
        self._console.print(drawn, width=self._width)
        self._console.print()

    def _list(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], text: int
    ) -> None:
        if title:
            self.line(title)
        for row in rows:
            self.line(", ".join(filter(None, row[:text])).strip())
            for name, cell in zip(columns[text:], row[text:], strict=True):
                self.line(f"  {name}: {cell.replace(chr(10), ' ')}")
        self._console.print()

    def line(self, text: str) -> None:
        """Print a sentence: broken at words in the terminal, whole in a log."""
        self._console.print(Text(text), soft_wrap=not self._is_terminal)

    def lines(self, texts: Iterable[str]) -> None:
        """Print sentences as a list."""
        for text in texts:
            self.line(f"  - {text}")

    def results(self, summary: Mapping[str, Any]) -> None:
        """Print what a ``summary.json`` says: scores, controls, confidences, pairs, the paper's.

        Systems stand side by side. What the scores do not show and the notes come last, once.
        """
        from medmoe.evaluation.pages import report_rows
        from medmoe.evaluation.pages.sections.judge import judge_section
        from medmoe.evaluation.pages.sections.pairs import pair_tables
        from medmoe.evaluation.pages.sections.paper import paper_section
        from medmoe.evaluation.pages.sections.reliability import reliability_tables

        scores = summary["scores"]
        found = report_rows.results(scores, summary.get("comparisons", ()))
        tables = [table for kind, table in found.tables.items() if kind != report_rows.BY_PART]
        tables += [found.controls] if found.controls else []
        for task, kept in (summary.get("reliability") or {}).items():
            tables += reliability_tables(task, kept)
        judged = judge_section(summary)
        tables += judged.tables[:1] if judged else ()
        tables += pair_tables(summary.get("pairs") or ())
        paper = paper_section(scores)
        tables += paper.tables if paper else ()
        for table in tables:
            self.table(table)
        self.lines(
            (*found.legend, *found.baseline_sentences, *found.share_sentences, *summary["notes"])
        )
