"""What a demonstration trains on and what it is scored on, from the phantom or from real data.

Real data obeys two rules: the rows of VQA-Med-2019 that share a picture with VQA-RAD are never
read, and a training picture that nearly equals a reported test picture is dropped. The one named
exception is the standard split of VQA-RAD, whose test pictures all stand in its training set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medmoe.config.schema import DemoSpec, StepPlan
from medmoe.data import registry
from medmoe.data.leakage import drop_near_duplicates
from medmoe.data.phantom import read_phantom
from medmoe.data.schema import ImageRecord, Record

SplitName = Literal["standard", "disjoint", "validation"]
SPLITS: tuple[SplitName, ...] = ("standard", "disjoint", "validation")

#: Share of the training images held out where hyperparameters are chosen (``--split validation``).
_HELD_OUT = 0.12


@dataclass(frozen=True, slots=True)
class EvalTask:
    """One scored task: its records, and the training records its baselines may look at."""

    name: str
    split: str
    records: Sequence[Record]
    train_records: Sequence[Record]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Everything a demonstration reads.

    Attributes:
        name: ``phantom``, or the data sets read.
        train: Training records of all tasks.
        tasks: What is scored.
        router_test: Labelled images the router is scored on.
        notes: Plain sentences about the data that belong beside the scores.
        repeats: How often a data set's images come in one epoch.
    """

    name: str
    train: Sequence[Record]
    tasks: Sequence[EvalTask]
    router_test: Sequence[ImageRecord]
    notes: Sequence[str]
    repeats: dict[str, int] = field(default_factory=dict)

    def images(self) -> list[ImageRecord]:
        """Return every image once: training, scored and router's."""
        scored = [record for task in self.tasks for record in task.records]
        return unique_images([*self.train, *scored], self.router_test)


def unique_images(
    records: Iterable[Record], images: Iterable[ImageRecord] = ()
) -> list[ImageRecord]:
    """Return the images of records, and further images, each once and in order of appearance."""
    found = {record.image.id: record.image for record in records}
    found |= {image.id: image for image in images if image.id not in found}
    return list(found.values())


def phantom_corpus(plan: StepPlan, seed: int, size: int) -> Corpus:
    """Return the embedded pictures; train and test have no anatomy in common."""
    train = read_phantom("train", plan.train_images, seed=seed, size=size)
    test = read_phantom("test", plan.test_images, seed=seed, size=size)
    tasks = [
        EvalTask(name, "test", _of(test, kind), _of(train, kind))
        for name, kind in (("phantom_vqa", "vqa"), ("phantom_classification", "classification"))
    ]
    notes = ["Synthetic pictures: the scores say that the method works, nothing about patients."]
    return Corpus("phantom", train, tasks, unique_images(test), notes)


def real_corpus(root: Path, split: SplitName, spec: DemoSpec, seed: int) -> Corpus:
    """Return the real data sets under ``root``.

    Args:
        split: ``standard`` and ``disjoint`` name VQA-RAD's splits; ``validation`` scores images
            held out of the training sets instead of any test set, to choose hyperparameters on.

    Raises:
        DataError: A data set is missing or malformed.
    """
    rad_train, rad_test = _vqa_rad(root, split)
    med_train = registry.read("vqa_med_2019", root, "train")
    med_test = registry.read("vqa_med_2019", root, "validation")
    mnist = {
        name: registry.read("pneumoniamnist", root, name)
        for name in ("train", "validation", "test")
    }
    extra = [registry.read(name, root, "train") for name in ("mednist", "lc25000")]
    notes = ["Research use only: a tiny model trained from scratch, far below clinical quality."]
    if split == "validation":
        rad_train, rad_test = _vqa_rad_held_out(root, rad_train)
        med_train, med_test = registry.hold_out(med_train, _HELD_OUT, seed)
    if split == "standard":
        notes.append(
            "vqa_rad is the standard split: all its test pictures also stand in its training set, "
            "with other questions (shared images); use --split disjoint for the clean one."
        )
    own = [] if split == "standard" else rad_test
    rad_train, count = drop_near_duplicates(rad_train, [*own, *med_test])
    notes.append(f"{count} VQA-RAD training records nearly equal a scored picture: dropped.")
    med_train, count = drop_near_duplicates(med_train, [*med_test, *rad_test])
    notes.append(f"{count} VQA-Med-2019 training records nearly equal a scored picture: dropped.")
    train = [*rad_train, *med_train, *mnist["train"], *extra[0], *extra[1]]
    pneumonia = "validation" if split == "validation" else "test"
    rad_name = "vqa_rad_disjoint" if split == "disjoint" else "vqa_rad"
    held_out = "held-out" if split == "validation" else ""
    tasks = [
        EvalTask(rad_name, held_out or "test", _of(rad_test, "vqa"), _of(rad_train, "vqa")),
        EvalTask(
            "vqa_med_2019", held_out or "validation", _of(med_test, "vqa"), _of(med_train, "vqa")
        ),
        EvalTask("pneumoniamnist", pneumonia, mnist[pneumonia], mnist["train"]),
    ]
    router_test = unique_images(med_test)
    for name in ("mednist", "lc25000"):
        router_test += unique_images(registry.read(name, root, pneumonia))
    return Corpus(
        "vqa_rad, vqa_med_2019, pneumoniamnist, mednist, lc25000",
        _limited(train, spec.limits),
        tasks,
        [image for image in router_test if image.modality],
        notes,
        dict(spec.repeats),
    )


def _vqa_rad(root: Path, split: SplitName) -> tuple[list[Record], list[Record]]:
    prefix = "disjoint_" if split == "disjoint" else ""
    return (
        registry.read("vqa_rad", root, f"{prefix}train"),
        registry.read("vqa_rad", root, f"{prefix}test"),
    )


def _vqa_rad_held_out(root: Path, train: list[Record]) -> tuple[list[Record], list[Record]]:
    """Split off the images of the disjoint validation part, and leave out those of its test part.

    So neither a question of the standard test nor a picture of the disjoint one is looked at.
    """
    parts = [
        {record.image.id for record in registry.read("vqa_rad", root, f"disjoint_{part}")}
        for part in ("train", "validation")
    ]
    kept, held = ([record for record in train if record.image.id in part] for part in parts)
    return kept, held


def _of(records: Sequence[Record], task: str) -> list[Record]:
    return [record for record in records if record.task == task]


def _limited(records: Sequence[Record], limits: dict[str, int]) -> list[Record]:
    """Keep the records of the first images of each limited data set."""
    seen: dict[str, set[str]] = {name: set() for name in limits}
    kept = []
    for record in records:
        images = seen.get(record.dataset)
        if images is not None and record.image.id not in images:
            if len(images) >= limits[record.dataset]:
                continue
            images.add(record.image.id)
        kept.append(record)
    return kept
