"""The family of errors a user can meet, each with its exit code.

A message gives the value, the rule and the fix, in one line; the command line prints it without a
traceback. Assertions are kept for our own invariants.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MedMoeError(Exception):
    """Base of all errors that a user's input or environment can cause."""

    exit_code = 2


class ConfigError(MedMoeError):
    """A recipe, flag or configuration value breaks a rule."""


class DataError(MedMoeError):
    """A data folder, a row or a split is missing or malformed."""


#: Why an image cannot be used -> the HTTP status that a server answers with. The codes are stable.
IMAGE_STATUS: dict[str, int] = {
    "bad_aspect": 400,
    "bad_frame": 400,
    "bad_window": 400,
    "empty_or_malformed_image": 400,
    "image_not_found": 400,
    "image_too_small": 400,
    "not_dicom": 400,
    "remote_media_disabled": 400,
    "image_too_large": 413,
    "unsupported_image_type": 415,
    "unsupported_transfer_syntax": 415,
    "no_pixel_data": 422,
    "undecodable": 422,
}


class ImageError(MedMoeError):
    """An image cannot be used.

    Args:
        code: A key of `IMAGE_STATUS`.
        message: One line for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def status(self) -> int:
        """The HTTP status that a server answers with."""
        return IMAGE_STATUS[self.code]


class CheckpointError(MedMoeError):
    """A model directory is incomplete, altered or of another shape than its config says."""


class GuardError(MedMoeError):
    """Training was stopped by a guard (non-finite loss, full disk)."""

    exit_code = 3


class StoppedError(MedMoeError):
    """A run was asked to stop (SIGTERM) and has saved a checkpoint."""

    exit_code = 143


def quoted(text: str, longest: int = 80) -> str:
    """Return a text in quotation marks for a message; of a long one the beginning."""
    if len(text) <= longest:
        return repr(text)
    return f"{text[:longest]!r}… ({len(text):,} characters)"


def first_line(error: object) -> str:
    """Return the first line of another library's error or report, without its full stop."""
    return str(error).strip().partition("\n")[0].rstrip(".")


def first_few(names: Iterable[str], most: int = 5) -> str:
    """Return the first names of a list, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def one_of(value: str, choices: Iterable[str], what: str) -> str:
    """Return the line for an unknown name: the value, the choices and the nearest of them."""
    names = sorted(choices)
    near = difflib.get_close_matches(value, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {quoted(value)}; choose one of: {', '.join(names)}{hint}"
