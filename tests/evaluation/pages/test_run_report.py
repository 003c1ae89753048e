"""The report of any run, from what its folder holds, and sections that others add."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medmoe.data.phantom import read_phantom
from medmoe.errors import DataError
from medmoe.evaluation.ask.answers import AnswerFile
from medmoe.evaluation.files.predictions import Prediction
from medmoe.evaluation.pages.report import (
    Figure,
    ReportData,
    Section,
    render_report,
    write_report,
)
from medmoe.evaluation.pages.run_report import report_of_run
from medmoe.evaluation.pages.sections.failures import failures_section
from medmoe.evaluation.pages.sections.paper import paper_section
from medmoe.evaluation.pages.table import Table

SEED = 5
ASKED = [r for r in read_phantom("test", 3, seed=SEED) if r.task == "vqa"]


def score(**other: Any) -> dict[str, Any]:
    return {
        "system": "moe", "task": "slake", "split": "test", "subset": "closed",
        "protocol": "reference", "metric": "accuracy", "value": 71.25, "low": 66.5, "high": 75.75,
        "n": 416, "constant_baseline": 50.5, "question_only_baseline": 60.25, "control": None,
    } | other  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run as `demo` or `eval` leaves it, on phantom records."""
    folder = tmp_path / "run"
    told = [Prediction(r.id, r.answer if i % 2 else "no such", 0.5) for i, r in enumerate(ASKED)]
    AnswerFile(folder / "predictions" / "moe-phantom_vqa.jsonl", [ASKED]).append(ASKED, told)
    summary = {"version": 1, "seed": SEED, "data": "phantom", "scores": [score()], "notes": ["N."]}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text('{"phase": "phase1", "step": 1, "loss": 2.5}\n')
    return folder


def test_a_run_becomes_a_page_with_curves_pictures_and_the_papers_row(run: Path) -> None:
    data = report_of_run(run, records=ASKED)
    assert data.curves == {"phase1": [(1, 2.5)]}
    assert len(data.examples) == 6
    assert {example.correct for example in data.examples} == {True, False}
    assert all(example.question and example.confidence == 0.5 for example in data.examples)
    html = render_report(data)
    for part in ("71.2", "66.5–75.8", "416", "85.58", "Med-MoE (Phi-2) (table 1)", "2.5", "N."):
        assert part in html
    assert html == render_report(report_of_run(run, records=ASKED))


@pytest.mark.parametrize("file", ["metrics.jsonl", "predictions/moe-phantom_vqa.jsonl"])
def test_what_a_run_lacks_is_left_out(run: Path, file: str) -> None:
    (run / file).unlink()
    html = render_report(report_of_run(run, records=ASKED))
    assert ("Learning curves" in html) == (file != "metrics.jsonl")
    assert (">Examples<" in html) == (file == "metrics.jsonl")


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_without_a_summary_is_named(run: Path, content: str | None) -> None:
    (run / "summary.json").unlink()
    if content is not None:
        (run / "summary.json").write_text(content)
    with pytest.raises(DataError, match=r"summary\.json (cannot be read|holds no JSON object)"):
        report_of_run(run)


def test_the_papers_row_stands_beside_the_same_subset_and_protocol_only() -> None:
    section = paper_section([score(), score(protocol="strict", value=1.0)])
    assert section is not None
    rows = section.tables[0].rows
    assert len(rows) == 12
    closed = [row for row in rows if row[1] == "closed accuracy"]
    assert {tuple(row[5:]) for row in closed} == {("71.2 (66.5–75.8)", "416")}
    assert {tuple(row[5:]) for row in rows if row[1] == "open recall"} == {("–", "–")}
    assert paper_section([score(task="phantom_vqa")]) is None
    assert paper_section([score(task="someone's own")]) is None


def section(**other: Any) -> Section:
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><title>plot</title></svg>'
    return Section(
        id="calibration",
        title="Calibration",
        paragraphs=("Fitted on `validation` & <b>only</b>.",),
        tables=(Table(("bin", "n"), (("0.5–0.6", "17"),), "Bins"),),
        figures=(Figure("Reliability", svg=svg),),
    )


