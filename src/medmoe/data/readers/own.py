"""A user's own rows: a table, JSON, Parquet, or a folder that `datasets` saved.

What a row may say is in `medmoe.data.readers.checker`. A folder may hold one such file, or one for
each split, named after it (``train.csv``, ``test-00000-of-00001.parquet``). No picture is decoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from medmoe.data import exchange
from medmoe.data.bad_rows import BadRows
from medmoe.data.readers import chat, common, tables
from medmoe.data.readers.checker import Checker
from medmoe.data.readers.own_set import Content, OwnSet, with_classes
from medmoe.data.schema import Record
from medmoe.errors import DataError, quoted

SUFFIXES = (*tables.CSV_SUFFIXES, *tables.JSON_SUFFIXES, ".parquet")
#: What `datasets` writes into a folder that it saves: a set of splits, a set.
_SPLITS_FILE, _STATE_FILE = "dataset_dict.json", "state.json"
#: How many rows that repeat another are spelt out.
_SPELT_OUT = 3


@dataclass(frozen=True)
class Own(OwnSet):
    """A user's rows; the name of the file, or that of its folder, is the name of the set.

    Attributes:
        needs_answers: Without, a row may lack its answer: it is to be predicted.
    """

    needs_answers: bool = True

    @property
    def NAME(self) -> str:
        """The file's name, or its folder's where the file is called ``data`` or ``metadata``."""
        path = self.path.resolve()
        if path.suffix.lower() not in SUFFIXES:
            return path.name
        return path.parent.name if path.stem in ("data", "metadata") else path.stem

    @cached_property
    def files(self) -> Sequence[tuple[str, Path]]:
        """The files or saved folders with rows, each with the split that its name says."""
        return files_at(self.path)

    def rows(self, bad: BadRows) -> Iterator[tuple[str, tables.Row]]:
        """Yield place and content of every row, as the files have it."""
        for _, file in self.files:
            yield from _rows(file, bad)

    def content(self, bad: BadRows) -> Content:
        """Return the records of all rows that can be used."""
        checker = Checker(self.NAME, self.LICENCE, self.allow_outside, self.needs_answers)
        records: list[Record] = []
        for split, file in self.files:
            columns: dict[tuple[str, ...], dict[str, str]] = {}
            for where, raw in _rows(file, bad):
                header = tuple(raw)
                if header not in columns and file.suffix.lower() in tables.CSV_SUFFIXES:
                    columns[header] = checker.columns(header, f"{file} row 1")
                with bad.row():
                    if header not in columns:
                        columns[header] = checker.columns(header, where)
                    row = {ours: raw[name] for name, ours in columns[header].items()}
                    record = checker.record(row, where, file.parent, split)
                    records += [] if record is None else [record]
        if checker.renamed:
            names = ", ".join(quoted(name, 40) for name in checker.renamed)
            ours = ", ".join(checker.renamed.values())
            bad.say(f"{self.path}: columns {names} are read as {ours}")
        if checker.backslashes:
            bad.say(f"{self.path}: \\ in paths is read as /")
        for repeat in checker.repeats[:_SPELT_OUT]:
            bad.say(repeat)
        if (more := len(checker.repeats) - _SPELT_OUT) > 0:
            bad.say(f"{self.path}: {more} more rows repeat another and are left out")
        return Content(
            common.unique(with_classes(records, self.path), self.path, bad), checker.patients
        )


def find(path: Path, allow_outside: bool = False) -> Own | None:
    """Return the reader of the rows at a path, None where there are none.

    Raises:
        DataError: A folder holds several tables that are not the splits of one set.
    """
    own = Own(path, allow_outside)
    if path.is_dir() and len(own.files) == 1 and not own.files[0][0]:
        own = Own(own.files[0][1], allow_outside)
    return own if own.files else None


def asks(own: Own) -> bool:
    """Return whether the first row asks something: then it is no list beside folders of classes."""
    _, first = next(own.rows(BadRows("skip")), ("", {}))
    names = {name.strip().lower() for name in first}
    return own.path.stem == "metadata" or "question" in names or chat.is_chat(first)


def files_at(path: Path) -> list[tuple[str, Path]]:
    """Return the files or saved folders with rows at a path, each with the split it is named for.

    Raises:
        DataError: A folder holds several tables that are not the splits of one set.
    """
    if not path.is_dir():
        return [("", path)] if path.suffix.lower() in SUFFIXES else []
    if (path / _STATE_FILE).is_file():
        return [("", path)]
    if (path / _SPLITS_FILE).is_file():
        saved = sorted(folder.parent for folder in path.glob(f"*/{_STATE_FILE}"))
        return [(common.split_name(folder.name), folder) for folder in saved]
    files = sorted(file for file in path.iterdir() if _is_table(file))
    if not files:
        described = [f for f in path.glob("*/metadata.*") if f.suffix.lower() in SUFFIXES]
        files = described or sorted((path / "data").glob("*.parquet"))
        by_split = [(_split_of(f.parent if f in described else f), f) for f in sorted(files)]
    else:
        by_split = [(_split_of(file), file) for file in files]
    if len(files) > 1 and not all(split for split, _ in by_split):
        names = ", ".join(file.name for file in files)
        raise DataError(f"{path}: several tables ({names}); give the path of one")
    return by_split if len(files) > 1 else [("", file) for file in files]


def _is_table(file: Path) -> bool:
    if file.name.startswith(".") or file.suffix.lower() not in SUFFIXES or not file.is_file():
        return False
    if file.suffix.lower() != ".json":
        return True
    with file.open("rb") as content:  # settings lie beside data too: a list holds rows
        return content.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _split_of(path: Path) -> str:
    """Return the split that a file or folder is named for (``val-00000-of-00001``), or none."""
    name = common.split_name(re.sub(r"[-_.]\d.*$", "", path.stem))
    return name if name in common.SPLITS else ""


def _rows(path: Path, bad: BadRows) -> Iterator[tuple[str, tables.Row]]:
    if path.is_dir() or path.suffix.lower() == ".parquet":
        for number, row in enumerate(exchange.read_rows(path), 1):
            yield f"{path} row {number}", row
    else:
        yield from tables.rows(path, bad)
