"""Rows of CSV and JSON-lines files, each with its place; one broken row does not hide the others.

UTF-8 with or without BOM, LF or CRLF. A byte that is not UTF-8 makes its row a bad one.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medmoe.data.bad_rows import BadRows
from medmoe.errors import DataError

Row = dict[str, Any]
#: What undecodable bytes become for the time being.
_BROKEN = re.compile("[\udc80-\udcff]")
_MAX_FIELD = 16 * 2**20


def rows(path: Path, bad: BadRows) -> Iterator[tuple[str, Row]]:
    """Yield place and content of every row of a ``.csv`` or ``.jsonl`` file.

    Raises:
        DataError: The file cannot be read, has no header or another suffix.
    """
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise DataError(f"{path}: a table ends in .csv or .jsonl; save it as one of them")
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; give an existing file") from error
    found = _csv(path, text, bad) if path.suffix.lower() == ".csv" else _jsonl(path, text, bad)
    for where, row, raw in found:
        kept = False
        with bad.row():
            if broken := _BROKEN.search(raw):
                byte = ord(broken.group()) - 0xDC00
                raise DataError(f"{where}: not UTF-8 (byte {byte:#04x}); save the file as UTF-8")
            kept = True
        if kept:
            yield where, row


def _jsonl(path: Path, text: str, bad: BadRows) -> Iterator[tuple[str, Row, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where, row = f"{path} row {number}", None
        with bad.row():
            row = _json_row(line, where)
        if row is not None:
            yield where, row, line


def _json_row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise DataError(f"{where}: not JSON ({reason}); correct the row") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: {type(row).__name__} instead of an object; correct the row")
    return row


def _csv(path: Path, text: str, bad: BadRows) -> Iterator[tuple[str, Row, str]]:
    """Yield the rows under the header, numbered as lines of the file: row 1 is the header."""
    csv.field_size_limit(_MAX_FIELD)
    table = csv.reader(io.StringIO(text, newline=""))
    header = [name.strip() for name in next(table, [])]
    if not any(header):
        raise DataError(f"{path}: empty file; the first row names the columns")
    try:
        for cells in table:
            if not any(cells):
                continue
            where, row = f"{path} row {table.line_num}", None
            with bad.row():
                if len(cells) != len(header):
                    raise DataError(
                        f"{where}: {len(cells)} fields, {len(header)} are named in the header; "
                        "put texts with commas in quotes"
                    )
                row = dict(zip(header, cells, strict=True))
            if row is not None:
                yield where, row, "".join(cells)
    except csv.Error as error:
        raise DataError(f"{path} row {table.line_num}: not CSV ({error}); save it again") from None
