"""What `eval --calibrate` and `score --reliability` print of confidences: two tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from medmoe.cli.tables import plain_table
from medmoe.evaluation.pages.report_rows import percent
from medmoe.evaluation.pages.sections.reliability import aurc_text, temperature_text

Entries = Mapping[str, Mapping[str, Any]]  # kind of answer → what `reliability` says of it


def reliability_tables(name: str, found: Entries) -> Iterator[Table]:
    """Yield the tables of one task: calibration, then abstention where a threshold was chosen."""
    yield _calibration(name, found)
    if any("abstention" in entry for entry in found.values()):
        yield _abstention(name, found)


def _calibration(name: str, found: Entries) -> Table:
    table = plain_table(
        f"{name}: calibration; percent, 95 % interval by image",
        ("answers",),
        ("n", "right", "confidence", "ECE", "interval", "AURC", "T", "ECE at T"),
    )
    for kind, entry in found.items():
        after = entry.get("after", {})
        table.add_row(
            kind,
            str(entry["n"]),
            _share(entry["accuracy"]),
            _share(entry["mean_confidence"]),
            _share(entry["before"]["ece"]),
            _interval(entry["before"]),
            aurc_text(entry),
            temperature_text(entry.get("temperature")),
            _share(after.get("ece")),
        )
    return table


def _abstention(name: str, found: Entries) -> Table:
    table = plain_table(
        f"{name}: abstention; percent",
        ("answers",),
        ("images", "target", "threshold", "answered", "wrong", "by splits"),
    )
    for kind, entry in found.items():
        given = entry.get("abstention")
        if given is None:
            continue
        head = (kind, str(given["images"]), _share(given["target"]))
        if given["threshold"] is None:
            table.add_row(*head, "none will do", "–", "–", "–")
            continue
        table.add_row(
            *head,
            f"{min(given['threshold'], 1.0):.3f}",
            _share(given["coverage"]),
            _share(given["wrong"]),
            _share(given.get("wrong_by_splits")),
        )
    return table


def _interval(entry: Mapping[str, Any]) -> str:
    low, high = entry["ece_low"], entry["ece_high"]
    return "–" if low is None else f"{_share(low)}–{_share(high)}"


def _share(value: float | None) -> str:
    return percent(None if value is None else 100 * value)
