"""The truth file of ``medmoe score``: JSON lines to records, for any model's predictions.

One line is ``{id, answer, answer_type, image?, subset?}``; ``references`` (further right answers),
``options`` (classification) and ``question`` are read where they are there. Records made here hold
no picture: where one is needed, `medmoe.evaluation.files.known_records` looks it up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from medmoe.data.schema import AnswerType, ImageRecord, Record
from medmoe.errors import DataError, one_of
from medmoe.evaluation.files.json_lines import id_of, named, read_rows, text_of
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


def _record(row: Mapping[str, Any], where: str) -> Record:
    name = id_of(row, where)
    answer = text_of(row, "answer", where)
    if not answer.strip():
        raise DataError(f"{where}: answer of {name!r} is empty; give the true answer or drop it")
    options = _texts(row, "options", where)
    image = _optional(row, "image", where) or f"{UNNAMED}{name}"
    return Record(
        id=name,
        image=ImageRecord(image, Path(image)),
        question=_optional(row, "question", where),
        answer=answer,
        answer_type=_answer_type(text_of(row, "answer_type", where), where),
        question_type=_optional(row, "subset", where),
        task="classification" if options else "vqa",
        dataset=image.partition("/")[0],
        split="",
        licence="",
        options=options,
        references=_texts(row, "references", where),
    )


def _answer_type(text: str, where: str) -> AnswerType:
    kind = text.strip().casefold()  # "CLOSED ", as VQA-RAD has it in two rows
    if kind not in ("open", "closed"):
        raise DataError(f"{where}: {one_of(text, ('open', 'closed'), 'answer_type')}")
    return cast(AnswerType, kind)


def _optional(row: Mapping[str, Any], key: str, where: str) -> str:
    return "" if row.get(key) is None else text_of(row, key, where)


def _texts(row: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    values = row.get(key)
    if values is None:
        return ()
    if not isinstance(values, list):
        raise DataError(f"{where}: {key} is no list; write one string per entry")
    return tuple(text_of({key: value}, key, where) for value in values)


def check_same_truth(path: Path, records: Sequence[Record]) -> None:
    """Refuse a prediction file that holds another truth than ``records`` for an id.

    Files written by medmoe carry the truth beside each prediction: a difference means that the
    predictions are of another task, or of another version of it, under the same ids.

    Raises:
        DataError: An answer differs; the message names the record.
    """
    truth = {record.id: normalise(record.answer) for record in records}
    own = [(id_of(row, where), row.get("answer")) for where, row in read_rows(path, "predictions")]
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
