"""The truth file of ``medmoe score``: JSON lines to records, for any model's predictions.

One line is ``{id, answer, answer_type, image?, subset?}``; ``references`` (further right answers),
``options`` (classification) and ``question`` are read where they are there. Records made here hold
no picture: where one is needed, `medmoe.evaluation.files.known_records` looks it up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, TypeAdapter

from medmoe.data.schema import AnswerType, ImageRecord, Record, images_of
from medmoe.errors import ConfigError, DataError
from medmoe.evaluation.files.json_lines import Id, Text, checked, named, read_rows
from medmoe.evaluation.metrics import normalise

#: Begins the id of an image that a record does not name.
UNNAMED = "record\0"


def read_truth(path: Path) -> list[Record]:
    """Return the records of a truth file; prediction files of medmoe serve as one.

    ``subset`` becomes the record's ``question_type`` (empty where there is none); a record without
    an ``image`` counts as one of its own.

    Raises:
        DataError: The file cannot be read or is empty, or a line is no truth; it is named.
    """
    return [_record(row, where) for where, row in read_rows(path, "truth")]


def own_truth(path: Path, *, by: str = "--truth") -> list[Record]:
    """Return the records of a prediction file that holds its truth, as medmoe writes it.

    Args:
        by: How the caller's user can give the truth, for the message.

    Raises:
        DataError: It holds none, or a line cannot be used.
    """
    where, first = read_rows(path, "predictions")[0]
    if "answer" not in first:
        raise DataError(f"{where} holds no answer: give the truth of the predictions by {by}")
    return read_truth(path)


def names_an_image(record: Record) -> bool:
    """Return whether the truth says which image a record is about."""
    return not record.image.id.startswith(UNNAMED)


class _Truth(BaseModel):
    id: Id
    answer: Text
    # "CLOSED ", as VQA-RAD has it in two rows
    answer_type: Annotated[AnswerType, BeforeValidator(lambda kind: str(kind).strip().casefold())]
    image: Text | None = None
    question: Text | None = None
    subset: Text | None = None
    options: tuple[Text, ...] | None = None
    references: tuple[Text, ...] | None = None


_TRUTH = TypeAdapter(_Truth)


def _record(row: Mapping[str, Any], where: str) -> Record:
    true = checked(_TRUTH, row, where)
    if not true.answer.strip():
        raise DataError(f"{where}: answer of {true.id!r} is empty; give the true answer or drop it")
    image = true.image or f"{UNNAMED}{true.id}"
    return Record(
        id=true.id,
        image=ImageRecord(image, Path(image)),
        question=true.question or "",
        answer=true.answer,
        answer_type=true.answer_type,
        question_type=true.subset or "",
        task="classification" if true.options else "vqa",
        dataset=image.partition("/")[0],
        split="",
        licence="",
        options=true.options or (),
        references=true.references or (),
    )


def check_apart(records: Sequence[Record], others: Sequence[Record], where: str) -> None:
    """Refuse to choose on what is reported: the same pictures, or without these the same records.

    Args:
        where: What the others are of, for the message.

    Raises:
        ConfigError: They are not apart.
    """
    images = {i.id for i in images_of(records)} & {i.id for i in images_of(others)}
    known = sorted(name for name in images if not name.startswith(UNNAMED))
    # Without images ids may begin anew in each split: only equal files are surely the same.
    same = {(r.id, r.answer) for r in records if r.image.id in images}
    if known or same == {(r.id, r.answer) for r in others}:
        what = f"{len(known)} of its images, e.g. {known[0]!r}," if known else "its records"
        raise ConfigError(f"{where}: {what} are reported on too; choose on another split")


def check_same_truth(path: Path, records: Sequence[Record]) -> None:
    """Refuse a prediction file that holds another truth than ``records`` for an id.

    Files written by medmoe carry the truth beside each prediction: a difference means that the
    predictions are of another task, or of another version of it, under the same ids.

    Raises:
        DataError: An answer differs; the message names the record.
    """
    truth = {record.id: normalise(record.answer) for record in records}
    own = [(str(row.get("id")), row.get("answer")) for _, row in read_rows(path, "predictions")]
    other = [
        name
        for name, answer in own
        if isinstance(answer, str) and name in truth and normalise(answer) != truth[name]
    ]
    if other:
        raise DataError(
            f"{path.name} was made for another truth: the answers of {named(other)} differ; give "
            "the truth of the same task"
        )
