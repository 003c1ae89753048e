"""What a row of a user's own may say: one checker for tables, JSON, Parquet and every chat form.

A row names a picture, a question and an answer under `NEEDED`, or a ``label`` (a class), or a
``caption``, or speaks in a form of `medmoe.data.readers.chat`; it may name several pictures.
`OPTIONAL` may stand beside, and nothing else: a misspelt column must not pass unseen. Known words
are brought to our spelling, all others are refused with the choices. Rows may not contradict each
other on one picture.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from medmoe.data.readers import chat, common
from medmoe.data.readers.chat import Row, plain_text
from medmoe.data.schema import TASKS, AnswerType, ImageRecord, Record, Task
from medmoe.domains import MODALITIES, modality_name
from medmoe.errors import DataError, one_of, quoted

NEEDED = ("image", "question", "answer")
OPTIONAL = (
    *("id", "split", "answer_type", "question_type", "options", "references"),
    *("modality", "organ", "licence", "task", "patient"),
)
CLASS_QUESTION = "Which class does this image belong to?"
#: Instead of question and answer: a class, or a description.
_INSTEAD = ("label", "caption")
#: What `medmoe data export` writes besides.
_EXPORTED = ("dataset", "image_id", "labels")
#: What is said of a picture; of several with ``|`` between the words.
_OF_IMAGE = ("image_id", "modality", "organ", "patient")
_TEXTS = (*(n for n in OPTIONAL if n not in ("options", "references")), *_INSTEAD, *_EXPORTED)
_COLUMNS = (*NEEDED, *OPTIONAL, *_INSTEAD, *_EXPORTED, "domain", *chat.COLUMNS)
#: Other names of columns, without blanks and signs; the first is that of datasets' imagefolder.
_ALIASES = {
    **dict.fromkeys(("filename", "imagepath"), "image"),
    **dict.fromkeys(("patientid", "subject", "subjectid", "participantid"), "patient"),
    "text": "caption",
    "license": "licence",
}
#: How a spreadsheet or pandas writes that a value is missing.
_MISSING = ("nan", "-nan", "n/a", "#n/a", "#na", "<na>", "null", "#value!", "#ref!", "#name?")
_ANSWER_TYPES: dict[str, AnswerType] = {
    **dict.fromkeys(("open", "openended", "freetext", "freeform"), "open"),
    **dict.fromkeys(("closed", "closedended", "yesno", "binary", "multiplechoice"), "closed"),
}
_TASK_NAMES: dict[str, Task] = {
    **{task: task for task in TASKS},
    "captioning": "caption",
    "visualquestionanswering": "vqa",
}


_Word = TypeVar("_Word", bound=str)


@dataclass(slots=True)
class Checker:
    """Makes records of the rows of one set.

    Attributes:
        name: Of the set.
        licence: Of rows that name none.
        allow_outside: Pictures may lie outside the folder of their table.
        needs_answers: Without, a row may lack its answer: it is to be predicted.
        patients: Image id -> patient, of the rows so far.
        renamed: Columns that were read under another name.
        backslashes: Whether a path was written with them.
        repeats: Sentences on rows that were left out since they repeat an earlier one.
    """

    name: str
    licence: str
    allow_outside: bool = False
    needs_answers: bool = True
    patients: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    backslashes: bool = False
    repeats: list[str] = field(default_factory=list)
    _images: dict[str, ImageRecord] = field(default_factory=dict)
    _asked: dict[tuple[str, ...], Record] = field(default_factory=dict)

    def columns(self, names: Sequence[str], where: str) -> dict[str, str]:
        """Return column -> our name of it.

        Raises:
            DataError: A column is unknown, stands twice, or one that a row needs is missing.
        """
        known = {_squashed(name): name for name in _COLUMNS}
        meaning: dict[str, str] = {}
        for name in names:
            ours = _ALIASES.get(_squashed(name)) or known.get(_squashed(name))
            if ours is None:
                near = difflib.get_close_matches(_squashed(name), known, n=1)
                hint = f"; did you mean {known[near[0]]!r}?" if near else ""
                choices = ", ".join((*NEEDED, *OPTIONAL))
                raise DataError(f"{where}: unknown column {quoted(name)}; known: {choices}{hint}")
            if ours in meaning.values():
                raise DataError(f"{where}: {ours} stands in two columns; rename or remove one")
            meaning[name] = ours
            if ours != name:
                self.renamed[name] = ours
        self._check_needed(meaning.values(), where)
        return meaning

    def _check_needed(self, names: Collection[str], where: str) -> None:
        if chat.is_chat(dict.fromkeys(names, True)):
            return
        instead = not {*_INSTEAD}.isdisjoint(names)
        needed = NEEDED[:1] if instead else NEEDED if self.needs_answers else NEEDED[:2]
        for name in needed:
            if name not in names and (name, "images") not in {("image", n) for n in names}:
                raise DataError(
                    f"{where}: column {name!r} is missing; a row needs image, question and "
                    "answer, or image and label, or image and caption, or messages and images"
                )

    def record(self, row: Row, where: str, folder: Path, of_file: str) -> Record | None:
        """Return the record of a row, None for one that only repeats another.

        Args:
            row: Under our names of the columns.
            where: File and row.
            folder: What the paths of pictures begin at.
            of_file: The split that the name of the file says, else empty.

        Raises:
            DataError: The row breaks a rule; file, row and fix are named.
        """
        text = {name: _optional(row.get(name), name, where) for name in _TEXTS}
        options, references = (_list(row.get(n), n, where) for n in ("options", "references"))
        ((question, answer), *further), places = self._turns(row, text, options, where)
        images = self._images_of(row, text, where, folder)
        turns = _turns_of_images(len(images), places, where)
        split = common.split_name(text["split"])
        if of_file and split not in ("", of_file):
            raise DataError(f"{where}: split {split!r} in the file of {of_file}; correct one")
        number = "/".join(filter(None, (of_file, where.rpartition(" ")[2])))
        name = f"{self.name}/{text['id'] or number}"
        task = _one_word(text["task"], _TASK_NAMES, "task", where)
        kind = _one_word(text["answer_type"], _ANSWER_TYPES, "answer_type", where)
        said: Task = "classification" if text["label"] else "caption" if text["caption"] else "vqa"
        record = Record(
            id=text["id"] if text["id"] and text["dataset"] else name,
            image=images[0],
            question=question,
            answer=_spelt_as_option(answer, options, where) if answer else "",
            answer_type=kind
            or ("closed" if options or text["label"] else common.yes_no_type(answer)),
            question_type=text["question_type"]
            or (common.question_word(question, answer) if said == "vqa" else said),
            task=task or said,
            dataset=text["dataset"] or self.name,
            split=split or of_file,
            licence=text["licence"] or self.licence,
            options=options,
            references=references,
            place=where,
            further=tuple(further),
            further_images=tuple(zip(turns, images, strict=True))[1:],
        )
        # What an exported set says twice, or of two minds, its source says.
        return record if text["dataset"] else self._unless_repeated(record)

    def _turns(
        self, row: Row, text: Mapping[str, str], options: Sequence[str], where: str
    ) -> tuple[list[tuple[str, str]], list[int]]:
        question, answer = (plain_text(row.get(name), name, where) for name in NEEDED[1:])
        if chat.is_chat(row):
            ((said, replied), *further), places = chat.turns_of(row, where, self.needs_answers)
            if answer and replied and answer != replied:
                raise DataError(
                    f"{where}: answer {quoted(answer)} is not what the messages say "
                    f"({quoted(replied)}); correct one"
                )
            return [(question or said, replied or answer), *further], places
        if not question and (text["label"] or text["caption"]):
            asked = CLASS_QUESTION if text["label"] else common.CAPTION_REQUEST
            return [(asked, text["label"] or text["caption"])], []
        needed = {"question": question, "answer": answer or text["label"]}
        for name, value in needed.items():
            if name == "answer" and not self.needs_answers:
                continue
            if not value or (value.lower() in _MISSING and value not in options):
                given = f" ({value!r})" if value else ""
                raise DataError(f"{where}: empty {name}{given}; fill it in or remove the row")
        return [(question, answer or text["label"])], []

    def _images_of(
        self, row: Row, text: Mapping[str, str], where: str, folder: Path
    ) -> list[ImageRecord]:
        """Return the pictures of a row in order, each with what is said of it."""
        references = chat.image_references(row, where)
        if not references:
            given = "empty image" if row.get("images") is None else "images must hold an image"
            raise DataError(f"{where}: {given}; name its file or remove the row")
        named = {name: _each(text[name], len(references), name, where) for name in _OF_IMAGE}
        images = []
        for number, reference in enumerate(references):
            facts = {**text, **{name: words[number] for name, words in named.items()}}
            if len(references) > 1:  # a class of several together is none of one
                facts |= {"label": "", "labels": "" if number else text["labels"]}
            source = self._source(reference, where, folder)
            images.append(self._image(source, facts, chat.flagged_modality(row), where))
        return images

    def _image(
        self,
        found: tuple[Path | bytes, str],
        text: Mapping[str, str],
        flagged: str | None,
        where: str,
    ) -> ImageRecord:
        """Return the one record of an image; two rows must not contradict each other on it."""
        source, name = found
        if text["image_id"]:
            name = text["image_id"]
        # An id that we exported says of itself which set it is from.
        name = name if text["image_id"] and text["dataset"] else f"{self.name}/{name}"
        modality = known_modality(text["modality"], where) or flagged
        if name not in self._images:
            labels = _labels(text["labels"], where)
            if text["label"]:
                labels["class"] = text["label"]
            self._images[name] = ImageRecord(name, source, modality, text["organ"] or None, labels)
        image = self._images[name]
        facts = {
            "modality": (modality, image.modality),
            "organ": (text["organ"] or None, image.organ),
            "patient": (text["patient"] or None, self.patients.get(name, text["patient"])),
        }
        for what, (now, before) in facts.items():
            if now is not None and now != before:
                raise DataError(
                    f"{where}: {what} {now!r} of image {quoted(name)}, an earlier row says "
                    f"{before!r}; give all rows of an image the same"
                )
        if text["patient"]:
            self.patients[name] = text["patient"]
        return image

    def _source(self, reference: Any, where: str, folder: Path) -> tuple[Path | bytes, str]:
        data = reference.get("bytes") if isinstance(reference, dict) else reference
        if isinstance(data, bytes) and data:
            return data, hashlib.sha256(data).hexdigest()[:16]
        path = reference.get("path") if isinstance(reference, dict) else reference
        name = plain_text(path, "image", where)
        file = common.image_file(folder, name, where, self.allow_outside)
        self.backslashes |= "\\" in name
        true, inside = file.resolve(), folder.resolve()  # one name, however a row spells the path
        return file, (true.relative_to(inside) if true.is_relative_to(inside) else true).as_posix()

    def _unless_repeated(self, record: Record) -> Record | None:
        further = [text for turn in record.further for text in turn]
        shown = " + ".join(image.id for image in record.images)
        key = (shown, record.question.casefold(), *record.options, *further)
        first = self._asked.setdefault(key, record)
        if first is record or not self.needs_answers:
            return record
        at = first.place.rpartition(" ")[2]
        if first.answer.casefold() != record.answer.casefold():
            if record.answer_type != "closed":  # an open question may have several
                return record
            raise DataError(
                f"{record.place}: answers {quoted(record.answer)} where row {at} answers "
                f"{quoted(first.answer)} to the same question on the same picture; correct one"
            )
        if first.split != record.split:  # said where parts are kept apart
            return record
        self.repeats.append(f"{record.place}: the same as row {at}; left out")
        return None


def _each(text: str, pictures: int, name: str, where: str) -> list[str]:
    """Return what is said of each picture of a row: of all one word, or of each its own."""
    words = [word.strip() for word in text.split("|")] if pictures > 1 else [text]
    if len(words) not in (1, pictures):
        raise DataError(
            f"{where}: {name} {quoted(text)} has {len(words)} words for {pictures} pictures; give "
            "one for all, or one for each with | between them"
        )
    return words * pictures if len(words) == 1 else words


def _turns_of_images(pictures: int, places: Sequence[int], where: str) -> list[int]:
    """Return of each picture of a row the turn before whose question it stands.

    The first stands before the first question, and so do all others where nothing marks them.
    """
    if pictures == 1 or not places:
        return [0] * pictures
    if len(places) != pictures:
        raise DataError(
            f"{where}: pictures: {pictures}, marks {chat.IMAGE_MARK}: {len(places)}; give each "
            "picture once and as many marks, in the same order, or no mark"
        )
    if any(place % 2 for place in places):
        raise DataError(f"{where}: a picture stands in an answer; only a question can have one")
    return [0, *(place // 2 for place in places[1:])]


def known_modality(raw: str, where: str) -> str | None:
    """Return our name of a modality, None for an empty one; an unknown one is an error."""
    if not raw:
        return None
    name = modality_name(raw)
    if name not in MODALITIES:
        raise DataError(f"{where}: {one_of(raw, MODALITIES, 'modality')}; or leave it empty")
    return name


def _squashed(name: str) -> str:
    """Return a name without case, blanks and signs (``Answer Type`` is ``answer_type``)."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _optional(value: object, name: str, where: str) -> str:
    text = plain_text(value, name, where)
    return "" if text.lower() in _MISSING and name not in _INSTEAD else text


