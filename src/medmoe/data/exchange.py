"""Records on disk in the chat form that TRL, LLaMA-Factory and ms-swift train on, and back again.

A row has ``messages`` (role and content), ``images`` and what a record says besides; as JSON lines
beside a folder of pictures, as Parquet with the pictures inside, or as a Hugging Face dataset in
memory or streamed. The content of a user's message begins with ``<image>``, which LLaMA-Factory and
ms-swift want; TRL puts the picture there itself, so for it the mark is left out. Rows read back
give the same records. Chats of other origin are read by `medmoe.data.readers.own`, a conversation
a row; system prompts and several images are refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medmoe.data.schema import TASKS, ImageRecord, Record, Task
from medmoe.data.wording import turns_of
from medmoe.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Target = Literal["llama_factory", "swift", "trl"]
TARGETS: tuple[Target, ...] = ("llama_factory", "swift", "trl")
IMAGE_MARK = "<image>"
_ROLES = ("user", "assistant")

#: Columns with plain text, in the order of the file.
_TEXTS = (
    *("id", "question", "answer", "answer_type", "question_type", "task", "dataset", "split"),
    *("licence", "image_id", "modality", "organ"),
)


def row_of(record: Record, image: object, target: Target = "llama_factory") -> dict[str, Any]:
    """Return a record as a row.

    Args:
        image: The reference that stands in ``images``: a path, or ``{"bytes", "path"}``.
    """
    messages = [
        {"role": role, "content": text}
        for turn in turns_of(record)
        for role, text in zip(_ROLES, turn, strict=True)
    ]
    if target != "trl":
        messages[0]["content"] = f"{IMAGE_MARK}\n{messages[0]['content']}"
    return {
        "messages": messages,
        "images": [image],
        "id": record.id,
        "question": record.question,
        "answer": record.answer,
        "answer_type": record.answer_type,
        "question_type": record.question_type,
        "task": record.task,
        "dataset": record.dataset,
        "split": record.split,
        "licence": record.licence,
        "image_id": record.image.id,
        "modality": record.image.modality,
        "organ": record.image.organ,
        "options": list(record.options),
        "references": list(record.references),
        "labels": json.dumps(dict(record.image.labels), ensure_ascii=False, sort_keys=True),
    }


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
            data, suffix = _encoded(record.image)
            yield row_of(record, {"bytes": data, "path": f"image{suffix}"}, target)

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
        if record.image.id not in files:
            files[record.image.id] = _save(record.image, folder)
        row = row_of(record, files[record.image.id], target)
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    if target == "llama_factory":
        info = {name: _LLAMA_FACTORY | {"file_name": f"{name}.jsonl"}}
        (folder / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n")
    path = folder / f"{name}.jsonl"
    staging = folder / f".{name}.jsonl.staging"
    staging.write_text("".join(lines), encoding="utf-8")
    staging.replace(path)
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
def quiet_datasets() -> Iterator[None]:
    """Keep `datasets` from logging what is about to be raised as an error anyway."""
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Stream the rows of a Parquet file, with pictures as ``{"bytes", "path"}``.

    Raises:
        DataError: It is no Parquet file.
    """
    import datasets

    try:
        with quiet_datasets():
            found = datasets.load_dataset(
                "parquet", data_files=str(path), split="train", streaming=True
            )
        images = datasets.List(datasets.Image(decode=False))
        if found.features is not None and "images" in found.features:
            found = found.cast_column("images", images)
        yield from found
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read as Parquet ({reason}); write it again") from error


def records_of(rows: Iterable[dict[str, Any]], folder: Path) -> Iterator[Record]:
    """Return the records of rows; pictures given by path lie under ``folder``."""
    images: dict[str, ImageRecord] = {}
    for number, row in enumerate(rows, 1):
        yield record_of(row, f"row {number}", folder, images)


