"""Rows of training data that cannot be used: reported by file and row, never dropped in silence.

A reader hands every row to `BadRows.row`. Without one, the first bad row is an error. With one, all
bad rows of a set are collected, so that a user mends them in one go, or leaves them out knowingly.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from medmoe.data.images import open_image
from medmoe.data.schema import Record
from medmoe.errors import DataError, ImageError

_log = logging.getLogger(__name__)

Policy = Literal["fail", "skip"]
POLICIES: tuple[Policy, ...] = ("fail", "skip")


@dataclass(slots=True)
class BadRows:
    """The bad rows met while reading.

    Attributes:
        policy: ``fail``: `settle` raises; ``skip``: the rows are left out and counted.
        reasons: One line each, which begins with file and row.
        known_faults: What is wrong in an official set itself, and in how many rows: counted, never
            an error (LLaVA-Med's pictures are fetched one by one and some are gone; a SLAKE row has
            no answer).
    """

    policy: Policy = "fail"
    reasons: list[str] = field(default_factory=list)
    known_faults: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def row(self) -> Iterator[None]:
        """Keep the error of one row for the report; the row is then not read."""
        try:
            yield
        except DataError as error:
            self.reasons.append(str(error))

    def leave_out(self, what: str, rows: int = 1) -> None:
        """Count rows that are left out for a fault of the official set."""
        self.known_faults[what] += rows
        _log.warning("left out for a fault of the set itself: %s: %d rows", what, rows)

    def settle(self) -> None:
        """Raise the first bad row, with the number of them, unless they may be skipped.

        Raises:
            DataError: There are bad rows and the policy is ``fail``.
        """
        if self.reasons and self.policy == "fail":
            others = len(self.reasons) - 1
            more = f" (and {others} more bad rows)" if others else ""
            raise DataError(
                f"{self.reasons[0]}{more}; `medmoe data info` lists all, --on-bad-row skip leaves "
                "them out"
            )


class _FirstIsAnError(BadRows):
    """What a reader uses where no collection is given."""

    @contextmanager
    def row(self) -> Iterator[None]:
        yield


def collector(bad: BadRows | None) -> BadRows:
    """Return the collection given, or one that makes the first bad row an error."""
    return _FirstIsAnError() if bad is None else bad


def readable(records: Iterable[Record], bad: BadRows) -> list[Record]:
    """Return the records whose picture can be opened; each picture is decoded once.

    The others are bad rows, with the place of the record and the reason of the decoder.
    """
    reasons: dict[str, str | None] = {}
    kept = []
    for record in records:
        image = record.image
        if image.id not in reasons:
            reasons[image.id] = _fault(record)
        reason = reasons[image.id]
        if reason is None:
            kept.append(record)
        else:
            bad.reasons.append(f"{record.place or record.id}: {reason}")
    return kept


def _fault(record: Record) -> str | None:
    try:
        open_image(record.image.source)
    except ImageError as error:
        return f"unreadable image: {error}"
    return None
