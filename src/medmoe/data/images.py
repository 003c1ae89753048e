"""The front door for pictures: one function for training, the command line and the server.

Files and bytes are decoded in a child process with limits (`medmoe.data.intake.sandbox`), whoever
asks: there is one way in. Kinds of files are told apart by content. What comes out is an upright
RGB picture of 8 bits a channel and a few technical facts; names, texts and numbers of patients stay
behind. Nothing is fetched, and no error, log or cache repeats the name of a file that
was opened.

Pixels from a reader and Pillow images are in memory already: they are converted here and are not
held to the limits for files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from medmoe.data.cache import ImageCache, key_of
from medmoe.data.intake.decode import Decoded, Hint, Request
from medmoe.data.intake.display import Plane
from medmoe.data.intake.facts import ImageFacts
from medmoe.data.intake.limits import Limits
from medmoe.data.intake.raster import to_rgb as to_rgb  # for Pillow images of our own
from medmoe.data.intake.sandbox import DecoderPool, default_pool
from medmoe.data.schema import ImageRecord, Pixels
from medmoe.errors import ImageError

ImageSource = Path | bytes | Pixels | Image.Image

#: What decides the pixels of a file besides it. The number is raised where the same file gives
#: other pixels than before: every cached one is then made anew.
DECODING: dict[str, Any] = {"decoding": 2, "pillow": PIL.__version__}

#: Of so few levels of each colour a picture shows nothing: it is flat.
_FLAT_LEVELS = 4
_HINTS: dict[str, Hint] = {".dcm": "dicom", ".dicom": "dicom", ".nii": "nifti", ".gz": "nifti"}


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture ready for the model.

    Attributes:
        image: Upright, RGB, 8 bits a channel.
        facts: What is known of it: window, frame, modality, warnings, ….
    """

    image: Image.Image
    facts: ImageFacts


def open_picture(
    source: ImageSource,
    *,
    window: tuple[float, float] | str | None = None,
    frame: int | None = None,
    plane: Plane | None = None,
    hint: Hint | None = None,
    pool: DecoderPool | None = None,
) -> Picture:
    """Return a picture and its facts.

    Args:
        source: A file, its bytes, pixels (H, W) or (H, W, 3) uint8, or a Pillow image.
        window: Of grey DICOM and NIfTI pictures: center and width in the units of the file, or a
            preset of `medmoe.data.intake.display.WINDOW_PRESETS` (CT). By default that of the file,
            else one fitted to the values.
        frame: From 1: the frame of a DICOM file (default: the first) or the slice of a NIfTI volume
            (default: the middle one).
        plane: Of a NIfTI volume, by default the one in which it was acquired.
        hint: What the sender of bytes says they are; it only chooses between two refusals.
        pool: The decoder processes, and with them the limits; by default those of this program.

    Raises:
        ImageError: With a code of `medmoe.errors.IMAGE_STATUS`.
    """
    if isinstance(source, np.ndarray | Image.Image):
        if any(wanted is not None for wanted in (window, frame, plane)):
            raise ImageError("bad_window", "pixels have no window, frame or plane; leave them out")
        image = to_rgb(source) if isinstance(source, Image.Image) else _from_pixels(source)
        return _looked_at(image, ImageFacts("pixels"))
    pool = pool or default_pool()
    if isinstance(source, Path):
        hint = hint or hint_of(source)
        source = read_file(source, pool.limits)
    decoded = pool.decode(source, Request(window, frame, hint, plane))
    return _looked_at(Image.fromarray(decoded.pixels).convert("RGB"), decoded.facts)


def open_values(
    data: bytes, *, frame: int | None = None, plane: Plane | None = None, pool: DecoderPool
) -> Decoded:
    """Return a frame of a file for a viewer, which has its own window: grey in 16 bits.

    Raises:
        ImageError: As with `open_picture`.
    """
    return pool.decode(data, Request(frame=frame, plane=plane, values=True))


def _looked_at(image: Image.Image, facts: ImageFacts) -> Picture:
    """Return a picture, with a warning where there is nothing to be seen in it."""
    extrema: Any = image.getextrema()  # of each of the three channels
    if all(high - low < _FLAT_LEVELS for low, high in extrema):
        facts = replace(facts, warnings=(*facts.warnings, "flat_picture"))
    return Picture(image, facts)


def open_image(source: ImageSource) -> Image.Image:
    """Return a picture as `open_picture` does, without its facts."""
    return open_picture(source).image


def open_record(record: ImageRecord) -> Image.Image:
    """Return the picture of a record of a data set.

    Raises:
        ImageError: It cannot be used; the record is named.
    """
    with _naming(record):
        return open_image(record.source)


def made_of(
    record: ImageRecord,
    policy: str,
    make: Callable[[Image.Image], Pixels],
    cache: ImageCache | None,
) -> Pixels:
    """Return what is made of the picture of a record; that of a file is kept, by its content.

    Args:
        policy: All that decides what is made of a file.
        cache: Where it is kept; None keeps nothing.

    Raises:
        ImageError: The picture cannot be used; the record is named.
    """
    if not isinstance(record.source, Path):
        return make(open_record(record))
    with _naming(record):
        data = read_file(record.source, default_pool().limits)
        key = key_of(data, policy)
        known = None if cache is None else cache.get(key)
        if known is not None:
            return known
        made = make(open_picture(data, hint=hint_of(record.source)).image)
        if cache is not None:
            cache.put(key, made)
        return made


@contextmanager
def _naming(record: ImageRecord) -> Iterator[None]:
    """Name the record of a data set in the errors about its picture."""
    try:
        yield
    except ImageError as error:
        raise ImageError(error.code, f"image {record.id}: {error}") from None


def digest_of(picture: Image.Image) -> bytes:
    """Return what tells a picture in memory from others: by its mode, size and pixels."""
    head = f"{picture.mode} {picture.size}".encode()
    return hashlib.sha256(head + picture.tobytes()).digest()


def hint_of(path: Path) -> Hint | None:
    """Return what the suffix of a file says it is."""
    return _HINTS.get(path.suffix.lower())


def read_file(path: Path, limits: Limits) -> bytes:
    """Return the bytes of a file that is not too large."""
    try:
        limits.check_file(path.stat().st_size)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        # ValueError: a path with a NUL in it.
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(
            "image_not_found", f"cannot read image {str(path)!r}: {reason}; give an existing file"
        ) from error


def _from_pixels(pixels: Pixels) -> Image.Image:
    grey_or_rgb = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not grey_or_rgb or not pixels.size:
        raise ImageError(
            "unsupported_image_type",
            f"pixels are {pixels.dtype} {pixels.shape}; they must be uint8 (H, W) or (H, W, 3)",
        )
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
