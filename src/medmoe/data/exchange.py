"""Records on disk in the chat form that TRL, LLaMA-Factory and ms-swift train on, and back again.

A row has ``messages`` (role and content), ``images`` and what a record says besides; as JSON lines
beside a folder of pictures, as Parquet with the pictures inside, or as a Hugging Face dataset in
memory or streamed. Pictures are PNG, whatever they were: decoded, upright, without what else their
files held. The content of a user's message with pictures begins with ``<image>`` for each,
which LLaMA-Factory and ms-swift want; TRL puts them there itself, so for it the marks are left out.
Rows read back give the same records (`medmoe.data.readers.own`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medmoe.data.images import open_record
from medmoe.data.readers.chat import IMAGE_MARK
from medmoe.data.schema import ImageRecord, Record, spoken, turns_of
from medmoe.errors import DataError, first_line, one_of
from medmoe.files import write_json, write_text

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Target = Literal["llama_factory", "swift", "trl"]

#: Columns with plain text, in the order of the file.
_OF_RECORD = (
    *("id", "question", "answer", "answer_type", "question_type", "task", "dataset", "split"),
    "licence",
)
_TEXTS = (*_OF_RECORD, "image_id", "modality", "organ")


def row_of(
    record: Record, images: Sequence[object], target: Target = "llama_factory"
) -> dict[str, Any]:
    """Return a record as a row.

    Args:
        images: The references that stand in ``images``: a path each, or ``{"bytes", "path"}``.

    Raises:
        DataError: TRL cannot be told where a picture stands.
    """
    messages = [{"role": role, "content": text} for role, text in spoken(turns_of(record))]
    turns = [0, *(turn for turn, _ in record.further_images)]
    if target != "trl":
        for turn in turns:
            messages[2 * turn]["content"] = f"{IMAGE_MARK}\n{messages[2 * turn]['content']}"
    elif any(turns):
        raise DataError(
            f"{record.id}: TRL puts all pictures before the first question, and one of this record "
            "stands before a later one; export it for llama_factory or swift"
        )
    return {
        "messages": messages,
        "images": list(images),
        **{name: getattr(record, name) for name in _OF_RECORD},
        "image_id": _of_each([image.id for image in record.images]),
        "modality": _of_each([image.modality for image in record.images]),
        "organ": _of_each([image.organ for image in record.images]),
        "options": list(record.options),
        "references": list(record.references),
        "labels": json.dumps(dict(record.image.labels), ensure_ascii=False, sort_keys=True),
    }


def _of_each(words: Sequence[str | None]) -> str | None:
    """Return what all pictures have in common, else one word for each."""
    return words[0] if len(set(words)) == 1 else "|".join(word or "" for word in words)


def to_dataset(
    records: Sequence[Record], *, streaming: bool = False, target: Target = "llama_factory"
) -> Dataset | IterableDataset:
    """Return records as a Hugging Face dataset; a picture is decoded when its row is read.

    Args:
        streaming: Make rows as they are asked for, instead of writing a cache first.
    """
    import datasets

    def rows() -> Iterator[dict[str, Any]]:
        for record in records:
            pictures = [{"bytes": _png(i), "path": "image.png"} for i in record.images]
            yield row_of(record, pictures, target)

    if streaming:
        return datasets.IterableDataset.from_generator(rows, features=_features())
    return datasets.Dataset.from_list(list(rows()), features=_features())


def write_parquet(records: Sequence[Record], path: Path, target: Target = "llama_factory") -> Path:
    """Write records with their pictures into one Parquet file, whole or not at all."""
    dataset = to_dataset(records, target=target)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.staging")
    dataset.to_parquet(str(staging))
    staging.replace(path)
    return path


def write_jsonl(
    records: Sequence[Record], folder: Path, name: str, target: Target = "llama_factory"
) -> Path:
    """Write ``<folder>/<name>.jsonl`` and the pictures, once each, under ``<folder>/images``.

    For LLaMA-Factory ``dataset_info.json`` is written as well (with ``media_dir`` = folder).

    Returns:
        The JSON-lines file, which is written last.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    files: dict[str, str] = {}
    lines = []
    for record in records:
        for image in record.images:
            if image.id not in files:
                stem = hashlib.sha256(image.id.encode()).hexdigest()[:16]
                files[image.id] = f"images/{stem}.png"
                (folder / files[image.id]).write_bytes(_png(image))
        row = row_of(record, [files[image.id] for image in record.images], target)
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    if target == "llama_factory":
        info = {name: _LLAMA_FACTORY | {"file_name": f"{name}.jsonl"}}
        write_json(folder / "dataset_info.json", info)
    path = folder / f"{name}.jsonl"
    write_text(path, "".join(lines))
    return path


_LLAMA_FACTORY: dict[str, Any] = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "images": "images"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
    },
}


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Keep `datasets` from logging what is about to be raised as an error anyway."""
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def read_rows(path: Path, split: str | None = None) -> Iterator[dict[str, Any]]:
    """Stream the rows of a Parquet file, or of a folder.

    Pictures come as ``{"bytes", "path"}``, not decoded; classes by their names.

    Args:
        split: Of a folder in the hub's layout; without it `datasets` has saved the folder.

    Raises:
        DataError: It is none of these, or has no such split.
    """
    import datasets

    try:
        with _quiet_datasets():
            if split is not None:
                parts = datasets.load_dataset(str(path), streaming=True)
                if split not in parts:
                    raise DataError(one_of(split, map(str, parts), f"split of {path}"))
                dataset = parts[split]
            elif path.is_dir():
                dataset = datasets.load_from_disk(str(path))
            else:
                dataset = datasets.load_dataset(
                    "parquet", data_files=str(path), split="train", streaming=True
                )
        features = dataset.features or {}
        for name, kind in features.items():
            if isinstance(kind, datasets.Image):
                dataset = dataset.cast_column(name, datasets.Image(decode=False))
            elif isinstance(getattr(kind, "feature", None), datasets.Image):
                dataset = dataset.cast_column(name, datasets.List(datasets.Image(decode=False)))
        classes = {n: k.names for n, k in features.items() if isinstance(k, datasets.ClassLabel)}
        for row in dataset:
            known = {n: names for n, names in classes.items() if row[n] in range(len(names))}
            yield row | {name: names[row[name]] for name, names in known.items()}
    except (datasets.exceptions.DatasetsError, OSError, ValueError, TypeError) as error:
        kind = "a saved data set" if path.is_dir() and split is None else "Parquet"
        fix = "write it again" if split is None else "fetch it again"
        raise DataError(f"{path}: cannot be read as {kind} ({first_line(error)}); {fix}") from error


def _features() -> Any:
    from datasets import Features, List, Value
    from datasets import Image as Picture

    text = Value("string")
    said = {"messages": List({"role": text, "content": text}), "images": List(Picture())}
    lists = dict.fromkeys(("options", "references"), List(text))
    return Features(said | dict.fromkeys(_TEXTS, text) | lists | {"labels": text})


def _png(image: ImageRecord) -> bytes:
    """Return a picture as the bytes of a PNG file: its pixels as they are seen here, no more."""
    picture = open_record(image)
    red, green, blue = picture.split()
    buffer = BytesIO()
    (red if red == green == blue else picture).save(buffer, "PNG")
    return buffer.getvalue()
