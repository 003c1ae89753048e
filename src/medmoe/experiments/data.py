"""The data of a training run: which records each phase trains on, and what keeps them apart.

Sets are read once each, whether known by name or at a path. A training picture that nearly equals
one of a set that will be scored is dropped, and how many is recorded. What is left of such
pictures, e.g. of a set that is both trained on and scored, is refused or, where the user allows
it, counted for every score.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from medmoe.config.phases import PHASE_TABLE
from medmoe.config.schema import PhaseName
from medmoe.config.train_schema import TrainPhaseSpec, TrainSpec
from medmoe.data import registry
from medmoe.data.bad_rows import BadRows, without_faults
from medmoe.data.leakage import Leak, drop_near_duplicates, refuse_leaks
from medmoe.data.near_duplicates import Pair, fingerprints, same_pictures
from medmoe.data.phantom import read_phantom
from medmoe.data.readers.common import hash_share
from medmoe.data.schema import ImageRecord, Record, Task, images_of, with_images
from medmoe.domains import domain_of
from medmoe.errors import DataError
from medmoe.evaluation.files.known_records import PHANTOM
from medmoe.model.pretrained import vision_of
from medmoe.training.phases.phase2_router import choose_labelled

HELD_OUT = "held_out"
Use = Literal["train", "apart", "test", "measure"]
#: What a set is named for -> the splits that are meant where the recipe names none.
_SPLITS_FOR: dict[Use, tuple[str, ...]] = {
    "train": ("train",),
    "apart": ("validation", "test"),
    "test": ("test",),
    "measure": ("validation",),
}


@dataclass(slots=True)
class TrainData:
    """The records of a run, read and cleaned.

    Attributes:
        spec: The recipe.
        sets: Records by the set's name and split, e.g. ``vqa_rad/train``.
        names: The same names by what the recipe calls a set, and for what: see `_SPLITS_FOR`.
        bad: The rows that were left out, and what is wrong with the official sets.
        dropped: Training records dropped since their picture nearly equals a scored one, and
            validation records dropped since theirs nearly equals a trained one, by name.
        validation: The records to measure on while training.
        leaks: By name of a scored set, its pictures that are also trained on, which were allowed.
    """

    spec: TrainSpec
    sets: dict[str, list[Record]]
    names: dict[tuple[Use, str], list[str]] = field(default_factory=dict)
    bad: BadRows = field(default_factory=BadRows)
    dropped: dict[str, int] = field(default_factory=dict)
    leaks: dict[str, Leak] = field(default_factory=dict)
    validation: list[Record] = field(default_factory=list)

    def tasks(self, phase: PhaseName) -> tuple[Task, ...]:
        """Return the tasks whose records a phase trains on; without captions it takes the rest."""
        tasks = self.spec.tasks(phase)
        if tasks == ("caption",) and all(r.task != "caption" for r in self._everything(phase)):
            return ("vqa", "classification")
        return tasks

    def records(self, phase: PhaseName) -> list[Record]:
        """Return a phase's records, those of its tasks, in the order of its sets."""
        tasks, domains = self.tasks(phase), self.spec.model.domains
        records = [record for record in self._everything(phase) if record.task in tasks]
        if phase == "phase4_expert":
            return [r for r in self._new() if r.task in tasks]
        if phase == "phase3_experts":  # each expert reads its own domain
            return [r for r in records if _is_of_one_domain(r, domains)]
        return records

    def images(self, phase: PhaseName) -> list[ImageRecord]:
        """Return the images of a phase's sets, whatever their tasks, so that phases share them."""
        return images_of(self._everything(phase))

    def _new(self) -> list[Record]:
        """Return the records that an expert is added for: of its domain, all of unlabelled sets."""
        assert self.spec.expert is not None
        new, own = list[Record](), (self.spec.expert.name,)
        for name in self._named("train", self.spec.phases["phase4_expert"].data):
            records = self.sets[name]
            named = any(image.modality for image in images_of(records))
            new += [r for r in records if not named or _is_of_one_domain(r, own)]
        return new

    def old_records(self) -> list[Record]:
        """Return the records of the domains that a model has before an expert is added."""
        assert self.spec.expert is not None
        new, own = {i.id for i in images_of(self._new())}, (self.spec.expert.name,)
        names = self._named("train", self.spec.expert.old)
        records = [r for name in names for r in self.sets[name]]
        return [
            r
            for r in records
            if not any(i.id in new or domain_of(i.modality, own) for i in r.images)
        ]

    def _everything(self, phase: PhaseName) -> list[Record]:
        return [r for name in self.trained(phase) for r in self.sets[name]]

    def trained(self, phase: PhaseName) -> list[str]:
        """Return the names, with their splits, of the sets that a phase trains on."""
        old = self.spec.expert.old if self.spec.expert and phase == "phase4_expert" else ()
        return self._named("train", (*self.spec.phases[phase].data, *old))

    def tested(self) -> list[str]:
        """Return the names of the sets that a router is scored on."""
        return self._named("test", self.spec.router.test if self.spec.router else ())

    def _named(self, use: Use, sets: Iterable[str]) -> list[str]:
        found = [name for given in sets for name in self.names.get((use, given), [given])]
        return list(dict.fromkeys(found))

    def shared_images(self, phase: PhaseName) -> dict[str, int]:
        """Return, by scored set, how many of its pictures this phase or an earlier one sees.

        Sets that share none are left out, and phases that were not read count as having seen none.
        """
        order = list(self.spec.phases)
        before = order[: order.index(phase) + 1]
        names = {name for earlier in before for name in self.trained(earlier)}
        seen = {i.id for i in images_of(r for name in names for r in self.sets.get(name, ()))}
        found = {
            name: len({pair.right_id for pair in leak.pairs if pair.left_id in seen})
            for name, leak in self.leaks.items()
        }
        return {name: count for name, count in found.items() if count}

    def router_test(self) -> list[ImageRecord]:
        """Return the labelled images that a router is scored on."""
        images = images_of(record for name in self.tested() for record in self.sets[name])
        domains = self.spec.model.domains
        taught = {image.id for image in self.images("phase2_router")}
        found = [i for i in images if domain_of(i.modality, domains) is not None]
        return [image for image in found if image.id not in taught]

    def strangers(self) -> list[ImageRecord]:
        """Return the images of no domain among those that are measured or tested on."""
        records = [*self.validation, *(r for name in self.tested() for r in self.sets[name])]
        domains = self.spec.model.domains
        return [i for i in images_of(records) if i.modality and not domain_of(i.modality, domains)]

    def check(
        self, phases: Sequence[PhaseName], label_counts: Sequence[int], seed: int
    ) -> dict[PhaseName, str]:
        """Check, before anything is trained, that every phase will have what it trains on.

        Returns:
            What the user should know, by phase: that it makes do, or experts that see nothing.

        Raises:
            ConfigError: The router would see fewer labels than there are domains.
            DataError: A phase has no record, the router no label, or a scored set no question.
        """
        for given in self.spec.scored.values() if phases else ():
            names = self.names["apart", given]
            if all(r.task == "caption" for name in names for r in self.sets[name]):
                raise DataError(
                    f"{given}: holds captions only, and a score needs questions or classes; add "
                    "some, or train without scores by `medmoe train tiny_real --records …`"
                )
        notes: dict[PhaseName, str] = {}
        for phase in phases:
            if PHASE_TABLE[phase].leaves != "router":
                self.samples(phase)
                if self.tasks(phase) != self.spec.tasks(phase):
                    notes[phase] = "The data hold no captions: phase 1 aligned on the questions."
                continue
            assert self.spec.router is not None
            domains = self.spec.model.domains
            images = self.images(phase)
            for limit in (self.spec.router.labels, *filter(None, label_counts)):
                choose_labelled(images, domains, limit, seed)
            if note := _untaught(images, domains):
                notes[phase] = note
            if label_counts and not self.router_test():
                raise DataError(
                    "the label-count curve needs labelled images that no router sees to score on; "
                    "name sets by --set router.test=[set/split]"
                )
        return notes

    def samples(self, phase: PhaseName) -> int:
        """Return how many samples one epoch of a phase has, repeated as the recipe says.

        Those that its batches are made of: images, or questions.
        """
        records = self.records(phase)
        if not records:
            raise DataError(
                f"{phase}: no training record of task {' or '.join(self.spec.tasks(phase))} in "
                f"{', '.join(self.spec.phases[phase].data)}; name another set in its data"
            )
        if PHASE_TABLE[phase].leaves == "language_model":  # it reads texts, not pictures
            return len(records)
        if self.spec.phases[phase].batch_of == "images":
            records = list({record.first_images: record for record in records}.values())
        return sum(self.spec.data.repeats.get(record.dataset, 1) for record in records)

    def hashes(self, phase: PhaseName) -> dict[str, str]:
        """Return a SHA-256 of each of a phase's sets, over texts and pictures."""
        return {name: _digest(self.sets[name]) for name in self.trained(phase)}


