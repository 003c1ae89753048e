"""The records of a task: those that are asked, and those that the baselines learn from.

Data sets come from `medmoe.data.registry`, the phantom is drawn. Nothing is asked or scored here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medmoe.data import registry
from medmoe.data.bad_rows import BadRows
from medmoe.data.phantom import read_phantom
from medmoe.data.readers.common import hash_share, question_word, split_name, yes_no_type
from medmoe.data.schema import ImageRecord, Record, lettered, turns_of
from medmoe.errors import DataError
from medmoe.evaluation.files.known_records import PHANTOM
from medmoe.evaluation.tasks import TaskSpec
from medmoe.model.checkpoint import provenance

SEED = 7
#: Pictures that are drawn of a split of the phantom: some 1,500 questions.
PHANTOM_IMAGES = 200


@dataclass(frozen=True, slots=True)
class TaskRecords:
    """One task ready to be asked.

    Attributes:
        limit: The most questions that were asked for, None for all.
        train: The training records, for the baselines; may be empty.
    """

    spec: TaskSpec
    split: str
    limit: int | None
    records: Sequence[Record]
    train: Sequence[Record]
    notes: tuple[str, ...] = ()

    def sha256(self) -> str:
        """Return a hash of all that is asked: ids, images, questions, options and answers."""
        digest = hashlib.sha256()
        for r in self.records:
            asked = (r.id, r.image.id, r.question, r.options, r.answer)
            shown = tuple((turn, image.id) for turn, image in r.further_images)
            more = filter(None, (r.earlier, shown))
            digest.update(repr((*asked, *more)).encode())
        return digest.hexdigest()


def as_trained(
    model: Path, specs: Iterable[TaskSpec], seed: int | None
) -> tuple[int, Mapping[str, int] | None]:
    """Return the seed of what is drawn, and how many pictures the phantom's splits have.

    The phantom is drawn as the model was trained with it, so that it has not seen what is asked.

    Args:
        seed: The user's, None for the model's or 7.
    """
    facts = provenance(model)
    phantom = any(spec.dataset == PHANTOM for spec in specs)
    if seed is None:
        seed = facts.get("seed", SEED) if phantom else SEED
    return seed, facts.get("phantom_images")


def task_records(
    spec: TaskSpec,
    root: Path | None,
    *,
    split: str | None,
    limit: int | None,
    seed: int,
    phantom_images: Mapping[str, int] | None = None,
) -> TaskRecords:
    """Return the records of a task.

    Args:
        root: Folder of the data sets; the phantom and a user's own data need none.
        split: By default that of the task.
        limit: Ask so many questions only: those of images drawn by the seed, not the first ones,
            since files may be sorted by class.
        seed: Of the draw, and of the phantom's pictures.
        phantom_images: How many pictures the phantom's splits have, as the model was trained and
            reported with; `PHANTOM_IMAGES` where it says nothing.

    Raises:
        DataError: There is no data for the task, or its files are malformed.
    """
    chosen = split or spec.split
    images, taught = (
        (phantom_images or {}).get(name or "", PHANTOM_IMAGES)
        for name in (chosen, spec.train_split)
    )
    images = images if limit is None else min(images, limit)
    bad = BadRows()  # of both parts, so that a note on the set is said once
    records = _read(spec, root, chosen, images, seed, bad)
    left_out = tuple(f"Left out: {count} rows: {what}." for what, count in bad.known_faults.items())
    train, missing = [], ""
    try:
        if spec.train_split is None:
            raise DataError("the set is for testing only")
        train = _read(spec, root, spec.train_split, taught, seed, bad)
    except DataError as error:
        missing = (
            f"{spec.name}: no training answers ({error}); constants are chosen on the scored "
            "records, an upper bound."
        )
    task = task_of(spec, chosen, records, train, limit=limit, seed=seed)
    return replace(task, notes=(*task.notes, *left_out, *filter(None, [missing])))


def task_of(
    spec: TaskSpec,
    split: str,
    content: Sequence[Record],
    train: Sequence[Record],
    *,
    limit: int | None = None,
    seed: int = 0,
) -> TaskRecords:
    """Return a task of what was read of its splits; a user's set without questions has classes.

    Raises:
        DataError: There is nothing to ask.
    """
    if spec.reader is not None and all(record.task != "vqa" for record in content):
        spec = replace(spec, kind="classification")
    every = _of_kind(spec, content)
    if not every:
        raise DataError(f"task {spec.name!r}: split {split!r} holds no {spec.kind} records")
    records = _drawn(every, limit, seed)
    notes = []
    if len(records) < len(every) and spec.dataset != PHANTOM:
        notes.append(f"{spec.name}: {len(records)} of {len(every)} questions, drawn by the seed.")
    if spec.kind == "multiple_choice" and (others := len(content) - len(_of_kind(spec, content))):
        notes.append(f"{spec.name}: {others} questions without options are not asked.")
    classes = sum(record.task == "classification" for record in content)
    if spec.reader is not None and spec.kind == "vqa" and classes:
        notes.append(
            f"{spec.name}: {classes} records of classes are not asked, since they are scored "
            "otherwise; give them as a set of their own."
        )
    if later := sum(bool(record.earlier) for record in records):
        notes.append(
            f"{spec.name}: {later} questions are later turns of conversations, asked with the true "
            "turns before them."
        )
    if split == spec.train_split:
        notes.append(f"{spec.name}: the training split is scored; its baselines know the answers.")
    return TaskRecords(spec, split, limit, records, _of_kind(spec, train), tuple(notes))


def by_letter(task: TaskRecords) -> TaskRecords:
    """Return a multiple-choice task whose questions are answered by the option's letter."""
    spec = replace(task.spec, name=f"{task.spec.name}_letters", kind="letters")
    asked, taught = ([lettered(r) for r in records] for records in (task.records, task.train))
    return replace(task, spec=spec, records=asked, train=taught, notes=())


