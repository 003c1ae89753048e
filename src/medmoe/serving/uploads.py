"""Pictures that were uploaded to be asked about: in memory, bounded, gone after a while.

Nothing is written to disk. The client's name of the file is dropped before anything is kept; the id
is random, so that knowing one tells nothing about others.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass

from medmoe.serving.problems import ProblemError


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
        """Keep a picture.

        Raises:
            ProblemError: There is no room.
        """
        self._expire()
        if self._bytes + len(data) > self._max_bytes or len(self._files) >= self._max_files:
            raise ProblemError(
                429, "uploads_full", "too many pictures are kept; delete some or wait",
                retry_after=30,
            )  # fmt: skip
        name = f"file-{secrets.token_urlsafe(18)}"
        now = time.monotonic()
        upload = Upload(name, data, int(time.time()), now + self._seconds)
        self._files[name] = upload
        self._bytes += len(data)
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
