"""LLaVA-Med (Li et al. 2023): 500 K captions for alignment, 60 K instructions with inline mentions.

The paper's data of phase 1 and phase 2. JSON files beside a folder ``images``. Its pictures are
fetched one by one from PubMed Central and some are gone: rows without their picture are left out,
counted in `BadRows.known_faults` and logged, never an error. A row of several turns is one record,
a conversation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmoe.data.bad_rows import BadRows, collector
from medmoe.data.readers import chat, common
from medmoe.data.schema import ImageRecord, Record, Task

_SOURCE = common.Source("https://github.com/microsoft/LLaVA-Med", "llava-med")


@dataclass(frozen=True, slots=True)
class LlavaMed:
    """One JSON file of LLaVA-Med and what its rows are for."""

    NAME: str
    task: Task
    MARKERS: tuple[str, ...]
    SPLITS: tuple[str, ...] = ("train",)
    LICENCE: str = "CC-BY-NC-4.0"
    SOURCE: common.Source = _SOURCE

    def read(self, root: Path, split: str, bad: BadRows | None = None) -> list[Record]:
        """Return the records of all rows whose picture is there.

        Args:
            root: The data folder, which holds ``llava-med/`` with the JSON file and ``images/``.
            split: ``train``.
            bad: Receives the bad rows; without it the first one is an error.

        Raises:
            DataError: A file is missing, a row is malformed, or no picture at all is there.
        """
        common.check_split(self.NAME, split, self.SPLITS)
        bad = collector(bad)
        path = common.require(root, self.MARKERS[0], self.NAME, *self.MARKERS[1:])
        folder = common.image_folder(path.parent, ("images", "../images"))
        on_disk = common.file_names(folder)
        records: list[Record] = []
        missing = 0
        for number, raw in enumerate(common.json_list(path), 1):
            with bad.row():
                where = f"{path} row {number}"
                text = common.fields(raw, ("id", "image"), where)
                if text["image"] not in on_disk:
                    missing += 1
                    continue
                image = ImageRecord(
                    f"llava_med/{text['image']}",
                    folder / text["image"],
                    modality=chat.flagged_modality(raw),
                )
                records.append(self._record(raw, text["id"], image, where))
        if missing:
            bad.leave_out(f"{path}: image not there", missing)
        return common.some(common.unique(records, path, bad), path)

    def _record(self, raw: Any, name: str, image: ImageRecord, where: str) -> Record:
        (question, answer), *further = chat.turns_of(raw, where)
        return Record(
            id=f"{self.NAME}/{name}",
            image=image,
            question=question,
            answer=answer,
            answer_type="open",
            question_type="caption" if self.task == "caption" else "instruction",
            task=self.task,
            dataset=self.NAME,
            split="train",
            licence=self.LICENCE,
            place=where,
            further=tuple(further),
        )


ALIGNMENT = LlavaMed(
    "llava_med_alignment",
    "caption",
    (
        "llava-med/llava_med_alignment_500k.json",
        "llava-med/alignment/llava_med_alignment_500k.json",
    ),
)
INSTRUCT = LlavaMed(
    "llava_med_instruct",
    "vqa",
    (
        "llava-med/llava_med_instruct_60k_inline_mention.json",
        "llava-med/instruct/llava_med_instruct_60k_inline_mention.json",
    ),
)
