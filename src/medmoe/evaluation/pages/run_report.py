"""The report of any run from what stands in its folder: summary, curves, answers, circumstances.

A run of another verb, of an older version, or one that was stopped has less; what is missing is
left out of the page. The demonstration adds its routing pictures itself (`medmoe.experiments`);
other modules add sections.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmoe.config.schema import PHASES
from medmoe.data.schema import Record
from medmoe.errors import DataError
from medmoe.evaluation.files.json_lines import read_rows
from medmoe.evaluation.files.known_records import picture_of, with_question
from medmoe.evaluation.files.predictions import Prediction, pair, read_predictions
from medmoe.evaluation.files.run_files import read_side
from medmoe.evaluation.files.truth import own_truth
from medmoe.evaluation.pages.report import Example, ReportData, Section
from medmoe.evaluation.pages.sections.corruptions import corruptions_section
from medmoe.evaluation.pages.sections.failures import Answered, failures_section
from medmoe.evaluation.pages.sections.judge import judge_section
from medmoe.evaluation.pages.sections.pairs import pairs_section
from medmoe.evaluation.pages.sections.paper import paper_section
from medmoe.evaluation.pages.sections.reliability import reliability_section
from medmoe.evaluation.score.measures import is_right
from medmoe.files import json_object

EXAMPLES_PER_TASK = 6


def report_of_run(
    folder: Path,
    *,
    title: str | None = None,
    records: Sequence[Record] = (),
) -> ReportData:
    """Return what the report of a run shows.

    Args:
        folder: A run folder with ``summary.json``; ``metrics.jsonl``, its own or its phases', and
            predictions if they exist.
        title: The page's heading; by default the run's data and the folder's name.
        records: Those that were asked, for the questions and pictures of the examples.

    Raises:
        DataError: There is no summary, or a file of the run cannot be read.
    """
    summary = _summary(folder)
    known = {record.id: record for record in records}
    answered = _answered(folder, known)
    reports = {row["task"] for row in summary.get("scores", []) if row["protocol"] == "report"}
    wrong = failures_section({t: of for t, of in answered.items() if t not in reports})
    return ReportData(
        title=title or f"{summary.get('data', 'Run')}: {folder.resolve().name}",
        summary=summary,
        curves=_points(folder, "loss"),
        validation=_points(folder, "validation_loss"),
        strict=_points(folder, "strict_score"),
        sections=sections_of(summary, wrong),
        examples=_examples(answered, known, int(summary.get("seed") or 0)),
        notes=[str(note) for note in summary.get("notes", [])],
    )


def sections_of(summary: Mapping[str, Any], *first: Section | None) -> list[Section]:
    """Return the parts of a report that a summary has something for, in their order."""
    sections = (
        *first, reliability_section(summary), corruptions_section(summary), pairs_section(summary),
        judge_section(summary), paper_section(summary.get("scores", [])),
    )  # fmt: skip
    return [section for section in sections if section is not None]


def _summary(folder: Path) -> dict[str, Any]:
    summary = json_object(folder / "summary.json")
    if summary is None:
        raise DataError(
            f"{folder / 'summary.json'} cannot be read as a JSON object; give the folder of a run "
            "that has ended"
        )
    return summary


def _points(folder: Path, key: str) -> dict[str, list[tuple[int, float]]]:
    """Return by phase the (step, value) of a key of the run's metrics, or those of its phases."""
    points: dict[str, list[tuple[int, float]]] = {}
    for path in [folder / "metrics.jsonl", *(folder / name / "metrics.jsonl" for name in PHASES)]:
        for _, row in read_rows(path, "metrics") if path.is_file() else ():
            if "phase" in row and "step" in row and row.get(key) is not None:
                points.setdefault(str(row["phase"]), []).append((int(row["step"]), float(row[key])))
    return points


def _answered(folder: Path, known: Mapping[str, Record]) -> Answered:
    """Return the leading system's answers by task, with their questions where these are known."""
    try:
        files = read_side(str(folder)).runs[0]
    except DataError:  # a run without answers
        return {}
    lead = {n.removeprefix("moe-"): p for n, p in files.items() if not n.startswith("sft-")}
    read = {name: pair(own_truth(path), read_predictions(path)) for name, path in lead.items()}
    return {name: [(with_question(r, known), p) for r, p in of] for name, of in read.items()}


def _examples(answered: Answered, known: Mapping[str, Record], seed: int) -> list[Example]:
    """Return some answered questions of each task, drawn by the seed alone."""
    chosen: list[tuple[Record, Prediction]] = []
    rng = random.Random(seed)
    for pairs in answered.values():
        chosen += rng.sample(pairs, min(EXAMPLES_PER_TASK, len(pairs)))
    examples = []
    for record, prediction in chosen:
        routing = prediction.routing or {}
        if (picture := picture_of(record, known, None)) is not None:
            examples.append(
                Example(
                    picture=picture,
                    question=record.question,
                    prediction=prediction.text,
                    truth=record.answer,
                    correct=is_right(record, prediction),
                    confidence=prediction.confidence,
                    domain=routing.get("domain"),
                    domain_probability=routing.get("domain_probability"),
                )
            )
    return examples
