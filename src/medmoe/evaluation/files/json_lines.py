"""Reads a file of answers strictly: whatever is wrong with it is one line that names the place.

Shared by the prediction and the truth files of ``medmoe score`` and ``medmoe compare``. A row that
cannot be read is never skipped; what the rows mean is checked by their own readers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers.tables import CSV_SUFFIXES, any_rows
from medmoe.errors import DataError

_SHOWN = 5
#: Columns of a CSV that may be empty, and those that are no text.
_TEXTS = frozenset({"prediction", "answer"})
_READ_AS_JSON = frozenset({"confidence", "option_scores", "options", "references"})
Row = tuple[str, dict[str, Any]]  # where it stands, and what it holds


def named(ids: Iterable[str]) -> str:
    """Return the first few ids, and how many more there are, for a message."""
    every = list(ids)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(repr(i) for i in every[:_SHOWN]) + more


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


def text_of(row: Mapping[str, Any], key: str, where: str) -> str:
    """Return a value that must be text.

    Raises:
        DataError: It is missing, no text, or holds half a character (a lone surrogate).
    """
    value = row.get(key)
    if not isinstance(value, str):
        holds = f"holds {value!r}" if key in row else "is missing"
        raise DataError(f"{where}: {key} {holds}; write it as a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: {key} holds half a character ({value[error.start]!r}); write whole ones"
        ) from error
    return value


def id_of(row: Mapping[str, Any], where: str) -> str:
    """Return a row's id, as a text where it is a whole number.

    Raises:
        DataError: It is missing or something else.
    """
    if isinstance(value := row.get("id"), int) and not isinstance(value, bool):
        return str(value)
    return text_of(row, "id", where)


def number(value: object, key: str, where: str) -> float:
    """Return a value that must be a finite number.

    Raises:
        DataError: It is something else, NaN or infinite.
    """
    try:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError
        if math.isfinite(value):
            return float(value)
    except (TypeError, OverflowError):  # an int too large for a float
        pass
    raise DataError(f"{where}: {key} holds {value!r:.40}; write a finite number")
