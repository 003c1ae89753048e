"""Is a bundle what was made: every file with its checksum, no file more, no byte elsewhere."""

from __future__ import annotations

import hashlib
import re
import tarfile
from io import BufferedReader
from pathlib import Path
from typing import Any

from medmoe.bundle import FOLDER, FORMAT, SUMS, entry_in_tar
from medmoe.errors import CheckpointError
from medmoe.files import refused

_FIX = "copy it again from where it was made, or make it again by `medmoe bundle make`"
_PIECE = 1 << 20


def verify_bundle(path: Path) -> dict[str, Any]:
    """Read all of a bundle, unpack nothing, and return how many files and bytes it has.

    Raises:
        CheckpointError: It is none, it is damaged, or holds what no bundle holds; the line says
            what and names the file.
        ConfigError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            found, sums = _read(file)
        listed = {line[66:]: line[:64] for line in sums.splitlines()}
        if not all(re.fullmatch("[0-9a-f]{64}  .+", line) for line in sums.splitlines()):
            raise ValueError(f"{SUMS} has a line that is no checksum")
        for name in sorted({*listed} ^ {*found}):
            raise ValueError(f"{name} is {'missing' if name in listed else f'not in {SUMS}'}")
        for name, digest in listed.items():
            if found[name] != digest:
                raise ValueError(f"the SHA-256 of {name} is not the one in {SUMS}")
    except OSError as error:
        raise refused(error, f"read {str(path)!r}", "file") from error
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: no whole bundle ({error}); {_FIX}") from None
    return {"files": len(found), "bytes": path.stat().st_size}


def _read(file: BufferedReader) -> tuple[dict[str, str], str]:
    """Return the SHA-256 of every file by name, and the text of the checksums.

    Raises:
        ValueError: There is anything that `make` does not write.
    """
    found, sums = dict[str, str](), b""
    made = hashlib.sha256()  # of what `make` writes for these files
    length = 0
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            name, digest = _name(member), hashlib.sha256()
            content = tar.extractfile(member)
            assert content is not None
            if name in found:
                raise ValueError(f"{name} is in it twice")
            head = entry_in_tar(name, member.size).tobuf(FORMAT)
            made.update(head)
            while piece := content.read(_PIECE):
                for each in (made, digest):
                    each.update(piece)
                if name == SUMS:
                    sums += piece
            padding = -member.size % tarfile.BLOCKSIZE
            made.update(bytes(padding))
            length += len(head) + member.size + padding
            found[name] = digest.hexdigest()
    end = 2 * tarfile.BLOCKSIZE
    made.update(bytes(end + -(length + end) % tarfile.RECORDSIZE))
    file.seek(0)
    if hashlib.file_digest(file, "sha256").digest() != made.digest():
        raise ValueError("cut off, or with bytes that belong to no file")
    if found.pop(SUMS, None) is None:
        raise ValueError(f"{SUMS} is missing")
    return found, sums.decode()


def _name(member: tarfile.TarInfo) -> str:
    """Return the name of a plain file below the bundle's folder."""
    if member.type != tarfile.REGTYPE:
        raise ValueError(f"{member.name!r} is a link, a device or a folder, and no plain file")
    folder, *parts = member.name.split("/")
    if folder != FOLDER or not parts or {"", ".", ".."} & {*parts}:
        raise ValueError(f"{member.name!r} would not be unpacked into {FOLDER}")
    return "/".join(parts)
