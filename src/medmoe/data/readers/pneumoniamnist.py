"""PneumoniaMNIST (Yang et al. 2023): 5,856 chest radiographs of 28x28, pneumonia or normal.

One of the two classification sets of the paper (table 3). It reads the MedMNIST v2 npz file as it
is published; the larger MedMNIST+ sizes have the same keys and are read too.
"""

from __future__ import annotations

from pathlib import Path

from medmoe.data.readers import common, npz
from medmoe.data.schema import ImageRecord, Record
from medmoe.errors import DataError

NAME = "pneumoniamnist"
SPLITS = ("train", "validation", "test")
MARKER = "pneumoniamnist.npz"
LICENCE = "CC-BY-4.0"

QUESTION = "Does this chest X-ray show pneumonia?"
OPTIONS = ("normal", "pneumonia")
_KEYS = {"train": "train", "validation": "val", "test": "test"}


def read(root: Path, split: str) -> list[Record]:
    """Return one classification record per image of a split, in the order of the file.

    Args:
        root: The data folder, which holds ``pneumoniamnist.npz``.
        split: One of `SPLITS`.

    Raises:
        DataError: The file is missing or broken, or a label is neither 0 nor 1.
    """
    common.check_split(NAME, split, SPLITS)
    path = common.require(root, MARKER, NAME)
    key = _KEYS[split]
    arrays = npz.load(path, (f"{key}_images", f"{key}_labels"))
    images = npz.images(path, f"{key}_images", arrays)
    labels = npz.labels(path, f"{key}_labels", arrays, len(images), len(OPTIONS))
    if not len(images):
        raise DataError(f"{path}: {key}_images holds no image; download the file again")
    return [
        Record(
            id=f"{NAME}/{split}/{index}",
            image=ImageRecord(
                id=f"{NAME}/{split}/{index}",
                source=image,
                modality="xray",
                organ="chest",
                labels={"finding": OPTIONS[label]},
            ),
            question=QUESTION,
            answer=OPTIONS[label],
            answer_type="closed",
            question_type="classification",
            task="classification",
            dataset=NAME,
            split=split,
            licence=LICENCE,
            options=OPTIONS,
        )
        for index, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
