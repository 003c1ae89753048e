"""What a row of a repeated table says: its verdict beside the paper's figure, and its cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medmoe.evaluation.pages.report_rows import share_cell
from medmoe.evaluation.pages.table import Table
from medmoe.numbers import NONE

_NO_FIGURE = "the paper gives no figure"
Row = dict[str, Any]


def table_of(result: Mapping[str, Any]) -> Table:
    """Return a result as a table."""
    rows = [
        (
            f"{row['family']}: {row['what']}",
            row["verdict"],
            _text(row["paper"]) + (f" to {_text(row['highest'])}" if row.get("highest") else ""),
            _text(row["value"])
            + (f" ({_text(row['low'])} to {_text(row['high'])})" if "low" in row else ""),
            _text(row.get("difference")),
            _text(row.get("n")),
            share_cell(row),
        )
        for row in result["rows"]
    ]
    columns = ("", "verdict", "paper", "ours", "difference", "n", "picture's share")
    title = f"{result['name']} ({result['size']}): {result['title']}"
    return Table(columns, rows, title, text_columns=2, notes=list(filter(None, [result["note"]])))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}".replace("-", "−")
    return NONE if value is None else str(value)


def score_verdict(paper: float | None, value: float, high: float | None) -> str:
    """Say whether a score is as high as the paper's; below it the interval may hold the paper's."""
    if paper is None or value >= paper:
        return _NO_FIGURE if paper is None else "reproduced"
    return "not reproduced" if high is None or high < paper else "inside the noise"


def gain_verdict(least: float | None, low: float | None, high: float | None) -> str:
    """Say whether a gain is there; it is absent where it must be below the paper's smallest."""
    if least is None or low is None or high is None:
        return _NO_FIGURE if least is None else "inside the noise"
    return "reproduced" if low > 0 else "not reproduced" if high < least else "inside the noise"


def judged(what: str, verdict: str, paper: Any = None, value: Any = None, **more: Any) -> Row:
    """Return a row; an empty verdict is that of a score beside the paper's."""
    row = {"what": what, "verdict": verdict, "paper": paper, "value": value, **more}
    if isinstance(paper, float) and isinstance(value, float):
        row["difference"] = value - paper
    return row if verdict else row | {"verdict": score_verdict(paper, value, more.get("high"))}
