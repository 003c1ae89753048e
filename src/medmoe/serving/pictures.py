"""The picture of a conversation: from a data URL or an upload, decoded off the event loop.

Decoding happens in the sandbox's processes (`medmoe.data.images.open_picture`); how many pictures
may wait for them is bounded, so that a rush is told to come back instead of filling the memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from medmoe.data.images import Picture, open_picture
from medmoe.data.intake.data_url import from_data_url
from medmoe.data.intake.decode import Hint
from medmoe.data.intake.limits import Limits
from medmoe.errors import ImageError
from medmoe.serving.chat_engine import busy
from medmoe.serving.metrics import Metrics
from medmoe.serving.problems import ProblemError
from medmoe.serving.schema import FilePart, ImagePart, Message, Options
from medmoe.serving.uploads import UploadStore

MAX_IMAGES = 1


@dataclass(frozen=True, slots=True)
class Source:
    """The bytes of a picture, and what their sender says they are."""

    data: bytes
    hint: Hint | None


class Pictures:
    """Finds and decodes the pictures of requests.

    Args:
        uploads: Those that may be named by id.
        metrics: Counts them.
        max_waiting: Pictures that may wait for a decoder.
    """

    def __init__(self, uploads: UploadStore, metrics: Metrics, max_waiting: int = 64) -> None:
        self._uploads, self._metrics = uploads, metrics
        self._max_waiting, self._waiting = max_waiting, 0
        self._limits = Limits()

    def find(self, messages: Sequence[Message]) -> Source | None:
        """Return the picture of a conversation; None where it has none.

        Raises:
            ProblemError: It has too many, or the upload is not there.
            ImageError: It is an address, or no data URL.
        """
        parts = [
            part
            for message in messages
            if isinstance(message.content, list)
            for part in message.content
            if isinstance(part, ImagePart | FilePart)
        ]
        if len(parts) > MAX_IMAGES:
            raise ProblemError(
                400, "too_many_images",
                f"{len(parts)} images; a conversation is about {MAX_IMAGES}", param="messages",
            )  # fmt: skip
        return self._source(parts[0]) if parts else None

    async def open(self, source: Source, options: Options) -> Picture:
        """Return the decoded picture.

        Raises:
            ImageError: It cannot be used.
            EngineError: Too many wait.
        """
        if self._waiting >= self._max_waiting:
            raise busy(1)
        window = options.window
        self._waiting += 1
        try:
            picture = await asyncio.to_thread(
                open_picture,
                source.data,
                window=(window[0], window[1]) if isinstance(window, list) else window,
                frame=options.frame,
                hint=source.hint,
            )
        except ImageError as error:
            self._metrics.pictures.labels(error.code).inc()
            raise
        finally:
            self._waiting -= 1
        self._metrics.pictures.labels("ok").inc()
        return picture

    def _source(self, part: ImagePart | FilePart) -> Source:
        if isinstance(part, ImagePart):
            return Source(*from_data_url(part.image_url.url, self._limits.max_file_bytes))
        if part.file.file_data is not None:
            return Source(*from_data_url(part.file.file_data, self._limits.max_file_bytes))
        if part.file.file_id is None:
            raise ProblemError(400, "bad_parameter", "a file part needs file_id or file_data")
        return Source(self._uploads.get(part.file.file_id).data, None)