def read_data(
    spec: TrainSpec,
    phases: Sequence[PhaseName],
    root: Path | None,
    seed: int,
    *,
    clean: bool = True,
    allow_leak: bool = False,
    allow_outside: bool = False,
    bad: BadRows | None = None,
) -> TrainData:
    """Read what some phases of a recipe train on, and what they must be kept apart from.

    Args:
        root: Folder of the real data sets; None where there is none.
        clean: Open the pictures to keep them apart from scored ones; a plan does without.
        allow_leak: Train on scored pictures that the recipe does not drop.
        allow_outside: Let a table name pictures outside its folder.
        bad: Receives the rows and pictures that cannot be used and says whether they may be left
            out; without it they may not.

    Raises:
        DataError: A set needs a folder and there is none, or it is missing or malformed; or a
            picture is trained on and scored, and that is not allowed.
    """
    bad = BadRows() if bad is None else bad
    sets = _Sets(spec, root, seed, allow_outside, bad)
    used: dict[Use, list[str]] = {
        "train": [name for phase in phases for name in spec.phases[phase].data]
        + list(spec.expert.old if spec.expert and phases else ()),
        "apart": list(spec.apart_from()) if phases else [],
        "test": list(spec.router.test) if spec.router and "phase2_router" in phases else [],
        "measure": list(spec.validation.data) if spec.validation and phases else [],
    }
    names = {(use, name): sets.read(name, use) for use, given in used.items() for name in given}
    sets.refuse_missing()
    records = _labelled(sets.records, spec.data.modality)
    if spec.data.lower_case:
        records = {name: [*map(_in_lower_case, read)] for name, read in records.items()}
    data = TrainData(spec, records, names, bad)
    trained, apart, tested, measured = (
        list(dict.fromkeys(label for name in given for label in names[use, name]))
        for use, given in used.items()
    )
    for name in trained:
        data.sets[name] = limited(data.sets[name], spec.data.limits, seed)
    scored = list(dict.fromkeys([*apart, *tested]))
    if clean and (scored or measured or bad.policy == "skip"):
        alike = _alike(data, trained, [*scored, *measured])
        _keep_apart(data, trained, apart, scored, measured, allow_leak, alike)
    return data


