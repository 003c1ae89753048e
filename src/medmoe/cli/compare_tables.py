"""What `medmoe compare` prints: differences with intervals, wins and losses, the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from medmoe.cli.parser import FOOTER
from medmoe.cli.tables import plain_table, width_of
from medmoe.evaluation.compare import Comparison
from medmoe.evaluation.pages.compare_page import sentences, verdict
from medmoe.evaluation.pages.page import percent, points


def show(names: tuple[str, str], found: Sequence[Comparison], notes: Sequence[str]) -> None:
    """Print everything that `compare` found."""
    console = Console()
    width = width_of(console)
    for letter, name in zip("AB", names, strict=True):
        console.print(f"{letter}: {name}", highlight=False, markup=False, soft_wrap=True)
    differences = [row for comparison in found for row in comparison.differences]
    for comparison in found:
        console.print(_differences(comparison), width=width)
        console.print(_wins(comparison), width=width)
    lines = [verdict(differences), *(f"  - {line}" for line in (*sentences(differences), *notes))]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(FOOTER, highlight=False)


def _title(comparison: Comparison, text: str) -> str:
    name = comparison.differences[0].name
    return f"{name}: {text}" if name else text


def _differences(comparison: Comparison) -> Table:
    first = comparison.differences[0]
    table = plain_table(
        _title(comparison, "strict, percent; B − A with 95 % interval by image"),
        ("subset", "metric"),
        ("A", "B", "B − A", "interval", "p", "n"),
    )
    for row in comparison.differences:
        table.add_row(
            row.subset,
            row.metric,
            percent(row.a),
            percent(row.b),
            points(row.difference),
            "–" if row.low is None else f"{points(row.low)} to {points(row.high)}",
            "–" if row.p is None else f"{row.p:.2g}",
            str(row.n),
        )
    if len(first.a_runs) > 1 or len(first.b_runs) > 1:
        table.caption = "; ".join(
            f"{row.subset} {side} by run: {', '.join(percent(v) for v in values)}"
            for row in comparison.differences
            if row.decides
            for side, values in (("A", row.a_runs), ("B", row.b_runs))
        )
    return table


def _wins(comparison: Comparison) -> Table:
    title = _title(comparison, "questions answered right")
    table = plain_table(title, ("subset",), ("both", "only A", "only B", "neither", "n"))
    for row in comparison.wins:
        counts = (row.both_right, row.only_a, row.only_b, row.both_wrong, row.n)
        table.add_row(row.subset, *map(str, counts))
    return table
