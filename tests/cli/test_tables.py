from __future__ import annotations

import pytest

from medmoe.cli import tables
from medmoe.cli.tables import Screen
from medmoe.evaluation.pages.table import Table

#: Names that a data set may have, which rich would take for the end of a style.
NAMES = ("[/x]", "[bold]a[/]", "[red", "\\[/b]")


@pytest.mark.parametrize("name", NAMES)
def test_names_from_data_stand_in_tables_as_they_are(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Screen().table(Table([name, name], [[name, name]], name, notes=[name]))
    assert capsys.readouterr().out.count(name) == 6


@pytest.mark.parametrize("width", [24, 40, 60])
def test_narrow_terminals_cut_neither_names_nor_numbers(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables, "LOG_WIDTH", width)
    columns = ["Subset", "Score", *"ABCDE"]
    rows = [["closed", "accuracy (strict)", *[f"{99 - n}.25 (98.125\u201399.5)" for n in range(5)]]]
    Screen().draw("", columns, rows, 2)
    printed = "".join(capsys.readouterr().out.split())
    for n in range(5):
        assert f"{99 - n}.25" in printed
    assert "closed" in printed
    assert "\u2026" not in printed
    assert set("accuracy") <= set(printed)