def read_sets(
    spec: TrainSpec, names: Iterable[str], root: Path | None, seed: int, outside: bool = False
) -> dict[str, list[Record]]:
    """Return the records of scored sets, by what the recipe calls them.

    Args:
        outside: Let a table name pictures outside its folder.

    Raises:
        DataError: A set needs a folder and there is none, or it is missing or malformed.
    """
    sets = _Sets(spec, root, seed, outside, BadRows())
    parts = {name: sets.read(name, "test") for name in names}
    sets.refuse_missing()
    records = _labelled(sets.records, spec.data.modality)
    return {name: [r for label in parts[name] for r in records[label]] for name in parts}


def _is_of_one_domain(record: Record, domains: Sequence[str]) -> bool:
    found = {domain_of(image.modality, domains) for image in record.images}
    return len(found) == 1 and None not in found


def _labelled(sets: dict[str, list[Record]], modality: str | None) -> dict[str, list[Record]]:
    """Give a modality to all pictures of the data sets that name none in any of their splits."""
    if modality is None:
        return sets
    every = [record for records in sets.values() for record in records]
    named = {r.dataset for r in every if any(image.modality for image in r.images)}
    images = {image.id: replace(image, modality=modality) for image in images_of(every)}

    def labelled(record: Record) -> Record:
        if record.dataset in named:
            return record
        return with_images(record, lambda image: images[image.id])

    return {name: [labelled(record) for record in records] for name, records in sets.items()}


