"""ImageCLEF VQA-Med 2019 (Ben Abacha et al. 2019): modality, plane, organ, abnormality.

Folders ``train``, ``val`` and ``test`` with the official files inside; the image folders may keep
their official names. Some pictures are also in VQA-RAD: their rows are always dropped from train
and validation, adjacent slices from train too (`OVERLAP`). That list covers train and validation
only; for ``test`` use `medmoe.data.leakage`. Train ends with caption records (paper, phase 1).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers import common, tables
from medmoe.data.readers.known_set import KnownSet
from medmoe.data.schema import ImageRecord, Record
from medmoe.domains import modality_name
from medmoe.errors import DataError

_log = logging.getLogger(__name__)

_FOLDERS = {"train": "train", "validation": "val", "test": "test"}
_IMAGE_FOLDERS = ("images", "Train_images", "Val_images", "VQAMed2019_Test_Images", "Test_images")
_CATEGORIES = {
    "modality": "C1_Modality",
    "plane": "C2_Plane",
    "organ": "C3_Organ",
    "abnormality": "C4_Abnormality",
}
_TEST_FILE = "VQAMed2019_Test_Questions_w_Ref_Answers.txt"
_LABEL_FILE = "modality_labels.jsonl"
#: Modalities as the label file writes them, where `medmoe.domains` does not know the name.
_LABEL_NAMES = {
    "ANGIO": "angiography",
    "NM/PET": "nuclear",
    "XR-CONTRAST/FLUORO": "fluoroscopy",
    "XR-MAMMO": "xray",
}
#: First word of a modality answer -> modality, for copies without the label file.
_FIRST_WORDS = {
    **dict.fromkeys(("ct", "cta"), "ct"),
    **dict.fromkeys(("mr", "mra", "t1", "t2", "flair"), "mri"),
    **dict.fromkeys(("xr", "mammograph"), "xray"),
    **dict.fromkeys(("ugi", "bas", "be", "sbft"), "fluoroscopy"),
    **dict.fromkeys(("nm", "pet"), "nuclear"),
    "an": "angiography",
    "us": "ultrasound",
}
#: Pictures that are also in VQA-RAD (synpicN), found by perceptual hash over both sets; those of
#: train that are adjacent slices or the like.
_SAME_PICTURE = (
    "15006 17664 17848 19114 21028 21776 21902 22037 23631 24350 24538 27047 27402 27646 "
    "28210 28718 31928 32727 33102 33429 33481 37275 37605 38630 39757 40096 40520 41325 "
    "42202 42307 44995 45544 49862 50962 53207 55317 55583 59356"
)
_ADJACENT_SLICES = "26696 27986 29220 33843 45041 50956"
#: Split -> pictures that must not be used beside VQA-RAD.
OVERLAP = {
    split: frozenset(f"synpic{number}" for number in numbers.split())
    for split, numbers in (
        ("train", f"{_SAME_PICTURE} {_ADJACENT_SLICES}"),
        ("validation", _SAME_PICTURE),
        ("test", ""),
    )
}


class VqaMed2019(KnownSet):
    """The folder ``vqa-med-2019/``; ``validation`` is the official validation set."""

    NAME = "vqa_med_2019"
    MARKERS = ("vqa-med-2019/train/All_QA_Pairs_train.txt",)
    TRIED = True
    LICENCE = "CC-BY-4.0"
    SOURCE = common.Source("https://zenodo.org/records/10499039", "vqa-med-2019")

    def records(self, marker: Path, split: str, bad: BadRows) -> list[Record]:
        """Return the questions of a split and, for ``train``, the captions of its images."""
        root = marker.parents[1]
        folder = root / _FOLDERS[split]
        rows = list(self._rows(folder, split, bad))
        images_dir = common.image_folder(folder, _IMAGE_FOLDERS)
        files = {Path(name).stem: images_dir / name for name in common.file_names(images_dir)}

        def record(row: dict[str, str], where: str) -> Record:
            name, category = row["image"], row["category"].lower()
            if category not in _CATEGORIES:
                choices = ", ".join(_CATEGORIES)
                raise DataError(f"{where}: category {row['category']!r} must be one of {choices}")
            answers = row["answer"].split("#") if split == "test" else [row["answer"]]
            answers = list(dict.fromkeys(filter(None, map(str.strip, answers))))
            if not answers:
                raise DataError(f"{where}: empty answer; fill it in or remove the row")
            if name not in files:
                raise DataError(f"{where}: image file {name}.jpg is missing in {images_dir}")
            return self.record(
                f"{self.NAME}/{split}/{name}/{category}",
                ImageRecord(f"{self.NAME}/{split}/{files[name].name}", files[name]),
                row["question"],
                answers[0],
                split,
                question_type=category,
                references=tuple(answers[1:]),
                place=where,
            )

        records = list(bad.made(rows, record))
        banned = OVERLAP[split]
        kept = [record for record in records if _stem(record) not in banned]
        _log.info(
            "%s %s: dropped %d rows on %d images that are also in VQA-RAD, kept %d",
            *(self.NAME, split, len(records) - len(kept)),
            *(len({_stem(record) for record in records} & banned), len(kept)),
        )
        images = _images(kept, _modalities(root, kept, split))
        kept = [replace(record, image=images[record.image.id]) for record in kept]
        kept = common.unique(kept, folder, bad)
        return kept + self.captions(images.values(), split) if split == "train" else kept

    def _rows(self, folder: Path, split: str, bad: BadRows) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield place and fields of each row: of the test file, or of the four category files."""
        if split == "test":
            path = common.require_part(folder, _TEST_FILE, self.NAME)
            yield from _lines(path, ("image", "category", "question", "answer"), bad)
            return
        for category, stem in _CATEGORIES.items():
            name = f"QAPairsByCategory/{stem}_{folder.name}.txt"
            path = common.require_part(folder, name, self.NAME)
            for where, row in _lines(path, ("image", "question", "answer"), bad):
                yield where, row | {"category": category}