def record_of(
    row: dict[str, Any], where: str, folder: Path, images: dict[str, ImageRecord]
) -> Record:
    """Return the record of one row.

    Args:
        where: File and row, for errors.
        images: Images known so far, by id; the row's is added.

    Raises:
        DataError: The row is no conversation about one image.
    """
    (question, answer), *further = _turns(row.get("messages"), where)
    text = {key: _text(row.get(key)) for key in _TEXTS}
    references = row.get("images")
    if not isinstance(references, list) or len(references) != 1:
        raise DataError(f"{where}: images must hold exactly one image; split the row or remove it")
    source, name = _source(references[0], folder, where)
    image_id = text["image_id"] or name
    if image_id not in images:
        images[image_id] = _image(image_id, source, row, text, where)
    closed = text["answer_type"] or ("closed" if answer.lower().rstrip(".") in _YES_NO else "open")
    task: Task = next((task for task in TASKS if task == text["task"]), "vqa")
    return Record(
        id=text["id"] or f"{folder.name}/{where.rpartition(' ')[2]}",
        image=images[image_id],
        question=text["question"] or question,
        answer=answer,
        answer_type="closed" if closed == "closed" else "open",
        question_type=text["question_type"] or "other",
        task=task,
        dataset=text["dataset"] or folder.name,
        split=text["split"],
        licence=text["licence"] or "unknown",
        options=tuple(row.get("options") or ()),
        references=tuple(row.get("references") or ()),
        place=where,
        further=tuple(further),
    )


_YES_NO = ("yes", "no")


def _turns(messages: object, where: str) -> list[tuple[str, str]]:
    """Return question and answer of each turn of a chat."""
    said = messages if isinstance(messages, list) else []
    roles = [one.get("role") if isinstance(one, dict) else None for one in said]
    if not roles or roles != [*_ROLES] * (len(roles) // 2):
        raise DataError(
            f"{where}: messages must be one of user, one of assistant, and so on in turn, found "
            f"{roles}; correct the row or remove it"
        )
    texts = [_text(one.get("content")) for one in said]
    texts[::2] = [text.replace(IMAGE_MARK, "").strip() for text in texts[::2]]
    if "" in texts:
        what = ("question", "answer")[texts.index("") % 2]
        raise DataError(f"{where}: empty {what}; fill it in or remove the row")
    return list(zip(texts[::2], texts[1::2], strict=True))


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _source(reference: object, folder: Path, where: str) -> tuple[Path | bytes, str]:
    """Return a picture and a name for it."""
    if isinstance(reference, dict) and reference.get("bytes"):
        data = bytes(reference["bytes"])
        return data, hashlib.sha256(data).hexdigest()[:16]
    name = reference.get("path") if isinstance(reference, dict) else reference
    if not isinstance(name, str) or not (folder / name).is_file():
        raise DataError(f"{where}: image file {name!r} is missing in {folder}; add it")
    return folder / name, name


def _image(
    name: str, source: Path | bytes, row: dict[str, Any], text: dict[str, str], where: str
) -> ImageRecord:
    try:
        labels = json.loads(_text(row.get("labels")) or "{}")
    except json.JSONDecodeError:
        labels = None
    if not isinstance(labels, dict):
        raise DataError(f"{where}: labels must be a JSON object; correct it or leave it out")
    known = {str(key): str(value) for key, value in labels.items()}
    return ImageRecord(name, source, text["modality"] or None, text["organ"] or None, known)


def _features() -> Any:
    from datasets import Features, Image, List, Value

    text = Value("string")
    columns = {
        "messages": List({"role": text, "content": text}),
        "images": List(Image()),
        **dict.fromkeys(_TEXTS, text),
        "options": List(text),
        "references": List(text),
        "labels": text,
    }
    return Features(columns)


def _encoded(image: ImageRecord) -> tuple[bytes, str]:
    """Return a picture as the bytes of a file, and the suffix; pixels become PNG."""
    if isinstance(image.source, np.ndarray):
        from io import BytesIO

        from PIL import Image

        buffer = BytesIO()
        Image.fromarray(image.source).save(buffer, "PNG")
        return buffer.getvalue(), ".png"
    if isinstance(image.source, bytes):
        return image.source, ".png" if image.source.startswith(b"\x89PNG") else ".jpg"
    return image.source.read_bytes(), image.source.suffix


def _save(image: ImageRecord, folder: Path) -> str:
    """Write a picture under ``images``, named by a hash of its id, and return its path there."""
    stem = hashlib.sha256(image.id.encode()).hexdigest()[:16]
    if isinstance(image.source, Path):
        name = f"images/{stem}{image.source.suffix}"
        shutil.copyfile(image.source, folder / name)
        return name
    data, suffix = _encoded(image)
    name = f"images/{stem}{suffix}"
    (folder / name).write_bytes(data)
    return name
