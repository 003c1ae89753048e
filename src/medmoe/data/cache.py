"""Image tensors and fingerprints on disk, by the content of the picture they were made from.

An entry's name is a hash of the file's bytes and of the policy that made the entry of it: a
changed file or policy is another entry, and no name of a file or patient is kept. Entries are
written beside their place and renamed, so that any number of processes may share a folder; a
damaged one is found by its checksum, deleted and made anew. Past the size limit, the least recently
used entries go. The folder is `$MEDMOE_CACHE` (`off` for none), else the user's cache folder; it is
readable by the user alone, for the pictures in it are of patients.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import struct
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

from medmoe.data.schema import Pixels

MAX_BYTES = 4 * 2**30
VARIABLE = "MEDMOE_CACHE"

_HEAD = struct.Struct("<8sIIII")  # mark, three lengths, checksum
_MARK = b"medmoe\x00\x01"
_KEPT_SHARE = 0.9  # of the limit, after a clean-up: the next one is then some time away
_STALE_SECONDS = 3600  # a staging file this old belongs to a process that was killed
_STAGING = ".staging-"

_log = logging.getLogger(__name__)


class ImageCache:
    """A folder of image tensors (C, H, W), uint8.

    Args:
        folder: Created where it is missing.
        max_bytes: Of all entries together.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._bytes: int | None = None  # of the folder, as far as this process knows
        self._failed = False

    def get(self, key: str) -> Pixels | None:
        """Return an entry, None where there is none or a damaged one, which is deleted."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        pixels = _unpacked(data)
        with contextlib.suppress(OSError):
            if pixels is None:
                path.unlink()
            else:
                os.utime(path)  # the times of access are not kept on many disks
        return pixels

    def put(self, key: str, pixels: Pixels) -> None:
        """Write an entry; a disk that takes none is said once and costs nothing else.

        Args:
            key: Of `key_of`.
            pixels: (C, H, W).
        """
        path = self._path(key)
        head = _HEAD.pack(_MARK, *pixels.shape, zlib.crc32(np.ascontiguousarray(pixels).data))
        data = head + pixels.tobytes()
        try:
            if not path.parent.is_dir():
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(len(data))
            handle, staging = tempfile.mkstemp(dir=path.parent, prefix=_STAGING)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                os.replace(staging, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(staging)
                raise
        except OSError as error:
            if not self._failed:
                _log.warning("the image cache cannot be written: %s", error.strerror)
            self._failed = True

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _make_room(self, wanted: int) -> None:
        """Delete the least recently used entries where the next one would pass the limit."""
        if self._bytes is None:
            self._bytes = sum(size for _, size, _ in self._entries())
        self._bytes += wanted
        if self._bytes <= self.max_bytes:
            return
        entries = sorted(self._entries())  # other processes write too: look again
        total = sum(size for _, size, _ in entries) + wanted
        for _, size, path in entries:
            if total <= self.max_bytes * _KEPT_SHARE:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size
        self._bytes = total

    def _entries(self) -> list[tuple[float, int, str]]:
        """Return time, size and path of every entry; staging files of killed processes go."""
        entries = []
        for folder in self.folder.glob("[0-9a-f][0-9a-f]"):
            with contextlib.suppress(OSError), os.scandir(folder) as files:
                for file in files:
                    with contextlib.suppress(OSError):
                        facts = file.stat()
                        old = facts.st_mtime < time.time() - _STALE_SECONDS
                        if old and file.name.startswith(_STAGING):
                            os.unlink(file.path)
                        else:
                            entries.append((facts.st_mtime, facts.st_size, file.path))
        return entries


def key_of(data: bytes, policy: str) -> str:
    """Return the name of the entry of a picture.

    Args:
        data: The bytes of its file.
        policy: Everything that decides how they become pixels.
    """
    return hashlib.sha256(hashlib.sha256(data).digest() + policy.encode()).hexdigest()


def default_cache() -> ImageCache | None:
    """Return the cache of this user, None where it is switched off."""
    choice = os.environ.get(VARIABLE, "")
    if choice.lower() == "off":
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return ImageCache(Path(choice) if choice else base / "medmoe" / "images")


def _unpacked(data: bytes) -> Pixels | None:
    """Return the pixels of an entry, None where it is damaged."""
    if len(data) < _HEAD.size:
        return None
    mark, *shape, checksum = _HEAD.unpack_from(data)
    body = memoryview(data)[_HEAD.size :]
    if mark != _MARK or len(body) != int(np.prod(shape, dtype=object)):
        return None
    if zlib.crc32(body) != checksum:
        return None
    return np.frombuffer(body, np.uint8).reshape(shape)
