"""A user's own data: one CSV or JSON-lines file (or a Parquet file we wrote) beside its pictures.

Columns ``image`` (path from the file's folder), ``question`` and ``answer`` are needed; ``id``,
``split``, ``answer_type``, ``question_type``, ``options``, ``references``, ``modality``, ``organ``,
``licence`` and ``task`` may be given, and nothing else: a misspelt column must not pass unseen. In
CSV several options stand with | between them. Rows in the chat form (``messages`` and ``images``)
are read too, see `medmoe.data.exchange`. No picture is decoded here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmoe.data import exchange
from medmoe.data.bad_rows import BadRows
from medmoe.data.readers import common, tables
from medmoe.data.readers.own_set import Content, OwnSet
from medmoe.data.schema import TASKS, AnswerType, ImageRecord, Record, Task
from medmoe.domains import MODALITIES, modality_name
from medmoe.errors import DataError, one_of

SUFFIXES = (".csv", ".jsonl", ".parquet")
NEEDED = ("image", "question", "answer")
OPTIONAL = (
    *("id", "split", "answer_type", "question_type", "options", "references"),
    *("modality", "organ", "licence", "task"),
)
#: Columns that say whose picture it is: not kept, but a set without splits is parted by them.
PATIENT = ("patient", "patient_id", "subject", "subject_id")
_LISTS = ("options", "references")


@dataclass(frozen=True)
class Own(OwnSet):
    """A user's file; its name without suffix (or that of its folder) is the name of the set."""

    @property
    def NAME(self) -> str:
        """The file's name, or its folder's where the file is called ``data``."""
        path = self.path.resolve()
        return path.parent.name if path.stem == "data" else path.stem

    def content(self, bad: BadRows) -> Content:
        """Return the records of all rows that can be used."""
        images: dict[str, ImageRecord] = {}
        patients: dict[str, str] = {}
        records = []
        for where, row in _rows(self.path, bad):
            with bad.row():
                record = self._record(row, where, images)
                records.append(record)
                if patient := _patient(row):
                    patients[record.image.id] = patient
        return Content(common.unique(records, self.path, bad), patients)

    def _record(self, row: tables.Row, where: str, images: dict[str, ImageRecord]) -> Record:
        if "messages" in row:
            return exchange.record_of(row, where, self.path.parent, images)
        _check_columns(row, where)
        text = common.fields(row, NEEDED, where)
        more = {key: _text(row.get(key)) for key in OPTIONAL if key not in _LISTS}
        options, references = (_list(row.get(key)) for key in _LISTS)
        modality = known_modality(more["modality"], where)
        return Record(
            id=f"{self.NAME}/{more['id'] or where.rpartition(' ')[2]}",
            image=self._image(text["image"], modality, more["organ"], where, images),
            question=text["question"],
            answer=text["answer"],
            answer_type=_answer_type(more["answer_type"], text["answer"], options, where),
            question_type=more["question_type"]
            or common.question_word(text["question"], text["answer"]),
            task=_task(more["task"], where),
            dataset=self.NAME,
            split=common.split_name(_text(row.get("split"))),
            licence=more["licence"] or self.LICENCE,
            options=_checked_options(options, text["answer"], where),
            references=references,
            place=where,
        )

    def _image(
        self,
        name: str,
        modality: str | None,
        organ: str,
        where: str,
        images: dict[str, ImageRecord],
    ) -> ImageRecord:
        """Return the one record of an image; two rows must not contradict each other on it."""
        if name not in images:
            source = common.image_file(self.path.parent, name, where, self.allow_outside)
            images[name] = ImageRecord(f"{self.NAME}/{name}", source, modality, organ or None)
        image = images[name]
        if modality is not None and image.modality != modality:
            raise DataError(
                f"{where}: modality {modality!r} of image {name!r}, an earlier row says "
                f"{image.modality!r}; give all rows of an image the same"
            )
        return image


def find(path: Path) -> Path | None:
    """Return the one table of a folder, or the path itself where it is a table."""
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return path
    if not path.is_dir():
        return None
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise DataError(f"{path}: several tables ({names}); give the path of one")
    return files[0] if files else None


def known_modality(raw: str, where: str) -> str | None:
    """Return our name of a modality, None for an empty one; an unknown one is an error."""
    if not raw:
        return None
    name = modality_name(raw)
    if name not in MODALITIES:
        raise DataError(f"{where}: {one_of(raw, MODALITIES, 'modality')}; or leave it empty")
    return name


def _rows(path: Path, bad: BadRows) -> Iterator[tuple[str, tables.Row]]:
    if path.suffix.lower() == ".parquet":
        for number, row in enumerate(exchange.read_rows(path), 1):
            yield f"{path} row {number}", row
    else:
        yield from tables.rows(path, bad)


def _patient(row: tables.Row) -> str:
    return next((text for name in PATIENT if (text := _text(row.get(name)))), "")


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _list(value: Any) -> tuple[str, ...]:
    parts = value if isinstance(value, list) else _text(value).split("|")
    return tuple(text for part in parts if (text := _text(part)))


def _check_columns(row: tables.Row, where: str) -> None:
    known = (*NEEDED, *OPTIONAL, *PATIENT)
    for name in row:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{where}: unknown column {name!r}; known: {', '.join(known)}{hint}")


def _answer_type(given: str, answer: str, options: tuple[str, ...], where: str) -> AnswerType:
    if given.lower() in ("open", "closed"):
        return "open" if given.lower() == "open" else "closed"
    if given:
        raise DataError(f"{where}: answer_type {given!r} must be open or closed")
    return "closed" if options else common.yes_no_type(answer)


def _task(given: str, where: str) -> Task:
    for task in TASKS:
        if given == task:
            return task
    if given:
        raise DataError(f"{where}: {one_of(given, TASKS, 'task')}")
    return "vqa"


def _checked_options(options: tuple[str, ...], answer: str, where: str) -> tuple[str, ...]:
    if options and answer not in options:
        raise DataError(
            f"{where}: answer {answer!r} is none of the options {', '.join(options)}; add it"
        )
    return options
