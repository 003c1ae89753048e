"""The report in a real browser: its tables sort and filter, and are whole without a script."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.serving.page.conftest import browser as browser

from medmoe.data.schema import Record
from medmoe.evaluation.files.predictions import Prediction
from medmoe.evaluation.pages.report import ReportData, write_report
from medmoe.evaluation.pages.sections.failures import failures_section

SURE = (0.4, 0.999, None, 0.02, 0.31, 0.004, 0.77, 0.5, 0.12)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, make_record: Callable[..., Record]) -> Path:
    records = [
        make_record(f"q{n}", "left" if n % 3 else "<b>viewer's left</b>", question=f"Where is {n}?")
        for n in range(len(SURE))
    ]
    pairs = [(r, Prediction(r.id, "right", sure)) for r, sure in zip(records, SURE, strict=True)]
    section = failures_section({"own": pairs})
    assert section is not None
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, dataclasses.replace(ReportData("T", {}), sections=[section]))
    return path


def opened(browser: Any, report: Path, **context: Any) -> tuple[Any, list[str]]:
    page = browser.new_context(**context).new_page()
    page.set_default_timeout(120_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(report.as_uri())
    return page, said


def column(page: Any, place: int) -> list[str]:
    cells: list[str] = page.locator(f"tbody tr:visible > :nth-child({place})").all_inner_texts()
    return cells


def test_a_head_sorts_by_number_and_by_word(browser: Any, report: Path) -> None:
    page, said = opened(browser, report)
    by_number = ["–", "< 1 %", "2 %", "12 %", "31 %", "40 %", "50 %", "77 %", "> 99 %"]
    assert sorted(column(page, 7)) == sorted(by_number)
    assert column(page, 7)[0] == "> 99 %"
    head = page.get_by_role("columnheader", name="Confidence")
    head.get_by_role("button").click()
    assert column(page, 7) == by_number
    assert head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").press("Enter")
    assert column(page, 7) == by_number[::-1]
    page.get_by_role("button", name="Truth").click()
    assert column(page, 2) == ["<b>viewer's left</b>"] * 3 + ["left"] * 6
    assert page.locator("tbody b, tbody td b").count() == 0, "text of data stays text"
    assert head.get_attribute("aria-sort") is None
    assert said == [], "the browser refused or missed nothing"


def test_words_filter_the_rows_on_a_phone_too(browser: Any, report: Path) -> None:
    for width in (1280, 360):
        page, said = opened(browser, report, viewport={"width": width, "height": 800})
        page.get_by_label("Filter by words").fill("Viewer's where")
        assert len(column(page, 1)) == 3
        assert page.locator("output").inner_text() == "3 of 9 rows"
        page.get_by_role("button", name="Question").click()
        assert column(page, 1) == ["Where is 0?", "Where is 3?", "Where is 6?"]
        page.get_by_label("Filter by words").fill("")
        assert len(column(page, 1)) == 9
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        assert said == []


def test_without_a_script_all_rows_stand_in_a_plain_table(browser: Any, report: Path) -> None:
    page, _ = opened(browser, report, java_script_enabled=False)
    assert len(column(page, 1)) == 9
    assert page.get_by_role("button").count() == 0
    assert page.get_by_role("columnheader").all_inner_texts()[0] == "Question"


def test_no_other_script_runs(browser: Any, report: Path) -> None:
    other = report.with_name("other.html")
    attack = "<script>document.title = 'other'</script></body>"
    other.write_text(report.read_text(encoding="utf-8").replace("</body>", attack))
    page, said = opened(browser, other)
    assert page.title() == "T"
    assert any("Content Security Policy" in line for line in said)
