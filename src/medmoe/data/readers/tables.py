"""Rows of CSV, TSV and JSON files, each with its place; one broken row does not hide the others.

Encoding (UTF-8, UTF-16, UTF-32, Windows-1252), separator, line ends and byte-order marks are
recognised, and what is not the usual is said. A file that mixes encodings has bad rows.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medmoe.data.bad_rows import BadRows
from medmoe.errors import DataError, quoted

Row = dict[str, Any]
CSV_SUFFIXES = (".csv", ".tsv")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
#: The longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
#: Bytes of one UTF-8 letter beyond ASCII, and more such bytes in a row than a Western text has.
_UTF8_LETTER = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}")
_NOT_WESTERN = re.compile(rb"[\x80-\xff]{4}")
#: What undecodable bytes become for the time being.
_BROKEN = re.compile("[\udc80-\udcff]")
_LINE_END = re.compile(r"\r\n|\n|\r")
#: Columns that a spreadsheet or pandas adds for the number of the row.
_NAMELESS = re.compile(r"|unnamed: \d+|__index_level_\d+__", re.IGNORECASE)
_MAX_FIELD = 16 * 2**20


def rows(path: Path, bad: BadRows) -> Iterator[tuple[str, Row]]:
    """Yield place and content of every row of a table.

    Raises:
        DataError: The file cannot be read, has no header or another suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in (*CSV_SUFFIXES, *JSON_SUFFIXES):
        kinds = ", ".join((*CSV_SUFFIXES, *JSON_SUFFIXES))
        raise DataError(f"{path}: a table ends in one of {kinds}; save it as one of them")
    yield from any_rows(path, bad)


def any_rows(path: Path, bad: BadRows) -> Iterator[tuple[str, Row]]:
    """Yield what `rows` does; a file of another suffix is read as JSON."""
    text = _text(path, bad)
    read = _csv if path.suffix.lower() in CSV_SUFFIXES else _json
    for where, row, raw in read(path, text, bad):
        with bad.row():
            if broken := _BROKEN.search(raw):
                byte = ord(broken.group()) - 0xDC00
                raise DataError(f"{where}: not UTF-8 (byte {byte:#04x}); save the file as UTF-8")
            yield where, row


def _text(path: Path, bad: BadRows) -> str:
    """Return the text of a file; a byte that cannot be decoded is kept for its row's report."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; give an existing file") from error
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            bad.say(f"{path}: read as {encoding.upper()} with a byte-order mark")
            return data[len(mark) :].decode(encoding, errors="surrogateescape")
    begin = data[:1000]
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if len(begin) > 3 and begin[first::2].count(0) > 0.8 * len(begin[first::2]):
            bad.say(f"{path}: read as {encoding.upper()}")
            return data.decode(encoding, errors="surrogateescape")
    try:
        return data.decode()
    except UnicodeDecodeError:
        pass
    try:
        if _UTF8_LETTER.search(data) is None and _NOT_WESTERN.search(data) is None:
            text = data.decode("cp1252")
            bad.say(f"{path}: not UTF-8, read as Windows-1252; check letters with accents")
            return text
    except UnicodeDecodeError:
        pass
    return data.decode(errors="surrogateescape")


def _json(path: Path, text: str, bad: BadRows) -> Iterator[tuple[str, Row, str]]:
    """Yield the rows of a list, or of a file with one object a line."""
    if text.lstrip().startswith("["):
        listed = _listed(text)
        if listed is not None:
            for number, row in enumerate(listed, 1):
                where = f"{path} row {number}"
                with bad.row():
                    yield where, _object(row, where), json.dumps(row, ensure_ascii=False)
            return
    for number, line in enumerate(_LINE_END.split(text), 1):
        if not line.strip():
            continue
        where = f"{path} row {number}"
        with bad.row():
            yield where, _json_row(line, where), line


def _listed(text: str) -> list[Any] | None:
    try:
        content = json.loads(text, object_pairs_hook=_pairs)
    except (DataError, json.JSONDecodeError, RecursionError):
        return None  # line by line, so that the row is named
    return content if isinstance(content, list) else None


def _json_row(line: str, where: str) -> Row:
    try:
        row = json.loads(line, object_pairs_hook=_pairs)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise DataError(f"{where}: not JSON ({reason}); correct the row") from None
    return _object(row, where)


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{where}: {type(row).__name__} instead of an object; correct the row")
    return row


def _pairs(pairs: Sequence[tuple[str, Any]]) -> Row:
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise DataError(f"key {quoted(twice[0])} stands twice; remove one")
    return dict(pairs)


def _csv(path: Path, text: str, bad: BadRows) -> Iterator[tuple[str, Row, str]]:
    """Yield the rows under the header, numbered as a spreadsheet does: row 1 is the header."""
    csv.field_size_limit(_MAX_FIELD)
    separator = _separator(path, text, bad)
    if text.startswith("sep="):  # Excel's own line for the separator
        text = text[re.search(r"[\r\n]+|$", text).end() :]  # type: ignore[union-attr]
    lines = io.StringIO(text, newline="")
    table = enumerate(csv.reader(lines, delimiter=separator, strict=True), 1)
    header: list[str] = []
    number = 0
    try:
        for number, cells in table:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{path} row {number}"
            if not header:
                header = _header(cells, where)
                continue
            with bad.row():
                yield where, _cells(header, cells, where), "".join(cells)
    except csv.Error as error:
        raise DataError(
            f"{path} row {number + 1}: not CSV ({error}); close quotation marks, and write one "
            "inside a text twice"
        ) from None
    if not header:
        raise DataError(f"{path}: empty file; the first row names the columns")
    if ignored := [name for name in header if _NAMELESS.fullmatch(name)]:
        what = "a column" if len(ignored) == 1 else f"{len(ignored)} columns"
        bad.say(f"{path}: {what} without a name, for row numbers, not read")


def _separator(path: Path, text: str, bad: BadRows) -> str:
    """Return what separates the columns: what parts the header into most names."""
    said = re.match(r"sep=([,;\t|])[\r\n]", text)
    line = next((line for line in _LINE_END.split(text) if line.strip()), "")
    fields = {one: len(next(csv.reader([line], delimiter=one), [])) for one in _SEPARATORS}
    separator = said[1] if said else max(fields, key=lambda one: fields[one])
    if separator != ("\t" if path.suffix.lower() == ".tsv" else ","):
        bad.say(f"{path}: columns are separated by {_SEPARATORS[separator]}")
    return separator


def _header(cells: Sequence[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = [name for name, count in Counter(filter(None, names)).items() if count > 1]
    if twice:
        raise DataError(f"{where}: column {quoted(twice[0])} is named twice; rename or remove one")
    return names


def _cells(header: Sequence[str], cells: Sequence[str], where: str) -> Row:
    if len(cells) != len(header):
        raise DataError(
            f"{where}: {len(cells)} fields, {len(header)} are named in the header; put texts with "
            "the separator in quotes"
        )
    for name, cell in zip(header, cells, strict=True):
        if _NAMELESS.fullmatch(name) and not re.fullmatch(r"[\d.\s]*", cell):
            raise DataError(
                f"{where}: {quoted(cell)} stands in a column without a name; name it in the header"
            )
    pairs = zip(header, cells, strict=True)
    return {name: cell for name, cell in pairs if not _NAMELESS.fullmatch(name)}
