"""What a demonstration trains on and what it is scored on; the embedded phantom's is made here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from medmoe.config.schema import StepPlan
from medmoe.data.leakage import find_leak
from medmoe.data.phantom import read_phantom
from medmoe.data.schema import ImageRecord, Record

SplitName = Literal["standard", "disjoint", "validation"]
SPLITS: tuple[SplitName, ...] = ("standard", "disjoint", "validation")


@dataclass(frozen=True, slots=True)
class EvalTask:
    """One scored task: its records, and the training records its baselines may look at.

    Attributes:
        shared_images: Scored pictures that are also trained on, which stands in every score.
    """

    name: str
    split: str
    records: Sequence[Record]
    train_records: Sequence[Record]
    shared_images: int = 0


@dataclass(frozen=True, slots=True)
class Corpus:
    """Everything a demonstration reads.

    Attributes:
        name: ``phantom``, or the data sets read.
        train: Training records of all tasks.
        tasks: What is scored.
        router_test: Labelled images the router is scored on.
        notes: Plain sentences about the data that belong beside the scores.
        main_router_set: The data set whose images the router is judged by first.
        repeats: How often a data set's images come in one epoch.
    """

    name: str
    train: Sequence[Record]
    tasks: Sequence[EvalTask]
    router_test: Sequence[ImageRecord]
    notes: Sequence[str]
    main_router_set: str
    repeats: dict[str, int] = field(default_factory=dict)

    def images(self) -> list[ImageRecord]:
        """Return every image once: training, scored and router's."""
        scored = [record for task in self.tasks for record in task.records]
        return unique_images([*self.train, *scored], self.router_test)

    def hashes(self) -> dict[str, str]:
        """Return a SHA-256 per training set and task, over ids, questions and answers."""
        parts: dict[str, list[Record]] = {}
        for record in self.train:
            parts.setdefault(f"train/{record.dataset}", []).append(record)
        parts |= {f"{task.split}/{task.name}": list(task.records) for task in self.tasks}
        return {name: _records_hash(records) for name, records in sorted(parts.items())}


def _records_hash(records: Iterable[Record]) -> str:
    lines = sorted(f"{r.id}\t{r.question}\t{r.answer}\n" for r in records)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def unique_images(
    records: Iterable[Record], images: Iterable[ImageRecord] = ()
) -> list[ImageRecord]:
    """Return the images of records, and further images, each once and in order of appearance."""
    found = {record.image.id: record.image for record in records}
    found |= {image.id: image for image in images if image.id not in found}
    return list(found.values())


def phantom_corpus(plan: StepPlan, split: SplitName, seed: int, size: int) -> Corpus:
    """Return the embedded pictures; no two of their splits have an anatomy in common.

    At this size two anatomies may look alike: how many do stands in the notes and in every score.
    """
    part: Literal["validation", "test"] = "validation" if split == "validation" else "test"
    train = read_phantom("train", plan.train_images, seed=seed, size=size)
    test = read_phantom(part, plan.test_images, seed=seed, size=size)
    alike = find_leak(train, test).shared
    tasks = [
        EvalTask(name, part, of_task(test, kind), of_task(train, kind), alike)
        for name, kind in (("phantom_vqa", "vqa"), ("phantom_classification", "classification"))
    ]
    notes = [
        "Synthetic pictures: the scores say that the method works, nothing about patients.",
        f"{alike} of {plan.test_images} scored pictures nearly equal a training one, of another "
        "anatomy.",
    ]
    return Corpus("phantom", train, tasks, unique_images(test), notes, "phantom")


def of_task(records: Iterable[Record], task: str) -> list[Record]:
    """Return the records of one task."""
    return [record for record in records if record.task == task]
