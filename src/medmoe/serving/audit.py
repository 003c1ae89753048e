"""The audit log: that something was asked, when, of which model, and how it went; never what.

One JSON object a line. Each carries the MAC of the line before and its own, made with a secret key,
so that a line that was edited, removed, put in or moved is found by `verify`; a head file beside
the log, under the same key, says which line is the last, so that a cut tail is found too. Pictures
stand as keyed hashes: equal ones can be told, and nobody without the key can try candidates.
Prompts, answers, pixels, names and tags are never written.

It does not protect against somebody who holds the key. Who puts back an older log together with its
head is found by an anchor alone: a number and MAC that were noted elsewhere.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import re
import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmoe.errors import ConfigError, DataError
from medmoe.files import lock

_START = "0" * 64
_KEY_BYTES = 32
_SYNC_SECONDS = 0.2
_ROTATED = "rotated"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `verify` found.

    Attributes:
        lines: Number of good lines.
        fault: What is wrong, if anything is.
        first: Number of the first line; above 1 where older files were moved away.
        torn: Bytes of a last line without an end, which a loss of power may leave.
        macs: Of the good lines.
    """

    lines: int
    fault: str | None
    first: int = 1
    torn: int = 0
    macs: list[str] = field(default_factory=list, repr=False)

    @property
    def last(self) -> tuple[int, str]:
        """Number and MAC of the last good line."""
        return self.first + self.lines - 1, self.macs[-1] if self.macs else _START


