"""Sets in the hub's Parquet layout (``data/<split>-*.parquet`` with image, question, answer).

VQA-RAD and PathVQA are published so. The rows hold neither ids nor answer types: an image is named
by a hash of its bytes, which also joins the questions on it, and a question is closed where its
answer is yes or no. `rows` reads a folder and a hub id alike. It keeps the pictures encoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmoe.data.bad_rows import BadRows
from medmoe.data.exchange import quiet_datasets
from medmoe.data.readers import common
from medmoe.data.schema import ImageRecord, Record
from medmoe.errors import DataError, one_of


@dataclass(frozen=True, slots=True)
class Layout:
    """What a set says of all its rows."""

    name: str
    licence: str
    modality: str | None = None


def rows(source: str, split: str, revision: str | None = None) -> Iterator[dict[str, Any]]:
    """Stream the rows of one split; images come as ``{"bytes", "path"}``, not decoded.

    Args:
        source: A folder in the hub's layout, or a hub id.
        split: As the hub names it.
        revision: Commit of a hub id.

    Raises:
        DataError: There is no such split, or nothing can be read.
    """
    from datasets import Image, load_dataset
    from datasets.exceptions import DatasetsError

    try:
        with quiet_datasets():
            dataset = load_dataset(source, revision=revision, streaming=True)
        if split not in dataset:
            raise DataError(one_of(split, map(str, dataset), f"split of {source}"))
        data = dataset[split]
        if data.features is not None and "image" in data.features:
            data = data.cast_column("image", Image(decode=False))
        yield from data
    except (DatasetsError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{source}: cannot be read as Parquet ({reason}); fetch it again"
        ) from error


def read(layout: Layout, folder: Path, split: str, bad: BadRows) -> list[Record]:
    """Return the questions of one split of a set under ``folder``.

    Raises:
        DataError: The split is not there, or no row can be used.
    """
    images: dict[str, ImageRecord] = {}
    records: list[Record] = []
    for number, row in enumerate(rows(str(folder), split), 1):
        place = f"{folder / 'data'} {split} row {number}"
        with bad.row():
            records.append(_record(layout, row, split, number, images, place))
    return common.some(records, folder)


def _record(
    layout: Layout,
    row: dict[str, Any],
    split: str,
    number: int,
    images: dict[str, ImageRecord],
    place: str,
) -> Record:
    texts = common.fields(row, ("question", "answer"), place)
    data = (row.get("image") or {}).get("bytes")
    if not data:
        raise DataError(f"{place}: no image in the row; fetch the file again")
    digest = hashlib.sha256(data).hexdigest()[:16]
    name = f"{layout.name}/{digest}"
    image = images.setdefault(digest, ImageRecord(name, data, modality=layout.modality))
    return Record(
        id=f"{layout.name}/{split}/{number}",
        image=image,
        question=texts["question"],
        answer=texts["answer"],
        answer_type=common.yes_no_type(texts["answer"]),
        question_type=common.question_word(texts["question"], texts["answer"]),
        task="vqa",
        dataset=layout.name,
        split=split,
        licence=layout.licence,
        place=place,
    )
