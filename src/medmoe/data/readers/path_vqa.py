"""PathVQA (He et al. 2020): 32,799 questions about 4,998 pathology pictures.

One of the three sets of the paper's table 1. Read from the hub's Parquet files, else from the
original folders ``images/<part>`` and ``qas/<part>/<part>_qa.json``. The original ships its
questions as pickle files, which can run code and are never opened: save them as JSON first. A
question is closed where its answer is yes or no (original test: 3,370 open, 3,391 closed).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medmoe.data.bad_rows import BadRows, collector
from medmoe.data.readers import common, hub
from medmoe.data.schema import ImageRecord, Record
from medmoe.errors import DataError

NAME = "path_vqa"
SPLITS = ("train", "validation", "test")
MARKERS = ("path-vqa/data", "path-vqa/qas")
LICENCE = "MIT"
SOURCE = common.Source(
    "https://github.com/UCSD-AI4H/PathVQA",
    "path-vqa",
    hub="flaviagiammarino/path-vqa",
    files=("data/*.parquet",),
)
_PARTS = {"train": "train", "validation": "val", "test": "test"}
_LAYOUT = hub.Layout(NAME, LICENCE, modality="pathology")


def read(root: Path, split: str, bad: BadRows | None = None) -> list[Record]:
    """Return the questions of a split.

    Args:
        root: The data folder, which holds ``path-vqa/``.
        split: One of `SPLITS`.
        bad: Receives the bad rows; without it the first one is an error.

    Raises:
        DataError: A file is missing, or a row is malformed (file and row are named).
    """
    common.check_split(NAME, split, SPLITS)
    bad = collector(bad)
    marker = common.require(root, MARKERS[0], NAME, *MARKERS[1:])
    if marker.name == "data":
        return hub.read(_LAYOUT, marker.parent, split, bad)
    part = _PARTS[split]
    path = marker / part / f"{part}_qa.json"
    if not path.is_file() and path.with_suffix(".pkl").is_file():
        raise DataError(
            f"{path.with_suffix('.pkl')}: a pickle file can run code and is not opened; save its "
            f"list as {path.name}, or fetch the set with `medmoe data get path_vqa`"
        )
    images: dict[str, ImageRecord] = {}
    records = []
    for number, raw in enumerate(common.json_list(common.require(path, ".", NAME)), 1):
        with bad.row():
            where = f"{path} row {number}"
            images_dir = marker.parent / "images" / part
            records.append(_record(raw, where, images_dir, split, number, images))
    return common.some(records, path)


def _record(
    raw: Any, where: str, folder: Path, split: str, number: int, images: dict[str, ImageRecord]
) -> Record:
    text = common.fields(raw, ("image", "question", "answer"), where)
    name = text["image"] if Path(text["image"]).suffix else f"{text['image']}.jpg"
    if name not in images:
        source = common.image_file(folder, name, where)
        images[name] = ImageRecord(f"{NAME}/{split}/{name}", source, modality="pathology")
    return Record(
        id=f"{NAME}/{split}/{number}",
        image=images[name],
        question=text["question"],
        answer=text["answer"],
        answer_type=common.yes_no_type(text["answer"]),
        question_type=common.question_word(text["question"], text["answer"]),
        task="vqa",
        dataset=NAME,
        split=split,
        licence=LICENCE,
        place=where,
    )
