"""SLAKE (Liu et al. 2021): 642 images, questions in English and Chinese, modality and organ known.

One of the three sets of the paper's table 1, which uses the English questions: `ENGLISH`. The
Chinese ones are a set of their own over the same images: `CHINESE`. Open and closed are the labels
of the set (English test: 645 open, 416 closed). Its masks and knowledge graph are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmoe.data.bad_rows import BadRows, collector
from medmoe.data.readers import common
from medmoe.data.schema import ImageRecord, Record
from medmoe.domains import modality_name
from medmoe.errors import DataError

_FILES = {"train": "train.json", "validation": "validate.json", "test": "test.json"}
_FIELDS = ("qid", "img_name", "question", "answer", "q_lang", "modality", "location", "answer_type")

_SOURCE = common.Source(
    "https://www.med-vqa.com/slake/",
    "slake",
    hub="BoKelvin/SLAKE",
    files=("*.json", "imgs.zip"),
    archives=("imgs.zip",),
)


@dataclass(frozen=True, slots=True)
class Slake:
    """The questions of one language."""

    NAME: str
    language: str
    SPLITS: tuple[str, ...] = tuple(_FILES)
    MARKERS: tuple[str, ...] = ("slake/train.json", "Slake1.0/train.json")
    LICENCE: str = "CC-BY-4.0"
    SOURCE: common.Source = _SOURCE

    def read(self, root: Path, split: str, bad: BadRows | None = None) -> list[Record]:
        """Return the questions of a split; the English ``train`` ends with a caption per image.

        Args:
            root: The data folder, which holds ``slake/`` (``imgs/xmlabN/source.jpg``).
            split: One of ``train``, ``validation``, ``test``.
            bad: Receives the bad rows; without it the first one is an error.

        Raises:
            DataError: A file is missing, or a row is malformed (file and row are named).
        """
        common.check_split(self.NAME, split, self.SPLITS)
        bad = collector(bad)
        folder = common.require(root, self.MARKERS[0], self.NAME, *self.MARKERS[1:]).parent
        path = common.require_part(folder, _FILES[split], self.NAME)
        images: dict[str, ImageRecord] = {}
        records = []
        for number, raw in enumerate(common.json_list(path), 1):
            if _known_fault(raw, split):
                if self.language == "en":
                    bad.leave_out(f"{path}: question without an answer")
                continue
            with bad.row():
                record = self._record(raw, f"{path} row {number}", folder, split, images)
                if record is not None:
                    records.append(record)
        records = common.some(common.unique(records, path, bad), path)
        if split == "train" and self.language == "en":
            records += common.caption_records(images.values(), self.NAME, split, self.LICENCE)
        return records

    def _record(
        self, raw: Any, where: str, folder: Path, split: str, images: dict[str, ImageRecord]
    ) -> Record | None:
        """Return the record of a row, None for one of the other language."""
        text = common.fields(raw, _FIELDS, where)
        if text["q_lang"] != self.language:
            return None
        answer_type = text["answer_type"].lower()
        if answer_type not in ("open", "closed"):
            raise DataError(f"{where}: answer_type {text['answer_type']!r} must be OPEN or CLOSED")
        name = text["img_name"]
        if name not in images:
            images[name] = ImageRecord(
                id=f"slake/{name}",
                source=common.image_file(folder / "imgs", name, where),
                modality=modality_name(text["modality"]),
                organ=text["location"].replace("_", " ").lower(),
            )
        return Record(
            id=f"{self.NAME}/{text['qid']}",
            image=images[name],
            question=text["question"],
            answer=text["answer"],
            answer_type="open" if answer_type == "open" else "closed",
            question_type=str(raw.get("content_type") or "other").strip().lower(),
            task="vqa",
            dataset=self.NAME,
            split=split,
            licence=self.LICENCE,
            place=where,
        )


def _known_fault(raw: Any, split: str) -> bool:
    """Return whether this is the one row of the published set that has no answer."""
    row = raw if isinstance(raw, dict) else {}
    return (split, row.get("qid"), row.get("answer")) == ("train", 1622, "")


ENGLISH = Slake("slake", "en")
CHINESE = Slake("slake_zh", "zh")
