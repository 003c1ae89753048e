"""One self-contained ``report.html``: what a run learned, how well, and which expert did what.

It opens offline in any browser and prints well: no script, font, style or image from elsewhere
(long tables are sorted and filtered by a few lines of our own, and read as well without them);
figures are inline SVG (the paper's figures 4 and 5 among them), pictures are data URIs. It draws no
conclusion that the intervals do not bear, and it computes no score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmoe.evaluation.pages.page import Picture, render_page
from medmoe.evaluation.pages.report_rows import interval, results
from medmoe.evaluation.pages.sections.router import router_lines
from medmoe.evaluation.pages.table import Table
from medmoe.files import write_text
from medmoe.numbers import count
from medmoe.routing import figures
from medmoe.routing.figure_style import Drawing

PHASES = {
    "phase0": "phase 0, backbones",
    "phase1": "phase 1, alignment",
    "phase2": "phase 2, instruction tuning",
    "router": "router",
    "phase3": "phase 3, MoE tuning",
    "phase4": "phase 4, one expert more",
    "sft": "SFT, the comparison",
    "eval": "evaluation",
}


@dataclass(frozen=True)
class Example:
    """One answered question.

    Attributes:
        picture: PNG bytes, or pixels (H, W) or (H, W, 3), uint8.
        domain: The domain that the router chose for the picture.
        domain_probability: Its probability, 0 to 1.
    """

    picture: Picture
    question: str
    prediction: str
    truth: str
    correct: bool
    confidence: float | None = None
    domain: str | None = None
    domain_probability: float | None = None


@dataclass(frozen=True)
class Figure:
    """A figure of a section: one SVG element that our own code drew, with what it shows."""

    caption: str
    svg: str


@dataclass(frozen=True)
class Section:
    """A part of the report that another module adds: calibration, routing, what the paper has.

    Attributes:
        id: Its anchor, unique on the page.
        paragraphs: Sentences; text in backticks is shown as code.
    """

    id: str
    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()


@dataclass(frozen=True)
class ReportData:
    """What the report shows; empty parts are left out of it.

    Attributes:
        summary: The object of ``summary.json``.
        curves: Phase → (step, loss) points.
        validation: Phase → (step, validation loss) points.
        strict: Phase → (step, strict score in percent) points of the validation.
        experts: Which expert got a modality's tokens, a figure for each.
        sections: Further parts, shown before the examples.
        notes: Sentences on this run, shown under the headline.
        next_steps: What to try next; text in backticks is shown as code.
    """

    title: str
    summary: Mapping[str, Any]
    curves: Mapping[str, list[tuple[int, float]]] = field(default_factory=dict)
    validation: Mapping[str, list[tuple[int, float]]] = field(default_factory=dict)
    strict: Mapping[str, list[tuple[int, float]]] = field(default_factory=dict)
    experts: Sequence[Drawing] = ()
    examples: list[Example] = field(default_factory=list)
    sections: Sequence[Section] = ()
    notes: list[str] = field(default_factory=list)
    next_steps: list[str] = field(default_factory=list)


def write_report(path: Path, data: ReportData) -> None:
    """Write the report, whole or not at all; equal data give equal bytes.

    Raises:
        MedMoeError: The file cannot be written, as `write_text` says.
    """
    write_text(path, render_report(data))


def render_report(data: ReportData) -> str:
    """Return the report as HTML."""
    summary = data.summary
    router = summary.get("router") or {}
    return render_page(
        "report",
        title=data.title,
        data=data,
        summary=summary,
        results=results(summary.get("scores", []), summary.get("comparisons", [])),
        facts=_facts(summary),
        times=_times(summary.get("seconds") or {}),
        router=router if router.get("n") else None,
        router_interval=interval(router),
        router_lines=router_lines(router),
        curves=[
            figures.learning_curve(
                name, points, data.validation.get(name, ()), data.strict.get(name, ())
            )
            for name, points in data.curves.items()
        ],
        confusion=figures.confusion_matrix(router["confusion"], router["domains"])
        if "confusion" in router
        else None,
    )


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the name and value of what identifies the run."""
    parameters = summary.get("parameters") or {}
    facts = [("data", summary.get("data")), ("seed", summary.get("seed"))]
    facts += [
        (f"parameters {kind}", count(parameters[kind]))
        for kind in ("total", "activated")
        if parameters.get(kind) is not None
    ]
    facts += [("commit", summary.get("commit")), ("config SHA-256", summary.get("config_sha256"))]
    return [(name, str(value)) for name, value in facts if value is not None]


def _times(seconds: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """Return each phase's name, its time in words and its share of the whole in percent."""
    whole = sum(seconds.values())
    rows = [
        (PHASES.get(name, name), _minutes(value), 100 * value / whole if whole else 0.0)
        for name, value in seconds.items()
    ]
    return [*rows, ("all", _minutes(whole), 100.0)] if rows else []


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{seconds:.1f} s"