def _read(
    spec: TaskSpec, root: Path | None, split: str, images: int, seed: int, bad: BadRows
) -> list[Record]:
    if spec.dataset == PHANTOM:
        return read_phantom(split, images, seed=seed)
    reader = spec.reader or registry.READERS[spec.dataset]
    if root is None and reader is registry.READERS.get(spec.dataset):
        raise DataError(
            f"task {spec.name!r} needs the data set {spec.dataset!r}, and there is no data folder; "
            f"give --data DIR or set ${registry.ENVIRONMENT_VARIABLE}"
        )
    records = reader.read(root or Path(), split_name(split), bad)
    bad.settle()
    return records


def turn_by_turn(record: Record) -> list[Record]:
    """Return a record of every question of a conversation, with the true turns before it.

    It has the images that were shown by then.
    """
    if not record.further:
        return [record]
    turns = turns_of(record)

    def shown(number: int) -> tuple[tuple[int, ImageRecord], ...]:
        return tuple(one for one in record.further_images if one[0] < number)

    return [replace(record, further=(), further_images=shown(1))] + [
        replace(
            record,
            id=f"{record.id}#{number}",
            question=question,
            answer=answer,
            answer_type=yes_no_type(answer),
            question_type=question_word(question, answer),
            options=(),
            references=(),
            further=(),
            earlier=turns[: number - 1],
            further_images=shown(number),
        )
        for number, (question, answer) in enumerate(record.further, 2)
    ]


def _of_kind(spec: TaskSpec, records: Sequence[Record]) -> list[Record]:
    """Return the questions of a task's kind; of a conversation each of its own.

    A multiple-choice question is one of classes, which are its own.
    """
    if spec.kind == "multiple_choice":
        return [replace(r, task="classification") for r in records if r.task == "vqa" and r.options]
    task = {"vqa": "vqa", "report": "caption"}.get(spec.kind, "classification")
    return [turn for record in records if record.task == task for turn in turn_by_turn(record)]


def _drawn(records: Sequence[Record], limit: int | None, seed: int) -> list[Record]:
    """Return at most so many records, image by image in the order of a hash, in their own order."""
    if limit is None or limit >= len(records):
        return list(records)
    order = sorted(range(len(records)), key=lambda i: (hash_share(records[i].image.id, seed), i))
    kept = set(order[:limit])
    return [record for i, record in enumerate(records) if i in kept]
