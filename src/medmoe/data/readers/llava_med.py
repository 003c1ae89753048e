"""LLaVA-Med (Li et al. 2023): 500 K captions for alignment, 60 K instructions with inline mentions.

The paper's data of phase 1 and phase 2. JSON files beside a folder ``images``, as published or as
the reference reads them (``…_filter.json``: less the rows without a picture). Its pictures are
fetched one by one from PubMed Central and some are gone: rows without their picture are left out,
counted in `BadRows.known_faults` and logged, never an error. A row of several turns is one record,
a conversation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers import chat, common
from medmoe.data.readers.known_set import KnownSet
from medmoe.data.schema import ImageRecord, Record, Task


@dataclass(frozen=True, slots=True)
class LlavaMed(KnownSet):
    """One JSON file under ``llava-med/``, and what its rows are for."""

    NAME: str
    task: Task
    MARKERS: tuple[str, ...]
    SOURCE: common.Source
    SPLITS = ("train",)
    LICENCE = "CC-BY-NC-4.0"

    def records(self, marker: Path, split: str, bad: BadRows) -> list[Record]:
        """Return the records of all rows whose picture is there; one at least must be."""
        folder = common.image_folder(marker.parent, ("images", "../images"))
        on_disk = common.file_names(folder)
        missing = 0

        def record(raw: Any, where: str) -> Record | None:
            nonlocal missing
            text = common.fields(raw, ("id", "image"), where)
            name = text["image"]
            if name not in on_disk:
                missing += 1
                return None
            ((question, answer), *further), _ = chat.turns_of(raw, where)
            return self.record(
                f"{self.NAME}/{text['id']}",
                ImageRecord(f"llava_med/{name}", folder / name, chat.flagged_modality(raw)),
                question,
                answer,
                "train",
                answer_type="open",
                question_type="caption" if self.task == "caption" else "instruction",
                task=self.task,
                place=where,
                further=tuple(further),
            )

        records = list(bad.made(common.json_rows(marker), record))
        if missing:
            bad.leave_out(f"{marker}: image not there", missing)
        return common.usable(records, marker, bad)


def _set(name: str, task: Task, file: str) -> LlavaMed:
    """Return the set of a published file, or of the one that the reference made of it."""
    folder = name.rpartition("_")[2]
    files = (f"{file}.json", f"{file}_filter.json")
    places = (f"llava-med/{where}{one}" for one in files for where in ("", f"{folder}/"))
    source = common.Source(
        "https://github.com/microsoft/LLaVA-Med",
        "llava-med",
        files=(f"{folder}/{files[0]}",),
        web="https://hanoverprod.z21.web.core.windows.net/med_llava/",
        pictures="llava_med_image_urls.jsonl",
    )
    return LlavaMed(name, task, tuple(places), source)


ALIGNMENT = _set("llava_med_alignment", "caption", "llava_med_alignment_500k")
INSTRUCT = _set("llava_med_instruct", "vqa", "llava_med_instruct_60k_inline_mention")
