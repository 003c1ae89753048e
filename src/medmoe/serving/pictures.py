"""The pictures of a conversation: from a data URL or an upload, decoded off the event loop.

Uploads are kept in memory, bounded, and gone after a while; nothing is written to disk. The
client's name of the file is dropped before anything is kept; the id is random, so that knowing one
tells nothing about others. Decoding happens in the sandbox's processes
(`medmoe.data.images.open_picture`); how many pictures may wait for them is bounded, so that a rush
is told to come back instead of filling the memory.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from medmoe.data.images import Picture, open_picture, open_values
from medmoe.data.intake.data_url import from_data_url
from medmoe.data.intake.decode import Decoded, Hint
from medmoe.data.intake.limits import Limits
from medmoe.data.intake.sandbox import DecoderPool, cores
from medmoe.errors import ImageError
from medmoe.serving.aside import Aside
from medmoe.serving.chat_engine import late
from medmoe.serving.metrics import Metrics
from medmoe.serving.problems import ProblemError
from medmoe.serving.schema import FilePart, ImagePart, Message

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Upload:
    """A picture's bytes, and when it came (seconds since 1970, and of the monotonic clock)."""

    id: str
    data: bytes
    created: int
    expires: float

    def to_json(self) -> dict[str, object]:
        """Return the upload as OpenAI's file object."""
        return {
            "id": self.id, "object": "file", "bytes": len(self.data), "created_at": self.created,
            "filename": self.id, "purpose": "vision", "status": "processed",
        }  # fmt: skip


class UploadStore:
    """The uploads of a server.

    Args:
        max_bytes: Of all together.
        max_files: Of all together.
        seconds: After which one is forgotten.
    """

    def __init__(
        self, max_bytes: int = 512 * 2**20, max_files: int = 256, seconds: float = 900.0
    ) -> None:
        self._max_bytes, self._max_files, self._seconds = max_bytes, max_files, seconds
        self._files: OrderedDict[str, Upload] = OrderedDict()
        self._bytes = 0

    def add(self, data: bytes) -> Upload:
        """Keep a picture; the oldest make room for it."""
        self._expire()
        name = f"file-{secrets.token_urlsafe(18)}"
        now = time.monotonic()
        upload = Upload(name, data, int(time.time()), now + self._seconds)
        self._files[name] = upload
        self._bytes += len(data)
        while len(self._files) > self._max_files or self._bytes > self._max_bytes:
            self._bytes -= len(self._files.popitem(last=False)[1].data)
        return upload

    def get(self, name: str) -> Upload:
        """Return an upload.

        Raises:
            ProblemError: There is none of that id, or not any more.
        """
        self._expire()
        upload = self._files.get(name)
        if upload is None:
            raise ProblemError(404, "file_not_found", "there is no such upload, or not any more")
        return upload

    def delete(self, name: str) -> None:
        """Forget an upload.

        Raises:
            ProblemError: There is none of that id.
        """
        self._bytes -= len(self.get(name).data)
        del self._files[name]

    def _expire(self) -> None:
        now = time.monotonic()
        while self._files and next(iter(self._files.values())).expires < now:
            self._bytes -= len(self._files.popitem(last=False)[1].data)


#: Pictures that may wait for a decoder or be in one.
MOST_WAITING = 32
#: The decoders of all servers of this program. They leave a core to those who ask in words only.
_DECODERS = DecoderPool(max(1, cores() - 1))


class Decoding:
    """Decodes pictures, for page and interface alike.

    Args:
        seconds: For one picture, its waiting included.
    """

    def __init__(self, seconds: float, metrics: Metrics) -> None:
        self._seconds, self._metrics = seconds, metrics
        self._aside = Aside(_DECODERS.workers, MOST_WAITING, "medmoe-decoding")

    async def open(self, data: bytes, **options: Any) -> Picture:
        """Return the picture of a file, as `open_picture` does.

        Raises:
            ImageError: It cannot be used.
            EngineError: Too many wait, or it took too long.
        """
        return await self._run(partial(open_picture, data, pool=_DECODERS, **options))

    async def values(self, data: bytes, **options: Any) -> Decoded:
        """Return a frame of a file for a viewer, as `open_values` does.

        Raises:
            ImageError, EngineError: As with `open`.
        """
        return await self._run(partial(open_values, data, pool=_DECODERS, **options))

    async def _run(self, call: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(self._seconds):
                found = await self._aside.run(call)
        except TimeoutError:
            raise late() from None
        except ImageError as error:
            self._metrics.pictures.labels(error.code).inc()
            raise
        self._metrics.pictures.labels("ok").inc()
        return found


@dataclass(frozen=True, slots=True)
class Source:
    """The bytes of a picture, and what their sender says they are; equal bytes are equal."""

    data: bytes
    hint: Hint | None = field(compare=False)


def pictures_of(
    messages: Sequence[Message], uploads: UploadStore, most: int
) -> tuple[list[tuple[int, Source]], int]:
    """Return the newest pictures of a conversation in order, and how many it had before them.

    Each comes with the message that first has it.

    Args:
        uploads: Those that may be named by id.
        most: How many are kept.

    Raises:
        ProblemError: The upload is not there.
        ImageError: It is an address, or no data URL.
    """
    # Clients that keep no state send a picture again in each turn: equal ones are one.
    places: dict[Source, int] = {}
    last: dict[Source, None] = {}  # in the order in which each was last sent
    for place, message in enumerate(messages):
        for part in message.content:
            if isinstance(part, ImagePart | FilePart):
                source = _source(part, uploads)
                places.setdefault(source, place)
                last.pop(source, None)
                last[source] = None
    newest = set(list(last)[-most:])
    kept = [(place, source) for source, place in places.items() if source in newest]
    return kept, len(places) - len(kept)


def _source(part: ImagePart | FilePart, uploads: UploadStore) -> Source:
    url = part.image_url.url if isinstance(part, ImagePart) else part.file.file_data
    if url is not None:
        return Source(*from_data_url(url, Limits().max_file_bytes))
    if isinstance(part, ImagePart) or part.file.file_id is None:
        raise ProblemError(400, "bad_parameter", "a file part needs file_id or file_data")
    return Source(uploads.get(part.file.file_id).data, None)