class AuditLog:
    """A log that is appended to; one program at a time.

    Args:
        path: The log; its key stands beside it as ``….key`` (made with mode 0600), its head as
            ``….head``, and full files as ``….NUMBER``, by the number of their last line.
        each_line: Whether a line is on the disk before the next; else all are within 200 ms.
        max_bytes: Size from which on a new file is begun.

    Raises:
        ConfigError: It cannot be opened, another server writes it, or it was altered.
    """

    def __init__(
        self, path: Path, *, each_line: bool = False, max_bytes: int | None = None
    ) -> None:
        self._path, self._each_line, self._max_bytes = path, each_line, max_bytes
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._head = os.open(_head_path(path), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                verdict = self._take()
            except BaseException:
                os.close(self._head)
                raise
        except OSError as error:
            raise ConfigError(
                f"cannot open the audit log {str(path)!r} ({error.strerror or error}); "
                "give another file by --audit-log"
            ) from None
        self._number, self._last = verdict.last
        self._lock, self._unsynced = threading.Lock(), threading.Event()
        self._closing = threading.Event()
        self._failed: OSError | None = None
        if verdict.torn:
            self._put_aside(verdict.torn)
        elif not self._size and self._number:
            self.append(_ROTATED)  # a kill came between the old file and the new one
        self.sync()
        self._syncing = threading.Thread(target=self._keep_syncing, daemon=True)
        self._syncing.start()

    def image_hash(self, data: bytes) -> str:
        """Return the keyed hash of a picture's bytes."""
        return hmac.new(self._key, b"image" + data, hashlib.sha256).hexdigest()

    def append(self, event: str, **facts: str | int | float | bool | None) -> None:
        """Write one line.

        Raises:
            OSError: The disk does not take it, or somebody else cut the file or wrote to it.
        """
        if self._failed is not None:
            raise self._failed
        with self._lock:
            if self._max_bytes is not None and self._size >= self._max_bytes:
                self._rotate()
            self._write(event, facts)
        if self._each_line:
            self.sync()
        else:
            self._unsynced.set()

    def sync(self) -> None:
        """Hand all lines to the disk, and only then name the last one in the head."""
        with self._lock:
            self._unsynced.clear()
            head = _head(self._key, self._number, self._last)
            file = os.dup(self._file)
        try:
            os.fsync(file)
        finally:
            os.close(file)
        os.pwrite(self._head, head, 0)

    def close(self) -> None:
        """Hand everything to the disk and let go of the files."""
        self._closing.set()
        self._unsynced.set()
        self._syncing.join()
        self.sync()
        for file in (self._file, self._head):
            os.fsync(file)
            os.close(file)

    def _take(self) -> Verdict:
        """Lock the log, make it where there is none, and return what it holds.

        Raises:
            ConfigError: Another server writes it, or it was altered; a torn last line is taken.
        """
        try:
            lock(self._head)
        except OSError:
            raise ConfigError(
                f"another server writes the audit log {str(self._path)!r}; give each its own"
            ) from None
        if not _key_path(self._path).exists():
            self._begin()
        try:
            verdict = verify(self._path)
        except DataError as error:
            raise ConfigError(str(error)) from None
        if verdict.fault is not None and not verdict.torn:
            raise ConfigError(
                f"audit log {str(self._path)!r}: {verdict.fault}; keep it as it is and give "
                "another file by --audit-log"
            )
        self._key = _key_path(self._path).read_bytes()
        self._open()
        return verdict

    def _begin(self) -> None:
        """Make the files of a new log, the key last: where it stands, the others stood."""
        if _text(self._path):
            raise ConfigError(
                f"audit log {str(self._path)!r} needs its .key beside it; put it back, or give "
                "another file by --audit-log"
            )
        key = secrets.token_bytes(_KEY_BYTES)
        os.ftruncate(self._head, 0)
        os.pwrite(self._head, _head(key, 0, _START), 0)
        _new_file(self._path, b"")
        staging = _key_path(self._path).with_name(f".{self._path.name}.key.{os.getpid()}")
        try:
            _new_file(staging, key)
            os.replace(staging, _key_path(self._path))
        finally:
            staging.unlink(missing_ok=True)

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.fstat(self._file).st_size

    def _put_aside(self, torn: int) -> None:
        """Keep what a loss of power left of a line in a file of its own, and write that down."""
        whole = self._size - torn
        piece = os.pread(self._file, torn, whole)
        _new_file(self._path.with_name(f"{self._path.name}.torn-{time.time_ns()}"), piece)
        os.ftruncate(self._file, whole)
        self._size = whole
        self.append("recovered", bytes=torn, sha256=hashlib.sha256(piece).hexdigest())

    def _rotate(self) -> None:
        """Begin a new file, whose first line continues the old one's last."""
        os.fsync(self._file)
        os.close(self._file)
        self._path.rename(self._path.with_name(f"{self._path.name}.{self._number:012d}"))
        self._open()
        self._write(_ROTATED, {})

    def _write(self, event: str, facts: dict[str, Any]) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = {"n": self._number + 1, "time": now, "event": event, **facts, "prev": self._last}
        mac = _mac(self._key, line)
        data = (json.dumps(line | {"mac": mac}, separators=(",", ":")) + "\n").encode()
        if os.fstat(self._file).st_size != self._size:
            raise OSError(errno.EIO, "another program cut the audit log or wrote to it")
        if os.write(self._file, data) != len(data):
            os.ftruncate(self._file, self._size)
            raise OSError(errno.ENOSPC, "the disk took a part of a line only")
        self._number, self._last, self._size = self._number + 1, mac, self._size + len(data)

    def _keep_syncing(self) -> None:
        while self._unsynced.wait() and not self._closing.wait(_SYNC_SECONDS):
            try:
                self.sync()
            except OSError as error:
                self._failed = error


def verify(path: Path, anchor: str | None = None) -> Verdict:
    """Check a log, with its full files that stand beside it, against key, head and anchor.

    Args:
        anchor: ``NUMBER:MAC`` as `anchor_of` gave it earlier.

    Raises:
        DataError: The log or its key cannot be read.
        ConfigError: The anchor is none.
    """
    if anchor is not None and not re.fullmatch(r"\d+:[0-9a-f]{64}", anchor):
        raise ConfigError(f"--anchor {anchor!r} is none; give NUMBER:MAC as `audit head` prints it")
    try:
        key, text = _key_path(path).read_bytes(), _text(path)
        head = _head_path(path).read_bytes() if _head_path(path).exists() else b""
    except OSError as error:
        raise DataError(
            f"cannot read {str(error.filename)!r} ({error.strerror}); "
            "an audit log needs its .key beside it"
        ) from None
    if len(key) != _KEY_BYTES:
        raise DataError(
            f"{str(_key_path(path))!r} has {len(key)} bytes, not {_KEY_BYTES}: it is no key; put "
            "back the right one, or give another log"
        )
    *lines, torn = text.split(b"\n")
    macs: list[str] = []
    first, last = 1, _START
    for line in lines:
        content = _content(line, key)
        if not macs and content.get("event") == _ROTATED:
            first, last = content["n"], content["prev"]
        number = first + len(macs)
        fault = content.get("fault") or _place_fault(content, number, last)
        if fault is not None:
            return Verdict(len(macs), f"line {number}: {fault}", first, 0, macs)
        last = content["mac"]
        macs.append(last)
    fault = _head_fault(key, head, first, macs, text) or _anchor_fault(anchor, first, macs)
    if fault is None and torn:
        return Verdict(len(macs), f"line {first + len(macs)}: cut off", first, len(torn), macs)
    return Verdict(len(macs), fault, first, 0, macs)


def anchor_of(verdict: Verdict) -> str:
    """Return what to note elsewhere, so that a log put back to an earlier state is found."""
    number, mac = verdict.last
    return f"{number}:{mac}"


def _text(path: Path) -> bytes:
    """Return all lines: of the full files in their order, then of the one being written."""
    piece = re.compile(rf"{re.escape(path.name)}\.\d{{12}}")
    full = sorted(other for other in path.parent.iterdir() if piece.fullmatch(other.name))
    return b"".join(file.read_bytes() for file in (*full, path) if file.exists())


def _content(line: bytes, key: bytes) -> dict[str, Any]:
    """Return what a line says, or under ``fault`` what is wrong with it."""
    try:
        content = json.loads(line)
        mac = content.pop("mac")
        expected = _mac(key, content)
        if not (isinstance(content["n"], int) and isinstance(content["prev"], str)):
            raise TypeError
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return {"fault": "no line of an audit log, or edited"}
    whole: dict[str, Any] = content | {"mac": mac}
    canonical = json.dumps(whole, separators=(",", ":")).encode()
    if not isinstance(mac, str) or not hmac.compare_digest(mac, expected) or canonical != line:
        return {"fault": "edited (its MAC does not fit)"}
    return whole


def _place_fault(content: dict[str, Any], number: int, last: str) -> str | None:
    """Return what is wrong with the place of a line that is itself as it was written."""
    if content["n"] == number and content["prev"] == last:
        return None
    said = f"out of place (it says that it is line {content['n']})"
    if last == _START and content["n"] > number:
        return f"{said}: the beginning was cut off, as copytruncate does while a server writes"
    return f"{said}: lines were removed or moved"


def _head_fault(key: bytes, head: bytes, first: int, macs: list[str], text: bytes) -> str | None:
    """Return what the head says is missing; lines that a kill kept from it are none."""
    count = first + len(macs) - 1
    if not head:
        if not text:
            return "line 1: removed: log and head are both missing or empty, and the key is not"
        return f"line {count}: the head file is missing or empty"
    words = head.decode(errors="replace").split()
    number = int(words[0]) if re.fullmatch(rb"\d{12} \S+ \S+\n", head) else 0
    if head != _head(key, number, words[1] if len(words) > 1 else ""):
        return "the head file was cut or edited, or is an older version's"
    if number > count and not text:
        return f"line 1: removed: the log was emptied, as copytruncate does (it had {number} lines)"
    if number > count:
        return f"line {count + 1}: removed (the log ended with line {number})"
    if number >= first and macs[number - first] != words[1]:
        return "the head file is another log's"
    return None


def _anchor_fault(anchor: str | None, first: int, macs: list[str]) -> str | None:
    """Return what tells that an earlier state, true in itself, was put back."""
    if anchor is None or anchor == f"0:{_START}":
        return None
    said, _, mac = anchor.partition(":")
    number, count = int(said), first + len(macs) - 1
    if number > count:
        return f"line {count + 1}: removed (the anchor is line {number}): an earlier state"
    if number < first:
        return f"line {number}: in an older file, which is not beside the log"
    return None if macs[number - first] == mac else f"line {number}: not that of the anchor"


def _mac(key: bytes, line: dict[str, Any]) -> str:
    text = json.dumps(line, separators=(",", ":"), sort_keys=True)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _head(key: bytes, number: int, mac: str) -> bytes:
    said = f"{number:012d} {mac}"
    return f"{said} {hmac.new(key, b'head' + said.encode(), hashlib.sha256).hexdigest()}\n".encode()


def _key_path(path: Path) -> Path:
    return path.with_name(path.name + ".key")


def _head_path(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _new_file(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, whole and on the disk."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
