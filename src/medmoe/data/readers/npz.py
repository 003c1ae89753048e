"""Arrays of images and labels in npz files, checked before use. Nothing pickled is ever loaded.

A large array (MedMNIST of 224 px has up to 13 GB of pixels) is unpacked once into the user's cache
and mapped from there: pictures are then read when they are looked at, and memory holds no others.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from medmoe.data.cache import VARIABLE, default_cache
from medmoe.data.schema import Pixels
from medmoe.errors import DataError

Arrays = Mapping[str, npt.NDArray[Any]]

#: Arrays from this size on are mapped from a file; all of 28 px stay in memory.
MAPPED_BYTES = 2**28


def load(path: Path, keys: Sequence[str]) -> Arrays:
    """Return the named arrays of an npz file, and no others."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in keys if key not in archive.files]
            if missing:
                raise DataError(
                    f"{path}: no array {missing[0]!r}, found {', '.join(archive.files)}; "
                    "download the file again"
                )
            return {key: _array(path, archive, key) for key in keys}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        # AttributeError: np.load returns a bare array for a .npy file under this name.
        raise DataError(
            f"{path}: not a readable npz file ({error}); download the file again"
        ) from error


def _array(path: Path, archive: Any, key: str) -> npt.NDArray[Any]:
    """Return an array of an open archive: in memory, or mapped where it is large."""
    member = archive.zip.getinfo(f"{key}.npy")
    cache = default_cache()
    if member.file_size < MAPPED_BYTES or cache is None:
        array: npt.NDArray[Any] = archive[key]
        return array
    facts = f"{path.name} {member.filename} {member.CRC:08x} {member.file_size}"
    unpacked = cache.folder / "arrays" / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.npy"
    if not unpacked.exists():
        _unpack(archive.zip, member, unpacked)
    mapped: npt.NDArray[Any] = np.load(unpacked, mmap_mode="r", allow_pickle=False)
    return mapped


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Copy a member to a file that is there whole or not at all."""
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent) as staging, archive.open(member) as source:
            with (Path(staging) / target.name).open("wb") as file:
                shutil.copyfileobj(source, file, 2**22)
            os.replace(file.name, target)
    except OSError as error:
        raise DataError(
            f"{target.parent}: cannot unpack {member.filename} ({member.file_size:,} bytes) there "
            f"({error.strerror}); make room, or set {VARIABLE} to another folder, or to off"
        ) from error


def images(path: Path, key: str, arrays: Arrays) -> list[Pixels]:
    """Return the images (N, H, W) or (N, H, W, 3), uint8, one view each."""
    stack = arrays[key]
    grey_or_rgb = stack.ndim == 3 or (stack.ndim == 4 and stack.shape[3] == 3)
    if stack.dtype != np.uint8 or not grey_or_rgb:
        raise DataError(
            f"{path}: {key} is {stack.dtype} {stack.shape}; it must be uint8 (N, H, W) or "
            "(N, H, W, 3)"
        )
    if not len(stack):
        raise DataError(f"{path}: {key} holds no image; download the file again")
    return list(stack)


def labels(path: Path, key: str, arrays: Arrays, count: int, classes: int) -> list[int]:
    """Return ``count`` labels in ``range(classes)``; a wrong one is named with its row."""
    labels = arrays[key]
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: {key} is {labels.dtype} {labels.shape}; {count} images need {count} integers"
        )
    flat = labels.reshape(-1)
    wrong = np.flatnonzero((flat < 0) | (flat >= classes))
    if len(wrong):
        raise DataError(
            f"{path} row {wrong[0] + 1} of {key}: label {flat[wrong[0]]} must be 0 to {classes - 1}"
        )
    return [int(label) for label in flat]


def flags(path: Path, key: str, arrays: Arrays, count: int, findings: int) -> list[tuple[int, ...]]:
    """Return ``count`` rows of ``findings`` flags, 0 or 1; a wrong one is named with its row."""
    flags = arrays[key]
    if flags.shape != (count, findings) or flags.dtype.kind not in "iu":
        raise DataError(
            f"{path}: {key} is {flags.dtype} {flags.shape}; {count} images need "
            f"({count}, {findings}) integers"
        )
    wrong = np.flatnonzero((flags > 1).any(axis=1) | (flags < 0).any(axis=1))
    if len(wrong):
        raise DataError(f"{path} row {wrong[0] + 1} of {key}: labels must be 0 or 1")
    return [tuple(int(flag) for flag in row) for row in flags]