def _list(value: object, name: str, where: str) -> tuple[str, ...]:
    """Return the texts of a list, or of a text with | between them."""
    if isinstance(value, str) and (text := value.strip()).startswith("["):
        try:
            value = ast.literal_eval(text)  # how pandas and JSON write a list as text
        except (ValueError, SyntaxError):
            raise DataError(f"{where}: {name} {quoted(text)} is no list; write a|b|c") from None
    parts = value if isinstance(value, list) else plain_text(value, name, where).split("|")
    texts = tuple(text for part in parts if (text := plain_text(part, name, where)))
    if len({text.casefold() for text in texts}) < len(texts):
        raise DataError(f"{where}: {name} {', '.join(texts)} name one twice; remove it")
    return texts


def _one_word(given: str, words: Mapping[str, _Word], what: str, where: str) -> _Word | None:
    """Return what a word stands for, None for none; an unknown one is an error."""
    if given and _squashed(given) not in words:
        choices = dict.fromkeys(str(word) for word in words.values())
        raise DataError(f"{where}: {one_of(given, choices, what)}")
    return words.get(_squashed(given))


def _spelt_as_option(answer: str, options: Sequence[str], where: str) -> str:
    if options and answer not in options:
        near = [option for option in options if option.casefold() == answer.casefold()]
        hint = f"; did you mean {near[0]!r}?" if near else "; add it"
        raise DataError(
            f"{where}: answer {quoted(answer)} is none of the options {', '.join(options)}{hint}"
        )
    return answer


def _labels(text: str, where: str) -> dict[str, str]:
    try:
        labels = json.loads(text or "{}")
    except json.JSONDecodeError:
        labels = None
    if not isinstance(labels, dict):
        raise DataError(f"{where}: labels must be a JSON object; correct it or leave it out")
    return {str(key): str(value) for key, value in labels.items()}
