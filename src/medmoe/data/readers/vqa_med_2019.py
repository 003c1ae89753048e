"""ImageCLEF VQA-Med 2019 (Ben Abacha et al. 2019): modality, plane, organ, abnormality.

Folders ``train``, ``val`` and ``test`` with the official files inside; the image folders may keep
their official names. Some pictures are also in VQA-RAD: their rows are always dropped from train
and validation, adjacent slices from train too (`overlap`). That list covers train and validation
only; for ``test`` use `medmoe.data.leakage`. Train ends with caption records (paper, phase 1).
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from medmoe.data.bad_rows import BadRows, collector
from medmoe.data.readers import common
from medmoe.data.schema import ImageRecord, Record
from medmoe.domains import modality_name
from medmoe.errors import DataError

NAME = "vqa_med_2019"
SPLITS = ("train", "validation", "test")
MARKERS = ("vqa-med-2019/train/All_QA_Pairs_train.txt",)
LICENCE = "CC-BY-4.0"
SOURCE = common.Source("https://zenodo.org/records/10499039", "vqa-med-2019")

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
_OVERLAP_FILE = "overlap_with_vqa_rad.json"
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
#: Pictures that are also in VQA-RAD (synpicN), for copies without the overlap file. Found by
#: perceptual hash over both sets; the second list is adjacent slices or the like.
_SAME_PICTURE = (
    "15006 17664 17848 19114 21028 21776 21902 22037 23631 24350 24538 27047 27402 27646 "
    "28210 28718 31928 32727 33102 33429 33481 37275 37605 38630 39757 40096 40520 41325 "
    "42202 42307 44995 45544 49862 50962 53207 55317 55583 59356"
)
_ADJACENT_SLICES = "26696 27986 29220 33843 45041 50956"


@dataclass(frozen=True, slots=True)
class _Row:
    """One checked line of the question files."""

    image: str
    category: str
    question: str
    answers: tuple[str, ...]


def read(root: Path, split: str, bad: BadRows | None = None) -> list[Record]:
    """Return the questions of a split and, for ``train``, the captions of its images.

    Args:
        root: The data folder, which holds ``vqa-med-2019/``.
        split: One of `SPLITS`; ``validation`` is the official validation set.
        bad: Receives the bad rows; without it the first one is an error.

    Raises:
        DataError: A file is missing, or a row is malformed (file and row are named).
    """
    common.check_split(NAME, split, SPLITS)
    bad = collector(bad)
    folder = common.require(root, MARKERS[0], NAME).parents[1] / _FOLDERS[split]
    read_rows = _read_test if split == "test" else _read_categories
    numbered = read_rows(folder, bad)
    images_dir = common.image_folder(folder, _IMAGE_FOLDERS)
    files = _image_files(images_dir)
    rows = []
    for where, row in numbered:
        with bad.row():
            if row.image not in files:
                raise DataError(f"{where}: image file {row.image}.jpg is missing in {images_dir}")
            rows.append((where, row))
    banned = overlap(folder.parent)[split]
    placed = [(where, row) for where, row in rows if row.image not in banned]
    kept = [row for _, row in placed]
    _log.info(
        "%s %s: dropped %d rows on %d images that are also in VQA-RAD, kept %d",
        *(NAME, split, len(rows) - len(kept)),
        *(len({row.image for _, row in rows} & banned), len(kept)),
    )
    images = _image_records(kept, files, _modalities(folder.parent, kept, split), split)
    records = [_record(row, images[row.image], split, where) for where, row in placed]
    records = common.unique(records, folder, bad)
    if split == "train":
        records += common.caption_records(images.values(), NAME, split, LICENCE)
    return records


def overlap(folder: Path) -> dict[str, frozenset[str]]:
    """Return, for each split, the image names that must not be used beside VQA-RAD.

    From ``overlap_with_vqa_rad.json`` where it is there, else from the same list here.
    """
    path = folder / _OVERLAP_FILE
    if not path.is_file():
        same = frozenset(f"synpic{number}" for number in _SAME_PICTURE.split())
        adjacent = frozenset(f"synpic{number}" for number in _ADJACENT_SLICES.split())
        return {"train": same | adjacent, "validation": same, "test": frozenset()}
    content = common.read_json(path)
    names_of: dict[str, set[str]] = {split: set() for split in SPLITS}
    split_of = {folder: split for split, folder in _FOLDERS.items()}
    try:
        for twins in content["same_picture"].values():
            for twin in twins:
                names_of[split_of[twin["split"]]].add(Path(twin["image"]).stem)
        for twins in content["perhaps_only_adjacent_slices"].values():
            names_of["train"] |= {Path(t["image"]).stem for t in twins if t["split"] == "train"}
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: wrong layout near {error}; it maps same_picture and "
            "perhaps_only_adjacent_slices to lists of {split, image}"
        ) from error
    return {split: frozenset(names) for split, names in names_of.items()}


def _read_categories(folder: Path, bad: BadRows) -> list[tuple[str, _Row]]:
    """Return the rows of the four category files, each with its place."""
    rows: list[tuple[str, _Row]] = []
    for category, stem in _CATEGORIES.items():
        name = f"QAPairsByCategory/{stem}_{folder.name}.txt"
        path = common.require_part(folder, name, NAME)
        for where, fields in _lines(path, ("image", "question", "answer"), bad):
            rows.append((where, _Row(fields[0], category, fields[1], (fields[2],))))
    return rows


def _read_test(folder: Path, bad: BadRows) -> list[tuple[str, _Row]]:
    """Return the rows of the official test file, each with its place."""
    path = common.require_part(folder, _TEST_FILE, NAME)
    rows: list[tuple[str, _Row]] = []
    for where, fields in _lines(path, ("image", "category", "question", "answer"), bad):
        with bad.row():
            rows.append((where, _test_row(where, fields)))
    return rows


def _test_row(where: str, fields: list[str]) -> _Row:
    image, category, question, answer = fields
    if category.lower() not in _CATEGORIES:
        raise DataError(f"{where}: category {category!r} must be one of {', '.join(_CATEGORIES)}")
    answers = tuple(dict.fromkeys(a.strip() for a in answer.split("#") if a.strip()))
    if not answers:
        raise DataError(f"{where}: empty answer; fill it in or remove the row")
    return _Row(image, category.lower(), question, answers)


def _lines(path: Path, names: tuple[str, ...], bad: BadRows) -> list[tuple[str, list[str]]]:
    """Return the fields of every line, each with its place; blank lines at the end pass."""
    lines = common.read_text(path).rstrip().split("\n")
    result = []
    for number, line in enumerate(lines, 1):
        where = f"{path} row {number}"
        fields = [field.strip() for field in line.split("|")]
        with bad.row():
            _check_fields(where, fields, names)
            result.append((where, fields))
    return result


def _check_fields(where: str, fields: list[str], names: tuple[str, ...]) -> None:
    if len(fields) != len(names):
        raise DataError(
            f"{where}: {len(fields)} fields, {len(names)} are needed ({'|'.join(names)})"
        )
    for name, value in zip(names, fields, strict=True):
        if not value:
            raise DataError(f"{where}: empty {name}; fill it in or remove the row")


def _image_files(folder: Path) -> dict[str, Path]:
    """Return image name without suffix -> file."""
    return {Path(name).stem: folder / name for name in common.file_names(folder)}


def _modalities(folder: Path, rows: list[_Row], split: str) -> dict[str, str]:
    """Return image -> modality, from answers only: the wording of a question proves nothing."""
    path = folder / _LABEL_FILE
    if split != "test" and path.is_file():
        return _labelled_modalities(path, _FOLDERS[split])
    names_of: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.category == "modality" and (name := answered_modality(row.answers[0])):
            names_of[row.image].add(name)
    return {image: names.copy().pop() for image, names in names_of.items() if len(names) == 1}


def answered_modality(answer: str) -> str | None:
    """Return the modality that an answer names by its first word, or None ("yes", "contrast")."""
    word = re.match(r"[a-z0-9]*", answer.lower())
    return _FIRST_WORDS.get(word.group() if word else "")


def _labelled_modalities(path: Path, folder: str) -> dict[str, str]:
    name_of = {}
    for number, line in enumerate(common.read_text(path).rstrip().split("\n"), 1):
        try:
            row = json.loads(line)
            if row["split"] == folder and row["source"] == "answer":
                raw = str(row["modality"])
                name = _LABEL_NAMES.get(raw.upper(), modality_name(raw))
                name_of[Path(row["image"]).stem] = name
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} row {number}: needs split, image, modality and source ({error})"
            ) from error
    return name_of


def _image_records(
    rows: list[_Row], files: dict[str, Path], modalities: dict[str, str], split: str
) -> dict[str, ImageRecord]:
    """Return one record per image, with the facts its plane and organ answers give."""
    facts: dict[str, dict[str, str]] = {row.image: {} for row in rows}
    for row in rows:
        if row.category in ("plane", "organ") and common.yes_no_type(row.answers[0]) == "open":
            facts[row.image][row.category] = row.answers[0]
    for image, modality in modalities.items():
        if image in facts:
            facts[image]["modality"] = modality
    return {
        image: ImageRecord(
            id=f"{NAME}/{split}/{files[image].name}",
            source=files[image],
            modality=known.get("modality"),
            organ=known.get("organ"),
            labels=known,
        )
        for image, known in facts.items()
    }


def _record(row: _Row, image: ImageRecord, split: str, place: str) -> Record:
    return Record(
        id=f"{NAME}/{split}/{row.image}/{row.category}",
        image=image,
        question=row.question,
        answer=row.answers[0],
        answer_type=common.yes_no_type(row.answers[0]),
        question_type=row.category,
        task="vqa",
        dataset=NAME,
        split=split,
        licence=LICENCE,
        references=row.answers[1:],
        place=place,
    )
