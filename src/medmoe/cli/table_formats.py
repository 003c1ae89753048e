"""`--format`: the tables of a verb for a paper, a sheet or a script; all else goes to stderr."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medmoe.evaluation.pages.table import Table

#: Tables of the verb that runs, in order; None where they are drawn as text.
_taken: list[Table] | None = None
_LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"▽": r"$\triangledown$", "–": "--", "−": "$-$", "±": r"$\pm$", "×": r"$\times$"}
    | {"≥": r"$\geq$", "≤": r"$\leq$", "÷": r"$\div$", "→": r"$\to$", "…": r"\dots{}"}
)


@contextmanager
def tables_as(name: str) -> Iterator[None]:
    """Print tables in a format of `FORMATS`, at the end; what else is printed goes to stderr.

    After an error nothing is printed: half a file would be taken for a whole one.
    """
    global _taken
    taken: list[Table] = []
    _taken = taken
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _taken = None
    print(FORMATS[name](taken), end="")


def take(table: Table) -> bool:
    """Return whether a table is kept for the end, since a format was asked for."""
    if _taken is not None:
        _taken.append(table)
    return _taken is not None


def _markdown(tables: Sequence[Table]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.strip().replace("|", r"\|") for c in cells) + " |"

    blocks = []
    for table in tables:
        marks = [":--" if n < table.text_columns else "--:" for n in range(len(table.columns))]
        lines = [f"**{table.title}**", ""] if table.title else []
        lines += [line(table.columns), line(marks), *map(line, table.rows)]
        blocks.append(
            "\n".join([*lines, *([""] if table.notes else []), *(f"- {n}" for n in table.notes)])
        )
    return "\n\n".join(blocks) + "\n"


def _csv(tables: Sequence[Table]) -> str:
    """A blank line parts tables; a title is the one cell of the line above the head."""
    buffer = io.StringIO()
    write = csv.writer(buffer, lineterminator="\n")
    for number, table in enumerate(tables):
        if number:
            buffer.write("\n")
        if table.title:
            write.writerow([table.title])
        write.writerows([table.columns, *([c.strip() for c in row] for row in table.rows)])
    return buffer.getvalue()


def _latex(tables: Sequence[Table]) -> str:
    """Each is a `table` of the package booktabs; notes are comments."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cell.strip().translate(_LATEX) for cell in cells) + r" \\"

    blocks = []
    for table in tables:
        numbers = len(table.columns) - table.text_columns
        lines = [r"\begin{table}", r"\centering"]
        lines += [rf"\caption{{{table.title.translate(_LATEX)}}}"] if table.title else []
        lines += [rf"\begin{{tabular}}{{{'l' * table.text_columns}{'r' * numbers}}}", r"\toprule"]
        lines += [line(table.columns), r"\midrule", *map(line, table.rows), r"\bottomrule"]
        lines += [r"\end{tabular}", *(f"% {note}" for note in table.notes), r"\end{table}"]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _json(tables: Sequence[Table]) -> str:
    keys = ("title", "columns", "rows", "notes")
    rows = [{key: asdict(table)[key] for key in keys} for table in tables]
    return json.dumps({"version": 1, "tables": rows}, indent=1, ensure_ascii=False) + "\n"


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
    "json": _json,
}
