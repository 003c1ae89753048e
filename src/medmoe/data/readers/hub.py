"""Sets in the hub's Parquet layout (``data/<split>-*.parquet`` with image, question, answer).

VQA-RAD and PathVQA are published so. The rows hold neither ids nor answer types: an image is named
by a hash of its bytes, which also joins the questions on it, and a question is closed where its
answer is yes or no. The pictures stay encoded.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from medmoe.data.bad_rows import BadRows
from medmoe.data.exchange import read_rows
from medmoe.data.readers import common
from medmoe.data.readers.known_set import KnownSet
from medmoe.data.schema import ImageRecord, Record
from medmoe.errors import DataError


def read(
    known: KnownSet, folder: Path, split: str, bad: BadRows, modality: str | None = None
) -> list[Record]:
    """Return the questions of one split of a set under ``folder``.

    Args:
        modality: Of all its pictures.

    Raises:
        DataError: The split is not there, or no row can be used.
    """
    images: dict[str, ImageRecord] = {}

    def record(row: dict[str, Any], place: str) -> Record:
        texts = common.fields(row, ("question", "answer"), place)
        data = (row.get("image") or {}).get("bytes")
        if not data:
            raise DataError(f"{place}: no image in the row; fetch the file again")
        name = f"{known.NAME}/{hashlib.sha256(data).hexdigest()[:16]}"
        image = images.setdefault(name, ImageRecord(name, data, modality))
        number = place.rpartition(" ")[2]
        asked = (texts["question"], texts["answer"], split)
        return known.record(f"{known.NAME}/{split}/{number}", image, *asked, place=place)

    rows = (
        (f"{folder / 'data'} {split} row {number}", row)
        for number, row in enumerate(read_rows(folder, split), 1)
    )
    return common.usable(bad.made(rows, record), folder, bad)
