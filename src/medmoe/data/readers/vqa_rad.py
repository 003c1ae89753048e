"""VQA-RAD (Lau et al. 2018): 3,515 questions about 314 radiology images.

Splits: ``train`` and ``test`` are the standard ones (3,064 and 451 questions), in which every test
image also stands in train; ``disjoint_train``, ``disjoint_validation`` and ``disjoint_test`` share
no image. Train splits end with caption records made of the answered facts (paper, phase 1).
Read from the two JSON files of the standard split, else from the one of OSF, which holds the same
questions (its test rows are the test split, its framed questions belong to train), else from the
hub's Parquet files, which know neither answer type nor image name (see `medmoe.data.readers.hub`).

It carves no validation questions out of ``train`` (`medmoe.data.registry.hold_out` does), and it
decodes no picture.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medmoe.data.bad_rows import BadRows, collector
from medmoe.data.readers import common, hub
from medmoe.data.schema import AnswerType, ImageRecord, Record
from medmoe.errors import DataError

NAME = "vqa_rad"
SPLITS = ("train", "test", "disjoint_train", "disjoint_validation", "disjoint_test")
_OSF_FILE = "VQA_RAD Dataset Public.json"
MARKERS = ("vqa-rad/trainset.json", f"vqa-rad/{_OSF_FILE}", "vqa-rad/data")
LICENCE = "CC0-1.0"
SOURCE = common.Source(
    "https://osf.io/89kps/", "vqa-rad", hub="flaviagiammarino/vqa-rad", files=("data/*.parquet",)
)

_FILES = {"train": "trainset.json", "test": "testset.json"}
_IMAGE_FOLDERS = ("images", "VQA_RAD Image Folder")
_DISJOINT_KEYS = {"train": "train", "validation": "val", "test": "test"}
_FIELDS = ("qid", "image_name", "image_organ", "question", "answer", "answer_type", "question_type")
_ORGANS = {"HEAD": "head", "CHEST": "chest", "ABD": "abdomen"}
_QUESTION_TYPES = {
    "ABN": "abnormality",
    "ATRIB": "attribute",  # as spelt in two rows
    "ATTRIB": "attribute",
    "COLOR": "color",
    "COUNT": "count",
    "MODALITY": "modality",
    "ORGAN": "organ",
    "OTHER": "other",
    "PLANE": "plane",
    "POS": "position",
    "PRES": "presence",
    "PRSE": "presence",  # as spelt in two rows
    "SIZE": "size",
}
_MODALITY_PATTERNS = {
    "ct": re.compile(r"\bct\b"),
    "mri": re.compile(r"\bmri?\b|\bflair\b|\bt[12]\b|\bdwi\b|\badc\b|\bdiffusion\b"),
    "ultrasound": re.compile(r"\bultrasound\b"),
    "xray": re.compile(r"\bx[- ]?ray\b|\bcxr\b|\bxr\b|\bplain film\b"),
}
_DISJOINT_FILE = "image_disjoint.json"
#: The image-disjoint split (synpicN), for copies without that file; the other images are train.
#: Stratified by organ.
_DISJOINT_VALIDATION = (
    "18651 20626 21037 21042 22982 25758 27142 28602 31232 31256 31394 31400 31757 32108 "
    "33302 34922 37275 38069 38531 41050 45039 46720 47020 47191 48122 51774 53207 54391 "
    "55948 57935 60423"
)
_DISJOINT_TEST = (
    "676 16407 16520 16810 18250 18461 19782 21028 21700 21902 21995 22097 22286 22874 24967 "
    "27601 27985 28695 29771 30273 31467 31916 32012 32084 32933 33331 33429 34449 34713 "
    "34854 34947 37605 38630 39086 39532 40314 40500 41325 42245 42290 45162 45610 46764 "
    "47783 48749 49027 50848 50962 51212 51872 53097 53228 53635 54802 56422 56799 57237 "
    "59935 60096 60254 60703 100132 100176"
)
_PLANE_PATTERN = re.compile(r"\b(axial|coronal|sagittal|pa|ap)\b|\b(posteroanterior)\b")


@dataclass(frozen=True, slots=True)
class _Row:
    """One checked row of the JSON files."""

    id: str
    image: str
    organ: str
    question: str
    answer: str
    answer_type: AnswerType
    question_type: str
    place: str


def read(root: Path, split: str, bad: BadRows | None = None) -> list[Record]:
    """Return the questions of a split and, for train splits, the captions of its images.

    Modality and plane of an image come from the answers to questions about them. A train split
    uses its own answers only, so that no test answer reaches a caption.

    Args:
        root: The data folder, which holds ``vqa-rad/``.
        split: One of `SPLITS`.
        bad: Receives the bad rows; without it the first one is an error.

    Raises:
        DataError: A file is missing, or a row is malformed (file and row are named).
    """
    common.check_split(NAME, split, SPLITS)
    bad = collector(bad)
    marker = common.require(root, MARKERS[0], NAME, *MARKERS[1:])
    folder = marker.parent
    if marker.name == "data":
        return hub.read(hub.Layout(NAME, LICENCE), folder, split, bad)
    images_dir = common.image_folder(folder, _IMAGE_FOLDERS)
    by_file = _rows_by_file(folder, common.file_names(images_dir), bad)
    union = _without_repeats([*by_file["train"], *by_file["test"]])
    rows = by_file.get(split) or _disjoint_rows(union, folder, split.removeprefix("disjoint_"))
    is_train = split.endswith("train")
    images = _image_records(rows, facts_from=rows if is_train else union, folder=images_dir)
    records = [_record(row, images[row.image], split) for row in rows]
    records = common.unique(records, folder, bad)
    if is_train:
        records += common.caption_records(images.values(), NAME, split, LICENCE)
    return records


def _rows_by_file(folder: Path, on_disk: frozenset[str], bad: BadRows) -> dict[str, list[_Row]]:
    """Return the rows of the standard train and test split."""
    osf = folder / _OSF_FILE
    if (folder / _FILES["train"]).exists() or not osf.exists():
        return {
            part: _read_rows(common.require_part(folder, file, NAME), on_disk, bad)
            for part, file in _FILES.items()
        }
    rows_of: dict[str, list[_Row]] = {"train": [], "test": []}
    for raw, row in _raw_rows(osf, on_disk, bad):
        part = "test" if str(raw.get("phrase_type")).startswith("test") else "train"
        rows_of[part].append(row)
        framed = str(raw.get("question_frame") or "NULL").strip()
        if framed != "NULL":
            rows_of["train"].append(replace(row, id=f"{row.id}/frame", question=framed))
    return rows_of


def _read_rows(path: Path, on_disk: frozenset[str], bad: BadRows) -> list[_Row]:
    """Return the checked rows of one JSON file."""
    return [row for _, row in _raw_rows(path, on_disk, bad)]


def _raw_rows(
    path: Path, on_disk: frozenset[str], bad: BadRows
) -> Iterator[tuple[dict[str, Any], _Row]]:
    for number, raw in enumerate(common.json_list(path), 1):
        row = None
        with bad.row():
            row = _checked(raw, f"{path} row {number}", on_disk)
        if row is not None:
            yield raw, row


def _checked(raw: Any, where: str, on_disk: frozenset[str]) -> _Row:
    """Return one row, or raise with the place and the rule it breaks."""
    missing = [key for key in _FIELDS if not isinstance(raw, dict) or key not in raw]
    if missing:
        raise DataError(f"{where}: field {missing[0]!r} is missing; every row needs it")
    text = {key: str(raw[key] if raw[key] is not None else "").strip() for key in _FIELDS}
    for key in ("qid", "question", "answer"):
        if not text[key]:
            raise DataError(f"{where}: empty {key}; fill it in or remove the row")
    if text["image_name"] not in on_disk:
        raise DataError(f"{where}: image file {text['image_name']!r} is missing; add it")
    # Two training rows read "CLOSED ", with a space.
    answer_type = text["answer_type"].lower()
    if answer_type not in ("open", "closed"):
        raise DataError(f"{where}: answer_type {raw['answer_type']!r} must be OPEN or CLOSED")
    first_type = text["question_type"].split(",")[0].strip().upper()
    organ = text["image_organ"]
    return _Row(
        id=text["qid"],
        image=text["image_name"],
        organ=_ORGANS.get(organ.upper(), organ.lower()),
        question=text["question"],
        answer=text["answer"],
        answer_type="open" if answer_type == "open" else "closed",
        question_type=_QUESTION_TYPES.get(first_type, first_type.lower() or "other"),
        place=where,
    )


def _without_repeats(rows: Iterable[_Row]) -> list[_Row]:
    """Return the rows with the first of each question id."""
    first: dict[str, _Row] = {}
    for row in rows:
        first.setdefault(row.id, row)
    return list(first.values())


def _disjoint_rows(union: Sequence[_Row], folder: Path, part: str) -> list[_Row]:
    """Return the rows on the images of one part of the image-disjoint split."""
    path = folder / _DISJOINT_FILE
    parts = _listed_parts(path) if path.is_file() else _built_in_parts(union)
    unplaced = {row.image for row in union}.difference(*parts.values())
    if unplaced:
        raise DataError(f"{path}: image {min(unplaced)!r} stands in no part; put it in one")
    return [row for row in union if row.image in parts[part]]


def _listed_parts(path: Path) -> dict[str, frozenset[str]]:
    """Return the image names of each part, as the file lists them."""
    content = common.read_json(path)
    keys = _DISJOINT_KEYS.values()
    if not isinstance(content, dict) or any(not isinstance(content.get(k), list) for k in keys):
        raise DataError(f"{path}: wrong layout; lists named {', '.join(keys)} are needed")
    parts = {part: frozenset(content[key]) for part, key in _DISJOINT_KEYS.items()}
    for one, other in itertools.combinations(parts, 2):
        if shared := parts[one] & parts[other]:
            raise DataError(f"{path}: {min(shared)!r} stands in {one} and {other}; keep it in one")
    return parts


def _built_in_parts(union: Iterable[_Row]) -> dict[str, frozenset[str]]:
    validation = frozenset(f"synpic{number}.jpg" for number in _DISJOINT_VALIDATION.split())
    test = frozenset(f"synpic{number}.jpg" for number in _DISJOINT_TEST.split())
    train = frozenset(row.image for row in union) - validation - test
    return {"train": train, "validation": validation, "test": test}


def _image_records(
    rows: Sequence[_Row], *, facts_from: Sequence[_Row], folder: Path
) -> dict[str, ImageRecord]:
    """Return one record per image of the rows, in the order of the rows."""
    modalities = _facts(facts_from, "modality", _modalities_in)
    planes = _facts(facts_from, "plane", _planes_in)
    images: dict[str, ImageRecord] = {}
    for row in rows:
        if row.image not in images:
            plane = planes.get(row.image)
            images[row.image] = ImageRecord(
                id=f"{NAME}/{row.image}",
                source=folder / row.image,
                modality=modalities.get(row.image),
                organ=row.organ or None,
                labels={"plane": plane} if plane else {},
            )
    return images


def _facts(
    rows: Iterable[_Row], question_type: str, values_in: Callable[[str], set[str]]
) -> Mapping[str, str]:
    """Return image -> value, for the images whose answers name exactly one value."""
    values_of: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.question_type == question_type:
            values_of[row.image] |= values_in(row.answer)
    return {image: values.copy().pop() for image, values in values_of.items() if len(values) == 1}


def _modalities_in(answer: str) -> set[str]:
    """Return the modalities that an answer names ("MRI/FLAIR" -> mri)."""
    text = answer.lower().replace("-", " ").replace("xray", "x ray").replace("/", " ")
    return {name for name, pattern in _MODALITY_PATTERNS.items() if pattern.search(text)}


def _planes_in(answer: str) -> set[str]:
    names = (a or b for a, b in _PLANE_PATTERN.findall(answer.lower()))
    return {"pa" if name == "posteroanterior" else name for name in names}


def _record(row: _Row, image: ImageRecord, split: str) -> Record:
    return Record(
        id=f"{NAME}/{row.id}",
        image=image,
        question=row.question,
        answer=row.answer,
        answer_type=row.answer_type,
        question_type=row.question_type,
        task="vqa",
        dataset=NAME,
        split=split,
        licence=LICENCE,
        place=row.place,
    )
