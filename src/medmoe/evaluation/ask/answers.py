"""A prediction file that grows chunk by chunk and survives being cut off anywhere.

Each chunk is appended and handed to the disk. On the next start the chunks that are whole are kept;
what follows them (a torn line, half a chunk) is cut off and asked again. A chunk holds the same
records in the same batches whenever it is asked, so a resumed file equals an uninterrupted one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from medmoe.data.schema import Record
from medmoe.errors import DataError
from medmoe.evaluation.files.predictions import Prediction, pair, prediction_row

#: Batches of a chunk: what is lost at most when a run is cut off.
BATCHES = 4
Chunk = Sequence[Record]
T = TypeVar("T")


def chunks_by_image(items: Iterable[T], image_of: Callable[[T], str], size: int) -> list[list[T]]:
    """Return questions in chunks of at least ``size``, all questions about an image in one.

    So an image is encoded once. The order is that of the images' first questions.
    """
    by_image: dict[str, list[T]] = {}
    for item in items:
        by_image.setdefault(image_of(item), []).append(item)
    chunks: list[list[T]] = [[]]
    for own in by_image.values():
        if len(chunks[-1]) >= size:
            chunks.append([])
        chunks[-1] += own
    return [chunk for chunk in chunks if chunk]


class AnswerFile:
    """The predictions of one task on disk.

    Args:
        path: A JSON Lines file of `prediction_row`s; its folder is made.
        chunks: All chunks, in the order in which they are asked.
        questions: Also write what was asked, where that is not in the data set.
    """

    def __init__(self, path: Path, chunks: Sequence[Chunk], *, questions: bool = False) -> None:
        self._path = path
        self._chunks = chunks
        self._questions = questions

    def resume(self) -> int:
        """Cut off what follows the last whole chunk and return how many chunks are whole.

        Raises:
            DataError: A line answers another record than the one that stands here in this run.
        """
        if not self._path.is_file():
            return 0
        content = self._path.read_bytes()
        whole, kept = self._whole(content)
        if kept < len(content):
            with self._path.open("r+b") as file:
                file.truncate(kept)
                os.fsync(file.fileno())
        return whole

    def append(self, chunk: Chunk, predictions: Sequence[Prediction]) -> None:
        """Write a chunk's predictions and hand them to the disk.

        Raises:
            DataError: The ids do not pair, or a number is not finite: nothing is written.
        """
        lines = [
            json.dumps(self._row(r, p), ensure_ascii=False) + "\n"
            for r, p in pair(chunk, predictions)
        ]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write("".join(lines).encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())

    def _row(self, record: Record, prediction: Prediction) -> dict[str, Any]:
        row = prediction_row(record, prediction)
        return row | {"question": record.question} if self._questions else row

    def _whole(self, content: bytes) -> tuple[int, int]:
        """Return how many chunks the content begins with, and how many bytes they take."""
        lines = content.split(b"\n")[:-1]  # what no line end follows was torn
        number, kept = 0, 0
        for count, chunk in enumerate(self._chunks):
            size = 0
            for record in chunk:
                if number >= len(lines) or not self._answers(lines[number], record, number + 1):
                    return count, kept
                size += len(lines[number]) + 1
                number += 1
            kept += size
        if number < len(lines):
            raise DataError(f"{self._path}: more lines than records; give another --out")
        return len(self._chunks), kept

    def _answers(self, line: bytes, record: Record, number: int) -> bool:
        """Return whether a line is readable; a readable one must answer this record."""
        try:
            row = json.loads(line)
        except ValueError:  # a file system may leave a torn block behind: asked again
            return False
        if not isinstance(row, dict) or row.get("id") != record.id:
            raise DataError(
                f"{self._path} line {number} does not answer {record.id!r}: it was written by "
                "another run or changed; give another --out"
            )
        return True
