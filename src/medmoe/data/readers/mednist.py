"""MedNIST: small grey images of six kinds, to teach and test the router's domains.

The split is ours, by a hash of the index (80/10/10): the set names no patients, so neighbouring
slices of one patient can stand on both sides, and its scores are easy ones. Train images also
carry a caption.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers import common, npz
from medmoe.data.schema import ImageRecord, Record
from medmoe.errors import DataError

NAME = "mednist"
SPLITS = ("train", "validation", "test")
MARKERS = ("mednist-6k.npz",)
LICENCE = "CC-BY-SA-4.0"
SOURCE = common.Source("https://github.com/Project-MONAI/MONAI-extra-test-data/releases")

QUESTION = "What kind of image is this?"


@dataclass(frozen=True, slots=True)
class _Class:
    option: str
    modality: str
    organ: str


_CLASSES = {
    "AbdomenCT": _Class("abdomen CT", "ct", "abdomen"),
    "BreastMRI": _Class("breast MRI", "mri", "breast"),
    "CXR": _Class("chest X-ray", "xray", "chest"),
    "ChestCT": _Class("chest CT", "ct", "chest"),
    "Hand": _Class("hand X-ray", "xray", "hand"),
    "HeadCT": _Class("head CT", "ct", "head"),
}


def read(root: Path, split: str, bad: BadRows | None = None) -> list[Record]:
    """Return one classification record per image, and for ``train`` one caption each.

    Args:
        root: The data folder, which holds ``mednist-6k.npz`` (``images``, ``labels``, ``classes``).
        split: One of `SPLITS`.
        bad: Unused: arrays are right or wrong as a whole.

    Raises:
        DataError: The file is missing or broken, or names a class that is none of the six.
    """
    common.check_split(NAME, split, SPLITS)
    path = common.require(root, MARKERS[0], NAME)
    arrays = npz.load(path, ("images", "labels", "classes"))
    classes = []
    for name in arrays["classes"].tolist():
        if name not in _CLASSES:
            raise DataError(f"{path}: class {name!r} must be one of {', '.join(_CLASSES)}")
        classes.append(_CLASSES[name])
    images = npz.images(path, "images", arrays)
    labels = npz.labels(path, "labels", arrays, len(images), len(classes))
    options = tuple(kind.option for kind in classes)
    records, captions = [], []
    for index, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        if common.hash_split(f"{NAME}/{index}") != split:
            continue
        kind = classes[label]
        image = ImageRecord(
            id=f"{NAME}/{index}",
            source=pixels,
            modality=kind.modality,
            organ=kind.organ,
            labels={"kind": kind.option},
        )
        records.append(_record(image, kind.option, options, split))
        text = f"{'An' if kind.option[0] in 'aeiou' else 'A'} {kind.option}."
        captions.append(common.caption_record(image, text, NAME, split, LICENCE))
    return records + captions if split == "train" else records


def _record(image: ImageRecord, answer: str, options: tuple[str, ...], split: str) -> Record:
    return Record(
        id=image.id,
        image=image,
        question=QUESTION,
        answer=answer,
        answer_type="closed",
        question_type="classification",
        task="classification",
        dataset=NAME,
        split=split,
        licence=LICENCE,
        options=options,
    )
