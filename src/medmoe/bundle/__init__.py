"""One file with all that a machine without a network needs: wheels, model, documents, installer."""

from __future__ import annotations

import tarfile
from typing import Final

#: The one folder that a bundle unpacks into.
FOLDER = "medmoe-bundle"
#: SHA-256 and name of every other file, as sha256sum writes and checks them.
SUMS = "SHA256SUMS"
FORMAT: Final = tarfile.GNU_FORMAT


def entry_in_tar(name: str, size: int) -> tarfile.TarInfo:
    """Return the head of a file in a bundle, which says nothing of who made it and when."""
    entry = tarfile.TarInfo(f"{FOLDER}/{name}")
    entry.size, entry.mtime = size, 1577836800  # 2020-01-01
    entry.mode = 0o755 if name == "install.sh" else 0o644
    return entry
