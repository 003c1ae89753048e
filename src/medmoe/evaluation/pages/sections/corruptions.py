"""The report's part on worse pictures: scores by corruption and severity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medmoe.evaluation.pages.report import Figure, Section
from medmoe.evaluation.pages.report_rows import value_cell
from medmoe.evaluation.pages.table import Table
from medmoe.numbers import percent
from medmoe.routing.figure_style import BLUE, GREY, ORANGE, panel, to_svg

_WORDS = (
    "The same questions about worse pictures: share of right answers (strict, or of the best "
    "label) in percent with 95 % interval by image, by severity, 1 mild to 5 strong, beside the "
    "picture as it is (0 in the figures). The last column is the share of the clean score that is "
    "lost on the mean over severities. The strengths are ours, after MedMNIST-C."
)


def corruptions_section(summary: Mapping[str, Any]) -> Section | None:
    """Return the part of the report, None where nothing was corrupted.

    Args:
        summary: The object of ``summary.json``; its ``corruptions`` are rows of `robustness_row`.
    """
    rows: Sequence[Mapping[str, Any]] = summary.get("corruptions") or ()
    kinds = list(dict.fromkeys((row["task"], row["kind"]) for row in rows))
    tables, figures = [], []
    for task, kind in kinds:
        mine = [row for row in rows if (row["task"], row["kind"]) == (task, kind)]
        clean = next(row for row in mine if row["corruption"] is None)
        by_name: dict[str, dict[int, Mapping[str, Any]]] = {}
        for row in mine:
            if row["corruption"] is not None:
                by_name.setdefault(row["corruption"], {})[row["severity"]] = row
        tables.append(_table(f"{task}, {kind} (n = {clean['n']})", clean, by_name))
        caption = f"{task}, {kind}: share right by severity, each corruption a line."
        figures.append(Figure(caption, _figure(f"{task}, {kind}", clean, by_name)))
    return Section("corruptions", "Worse pictures", (_WORDS,), tables, figures) if kinds else None


def _table(
    title: str, clean: Mapping[str, Any], by_name: Mapping[str, Mapping[int, Mapping[str, Any]]]
) -> Table:
    severities = sorted({severity for rows in by_name.values() for severity in rows})
    lines = []
    for name, rows in by_name.items():
        known = [rows[severity] for severity in severities if severity in rows]
        mean = float(np.mean([row["value"] for row in known]))
        lost = 100 * (1 - mean / clean["value"]) if clean["value"] else None
        cells = [
            value_cell(row) for row in (clean, *(rows.get(severity) for severity in severities))
        ]
        lines.append((name.replace("_", " "), *cells, percent(lost)))
    columns = ("Corruption", "clean", *(f"severity {s}" for s in severities), "lost")
    return Table(columns, lines, title)


def _figure(
    title: str, clean: Mapping[str, Any], by_name: Mapping[str, Mapping[int, Mapping[str, Any]]]
) -> str:
    dashes = ("-", "--", "-.", ":")
    lines = -(-len(by_name) // 2)
    with panel(2.6 + 0.17 * lines) as (figure, axes):
        for place, (name, rows) in enumerate(by_name.items()):
            points = [(0, clean["value"]), *((s, rows[s]["value"]) for s in sorted(rows))]
            axes.plot(
                *zip(*points, strict=True),
                color=(BLUE, ORANGE, GREY)[place % 3],
                linestyle=dashes[place // 3 % 4],
                marker="os^Dv*"[place % 6],
                markersize=4,
                clip_on=False,
                label=name.replace("_", " "),
            )
        severities = sorted({severity for rows in by_name.values() for severity in rows})
        axes.set(xlabel="severity", ylabel="% right", ylim=(0, 102), xticks=[0, *severities])
        figure.legend(loc="outside lower center", ncols=2)
        return to_svg(figure, f"Scores by severity of corruptions: {title}")
