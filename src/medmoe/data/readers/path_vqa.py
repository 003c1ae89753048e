"""PathVQA (He et al. 2020): 32,799 questions about 4,998 pathology pictures.

One of the three sets of the paper's table 1. Read from the hub's Parquet files, else from the
original folders ``images/<part>`` and ``qas/<part>/<part>_qa.json``. The original ships its
questions as pickle files, which can run code and are never opened: save them as JSON first. A
question is closed where its answer is yes or no (original test: 3,370 open, 3,391 closed).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers import common, hub
from medmoe.data.readers.known_set import KnownSet
from medmoe.data.schema import ImageRecord, Record
from medmoe.errors import DataError

_PARTS = {"train": "train", "validation": "val", "test": "test"}
_MODALITY = "pathology"


class PathVqa(KnownSet):
    """The folder ``path-vqa/``."""

    NAME = "path_vqa"
    MARKERS = ("path-vqa/data", "path-vqa/qas")
    LICENCE = "MIT"
    SOURCE = common.Source(
        "https://github.com/UCSD-AI4H/PathVQA",
        "path-vqa",
        hub="flaviagiammarino/path-vqa",
        files=("data/*.parquet",),
    )

    def records(self, marker: Path, split: str, bad: BadRows) -> list[Record]:
        """Return the questions of a split."""
        if marker.name == "data":
            return hub.read(self, marker.parent, split, bad, _MODALITY)
        part = _PARTS[split]
        path = marker / part / f"{part}_qa.json"
        if not path.is_file() and path.with_suffix(".pkl").is_file():
            raise DataError(
                f"{path.with_suffix('.pkl')}: a pickle file can run code and is not opened; save "
                f"its list as {path.name}, or fetch the set with `medmoe data get path_vqa`"
            )
        folder = marker.parent / "images" / part
        images: dict[str, ImageRecord] = {}

        def record(raw: Any, where: str) -> Record:
            text = common.fields(raw, ("image", "question", "answer"), where)
            name = text["image"] if Path(text["image"]).suffix else f"{text['image']}.jpg"
            if name not in images:
                source = common.image_file(folder, name, where)
                images[name] = ImageRecord(f"{self.NAME}/{split}/{name}", source, _MODALITY)
            row = where.rpartition(" ")[2]
            asked = (text["question"], text["answer"], split)
            return self.record(f"{self.NAME}/{split}/{row}", images[name], *asked, place=where)

        rows = common.json_rows(common.require_part(path.parent, path.name, self.NAME))
        return common.usable(bad.made(rows, record), path, bad)


SET = PathVqa()
