"""SLAKE (Liu et al. 2021): 642 images, questions in English and Chinese, modality and organ known.

One of the three sets of the paper's table 1, which uses the English questions: `ENGLISH`. The
Chinese ones are a set of their own over the same images: `CHINESE`. Open and closed are the labels
of the set (English test: 645 open, 416 closed). Its masks and knowledge graph are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers import common
from medmoe.data.readers.known_set import KnownSet
from medmoe.data.schema import ImageRecord, Record
from medmoe.domains import modality_name

_FILES = {"train": "train.json", "validation": "validate.json", "test": "test.json"}
#: What the copy on the hub calls it.
_HUB_VALIDATION = "validation.json"
_FIELDS = ("qid", "img_name", "question", "answer", "q_lang", "modality", "location", "answer_type")


@dataclass(frozen=True, slots=True)
class Slake(KnownSet):
    """The questions of one language in ``slake/`` (``imgs/xmlabN/source.jpg``)."""

    NAME: str
    language: str
    MARKERS = ("slake/train.json", "Slake1.0/train.json")
    LICENCE = "CC-BY-4.0"
    SOURCE = common.Source(
        "https://www.med-vqa.com/slake/",
        "slake",
        hub="BoKelvin/SLAKE",
        files=("*.json", "imgs.zip"),
        archives=("imgs.zip",),
    )

    def records(self, marker: Path, split: str, bad: BadRows) -> list[Record]:
        """Return the questions of a split; the English ``train`` ends with a caption per image."""
        of_hub = split == "validation" and (marker.parent / _HUB_VALIDATION).is_file()
        name = _HUB_VALIDATION if of_hub else _FILES[split]
        path = common.require_part(marker.parent, name, self.NAME)
        images: dict[str, ImageRecord] = {}

        def record(raw: Any, where: str) -> Record | None:
            """Return the record of a row, None for one of the other language."""
            row = raw if isinstance(raw, dict) else {}
            # The one row of the published set that has no answer.
            if (split, row.get("qid"), row.get("answer")) == ("train", 1622, ""):
                if self.language == "en":
                    bad.leave_out(f"{path}: question without an answer")
                return None
            text = common.fields(raw, _FIELDS, where)
            if text["q_lang"] != self.language:
                return None
            answer_type = common.open_or_closed(text["answer_type"], where)
            name = text["img_name"]
            if name not in images:
                images[name] = ImageRecord(
                    id=f"slake/{name}",
                    source=common.image_file(marker.parent / "imgs", name, where),
                    modality=modality_name(text["modality"]),
                    organ=text["location"].replace("_", " ").lower(),
                )
            return self.record(
                f"{self.NAME}/{text['qid']}",
                images[name],
                text["question"],
                text["answer"],
                split,
                answer_type=answer_type,
                question_type=str(raw.get("content_type") or "other").strip().lower(),
                place=where,
            )

        records = common.usable(bad.made(common.json_rows(path), record), path, bad)
        if split == "train" and self.language == "en":
            records += self.captions(images.values(), split)
        return records


ENGLISH = Slake("slake", "en")
CHINESE = Slake("slake_zh", "zh")
