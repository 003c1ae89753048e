"""VQA-RAD (Lau et al. 2018): 3,515 questions about 314 radiology images.

Splits: ``train`` and ``test`` are the standard ones (3,064 and 451 questions), in which every test
image also stands in train; ``disjoint_train``, ``disjoint_validation`` and ``disjoint_test`` share
no image. Train splits end with caption records made of the answered facts (paper, phase 1).
Read from the two JSON files of the standard split, else from the one of OSF, which holds the same
questions (its test rows are the test split, its framed questions belong to train).

The hub's copy is a set of its own, `HUB`: 1,793 training questions, no answer types (of its 451
test questions 200 are closed, being yes or no; by the labels of the paper's split 272 are), so no
score on one is a score on the other.

It carves no validation questions out of ``train`` (`medmoe.data.registry.hold_out` does), and it
decodes no picture.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers import common, hub
from medmoe.data.readers.known_set import KnownSet
from medmoe.data.schema import ImageRecord, Record
from medmoe.errors import DataError

_NAME = "vqa_rad"
_OSF_FILE = "VQA_RAD Dataset Public.json"
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


class VqaRad(KnownSet):
    """The folder ``vqa-rad/``.

    Modality and plane of an image come from the answers to questions about them. A train split
    uses its own answers only, so that no test answer reaches a caption.
    """

    NAME = _NAME
    SPLITS = ("train", "test", "disjoint_train", "disjoint_validation", "disjoint_test")
    MARKERS = ("vqa-rad/trainset.json", f"vqa-rad/{_OSF_FILE}")
    TRIED = True
    LICENCE = "CC0-1.0"
    SOURCE = common.Source(
        "https://osf.io/89kps/ (the hub's copy is another set, vqa_rad_hub)", "vqa-rad"
    )

    def records(self, marker: Path, split: str, bad: BadRows) -> list[Record]:
        """Return the questions of a split and, for train splits, the captions of its images."""
        folder = marker.parent
        images_dir = common.image_folder(folder, _IMAGE_FOLDERS)
        by_file = _rows_by_file(images_dir, folder, bad)
        union: dict[str, Record] = {}
        for record in (*by_file["train"], *by_file["test"]):
            union.setdefault(record.id, record)
        asked = by_file.get(split) or _disjoint(
            list(union.values()), folder, split.removeprefix("disjoint_")
        )
        is_train = split.endswith("train")
        images = _images(asked, facts_from=asked if is_train else union.values())
        records = [replace(r, image=images[r.image.id], split=split) for r in asked]
        records = common.unique(records, folder, bad)
        return records + self.captions(images.values(), split) if is_train else records


def _rows_by_file(images_dir: Path, folder: Path, bad: BadRows) -> dict[str, list[Record]]:
    """Return the questions of the standard train and test split, images with their organ alone."""
    on_disk = common.file_names(images_dir)

    def checked(raw: Any, where: str) -> tuple[dict[str, Any], Record]:
        return raw, _question(raw, where, images_dir, on_disk)

    osf = folder / _OSF_FILE
    if (folder / _FILES["train"]).exists() or not osf.exists():
        paths = {p: common.require_part(folder, file, _NAME) for p, file in _FILES.items()}
        return {
            part: [record for _, record in bad.made(common.json_rows(path), checked)]
            for part, path in paths.items()
        }
    records_of: dict[str, list[Record]] = {"train": [], "test": []}
    for raw, record in bad.made(common.json_rows(osf), checked):
        part = "test" if str(raw.get("phrase_type")).startswith("test") else "train"
        records_of[part].append(record)
        framed = str(raw.get("question_frame") or "NULL").strip()
        if framed != "NULL":
            records_of["train"].append(replace(record, id=f"{record.id}/frame", question=framed))
    return records_of


def _question(raw: Any, where: str, images_dir: Path, on_disk: frozenset[str]) -> Record:
    """Return the question of a row, or raise with the place and the rule it breaks."""
    missing = [key for key in _FIELDS if not isinstance(raw, dict) or key not in raw]
    if missing:
        raise DataError(f"{where}: field {missing[0]!r} is missing; every row needs it")
    text = common.fields(raw, ("qid", "question", "answer"), where)
    name, organ, label, kind = (
        str(raw[key] or "").strip()
        for key in ("image_name", "image_organ", "answer_type", "question_type")
    )
    if name not in on_disk:
        raise DataError(f"{where}: image file {name!r} is missing; add it")
    kind = kind.split(",")[0].strip().upper()
    organ = _ORGANS.get(organ.upper(), organ.lower())
    return SET.record(
        f"{_NAME}/{text['qid']}",
        ImageRecord(f"{_NAME}/{name}", images_dir / name, organ=organ or None),
        text["question"],
        text["answer"],
        "",
        # Two training rows read "CLOSED ", with a space.
        answer_type=common.open_or_closed(label, where),
        question_type=_QUESTION_TYPES.get(kind, kind.lower() or "other"),
        place=where,
    )


def _disjoint(union: Sequence[Record], folder: Path, part: str) -> list[Record]:
    """Return the questions on the images of one part of the image-disjoint split."""
    path = folder / _DISJOINT_FILE
    images = {record.image.id.removeprefix(f"{_NAME}/") for record in union}
    parts = _listed_parts(path) if path.is_file() else _built_in_parts(images)
    if unplaced := images.difference(*parts.values()):
        raise DataError(f"{path}: image {min(unplaced)!r} stands in no part; put it in one")
    ids = {f"{_NAME}/{name}" for name in parts[part]}
    return [record for record in union if record.image.id in ids]


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


def _built_in_parts(images: Iterable[str]) -> dict[str, frozenset[str]]:
    validation = frozenset(f"synpic{number}.jpg" for number in _DISJOINT_VALIDATION.split())
    test = frozenset(f"synpic{number}.jpg" for number in _DISJOINT_TEST.split())
    return {"train": frozenset(images) - validation - test, "validation": validation, "test": test}


def _images(asked: Iterable[Record], facts_from: Iterable[Record]) -> dict[str, ImageRecord]:
    """Return the images of questions in their order, with what other answers say of them."""
    facts = list(facts_from)
    modalities, planes = (
        common.only_values(
            (record.image.id, value)
            for record in facts
            if record.question_type == kind
            for value in values_in(record.answer)
        )
        for kind, values_in in (("modality", _modalities_in), ("plane", _planes_in))
    )
    images: dict[str, ImageRecord] = {}
    for image in (record.image for record in asked):
        labels = {"plane": planes[image.id]} if image.id in planes else {}
        known = replace(image, modality=modalities.get(image.id), labels=labels)
        images.setdefault(image.id, known)
    return images


def _modalities_in(answer: str) -> set[str]:
    """Return the modalities that an answer names ("MRI/FLAIR" -> mri)."""
    text = answer.lower().replace("-", " ").replace("xray", "x ray").replace("/", " ")
    return {name for name, pattern in _MODALITY_PATTERNS.items() if pattern.search(text)}


def _planes_in(answer: str) -> set[str]:
    names = (a or b for a, b in _PLANE_PATTERN.findall(answer.lower()))
    return {"pa" if name == "posteroanterior" else name for name in names}


class VqaRadOfHub(KnownSet):
    """The hub's copy, in the folder ``vqa-rad/data/``: other rows and another ruling of closed."""

    NAME = f"{_NAME}_hub"
    SPLITS = ("train", "test")
    MARKERS = ("vqa-rad/data",)
    LICENCE = VqaRad.LICENCE
    SOURCE = common.Source(
        "https://osf.io/89kps/",
        "vqa-rad",
        hub="flaviagiammarino/vqa-rad",
        files=("data/*.parquet",),
    )

    def records(self, marker: Path, split: str, bad: BadRows) -> list[Record]:
        """Return the questions of a split, and say whose they are."""
        records = hub.read(self, marker.parent, split, bad)
        bad.say(
            f"{self.NAME}: the hub's rows, not the paper's (those are vqa_rad, from OSF); closed "
            "is what yes or no answers"
        )
        return records


SET = VqaRad()
HUB = VqaRadOfHub()
