"""A directory that is whole or not there: staging directory, fsync, manifest last, rename.

Model directories, training checkpoints and kept features are written this way, so that neither a
kill nor a full disk leaves one that looks whole and is not. What the files mean is their owners'.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medmoe.errors import CheckpointError
from medmoe.files import json_object

MANIFEST = "MANIFEST.json"


@contextmanager
def committed(directory: Path) -> Iterator[Path]:
    """Yield an empty staging directory; on a clean exit it becomes ``directory``.

    Its files get a SHA-256 manifest and reach the disk before the rename. A directory that stood
    there is replaced only then. On an error nothing changes and the staging directory goes.
    """
    _make_parents(directory.parent)
    staging = staging_of(directory)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        _seal(staging)
        put_in_place(staging, directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def staging_of(directory: Path) -> Path:
    """Return where a directory is written before it is put in place."""
    return directory.with_name(f".{directory.name}.staging")


def replaced_by(directory: Path) -> Path:
    """Return where a replaced directory stands for the moment between two renames."""
    return directory.with_name(f".{directory.name}.old")


def remove_directory(directory: Path) -> None:
    """Delete a committed directory so that a kill leaves no half of it under its name."""
    away = replaced_by(directory)
    shutil.rmtree(away, ignore_errors=True)
    try:
        directory.rename(away)
    except FileNotFoundError:
        return
    shutil.rmtree(away, ignore_errors=True)


def read_manifest(directory: Path, fix: str) -> dict[str, Any]:
    """Return what a directory's manifest lists: by file name its ``sha256`` and ``bytes``.

    Raises:
        CheckpointError: There is no manifest, or it is none; ``fix`` ends the line.
    """
    files = (json_object(directory / MANIFEST) or {}).get("files")
    if not isinstance(files, dict):
        raise CheckpointError(f"{directory / MANIFEST}: not a manifest; {fix}")
    return files


def check_files(directory: Path, listed: Mapping[str, Any], fix: str) -> None:
    """Check that a directory holds exactly the listed files, hidden ones aside, byte by byte.

    Raises:
        CheckpointError: Names the first file that is missing, unlisted or altered.
    """
    # Hidden files are read by nobody; the hub's tools leave some (.gitattributes, .cache).
    names = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
    present = names - {MANIFEST}
    for name in sorted(set(listed) ^ present):
        state = "missing" if name in listed else "not in the manifest"
        raise CheckpointError(f"{directory / name}: {state}; {fix}")
    for name, entry in listed.items():
        _check_link(directory / name, fix)
        if not (directory / name).is_file() or entry_of(directory / name) != entry:
            raise CheckpointError(f"{directory / name}: its SHA-256 differs from {MANIFEST}; {fix}")


def _check_link(path: Path, fix: str) -> None:
    """Refuse a symbolic link out of the directory, but for those of the hub's cache.

    There ``snapshots/REVISION/NAME`` stands for a file of ``blobs``, two folders up.
    """
    blobs = path.parent.resolve().parent.parent / "blobs"
    if path.is_symlink() and path.resolve().parent != blobs:
        raise CheckpointError(f"{path}: a symbolic link to elsewhere is refused; {fix}")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as JSON that reads and compares well."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _seal(staging: Path) -> None:
    """Write the manifest of all files, last, and hand everything to the disk."""
    files = {path.name: entry_of(path) for path in sorted(staging.iterdir())}
    # safetensors makes files that only their owner can read; a server is often another user.
    readable = staging.stat().st_mode & 0o666
    for path in staging.iterdir():
        path.chmod(readable)
        _fsync(path)
    write_json(staging / MANIFEST, {"version": 1, "files": files})
    for path in (staging / MANIFEST, staging):
        _fsync(path)


def put_in_place(staging: Path, directory: Path) -> None:
    """Give a staged directory its name, in the place of one that stood there.

    Where the system can exchange two names (Linux), the name is never without a whole directory.
    """
    if directory.exists() and _exchanged(staging, directory):
        _fsync(directory.parent)
        shutil.rmtree(staging, ignore_errors=True)
        return
    old = replaced_by(directory)
    if directory.exists():
        shutil.rmtree(old, ignore_errors=True)
        directory.rename(old)
    try:
        staging.rename(directory)
    except OSError:
        if old.exists():
            old.rename(directory)
        raise
    _fsync(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def _exchanged(left: Path, right: Path) -> bool:
    """Exchange two names in one step; return whether the system could."""
    if sys.platform != "linux":
        return False
    call: Any = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return call is not None and call(here, bytes(left), here, bytes(right), exchange) == 0


def _make_parents(folder: Path) -> None:
    """Make a folder and hand its name to the disk, so that what is put into it can be found."""
    if not folder.exists():
        _make_parents(folder.parent)
        folder.mkdir(exist_ok=True)
        _fsync(folder.parent)


def entry_of(path: Path) -> dict[str, Any]:
    """Return what a manifest says of a file: its ``sha256`` and ``bytes``."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
