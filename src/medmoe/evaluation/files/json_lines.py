"""Reads a file of JSON lines strictly: whatever is wrong with it is one line that names the place.

Shared by the prediction and the truth files of ``medmoe score`` and ``medmoe compare``. A row that
cannot be read is never skipped; what the rows mean is checked by their own readers.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medmoe.errors import DataError

_SHOWN = 5
#: How a text that is not UTF-8 begins when an editor saved it as UTF-16 or UTF-32.
_WIDE = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
Row = tuple[str, dict[str, Any]]  # where it stands, and what it holds


def named(ids: Iterable[str]) -> str:
    """Return the first few ids, and how many more there are, for a message."""
    every = list(ids)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(repr(i) for i in every[:_SHOWN]) + more


def read_rows(path: Path, what: str) -> list[Row]:
    """Return the objects of a JSON Lines file, each with its place (``name line 3``).

    A byte order mark, Windows line ends and empty lines are no faults.

    Args:
        what: What the file should hold, for messages, e.g. ``predictions``.

    Raises:
        DataError: The file cannot be read or is empty, is not UTF-8, a line is no JSON object, or a
            key stands twice in one.
    """
    rows = []
    # Split at "\n" only: `splitlines` would cut an answer at its own U+2028 or form feed.
    for number, line in enumerate(_text(path, what).split("\n"), start=1):
        if line.strip():
            where = f"{path.name} line {number}"
            rows.append((where, _parsed(line, where)))
    if not rows:
        raise DataError(f"{path} holds no {what}; write one JSON object per line")
    return rows


def _text(path: Path, what: str) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or error.__class__.__name__
        raise DataError(
            f"cannot read {what} from {path} ({reason}); give a UTF-8 file of JSON lines"
        ) from error
    if content.startswith(_WIDE):
        raise DataError(f"{path.name} is UTF-16 or UTF-32; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path.name} line {line} is not UTF-8 (byte {content[error.start]:#04x}); save the "
            "file as UTF-8"
        ) from error


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=lambda pairs: _object(pairs, where))
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is no JSON ({error.msg}); write one object per line") from error
    except RecursionError:
        raise DataError(f"{where} is nested too deeply; write one flat object per line") from None
    if not isinstance(row, dict):
        raise DataError(f"{where} is no JSON object; write one per line")
    return row


def _object(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise DataError(f"{where} holds a key twice: {named(twice)}; keep one of each")
    return row


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