def test_a_section_shows_text_tables_and_figures() -> None:
    html = render_report(ReportData("T", {"scores": []}, sections=[section()]))
    assert '<a href="#calibration">Calibration</a>' in html
    assert '<h2 id="calibration">Calibration</h2>' in html
    assert "<code>validation</code> &amp; &lt;b&gt;only&lt;/b&gt;." in html
    assert re.search(r"<h3>Bins</h3>.*0\.5–0\.6.*17", html, re.DOTALL)
    assert "<title>plot</title>" in html


def test_page_is_light_and_dark_and_prints_light() -> None:
    html = render_report(ReportData("T", {"scores": []}))
    assert '<meta name="color-scheme" content="light dark">' in html
    dark = re.search(r"@media screen and \(prefers-color-scheme: dark\) \{(.*?)\n\}", html, re.S)
    assert dark
    light = html[: dark.start()]
    # Every colour of the page is a variable, and each has its dark value.
    names = set(re.findall(r"(--[\w-]+): #", light))
    assert names == set(re.findall(r"(--[\w-]+): #", dark.group(1)))
    rest = html[dark.end() : html.index("</style>")]
    rest = re.sub(r"@page \{[^}]*\{[^}]*\}\s*\}", "", rest)
    assert re.findall(r"#[0-9a-f]{3,6}\b", rest) == ["#fff"]  # under a plot, dark or not


def test_colours_of_both_schemes_can_be_read() -> None:
    html = render_report(ReportData("T", {"scores": []}))

    def luminance(colour: str) -> float:
        digits = colour * 2 if len(colour) == 3 else colour
        digits = "".join(c * 2 for c in colour) if len(colour) == 3 else digits
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    schemes = re.findall(r":root \{([^}]*--paper[^}]*)\}", html)
    assert len(schemes) == 2
    for scheme in schemes:
        colour = dict(re.findall(r"--([\w-]+): #([0-9a-f]+)", scheme))
        for ink in ("ink", "soft", "blue", "orange"):
            for ground in ("paper", "wash"):
                # WCAG 2 AA for text of normal size.
                assert contrast(colour[ink], colour[ground]) >= 4.5, (ink, ground)
        assert contrast(colour["notice-ink"], colour["notice"]) >= 4.5
        assert contrast(colour["on-blue"], colour["blue"]) >= 4.5


def test_a_system_that_is_no_moe_leads_the_page_where_it_stands_alone(tmp_path: Path) -> None:
    rows = [score(system="answers", protocol="strict")]
    write_report(tmp_path / "r.html", ReportData("T", {"scores": rows}))
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "answers, slake test closed accuracy (strict)" in html
    assert "<b>71.2 %</b>" in html


def test_wrong_answers_are_listed_the_most_confident_first(run: Path) -> None:
    html = render_report(report_of_run(run, records=ASKED))
    (section,) = re.findall(r'<h2 id="failures">.*?(?=<h2)', html, re.DOTALL)
    wrong = [r for r in ASKED[::2] if r.answer != "no"]  # "no such" begins with it
    assert f"{len(wrong)} answers are not right" in section
    assert section.count("<td") == 6 * len(wrong)
    assert all(r.image.id in section for r in wrong)


def test_a_classification_has_its_confusion_matrix(tmp_path: Path) -> None:
    records = [r for r in read_phantom("test", 60, seed=SEED, size=32) if r.options]
    scores = [tuple(float(option == "ring") for option in r.options) for r in records]
    told = [Prediction(r.id, "ring", option_scores=s) for r, s in zip(records, scores, strict=True)]
    section = failures_section({"phantom_classification": list(zip(records, told, strict=True))})
    assert section is not None
    (figure,) = section.figures
    rings = sum(r.answer == "ring" for r in records)
    assert f"confusion matrix: {rings} of 60 images on the diagonal" in figure.svg
    assert ">100.0</" in figure.svg
    free = failures_section(
        {"own": [(replace(r, options=()), Prediction(r.id, "x")) for r in records]}
    )
    assert free is not None
    assert free.figures == []