def _stem(record: Record) -> str:
    """Return the name of a record's picture without its suffix."""
    return Path(record.image.id).stem


def _lines(path: Path, names: Sequence[str], bad: BadRows) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield place and fields of every line; blank lines at the end pass."""
    for number, line in enumerate(common.read_text(path).rstrip().split("\n"), 1):
        where, values = f"{path} row {number}", line.split("|")
        with bad.row():
            if len(values) != len(names):
                raise DataError(
                    f"{where}: {len(values)} fields, {len(names)} are needed ({'|'.join(names)})"
                )
            yield where, common.fields(dict(zip(names, values, strict=True)), names, where)


def _modalities(folder: Path, records: Sequence[Record], split: str) -> dict[str, str]:
    """Return picture -> modality, from answers only: the wording of a question proves nothing."""
    path = folder / _LABEL_FILE
    if split != "test" and path.is_file():
        return _labelled_modalities(path, _FOLDERS[split])
    return common.only_values(
        (_stem(record), name)
        for record in records
        if record.question_type == "modality" and (name := answered_modality(record.answer))
    )


def answered_modality(answer: str) -> str | None:
    """Return the modality that an answer names by its first word, or None ("yes", "contrast")."""
    word = re.match(r"[a-z0-9]*", answer.lower())
    return _FIRST_WORDS.get(word.group() if word else "")


def _labelled_modalities(path: Path, folder: str) -> dict[str, str]:
    name_of = {}
    for where, row in tables.rows(path, BadRows("first")):
        text = common.fields(row, ("split", "image", "source"), where)
        if (text["split"], text["source"]) == (folder, "answer"):
            raw = common.fields(row, ("modality",), where)["modality"]
            name_of[Path(text["image"]).stem] = _LABEL_NAMES.get(raw.upper(), modality_name(raw))
    return name_of


def _images(records: Sequence[Record], modalities: dict[str, str]) -> dict[str, ImageRecord]:
    """Return the images by id, with the facts that their plane and organ answers give."""
    facts: dict[str, dict[str, str]] = {record.image.id: {} for record in records}
    for record in records:
        if record.question_type in ("plane", "organ") and record.answer_type == "open":
            facts[record.image.id][record.question_type] = record.answer
        if _stem(record) in modalities:
            facts[record.image.id]["modality"] = modalities[_stem(record)]
    images = {record.image.id: record.image for record in records}
    return {
        name: replace(
            images[name], modality=known.get("modality"), organ=known.get("organ"), labels=known
        )
        for name, known in facts.items()
    }


SET = VqaMed2019()
