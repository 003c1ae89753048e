"""What the readers of published sets share: finding the set, and records that many of them make.

A reader says the facts of its set and turns what lies there into records. It never decodes a
picture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers import common
from medmoe.data.schema import ImageRecord, Record
from medmoe.errors import DataError, one_of


class KnownSet(ABC):
    """A set that is known by name.

    Attributes:
        MARKERS: Files or folders under the data folder; the first that is there is read.
        TRIED: Whether the set's real files were read, and not only its layout as documented.
    """

    NAME: str
    MARKERS: tuple[str, ...]
    LICENCE: str
    SOURCE: common.Source
    SPLITS: tuple[str, ...] = common.SPLITS
    TRIED: bool = False

    def read(self, root: Path, split: str, bad: BadRows | None = None) -> list[Record]:
        """Return the records of a split.

        Args:
            root: The data folder, or the set's own.
            split: One of `SPLITS`.
            bad: Receives the bad rows; without it the first one is an error.

        Raises:
            DataError: A file is missing or broken, or a row is malformed (file and row are named).
        """
        if split not in self.SPLITS:
            raise DataError(one_of(split, self.SPLITS, f"split of {self.NAME}"))
        return self.records(self._marker(root), split, BadRows("first") if bad is None else bad)

    def _marker(self, root: Path) -> Path:
        """Return the first marker that is there; ``root`` may be the set's own folder too."""
        for marker in self.MARKERS:
            for inside in (marker, marker.partition("/")[2]):
                if inside and (root / inside).exists():
                    return root / inside
        raise common.MissingPart(
            f"{self.NAME}: no {self.MARKERS[0]} under {root}; give the folder with --data or "
            "$MEDMOE_DATA"
        )

    @abstractmethod
    def records(self, marker: Path, split: str, bad: BadRows) -> list[Record]:
        """Return the records of a split of the set whose marker is at a path."""

    def record(
        self, name: str, image: ImageRecord, question: str, answer: str, split: str, **facts: Any
    ) -> Record:
        """Return a record of the set: a question, typed by its words where ``facts`` do not say."""
        if "answer_type" not in facts:
            facts["answer_type"] = common.yes_no_type(answer)
        if "question_type" not in facts:
            facts["question_type"] = common.question_word(question, answer)
        facts = {"task": "vqa", "split": split, "dataset": self.NAME} | facts
        return Record(name, image, question, answer, licence=self.LICENCE, **facts)

    def captions(self, images: Iterable[ImageRecord], split: str) -> list[Record]:
        """Return one caption record for each image about which something is known."""
        return [
            self.caption(image, text, split)
            for image in images
            if (text := common.caption(image.modality, image.organ, image.labels.get("plane")))
        ]

    def caption(self, image: ImageRecord, text: str, split: str, place: str = "") -> Record:
        """Return the record that asks for a description of one image."""
        kind = {"answer_type": "open", "question_type": "caption", "task": "caption"}
        request = common.CAPTION_REQUEST
        return self.record(f"{image.id}/caption", image, request, text, split, **kind, place=place)

    def labelled(
        self,
        image: ImageRecord,
        question: str,
        answer: str,
        options: tuple[str, ...],
        split: str,
        finding: str = "",
    ) -> Record:
        """Return the record that asks for the class of an image, or for one finding of several."""
        name = f"{image.id}/{finding}" if finding else image.id
        kind = {"question_type": finding or "classification", "task": "classification"}
        closed: dict[str, Any] = kind | {"answer_type": "closed", "options": options}
        return self.record(name, image, question, answer, split, **closed)