def _in_lower_case(record: Record) -> Record:
    if record.task != "vqa":
        return record
    further = tuple((question, answer.lower()) for question, answer in record.further)
    return replace(record, answer=record.answer.lower(), further=further)


def _alike(data: TrainData, trained: Sequence[str], others: Sequence[str]) -> list[Pair]:
    """Open all pictures, leave out those that cannot be, and return the pairs of both sides."""
    names = list(dict.fromkeys([*trained, *others]))
    faults: dict[str, str] = {}
    known = fingerprints(images_of([r for name in names for r in data.sets[name]]), faults)
    for name in names if faults else ():
        data.sets[name] = without_faults(data.sets[name], faults, data.bad)
    data.bad.settle()
    left, right = (
        known.of([i.id for i in images_of([r for name in side for r in data.sets[name]])])
        for side in (trained, others)
    )
    return same_pictures(left, right)


def _keep_apart(
    data: TrainData,
    trained: Sequence[str],
    apart: Sequence[str],
    scored: Sequence[str],
    measured: Sequence[str],
    allow: bool,
    alike: Sequence[Pair],
) -> None:
    """Drop what the recipe drops; refuse, or count where it is allowed, what is left.

    For what is only measured while training no training record is dropped, but its own are.

    Args:
        alike: Pairs of a trained picture and one that is scored or measured on.
    """
    # As they are scored: a limit is on what is trained on.
    tests = {name: list(data.sets[name]) for name in scored}
    literature = data.spec.data.literature
    if data.spec.data.drop_near_duplicates and not literature:
        for name in trained:
            # A set that is itself scored would be dropped whole: that is left to be refused.
            others = [test for test in apart if test != name and not _may_share(data, name, test)]
            kept, dropped = drop_near_duplicates(
                data.sets[name], [r for test in others for r in tests[test]], alike
            )
            data.sets[name], data.dropped[name] = kept, dropped
    left = [record for name in trained for record in data.sets[name]]
    for test in scored:
        own = [name for name in trained if _may_share(data, name, test)]
        foreign = [r for name in trained if name not in own for r in data.sets[name]]
        found = refuse_leaks(foreign, tests[test], allow or literature, alike)
        counted = [r for name in own for r in data.sets[name]]
        shared = refuse_leaks(counted, tests[test], True, alike)
        if found.pairs or shared.pairs:
            data.leaks[test] = Leak((*found.pairs, *shared.pairs), found.test_images)
    turned = [Pair(p.right_id, p.left_id, p.kind, p.distance) for p in alike]
    for name in measured:
        kept, dropped = drop_near_duplicates(data.sets[name], left, turned)
        data.validation += kept
        data.dropped[name] = data.dropped.get(name, 0) + dropped


def _may_share(data: TrainData, name: str, test: str) -> bool:
    """Return whether a recipe lets a set be trained on although a scored one has its pictures."""
    return test in data.spec.data.shared and name.split("/")[0] == test.split("/")[0]


def _untaught(images: Sequence[ImageRecord], domains: Sequence[str]) -> str:
    """Return a note on the experts that no label leads to, empty where there are none."""
    taught = {domain_of(image.modality, domains) for image in images}
    missing = ", ".join(name for name in domains if name not in taught)
    kept = ",".join(name for name in domains if name in taught)
    return missing and (
        f"No picture of the router's data is of {missing}: their experts see nothing "
        f"that is theirs (--domains {kept} leaves them out)."
    )


def sources_of(spec: TrainSpec) -> dict[str, str]:
    """Return by data set what a run trains on it: a key of `SOURCES`; ``new`` are not named."""
    kinds: dict[str, str] = {}
    for phase, values in spec.phases.items():
        kind = "taught" if PHASE_TABLE[phase].leaves == "router" else "seen"
        for given in values.data:
            known = given.startswith(f"{PHANTOM}/")
            name = PHANTOM if known else registry.parse_set(given)[0].NAME
            kinds[name] = "taught" if kinds.get(name) == "taught" else kind
    return kinds


def steps_of(spec: TrainPhaseSpec, samples: int) -> int:
    """Return the optimiser steps of a phase; the last, smaller batch of the last epoch counts.

    In batches of questions that of every epoch does: it is filled up, as in the reference.
    """
    if spec.steps is not None:
        return spec.steps
    assert spec.epochs is not None
    if spec.batch_of == "questions":
        return spec.epochs * math.ceil(samples / spec.batch_size)
    return math.ceil(samples * spec.epochs / spec.batch_size)


