"""What the readers of a user's own files share: a set is read once, all its splits together.

Where no row names a split the set is parted (`medmoe.data.parting`); where some do, a row without
one is for training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from medmoe.data.bad_rows import BadRows
from medmoe.data.parting import part
from medmoe.data.readers import common
from medmoe.data.schema import Record
from medmoe.errors import DataError, one_of, quoted

_SOURCE = common.Source("your own files")


@dataclass(frozen=True, slots=True)
class Content:
    """The records of a set as they stand in its files.

    Attributes:
        records: With an empty split where none is named.
        patients: Image id -> patient, where the files say who.
    """

    records: list[Record] = field(default_factory=list)
    patients: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OwnSet(ABC):
    """A user's set at a path.

    Attributes:
        path: File or folder.
        allow_outside: Read pictures that lie outside the set's folder too.
    """

    path: Path
    allow_outside: bool = False
    SOURCE: common.Source = _SOURCE
    LICENCE: str = "unknown"

    @property
    def NAME(self) -> str:
        """The name of the folder."""
        return self.path.resolve().name

    @property
    def MARKERS(self) -> tuple[str, ...]:
        """The file or folder itself."""
        return (str(self.path),)

    @property
    def SPLITS(self) -> tuple[str, ...]:
        """The splits that have a record, in order of appearance."""
        return tuple(self._parts[0])

    def read(self, root: Path, split: str, bad: BadRows | None = None) -> list[Record]:
        """Return the records of a split.

        Args:
            root: Not looked at.
            split: One of `SPLITS`.
            bad: Receives the bad rows of the whole set, and how it was read; without it bad rows
                are an error.

        Raises:
            DataError: Rows are malformed (file and row are named), or no row can be used.
        """
        del root
        parts, met = self._parts
        if bad is None:
            met.settle()
        (BadRows() if bad is None else bad).take(met)
        if split not in parts:
            if split in common.SPLITS:
                raise DataError(f"{self.path}: {_lacks(parts, [split])}")
            raise DataError(one_of(split, parts, f"split of {self.NAME}"))
        return parts[split]

    @cached_property
    def _parts(self) -> tuple[dict[str, list[Record]], BadRows]:
        bad = BadRows(quiet=True)
        content = self.content(bad)
        parts: dict[str, list[Record]] = {}
        said = ""
        if any(record.split for record in content.records):
            for record in content.records:
                split = record.split or "train"
                parts.setdefault(split, []).append(replace(record, split=split))
        elif content.records:
            parts, said = part(content.records, content.patients, bad)
        if not parts:
            why = bad.first_reasons() or "it is empty; add rows"
            raise DataError(f"{self.path}: no usable row in it: {why}")
        taught = {record.answer for record in parts.get("train", ())}
        everyone = [record for records in parts.values() for record in records]
        classes = {o for r in everyone if r.task == "classification" for o in r.options}
        if taught and classes - taught:
            names = ", ".join(sorted(classes - taught)[:5])
            bad.say(f"{self.path}: no training picture of class {names}; nothing teaches it")
        if said:
            bad.say(f"{self.path}: {said}")
            return parts, bad
        lacking = [split for split in common.SPLITS if split not in parts]
        if lacking:
            bad.say(f"{self.path}: {_lacks(parts, lacking)}")
        return parts, bad

    @abstractmethod
    def content(self, bad: BadRows) -> Content:
        """Read all records."""


def _lacks(parts: Iterable[str], lacking: Iterable[str]) -> str:
    return (
        f"has {', '.join(parts)} and no {' or '.join(lacking)} part; add it, or name no split at "
        "all to have the set parted 80/10/10"
    )


def with_classes(records: Sequence[Record], path: Path) -> list[Record]:
    """Return the records; those of a class have all classes of the set as options.

    They stand in order: numbers by value, texts by the alphabet.

    Raises:
        DataError: There is one class only: nothing can be told apart.
    """
    of_class = [r.task == "classification" and not r.options for r in records]
    classes = {r.answer for r, is_class in zip(records, of_class, strict=True) if is_class}
    if not classes - {""}:
        return list(records)
    options = tuple(sorted(classes, key=lambda c: (len(c) if c.isdigit() else 0, c)))
    if len(options) == 1:
        raise DataError(
            f"{path}: one class only ({quoted(options[0])}); add pictures of another, or give a "
            "table with questions"
        )
    return [
        replace(record, options=options) if is_class else record
        for record, is_class in zip(records, of_class, strict=True)
    ]
