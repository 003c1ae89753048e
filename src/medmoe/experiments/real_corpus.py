"""The real data of a demonstration: which rows train, which are scored, and what keeps them apart.

The rows of VQA-Med-2019 that share a picture with VQA-RAD are never read, and a training picture
that nearly equals a scored picture is dropped; one that were left is refused. The one named
exception is the standard split of VQA-RAD, whose test pictures all stand in its training set: it is
reported because the literature does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medmoe.config.schema import DemoSpec
from medmoe.data import registry
from medmoe.data.leakage import drop_near_duplicates, refuse_leaks
from medmoe.data.near_duplicates import Fingerprints, fingerprints
from medmoe.data.readers.common import hash_share
from medmoe.data.schema import Record, images_of
from medmoe.experiments.demo_corpus import Corpus, EvalTask, SplitName, of_task, unique_images

#: Share of VQA-Med-2019's training images held out to choose hyperparameters on.
_HELD_OUT = 0.12


def real_corpus(root: Path, split: SplitName, spec: DemoSpec, seed: int) -> Corpus:
    """Return the real data sets under ``root``.

    Args:
        split: ``standard`` and ``disjoint`` name VQA-RAD's splits; ``validation`` scores images
            held out of the training sets instead of any test set, to choose hyperparameters on.

    Raises:
        DataError: A data set is missing or malformed.
    """
    held_out = split == "validation"
    part = "validation" if held_out else "test"
    rad_train, rad_test = _vqa_rad(root, split)
    med_train = registry.read("vqa_med_2019", root, "train")
    med_test = registry.read("vqa_med_2019", root, "validation")
    if held_out:
        med_train, med_test = registry.hold_out(med_train, _HELD_OUT, seed)
    notes = ["Research use only: a tiny model trained from scratch, far below clinical quality."]
    if split == "standard":
        notes.append(_shared_images(rad_train, rad_test))
    known = fingerprints(images_of([*rad_train, *rad_test, *med_train, *med_test]))
    own = [] if split == "standard" else rad_test
    rad_train, rad_dropped = drop_near_duplicates(rad_train, [*own, *med_test], known)
    med_train, med_dropped = drop_near_duplicates(med_train, [*med_test, *rad_test], known)
    notes += [
        f"Training records dropped since their picture nearly equals a scored one: {rad_dropped} "
        f"of VQA-RAD, {med_dropped} of VQA-Med-2019.",
        "The router is judged by VQA-Med-2019 first: MedNIST and LC25000 are easy, their test "
        "images nearly equal training ones.",
    ]
    pneumonia = registry.read("pneumoniamnist", root, "train")
    extra = [*registry.read("mednist", root, "train"), *registry.read("lc25000", root, "train")]
    rad = EvalTask(
        "vqa_rad_disjoint" if split == "disjoint" else "vqa_rad",
        "held-out" if held_out else "test",
        of_task(rad_test, "vqa"),
        of_task(rad_train, "vqa"),
    )
    med = EvalTask(
        "vqa_med_2019",
        "held-out" if held_out else "validation",
        of_task(med_test, "vqa"),
        of_task(med_train, "vqa"),
    )
    mnist = EvalTask("pneumoniamnist", part, registry.read("pneumoniamnist", root, part), pneumonia)
    easy = [r for name in ("mednist", "lc25000") for r in registry.read(name, root, part)]
    router_test = unique_images([*med_test, *easy])
    train = limited([*rad_train, *med_train, *pneumonia, *extra], spec.limits, seed)
    allowed = ("vqa_rad",) if split == "standard" else ()
    tasks = _without_leaks(train, [rad, med, mnist], known, allowed)
    return Corpus(
        "vqa_rad, vqa_med_2019, pneumoniamnist, mednist, lc25000",
        train,
        tasks,
        [image for image in router_test if image.modality],
        notes,
        "vqa_med_2019",
        dict(spec.repeats),
    )


def _without_leaks(
    train: Sequence[Record],
    tasks: Sequence[EvalTask],
    known: Fingerprints,
    allowed: Sequence[str],
) -> list[EvalTask]:
    """Refuse a training picture that is a scored one, but between the splits of a set by name.

    Returns:
        The tasks, with the number of pictures that a named exception shares.
    """
    everything = images_of([*train, *(record for task in tasks for record in task.records)])
    seen = set(known.ids)
    known = known.joined(fingerprints([i for i in everything if i.id not in seen]))
    checked = []
    for task in tasks:
        own = [r for r in train if r.dataset == task.name and task.name in allowed]
        others = [r for r in train if r.dataset != task.name or task.name not in allowed]
        refuse_leaks(others, task.records, known=known)
        leak = refuse_leaks(own, task.records, allow=True, known=known)
        checked.append(replace(task, shared_images=leak.shared))
    return checked


def _vqa_rad(root: Path, split: SplitName) -> tuple[list[Record], list[Record]]:
    """Return VQA-RAD's training and scored records."""
    if split == "disjoint":
        return (
            registry.read("vqa_rad", root, "disjoint_train"),
            registry.read("vqa_rad", root, "disjoint_test"),
        )
    train = registry.read("vqa_rad", root, "train")
    if split == "standard":
        return train, registry.read("vqa_rad", root, "test")
    # The rows of the standard training file on the disjoint split's training and validation images:
    # neither a question of the standard test nor a picture of the disjoint one is looked at.
    kept, held = (
        {record.image.id for record in registry.read("vqa_rad", root, f"disjoint_{name}")}
        for name in ("train", "validation")
    )
    return [r for r in train if r.image.id in kept], [r for r in train if r.image.id in held]


def _shared_images(train: Sequence[Record], test: Sequence[Record]) -> str:
    """Return the sentence that must stand beside the standard split's scores."""

    def key(record: Record) -> tuple[str, str, str]:
        return record.image.id, record.question.strip().lower(), record.answer.strip().lower()

    known = {key(record) for record in train}
    same = sum(key(record) in known for record in test)
    images = {record.image.id for record in train}
    shared = len({record.image.id for record in test} & images)
    return (
        f"vqa_rad (shared images) is the standard split: {shared} of its "
        f"{len({r.image.id for r in test})} test pictures also stand in its training set, and "
        f"{same} of {len(test)} test rows stand there word for word (others as paraphrases); "
        "--split disjoint trains and scores the clean one."
    )


def limited(records: Sequence[Record], limits: Mapping[str, int], seed: int) -> list[Record]:
    """Keep at most so many images of a data set, by hash: files may be sorted by class."""
    kept: dict[str, set[str]] = {}
    for name, limit in limits.items():
        ids = {record.image.id for record in records if record.dataset == name}
        kept[name] = set(sorted(ids, key=lambda i: hash_share(i, seed))[:limit])
    return [r for r in records if r.dataset not in kept or r.image.id in kept[r.dataset]]
