"""What all readers share: reading text with line numbers, checking rows, captions, hash splits.

Readers never decode a picture. A wrong row is an error that names the file and the row; nothing is
dropped in silence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from medmoe.data.schema import ImageRecord, Record
from medmoe.errors import DataError, one_of

CAPTION_REQUEST = "Describe this image."

#: How a caption names a modality; other modalities are written as they are, with "image".
_MODALITY_WORDS = {
    "angiography": "angiogram",
    "ct": "CT",
    "fluoroscopy": "fluoroscopy image",
    "mri": "MRI",
    "nuclear": "nuclear medicine scan",
    "pathology": "histology image",
    "ultrasound": "ultrasound",
    "xray": "X-ray",
}
#: Planes and projections that stand before the modality ("an axial CT").
_PLANE_WORDS = {
    **{p: p for p in ("axial", "coronal", "sagittal", "oblique", "transverse", "longitudinal")},
    **{p: p for p in ("lateral", "frontal", "decubitus")},
    "ap": "AP",
    "pa": "PA",
}
#: Organ names that are adjectives and need the noun.
_ORGAN_ADJECTIVES = ("musculoskeletal", "gastrointestinal", "genitourinary", "lymphatic")


def check_split(name: str, split: str, splits: Sequence[str]) -> None:
    """Refuse a split that the data set does not have."""
    if split not in splits:
        raise DataError(one_of(split, splits, f"split of {name}"))


def require(root: Path, marker: str, name: str) -> Path:
    """Return the path of the marker of a set under the data folder, or say what was looked for."""
    path = root / marker
    if not path.exists():
        raise DataError(
            f"{name}: no {marker} under {root}; give the folder with --data or $MEDMOE_DATA"
        )
    return path


def require_part(folder: Path, part: str, name: str) -> Path:
    """Return the path of a further file of a set whose marker is there."""
    path = folder / part
    if not path.exists():
        raise DataError(f"{name}: no {part} in {folder}; the set is incomplete, add that file")
    return path


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, with or without BOM, with LF line ends."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} row {row}: not UTF-8 (byte {data[error.start]:#04x}); save the file as UTF-8"
        ) from None


def read_json(path: Path) -> Any:
    """Return the content of a UTF-8 JSON file, with or without BOM."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} row {error.lineno}: not JSON ({error.msg}); download the file again"
        ) from None


def file_names(folder: Path) -> frozenset[str]:
    """Return the names in a folder: one listing is much cheaper than one look per row."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images; unpack the images there")
    return frozenset(path.name for path in folder.iterdir())


def image_folder(folder: Path, choices: Sequence[str]) -> Path:
    """Return the first of the known image folders that is there."""
    for choice in choices:
        if (folder / choice).is_dir():
            return folder / choice
    raise DataError(
        f"{folder}: no folder of images, looked for {', '.join(choices)}; unpack the images there"
    )


def check_unique(records: Iterable[Record], where: Path) -> None:
    """Refuse two records with one id."""
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise DataError(f"{where}: id {record.id!r} occurs twice; ids must differ, remove one")
        seen.add(record.id)


def hash_share(key: str, seed: int = 0) -> float:
    """Return a number in [0, 1) that depends on the key and the seed only."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def hash_split(key: str) -> str:
    """Return ``train``, ``validation`` or ``test`` (80/10/10) for sets without official splits."""
    share = hash_share(key)
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


def caption(
    modality: str | None = None, organ: str | None = None, plane: str | None = None
) -> str | None:
    """Return a sentence of the known facts, or None where nothing is known.

    ``caption("mri", "skull and contents", "axial")`` is "An axial MRI of the skull and contents."
    """
    if modality is None and organ is None and plane is None:
        return None
    words = []
    plane_word = _PLANE_WORDS.get(plane or "")
    if plane_word:
        words.append(plane_word)
    if modality is None:
        words.append("image")
    else:
        words.append(_MODALITY_WORDS.get(modality, f"{modality} image"))
    sentence = f"{_article(words[0])} {' '.join(words)}"
    if organ is not None:
        noun = " system" if organ.endswith(_ORGAN_ADJECTIVES) else ""
        sentence += f" of the {organ}{noun}"
    if plane is not None and not plane_word:
        sentence += f" ({plane})"
    return sentence + "."


def _article(word: str) -> str:
    """Return the article by sound: an MRI, an X-ray, an AP view; a CT, a PA view."""
    by_sound = word[0].lower() in "aeiou" or word in ("MRI", "X-ray")
    return "An" if by_sound else "A"


def caption_records(
    images: Iterable[ImageRecord], dataset: str, split: str, licence: str
) -> list[Record]:
    """Return one caption record for each image about which something is known."""
    records = []
    for image in images:
        text = caption(image.modality, image.organ, image.labels.get("plane"))
        if text is not None:
            records.append(caption_record(image, text, dataset, split, licence))
    return records


def caption_record(image: ImageRecord, text: str, dataset: str, split: str, licence: str) -> Record:
    """Return the record that asks for a description of one image."""
    return Record(
        id=f"{image.id}/caption",
        image=image,
        question=CAPTION_REQUEST,
        answer=text,
        answer_type="open",
        question_type="caption",
        task="caption",
        dataset=dataset,
        split=split,
        licence=licence,
    )
