"""Rows of training data that cannot be used: reported by file and row, never dropped in silence.

A reader hands every row to `BadRows.row`. Without one, the first bad row is an error. With one, all
bad rows of a set are collected, so that a user mends them in one go, or leaves them out knowingly.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from medmoe.data.images import open_picture
from medmoe.data.schema import Record, images_of
from medmoe.errors import DataError, ImageError

_log = logging.getLogger(__name__)

Policy = Literal["fail", "skip", "first"]
Row = TypeVar("Row")
Made = TypeVar("Made")
#: Reasons that an error spells out; the others are counted.
_SPELT_OUT = 3


@dataclass(slots=True)
class BadRows:
    """The bad rows met while reading.

    Attributes:
        policy: ``fail``: `settle` raises; ``skip``: the rows are left out and counted; ``first``:
            the first is an error at once, as where no collection is given.
        reasons: One line each, which begins with file and row.
        known_faults: What of an official set cannot be used, and in how many rows: counted, never
            an error (LLaVA-Med's pictures are fetched one by one and some are gone; a SLAKE row has
            no answer).
        notes: How a user's own files were read (encoding, separator, parts, what is not read), one
            sentence each.
        quiet: Keep the notes out of the log, for a collection that another one takes.
    """

    policy: Policy = "fail"
    reasons: list[str] = field(default_factory=list)
    known_faults: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    quiet: bool = False

    @contextmanager
    def row(self) -> Iterator[None]:
        """Keep the error of one row for the report; the row is then not read."""
        try:
            yield
        except DataError as error:
            if self.policy == "first":
                raise
            self.reasons.append(str(error))

    def made(
        self, rows: Iterable[tuple[str, Row]], make: Callable[[Row, str], Made]
    ) -> Iterator[Made]:
        """Yield what is made of the rows that can be used, each given with its place."""
        for where, row in rows:
            with self.row():
                yield make(row, where)

    def leave_out(self, what: str, rows: int = 1) -> None:
        """Count rows of an official set that are left out."""
        self.known_faults[what] += rows
        _log.warning("left out of the official set: %s: %d rows", what, rows)

    def say(self, note: str) -> None:
        """Keep a sentence on how the set was read, once."""
        if note not in self.notes:
            self.notes.append(note)
            if not self.quiet:
                _log.info("%s", note)

    def take(self, other: BadRows) -> None:
        """Add what was met in one reading; the same reading adds nothing twice."""
        if not set(other.reasons[:1]) & set(self.reasons):
            self.reasons += other.reasons
        for note in other.notes:
            self.say(note)

    def first_reasons(self) -> str:
        """Return the first reasons, and how many more there are."""
        others = len(self.reasons) - _SPELT_OUT
        more = f" (and {others} more bad rows)" if others > 0 else ""
        return "; ".join(self.reasons[:_SPELT_OUT]) + more

    def settle(self) -> None:
        """Raise the first bad rows, with the number of the others, unless they may be skipped.

        Raises:
            DataError: There are bad rows and the policy is ``fail``.
        """
        if self.reasons and self.policy == "fail":
            raise DataError(
                f"{self.first_reasons()}; `medmoe data info` lists all (and `train` and the "
                "actions of `data` leave them out by --on-bad-row skip)"
            )


def readable(records: Iterable[Record], bad: BadRows, flat: set[str] | None = None) -> list[Record]:
    """Return the records whose pictures can be opened; each picture is decoded once.

    The others are bad rows, with the place of the record and the reason of the decoder.

    Args:
        flat: Receives the ids of the images that show nothing.
    """
    records, faults = list(records), dict[str, str]()
    for image in images_of(records):
        try:
            facts = open_picture(image.source).facts
            if flat is not None and "flat_picture" in facts.warnings:
                flat.add(image.id)
        except ImageError as error:
            faults[image.id] = str(error)
    return without_faults(records, faults, bad)


def without_faults(
    records: Iterable[Record], faults: Mapping[str, str], bad: BadRows
) -> list[Record]:
    """Return the records all of whose pictures can be opened; the others are bad rows.

    Args:
        faults: Why an image cannot be opened, by its id.
    """
    kept = []
    for record in records:
        if reason := next((faults[i.id] for i in record.images if i.id in faults), None):
            bad.reasons.append(f"{record.place or record.id}: unreadable image: {reason}")
        else:
            kept.append(record)
    return kept
