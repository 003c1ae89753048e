"""Decoding one picture by its content, in this very process: what the decoder process runs.

Everything else calls `medmoe.data.images.open_picture`, which runs this in a child with limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Literal, cast

import numpy as np
from PIL import Image

from medmoe.data.intake import raster
from medmoe.data.intake.display import Coded, Grey, Plane, WindowChoice
from medmoe.data.intake.facts import Format, ImageFacts, Scale
from medmoe.data.intake.limits import GZIP_START, Limits
from medmoe.errors import ImageError

Kind = Literal["PNG", "JPEG", "TIFF", "WEBP", "BMP", "DICOM", "NIFTI"]
#: What a sender says a file is; it only chooses between two refusals, never how to decode.
Hint = Literal["dicom", "nifti"]

_STARTS: tuple[tuple[Kind, bytes], ...] = (
    ("PNG", raster.PNG_START),
    ("JPEG", raster.JPEG_START),
    *(("TIFF", start) for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
)
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # bytes, as they say themselves
#: Size of the header, as NIfTI begins with it -> version 1 or 2.
NIFTI_SIZES = {
    size.to_bytes(4, order): version
    for version, size in ((1, 348), (2, 540))
    for order in ("little", "big")
}
_READERS = ("medmoe.data.intake.dicom", "medmoe.data.intake.nifti")
#: What Pillow and the decoders of JPEG 2000 import while they work.
_ALSO = ("PIL.MpoImagePlugin", "PIL.TiffImagePlugin", "PIL.WebPImagePlugin", "numpy.ma")


@dataclass(frozen=True, slots=True)
class Request:
    """What is wanted of a file.

    Attributes:
        window: Center and width, or the name of a preset; None leaves it to the file.
        frame: From 1; None for the default of the format.
        hint: What the sender says the file is.
        plane: Of a NIfTI volume; None for the one in which it was acquired.
        values: Whether grey is wanted before its window, in 16 bits and of its stored shape.
    """

    window: WindowChoice | None = None
    frame: int | None = None
    hint: Hint | None = None
    plane: Plane | None = None
    values: bool = False


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pixels, upright, and their facts.

    Attributes:
        pixels: Grey (H, W) or RGB (H, W, 3), uint8; with a scale, (H, W) uint16 before the window.
    """

    pixels: Grey | Coded
    facts: ImageFacts
    scale: Scale | None = None


def kind_of(data: bytes, hint: Hint | None = None) -> Kind:
    """Return what a file is by its content.

    Raises:
        ImageError: It is nothing that is accepted.
    """
    if not data:
        raise ImageError(
            "empty_or_malformed_image", "empty file; give a PNG, JPEG, DICOM or NIfTI file"
        )
    if data[128:132] == b"DICM":  # before it may stand the beginning of a TIFF file
        return "DICOM"
    for kind, start in _STARTS:
        if data.startswith(start):
            return kind
        if start.startswith(data):
            raise ImageError(
                "empty_or_malformed_image", f"{kind} file of {len(data)} bytes: cut short"
            )
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if data.startswith(GZIP_START) or data[:4] in NIFTI_SIZES:
        return "NIFTI"
    if _looks_like_bare_dicom(data):
        return "DICOM"
    if hint == "dicom":
        raise ImageError(
            "not_dicom", "no DICOM file: the mark DICM is missing at byte 128; export it anew"
        )
    if hint == "nifti":
        raise ImageError(
            "empty_or_malformed_image", "no NIfTI file: wrong header size; export it anew"
        )
    raise ImageError(
        "unsupported_image_type",
        "neither PNG nor JPEG, TIFF, WebP, BMP, DICOM or NIfTI by its content; convert it to PNG",
    )


def _looks_like_bare_dicom(data: bytes) -> bool:
    """Return whether a file begins like a DICOM data set without preamble and mark."""
    group, value = data[:2], data[4:8]
    explicit = value[:2].isalpha() and value[:2].isupper()
    if group in (b"\x02\0", b"\x08\0"):  # little-endian
        return data[3:4] == b"\0" and (explicit or value[2:] == b"\0\0")
    return data[:3] == b"\0\x08\0" and explicit


def prepare() -> None:
    """Import all that decoding may need: a decoder process can open no file later."""
    for module in (*_READERS, *_ALSO):
        import_module(module)
    from medmoe.data.intake import codecs

    codecs.prepare()
    Image.preinit()


def decode(data: bytes, request: Request, limits: Limits) -> Decoded:
    """Return the picture of a file.

    Raises:
        ImageError: It cannot be used.
    """
    limits.check_file(len(data))
    kind = kind_of(data, request.hint)
    if request.plane is not None and kind != "NIFTI":
        raise ImageError("bad_frame", f"a {kind} file has no planes; leave the plane out")
    if kind == "DICOM":
        from medmoe.data.intake import dicom

        return Decoded(*dicom.read(data, limits, request))
    if kind == "NIFTI":
        from medmoe.data.intake import nifti

        return Decoded(*nifti.read(data, limits, request))
    if request.window is not None:
        raise ImageError("bad_window", f"a {kind} picture has no window; leave the window out")
    if request.frame not in (None, 1):
        raise ImageError("bad_frame", f"of a {kind} file the first frame is used; leave it out")
    picture, flags = raster.read(data, kind, limits)
    return Decoded(np.asarray(picture), ImageFacts(cast(Format, kind.lower()), warnings=flags))
