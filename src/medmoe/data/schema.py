"""One record per question, one image record shared by all questions on it.

Captions, questions and classification items are all records, told apart by ``task``: phase 1
trains on ``caption``, phases 2 and 3 on ``vqa`` and ``classification``, the router on the image's
modality. This is the form in a process; `medmoe.data.exchange` is the same on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from medmoe.domains import Task as Task

AnswerType = Literal["open", "closed"]
TASKS: tuple[Task, ...] = get_args(Task)
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class ImageRecord:
    """One image and what is known about it.

    Attributes:
        id: Unique over all data sets, e.g. ``vqa_rad/synpic54610.jpg``.
        source: A file, the bytes of one (out of a Parquet file), or pixels (H, W) or (H, W, 3),
            uint8.
        modality: A name of `medmoe.domains` (``ct``, ``ultrasound``, …), None where unknown.
        organ: Organ or body region, None where unknown.
        labels: Further facts by name (``plane``, ``finding``, ``side``, …), used only to pretrain
            the stand-in vision encoder; never shown to the language model as such.
    """

    id: str
    source: Path | bytes | Pixels
    modality: str | None = None
    organ: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One question (or caption request) about an image, or a conversation that begins with it.

    A turn of a conversation that is scored is a record of its own.

    Attributes:
        id: Unique within the data set and split.
        further: The conversation's further turns, question and answer of each; a turn is read with
            all that was said before it.
        options: The closed set of answers of a classification item, in label order.
        references: Further accepted answers besides ``answer``.
        place: File and row it was read from, for reports; empty where there is none.
        earlier: The turns that were said before the question, as `further`.
        further_images: Further images in order, each with the number of the turn before whose
            question it stands: 0 the first, whose images are read before all that is said.
    """

    id: str
    image: ImageRecord
    question: str
    answer: str
    answer_type: AnswerType
    question_type: str
    task: Task
    dataset: str
    split: str
    licence: str
    options: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    place: str = ""
    further: tuple[tuple[str, str], ...] = ()
    earlier: tuple[tuple[str, str], ...] = ()
    further_images: tuple[tuple[int, ImageRecord], ...] = ()

    @property
    def images(self) -> tuple[ImageRecord, ...]:
        """All images, in the order in which they are read."""
        return (self.image, *(image for _, image in self.further_images))

    @property
    def first_images(self) -> tuple[str, ...]:
        """Ids of the images before the first question: records with the same share a sample."""
        return (self.image.id, *(image.id for turn, image in self.further_images if turn == 0))


def images_of(records: Iterable[Record]) -> list[ImageRecord]:
    """Return the images of records, each once and in order of appearance."""
    return list({image.id: image for record in records for image in record.images}.values())


def with_images(record: Record, change: Callable[[ImageRecord], ImageRecord]) -> Record:
    """Return a record with other images in the places of its own."""
    further = tuple((turn, change(image)) for turn, image in record.further_images)
    return replace(record, image=change(record.image), further_images=further)


def question_text(record: Record) -> str:
    """Return the question as asked: where an answer is to be chosen, the options stand behind."""
    if record.options:
        return f"{record.question} Options: {', '.join(record.options)}."
    return record.question


def lettered(record: Record) -> Record:
    """Return a multiple-choice record that asks for, and is answered by, the option's letter."""
    letters = "ABCDEFGHIJ"[: len(record.options)]
    lines = (f"{letter}. {option}" for letter, option in zip(letters, record.options, strict=True))
    request = "Answer with the option's letter from the given choices directly."
    return replace(
        record,
        question="\n".join((record.question, *lines, request)),
        answer=letters[record.options.index(record.answer)],
        references=(record.answer,),
        task="vqa",
        options=(),
    )


def turns_of(record: Record) -> tuple[tuple[str, str], ...]:
    """Return question, as asked, and answer of each turn of a record."""
    return ((question_text(record), record.answer), *record.further)


def spoken(turns: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return role and text of what was said in turns of question and answer."""
    return [part for turn in turns for part in zip(("user", "assistant"), turn, strict=True)]
