"""Reads a file of answers strictly: whatever is wrong with it is one line that names the place.

Shared by the prediction and the truth files of ``medmoe score`` and ``medmoe compare``. A row that
cannot be read is never skipped; what the rows mean is checked by their own readers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    AllowInfNan,
    BeforeValidator,
    Strict,
    TypeAdapter,
    ValidationError,
)

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers.tables import CSV_SUFFIXES, any_rows
from medmoe.errors import DataError, first_few

#: Columns of a CSV that may be empty, and those that are no text.
_TEXTS = frozenset({"prediction", "answer"})
_READ_AS_JSON = frozenset({"confidence", "option_scores", "options", "references"})
Kind = TypeVar("Kind")
Row = tuple[str, dict[str, Any]]  # where it stands, and what it holds


def named(ids: Iterable[str]) -> str:
    """Return the first few ids, and how many more there are, for a message."""
    return first_few(map(repr, ids))


def read_rows(path: Path, what: str) -> list[Row]:
    """Return the rows of a file of JSON lines, a JSON array or CSV, each with its place.

    Its encoding and separator are recognised; a byte order mark and empty lines are no faults. A
    CSV's numbers and lists are read as JSON, and its empty cells are absent but for an answer.

    Args:
        what: What the file should hold, for messages, e.g. ``predictions``.

    Raises:
        DataError: The file cannot be read or is empty, a row is no JSON object, or a key stands
            twice in one.
    """
    rows = list(any_rows(path, BadRows("first")))
    if not rows:
        raise DataError(f"{path} holds no {what}; write one JSON object per line")
    if path.suffix.lower() not in CSV_SUFFIXES:
        return rows
    return [(where, _cells(row, where)) for where, row in rows]


def _cells(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    named = {name.casefold(): cell for name, cell in row.items()}
    kept = {name: cell for name, cell in named.items() if cell.strip() or name in _TEXTS}
    for name in _READ_AS_JSON & kept.keys():
        try:
            kept[name] = json.loads(kept[name])
        except ValueError:
            raise DataError(f"{where}: {name} holds {kept[name]!r:.40}, no JSON") from None
    return kept


def _whole(text: str) -> str:
    text.encode("utf-8")  # fails on half a character, a lone surrogate
    return text


#: Text of whole characters; an id, which may be a whole number; a finite number.
Text = Annotated[str, AfterValidator(_whole)]
Id = Annotated[Text, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
Number = Annotated[float, Strict(), AllowInfNan(False)]


def checked(kind: TypeAdapter[Kind], row: Mapping[str, Any], where: str) -> Kind:
    """Return a row as what it must be; keys that are not asked for are ignored.

    Raises:
        DataError: A value is missing or of another type; it is named.
    """
    try:
        return kind.validate_python(row)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key, holds = fault["loc"][0], f"holds {fault['input']!r:.40}"
        rule = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
        found = "is missing" if fault["type"] == "missing" else f"{holds}; it {rule}"
        raise DataError(f"{where}: {key} {found}") from None
