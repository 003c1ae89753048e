"""Text files that are whole or not there: written beside their place, handed to the disk, renamed.

A kill or a full disk leaves the old file or the new one. Folders are `medmoe.model.committed`'s.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmoe.errors import ConfigError, GuardError, MedMoeError

#: A disk without room, or a user without any left on it.
FULL = (errno.ENOSPC, errno.EDQUOT)
#: Bytes of a file's name that are no UTF-8 are written as JSON escapes them.
_OTHERS = "backslashreplace"


def write_text(path: Path, text: str, other: str = "place") -> None:
    """Write a text file; an older one is replaced, missing folders are made.

    What is no file (``/dev/stdout``, a pipe) is written as it is.

    Args:
        other: What a user may give instead, for the error.

    Raises:
        GuardError: The disk is full.
        ConfigError: The file cannot be written for another reason.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8", errors=_OTHERS, newline="\n")
            return
        target = path.resolve()  # a link stays one
        staging = target.with_name(f".{target.name}.{os.getpid()}.staging")
        try:
            with staging.open("w", encoding="utf-8", errors=_OTHERS, newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(staging, target)
        finally:
            staging.unlink(missing_ok=True)
    except OSError as error:
        raise refused(error, f"write {str(path)!r}", other) from error


def lock(handle: int, *, wait: bool = False) -> None:
    """Keep other processes from locking an open file or folder until it is closed.

    Windows has no such locks: nothing is kept out there.

    Raises:
        BlockingIOError: Another process has locked it, and it is not waited for.
        OSError: The disk has no locks.
    """
    if sys.platform == "win32":
        return
    import fcntl

    fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def json_object(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as JSON, as `write_text` does.

    Raises:
        ValueError: A number is not finite.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of the same keys, at least one, as CSV with a head."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def refused(error: OSError, what: str, other: str) -> MedMoeError:
    """Return the one line for what the system refused.

    Args:
        what: What was tried, after *cannot*.
        other: What a user may give instead.
    """
    reason = f"cannot {what} ({error.strerror or error})"
    if error.errno in FULL:
        return GuardError(f"{reason}; free some space, or give another {other}")
    return ConfigError(f"{reason}; give another {other}")
