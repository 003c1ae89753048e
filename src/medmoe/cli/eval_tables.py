"""What `medmoe eval` prints: a bar while it asks, then scores, controls and the paper's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from medmoe.cli.parser import FOOTER
from medmoe.cli.reliability_tables import reliability_tables
from medmoe.cli.tables import plain_table, width_of
from medmoe.evaluation.pages.report_rows import interval, percent, place, results
from medmoe.evaluation.pages.run_report import paper_section
from medmoe.evaluation.pages.sections.pairs import named
from medmoe.evaluation.pairs.rewriting import PAIRINGS

_MAIN = ("closed", "open", "all")
_ORDER = ("label_score", "strict", "reference", "llava_med", "token_f1")


class Bar:
    """A bar on the terminal's error stream, one line for each task and control."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._lines: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def update(self, name: str, done: int, total: int) -> None:
        """Show how many questions are answered."""
        if name not in self._lines:
            self._lines[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._lines[name], completed=done)


def show(summary: Mapping[str, Any], out: Path) -> None:
    """Print everything that `eval` found."""
    console = Console()
    width = width_of(console)
    scores = summary["scores"]
    for task in dict.fromkeys((row["task"], row["split"]) for row in scores):
        own = [row for row in scores if (row["task"], row["split"]) == task]
        console.print(_scores(place(*task), own), width=width)
        controls = [row for row in own if row["control"] is not None]
        if controls:
            console.print(_controls(own, controls), width=width)
        _trusted(console, width, summary, *task)
        _pairs(console, width, summary, *task)
    _paper(console, width, scores)
    found = results(scores)
    for line in (*found.baseline_sentences, *summary["notes"]):
        console.print(f"  - {line}", highlight=False, markup=False, soft_wrap=True)
    print(f"asked {summary['asked']} questions; answers, scores and report.html in {out}")
    print(FOOTER)


def _scores(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = plain_table(
        f"{name}; percent, 95 % interval by image",
        ("protocol", "subset", "metric"),
        ("value", "interval", "n", "constant", "question\nonly"),
    )
    main = [row for row in rows if row["control"] is None and row["subset"] in _MAIN]
    before = None
    for row in sorted(main, key=lambda row: _ORDER.index(row["protocol"])):
        table.add_row(
            "" if row["protocol"] == before else row["protocol"],
            row["subset"],
            row["metric"],
            percent(row["value"]),
            interval(row),
            str(row["n"]),
            percent(row["constant_baseline"]),
            percent(row["question_only_baseline"]),
        )
        before = row["protocol"]
    return table


def _controls(rows: Sequence[Mapping[str, Any]], controls: Sequence[Mapping[str, Any]]) -> Table:
    """Return the headline scores without their pictures, beside those with them."""
    table = plain_table(
        "with other pictures", ("control", "subset", "metric"), ("value", "interval", "with image")
    )
    keys = ("subset", "protocol", "metric")
    full = {tuple(row[key] for key in keys): row for row in rows if row["control"] is None}
    for row in controls:
        if row["subset"] in _MAIN and row["protocol"] in ("strict", "label_score"):
            own = full.get(tuple(row[key] for key in keys), {})
            table.add_row(
                row["control"],
                row["subset"],
                row["metric"],
                percent(row["value"]),
                interval(row),
                percent(own.get("value")),
            )
    return table


def _trusted(
    console: Console, width: int, summary: Mapping[str, Any], task: str, split: str
) -> None:
    """Print calibration and abstention where a split to choose them on was asked."""
    found = summary["reliability"].get(task, {})
    if any("after" in entry for entry in found.values()):
        for table in reliability_tables(place(task, split), found):
            console.print(table, width=width)


def _pairs(console: Console, width: int, summary: Mapping[str, Any], task: str, split: str) -> None:
    """Print how often the answers to a question and to the same in other words agree."""
    own = [entry for entry in summary.get("pairs", ()) if entry["task"] == task and entry["of"]]
    if not own:
        return
    table = plain_table(
        "the same in other words: answers that agree, and pairs that are right",
        ("pair", "must be"),
        ("n", "of", "agree", "interval", "both right"),
    )
    for entry in own:
        metric, words = PAIRINGS[entry["pair"]].must
        agree, right = (entry["scores"].get(name, {}) for name in (metric, "both_right"))
        table.add_row(
            named(entry["pair"]),
            words,
            str(entry["n"]),
            str(entry["of"]),
            percent(agree.get("value")),
            interval(agree),
            percent(right.get("value")),
        )
    console.print(table, width=width)


def _paper(console: Console, width: int, scores: Sequence[Mapping[str, Any]]) -> None:
    lead = str(scores[0]["system"])
    section = paper_section(scores, lead)
    for found in section.tables if section else ():
        table = plain_table("the paper's figures (no interval, no n)", (), ())
        for i, column in enumerate(found.columns):
            table.add_column(column, justify="left" if i < found.text_columns else "right")
        for row in found.rows:
            table.add_row(*row)
        console.print(table, width=width)
