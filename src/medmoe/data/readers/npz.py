"""Arrays of images and labels in npz files, checked before use. Nothing pickled is ever loaded."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medmoe.data.schema import Pixels
from medmoe.errors import DataError

Arrays = Mapping[str, npt.NDArray[Any]]


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
            return {key: archive[key] for key in keys}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        # AttributeError: np.load returns a bare array for a .npy file under this name.
        raise DataError(
            f"{path}: not a readable npz file ({error}); download the file again"
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
    found = arrays[key]
    if found.shape not in ((count,), (count, 1)) or found.dtype.kind not in "iu":
        raise DataError(
            f"{path}: {key} is {found.dtype} {found.shape}; {count} images need {count} integers"
        )
    flat = found.reshape(-1)
    wrong = np.flatnonzero((flat < 0) | (flat >= classes))
    if len(wrong):
        raise DataError(
            f"{path} row {wrong[0] + 1} of {key}: label {flat[wrong[0]]} must be 0 to {classes - 1}"
        )
    return [int(label) for label in flat]


def flags(path: Path, key: str, arrays: Arrays, count: int, findings: int) -> list[tuple[int, ...]]:
    """Return ``count`` rows of ``findings`` flags, 0 or 1; a wrong one is named with its row."""
    found = arrays[key]
    if found.shape != (count, findings) or found.dtype.kind not in "iu":
        raise DataError(
            f"{path}: {key} is {found.dtype} {found.shape}; {count} images need "
            f"({count}, {findings}) integers"
        )
    wrong = np.flatnonzero((found > 1).any(axis=1) | (found < 0).any(axis=1))
    if len(wrong):
        raise DataError(f"{path} row {wrong[0] + 1} of {key}: labels must be 0 or 1")
    return [tuple(int(flag) for flag in row) for row in found]
