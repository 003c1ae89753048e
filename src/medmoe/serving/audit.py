"""The audit log: that something was asked, when, of which model, and how it went; never what.

One JSON object a line. Each carries the MAC of the line before and its own, made with a secret key,
so that a line that was edited, removed, put in or moved is found by `verify`; a head file beside
the log says which line is the last, so that a cut tail is found too. Pictures stand as keyed
hashes: equal ones can be told, and nobody without the key can try candidates. Prompts, answers,
pixels, names and tags are never written.

It does not protect against somebody who holds the key, nor keep old versions: ship it elsewhere.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmoe.errors import ConfigError, DataError

_START = "0" * 64
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `verify` found: the number of good lines, and what is wrong, if anything is."""

    lines: int
    fault: str | None


class AuditLog:
    """A log that is appended to; one program at a time.

    Args:
        path: The log; its key stands beside it as ``….key`` (made with mode 0600), its head as
            ``….head``.

    Raises:
        ConfigError: It cannot be opened, another server writes it, or its tail was altered.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._key = _made_key(_key_path(path))
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            self._head = os.open(_head_path(path), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(
                f"cannot open the audit log {str(path)!r} ({error.strerror or error}); "
                "give another file by --audit-log"
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"another server writes the audit log {str(path)!r}; give each its own"
            ) from None
        self._number, self._last = self._resume()

    def image_hash(self, data: bytes) -> str:
        """Return the keyed hash of a picture's bytes."""
        return hmac.new(self._key, b"image" + data, hashlib.sha256).hexdigest()

    def append(self, event: str, **facts: str | int | float | bool | None) -> None:
        """Write one line.

        Raises:
            OSError: The disk does not take it.
        """
        line = {"n": self._number + 1, "time": _now(), "event": event, **facts, "prev": self._last}
        mac = _mac(self._key, line)
        data = (json.dumps(line | {"mac": mac}, separators=(",", ":")) + "\n").encode()
        size = os.fstat(self._file).st_size
        if os.write(self._file, data) != len(data):
            os.ftruncate(self._file, size)
            raise OSError("the disk took a part of a line only")
        self._number, self._last = self._number + 1, mac
        os.pwrite(self._head, _head(self._number, mac), 0)

    def close(self) -> None:
        """Hand everything to the disk and let go of the files."""
        for file in (self._file, self._head):
            os.fsync(file)
            os.close(file)

    def _resume(self) -> tuple[int, str]:
        """Return number and MAC of the last line; a line cut off by a kill is put aside first."""
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if torn := data[whole:]:
            aside = self._path.with_name(f"{self._path.name}.torn-{time.time_ns()}")
            aside.write_bytes(torn)
            os.ftruncate(self._file, whole)
        verdict = verify(self._path)
        if verdict.fault is not None:
            raise ConfigError(
                f"audit log {str(self._path)!r}: {verdict.fault}; keep it as it is and give "
                "another file by --audit-log"
            )
        if not verdict.lines:
            return 0, _START
        last = json.loads(data[:whole].rstrip(b"\n").rpartition(b"\n")[2])
        os.pwrite(self._head, _head(last["n"], last["mac"]), 0)
        return int(last["n"]), str(last["mac"])


def verify(path: Path) -> Verdict:
    """Check a log against its key and its head.

    Raises:
        DataError: The log or its key cannot be read.
    """
    try:
        key = _key_path(path).read_bytes()
        text = path.read_bytes()
        head = _head_path(path).read_bytes() if _head_path(path).exists() else b""
    except OSError as error:
        raise DataError(
            f"cannot read {str(error.filename)!r} ({error.strerror}); "
            "an audit log needs its .key beside it"
        ) from None
    count, last = 0, _START
    for count, line in enumerate(_lines(text), 1):
        fault = _fault(line, count, last, key)
        if fault is not None:
            return Verdict(count - 1, f"line {count}: {fault}")
        last = json.loads(line)["mac"]
    if text and not text.endswith(b"\n"):
        return Verdict(count - 1, f"line {count}: cut off")
    return Verdict(count, _head_fault(head, count, text))


def _lines(text: bytes) -> Iterator[bytes]:
    yield from text.split(b"\n")[: -1 if text.endswith(b"\n") else None] if text else ()


def _fault(line: bytes, number: int, last: str, key: bytes) -> str | None:
    """Return what is wrong with a line, None if nothing is."""
    try:
        content = json.loads(line)
        mac = content.pop("mac")
        expected = _mac(key, content)
    except (ValueError, KeyError, AttributeError, TypeError):
        return "no line of an audit log, or edited"
    canonical = json.dumps(content | {"mac": mac}, separators=(",", ":")).encode()
    if not isinstance(mac, str) or not hmac.compare_digest(mac, expected) or canonical != line:
        return "edited (its MAC does not fit)"
    if content["n"] != number or content["prev"] != last:
        return f"out of place (it says that it is line {content['n']}): lines were removed or moved"
    return None


def _head_fault(head: bytes, count: int, text: bytes) -> str | None:
    """Return what the head says is missing; a line that a kill kept from it is none."""
    if not head:
        return f"line {count}: the head file is missing" if count else None
    try:
        number, mac = head.decode().split()
        number_said = int(number)
    except ValueError:
        return "the head file was edited"
    if number_said > count:
        return f"line {count + 1}: removed (the log ended with line {number_said})"
    macs = [json.loads(line)["mac"] for line in _lines(text)][number_said - 1 : number_said]
    if number_said < count - 1 or (number_said and macs != [mac]):
        return "the head file was edited"
    return None


def _mac(key: bytes, line: dict[str, Any]) -> str:
    text = json.dumps(line, separators=(",", ":"), sort_keys=True)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _head(number: int, mac: str) -> bytes:
    return f"{number:012d} {mac}\n".encode()


def _key_path(path: Path) -> Path:
    return path.with_name(path.name + ".key")


def _head_path(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _made_key(path: Path) -> bytes:
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_bytes()
    with os.fdopen(file, "wb") as stream:
        stream.write(key := secrets.token_bytes(_KEY_BYTES))
    return key


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
