"""`--format`: stdout holds the tables and nothing else, in a form that other programs read."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from medmoe.cli.main import main
from medmoe.cli.table_formats import FORMATS, tables_as
from medmoe.cli.tables import Screen
from medmoe.evaluation.pages.table import Table

SCORES = Table(
    ["Task", "Score, %"],
    [["vqa_rad & co", "91.6 (88.9\u201394.1)"], ["a|b_c", "\u25bd 3"]],
    "Accuracy",
    notes=["of 451 questions"],
)


def printed(name: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    with tables_as(name):
        screen = Screen()
        screen.line("A sentence.")
        screen.table(SCORES)
        screen.draw("", ["", "n"], [["all", "2"]])
    out, err = capsys.readouterr()
    return out, err


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_no_table_goes_to_stderr(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = printed(name, capsys)
    assert err == "A sentence.\n"
    assert "A sentence." not in out
    assert "Accuracy" in out


def test_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed("markdown", capsys)[0] == (
        "**Accuracy**\n\n"
        "| Task | Score, % |\n| :-- | --: |\n"
        "| vqa_rad & co | 91.6 (88.9\u201394.1) |\n| a\\|b_c | \u25bd 3 |\n\n"
        "- of 451 questions\n\n"
        "|  | n |\n| :-- | --: |\n| all | 2 |\n"
    )


def test_csv_is_read_back_by_a_reader_of_csv(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = printed("csv", capsys)[0].split("\n\n")
    title, *rows = csv.reader(io.StringIO(first))
    assert title == ["Accuracy"]
    assert rows == [SCORES.columns, *SCORES.rows]
    assert list(csv.reader(io.StringIO(second))) == [["", "n"], ["all", "2"]]


def test_latex_escapes_what_latex_would_obey(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = printed("latex", capsys)
    assert out.startswith(
        "\\begin{table}\n\\centering\n\\caption{Accuracy}\n\\begin{tabular}{lr}\n\\toprule\n"
        "Task & Score, \\% \\\\\n\\midrule\n"
        "vqa\\_rad \\& co & 91.6 (88.9--94.1) \\\\\n"
        "a|b\\_c & $\\triangledown$ 3 \\\\\n\\bottomrule\n"
        "\\end{tabular}\n% of 451 questions\n\\end{table}\n"
    )


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed("json", capsys)[0])
    assert found["version"] == 1
    assert [table["title"] for table in found["tables"]] == ["Accuracy", ""]
    assert found["tables"][0]["rows"] == SCORES.rows
    assert found["tables"][0]["notes"] == SCORES.notes


def test_after_an_error_no_half_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    @tables_as("csv")
    def fail() -> None:
        Screen().table(SCORES)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert capsys.readouterr().out == ""
    Screen().table(SCORES)  # drawn again as it always was
    assert "91.6" in capsys.readouterr().out


def test_a_verb_prints_its_table_in_the_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "answers.csv"
    answers.write_text(
        "id,prediction,answer,answer_type,image\n1,yes,yes,closed,a\n2,no,yes,closed,b\n"
    )
    assert main(["score", str(answers), "--format", "json"]) == 0
    out, err = capsys.readouterr()
    tables = json.loads(out)["tables"]
    assert any("50.0" in cell for table in tables for row in table["rows"] for cell in row)
    assert "Research use only" in err


def test_words_of_a_table_are_left_and_numbers_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list", "--format", "markdown"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[:2] == [
        "| set | here | tried | fetched by | licence |",
        "| :-- | :-- | :-- | :-- | :-- |",
    ]
    assert "Your own data" in err
