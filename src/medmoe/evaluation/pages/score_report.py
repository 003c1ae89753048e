"""What `medmoe score` shows: any model's answers as the scores of a run, on a page as any run's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmoe.evaluation.pages.report import ReportData, write_report
from medmoe.evaluation.pages.sections.paper import paper_section
from medmoe.evaluation.pages.sections.reliability import reliability_section
from medmoe.evaluation.score.rows import ScoreRow


def score_summary(results: Sequence[Mapping[str, Any]], rows: Sequence[ScoreRow]) -> dict[str, Any]:
    """Return what several prediction files score as the ``summary.json`` of a run has it.

    Args:
        results: What ``score --json`` holds of each file.
        rows: The score rows of all, one system beside the other.
    """
    return {
        "data": ", ".join(dict.fromkeys(str(result["truth"]) for result in results)),
        "seed": results[0]["seed"],
        "scores": [row.to_dict() for row in rows],
        "reliability": {
            str(result["predictions"]): result["reliability"]
            for result in results
            if "reliability" in result
        },
        "notes": _notes(results),
    }


def write_score_report(
    path: Path, results: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> None:
    """Write the page of a `score_summary`, as `write_report` does."""
    sections = (reliability_section(summary), paper_section(summary["scores"]))
    data = ReportData(
        title=f"Scores of {', '.join(str(result['predictions']) for result in results)}",
        summary=summary,
        sections=[section for section in sections if section is not None],
        notes=[note[0].upper() + note[1:] + "." for note in summary["notes"]],
    )
    write_report(path, data)


def _notes(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return each note once; one that is not of every file names those that it is of."""
    of: dict[str, list[str]] = {}
    for result in results:
        for note in result["notes"]:
            of.setdefault(note, []).append(str(result["predictions"]))
    return [
        note if len(names) == len(results) else f"{', '.join(names)}: {note}"
        for note, names in of.items()
    ]