class _Sets:
    """Reads sets as a recipe names them, each split once."""

    def __init__(
        self, spec: TrainSpec, root: Path | None, seed: int, outside: bool, bad: BadRows
    ) -> None:
        self._spec, self._root, self._seed, self._outside = spec, root, seed, outside
        self._bad = bad
        self._readers: dict[registry.Reader, registry.Reader] = {}
        self._missing: list[str] = []
        self.records: dict[str, list[Record]] = {}

    def read(self, given: str, use: Use) -> list[str]:
        """Read what a set is used for, and return the names of its parts, e.g. ``clinic/test``."""
        if given.startswith(f"{PHANTOM}/"):
            if given not in self.records:
                self.records[given] = self._phantom(given.removeprefix(f"{PHANTOM}/"))
            return [given]
        reader, split = registry.parse_set(given, allow_outside=self._outside)
        reader = self._readers.setdefault(reader, reader)  # a set is read once for all its splits
        if self._root is None and reader is registry.READERS.get(reader.NAME):
            self._missing.append(given)
            return []
        if twin := next((r for r in self._readers if r.NAME == reader.NAME and r != reader), None):
            raise DataError(
                f"{given}: another set is called {twin.NAME} too; rename the file or folder of one"
            )
        splits = (split,) if split else _SPLITS_FOR[use]
        if not split and use != "train":
            splits = tuple(one for one in splits if one in reader.SPLITS)
        for one in splits:
            name = f"{reader.NAME}/{one}"
            if name not in self.records:
                self.records[name] = self._part(reader, one)
        return [f"{reader.NAME}/{one}" for one in splits]

    def _part(self, reader: registry.Reader, split: str) -> list[Record]:
        """Return a split less what is held out of it, or what is."""
        held_out = self._spec.data.held_out
        of_set = (name.partition("/") for name in held_out)
        whole = next((part for name, _, part in of_set if name == reader.NAME), None)
        if split not in (HELD_OUT, whole):
            whole = None
        records = reader.read(self._root or Path(), whole or split, self._bad)
        self._bad.settle()
        if whole is None:
            return records
        share = held_out[f"{reader.NAME}/{whole}"]
        return registry.hold_out(records, share, self._seed)[split == HELD_OUT]

    def refuse_missing(self) -> None:
        """Refuse sets that are known by name where there is no data folder."""
        if self._missing:
            names = ", ".join(dict.fromkeys(self._missing))
            raise DataError(
                f"the recipe reads {names}; give the folder of the data sets by --data DIR"
            )

    def _phantom(self, split: str) -> list[Record]:
        size = vision_of(self._spec.model).image_size
        data = self._spec.data
        count = data.phantom_images if split == "train" else data.phantom_test_images
        return read_phantom(split, count, seed=self._seed, size=size)


def limited(records: Sequence[Record], limits: Mapping[str, int], seed: int) -> list[Record]:
    """Keep at most so many images of a data set, by hash: files may be sorted by class.

    A record of several goes by its first.
    """
    kept: dict[str, set[str]] = {}
    for name, limit in limits.items():
        ids = {record.image.id for record in records if record.dataset == name}
        kept[name] = set(sorted(ids, key=lambda i: hash_share(i, seed))[:limit])
    return [r for r in records if r.dataset not in kept or r.image.id in kept[r.dataset]]


def _digest(records: Iterable[Record]) -> str:
    """Hash ids, questions, answers and pictures, whatever the order of the records."""
    pictures: dict[str, str] = {}
    lines = []
    for record in records:
        for image in record.images:
            if image.id not in pictures:
                pictures[image.id] = hashlib.sha256(_raw(image)).hexdigest()
        said = [record.question, record.answer, *(text for turn in record.further for text in turn)]
        shown = [pictures[record.image.id]]
        shown += [f"{turn} {pictures[image.id]}" for turn, image in record.further_images]
        lines.append("\t".join([record.id, *said, *shown]) + "\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _raw(image: ImageRecord) -> bytes:
    source = image.source
    if isinstance(source, bytes):
        return source
    return source.read_bytes() if isinstance(source, Path) else source.tobytes()
