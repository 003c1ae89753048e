from __future__ import annotations

import pytest

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
