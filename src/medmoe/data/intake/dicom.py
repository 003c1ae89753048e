"""DICOM, part one: the header, checked before any pixel is decoded, and the pixels of one frame.

Only the elements named here are read; whatever else stands in a file is skipped unseen. Errors say
nothing of what the file holds but sizes. No path, address or file reference in a file is followed.
`medmoe.data.intake.dicom_picture` makes a picture of the values.
"""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom._uid_dict import UID_dictionary
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSTransferSyntaxes,
)

from medmoe.data.intake import codecs
from medmoe.data.intake.display import Values
from medmoe.data.intake.inflate import RAW_DEFLATE, inflated
from medmoe.data.intake.limits import Limits
from medmoe.data.intake.raster import JPEG_END, jpeg_ends_early
from medmoe.errors import ImageError

PREAMBLE = 128
MAGIC = b"DICM"

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_TAGS: tuple[str, ...] = (
    *("SOPClassUID", "Modality", "BodyPartExamined", "ViewPosition", "BurnedInAnnotation"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("NumberOfFrames", "BitsAllocated", "BitsStored", "PixelRepresentation"),
    *("PixelSpacing", "ImagerPixelSpacing", "PixelPaddingValue", "RescaleSlope"),
    *("RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction"),
    *("WindowCenter", "WindowWidth"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(f"{c}PaletteColorLookupTableDescriptor" for c in ("Red", "Green", "Blue")),
    *(f"{c}PaletteColorLookupTableData" for c in ("Red", "Green", "Blue")),
    *(f"Segmented{c}PaletteColorLookupTableData" for c in ("Red", "Green", "Blue")),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *_PIXELS,
)
_BITS = {"PixelData": (1, 8, 16, 32, 64), "FloatPixelData": (32,), "DoubleFloatPixelData": (64,)}
#: What the first element of a data set looks like in a file that lacks the preamble.
_BARE = re.compile(rb"[\x02\x08]\x00[\x00-\x20]\x00(?:[A-Z]{2}|..\x00\x00)", re.DOTALL)
_EXPORT = "export the file anew"
_EXTRA = "pip install 'medmoe[codecs]'"
#: Meta elements end where (0002,0000), their length, says so.
_GROUP_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"


@dataclass(frozen=True, slots=True)
class Header:
    """What describes the pixels, checked.

    Attributes:
        pixels: The element that holds them.
        frames: At least 1.
    """

    syntax: UID
    pixels: str
    rows: int
    columns: int
    samples: int
    photometric: str
    planar: int
    frames: int
    bits_allocated: int
    bits_stored: int
    signed: int

    @property
    def colour(self) -> bool:
        """Whether a pixel has three samples."""
        return self.samples == 3


def is_dicom(data: bytes) -> bool:
    """Return whether a file is DICOM by its mark."""
    return data[PREAMBLE : PREAMBLE + 4] == MAGIC


def looks_like_bare_dicom(data: bytes) -> bool:
    """Return whether a file seems to be a DICOM data set without preamble and mark."""
    return _BARE.match(data) is not None


def read_header(data: bytes, limits: Limits) -> tuple[Dataset, Header]:
    """Return the elements that are read of a file, and the checked description of its pixels.

    Raises:
        ImageError: ``no_pixel_data``, ``image_too_large``, ``bad_aspect``,
            ``unsupported_transfer_syntax`` or ``undecodable``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values
        try:
            dataset, syntax = _dataset(data, limits)
            return dataset, _header(dataset, syntax, limits)
        except ImageError:
            raise
        except MemoryError:
            raise
        except Exception:  # pydicom raises of every kind, with values in its words
            raise _undecodable("its elements are damaged") from None


def _dataset(data: bytes, limits: Limits) -> tuple[Dataset, UID | None]:
    start = data[PREAMBLE + 4 : PREAMBLE + 4 + len(_GROUP_LENGTH)]
    body = PREAMBLE + 4 + len(_GROUP_LENGTH) + 4
    if start == _GROUP_LENGTH:
        end = body + int.from_bytes(data[body - 4 : body], "little")
        meta = pydicom.dcmread(BytesIO(data[:end])).file_meta
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            # pydicom would inflate without a bound.
            whole = inflated(memoryview(data)[end:], RAW_DEFLATE, limits.max_inflated_bytes)
            tags = [pydicom.tag.Tag(tag) for tag in _TAGS]
            dataset = read_dataset(BytesIO(whole), False, True, specific_tags=tags)  # type: ignore[arg-type]
            return dataset, ExplicitVRLittleEndian
    elif DeflatedExplicitVRLittleEndian.encode() in data[:4096]:
        raise _undecodable("it is deflated and does not say where")
    found = pydicom.dcmread(BytesIO(data), specific_tags=list(_TAGS))
    return found, found.file_meta.get("TransferSyntaxUID")


def _header(dataset: Dataset, syntax: UID | None, limits: Limits) -> Header:
    pixels = next((name for name in _PIXELS if name in dataset), None)
    if pixels is None or not dataset[pixels].value:
        raise ImageError(
            "no_pixel_data", "this DICOM file holds no picture; give one with pixel data"
        )
    if not syntax:
        raise _undecodable("it names no transfer syntax")
    rows = _integer(dataset, "Rows", 1, 65_535)
    columns = _integer(dataset, "Columns", 1, 65_535)
    frames = _integer(dataset, "NumberOfFrames", 1, 2**31 - 1, default=1)
    limits.check_size(columns, rows, min_side=1)
    if rows * columns * frames > limits.max_volume_pixels:
        raise ImageError(
            "image_too_large",
            f"{frames:,} frames of {columns}x{rows} pixels: at most {limits.max_volume_pixels:,} "
            "pixels are accepted; give fewer frames",
        )
    bits = _integer(dataset, "BitsAllocated", 1, 64)
    if bits not in _BITS[pixels]:
        raise _undecodable(f"BitsAllocated is {bits}")
    samples = _integer(dataset, "SamplesPerPixel", 1, 4, default=1)
    if samples not in (1, 3):
        raise _undecodable(f"SamplesPerPixel is {samples}")
    header = Header(
        syntax=UID(syntax),
        pixels=pixels,
        rows=rows,
        columns=columns,
        samples=samples,
        photometric=str(dataset.PhotometricInterpretation).strip().upper(),
        planar=_integer(dataset, "PlanarConfiguration", 0, 1, default=0),
        frames=frames,
        bits_allocated=bits,
        bits_stored=_integer(dataset, "BitsStored", 1, bits, default=bits),
        signed=_integer(dataset, "PixelRepresentation", 0, 1, default=0),
    )
    _check_decodable(header.syntax)
    _check_length(dataset, header)
    return header


def _integer(
    dataset: Dataset, keyword: str, low: int, high: int, default: int | None = None
) -> int:
    """Return a whole number of the header that is within its range."""
    value = dataset.get(keyword)
    if value is None or value == "":
        if default is None:
            raise _undecodable(f"{keyword} is missing")
        return default
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise _undecodable(f"{keyword} is no number") from None
    if not low <= number <= high:
        raise _undecodable(f"{keyword} is {number}")
    return number


def _check_decodable(syntax: UID) -> None:
    """Refuse a transfer syntax that nothing here can decode, and name it."""
    codecs.register()
    # A UID that is in no list could be anything: it is not repeated.
    name = f"{syntax.name} ({syntax})" if syntax in UID_dictionary else "an unknown one"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        fix = "export the file as Explicit VR Little Endian"
    else:
        if decoder.is_available:
            return  # JPEG Extended of 12 bits may still be refused, where it is decoded
        needs_extra = syntax in codecs.DECODER_DEPENDENCIES
        fix = _EXTRA if needs_extra else "export the file as Explicit VR Little Endian"
    raise _unsupported(name, fix)


def _unsupported(name: str, fix: str) -> ImageError:
    return ImageError(
        "unsupported_transfer_syntax", f"transfer syntax {name}: not supported; {fix}"
    )


def _check_length(dataset: Dataset, header: Header) -> None:
    """Refuse native pixel data that is shorter than rows x columns x frames."""
    if header.syntax.is_encapsulated:
        return
    samples = 2 if header.photometric == "YBR_FULL_422" else header.samples
    bits = header.rows * header.columns * samples * header.bits_allocated * header.frames
    there = len(dataset[header.pixels].value)
    if there < math.ceil(bits / 8):
        raise _undecodable(f"{there:,} bytes of pixel data, {math.ceil(bits / 8):,} are needed")


def read_frame(dataset: Dataset, header: Header, frame: int) -> Values:
    """Return the stored values of one frame, (H, W) or (H, W, 3), all bits kept; YBR becomes RGB.

    Args:
        frame: From 1.

    Raises:
        ImageError: ``undecodable`` or ``unsupported_transfer_syntax``.
    """
    buffer = dataset[header.pixels].value
    options = _options(dataset, header)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _check_whole_jpeg(buffer, header, frame, options)
            found, _ = get_decoder(header.syntax).as_array(buffer, index=frame - 1, **options)
        except (ImageError, MemoryError):
            raise
        except Exception:  # see above
            syntax = header.syntax
            if syntax in codecs.DECODER_DEPENDENCIES and not codecs.is_available(syntax):
                name = f"{syntax.name} ({syntax}) of {header.bits_stored} bits"
                raise _unsupported(name, _EXTRA) from None
            raise _undecodable("its pixel data is damaged or cut short") from None
    if not found.dtype.isnative:
        found = found.astype(found.dtype.newbyteorder("="))
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise _undecodable("some of its values are no finite numbers")
    return found


def _options(dataset: Dataset, header: Header) -> dict[str, Any]:
    """Return the description of the pixels in pydicom's words."""
    options: dict[str, Any] = {
        "rows": header.rows,
        "columns": header.columns,
        "samples_per_pixel": header.samples,
        "photometric_interpretation": header.photometric,
        "number_of_frames": header.frames,
        "bits_allocated": header.bits_allocated,
        "bits_stored": header.bits_stored,
        "pixel_representation": header.signed,
        "pixel_keyword": header.pixels,
        "pixel_vr": dataset[header.pixels].VR,
    }
    if header.colour:
        options["planar_configuration"] = header.planar
    if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
        options["extended_offsets"] = (
            dataset.ExtendedOffsetTable,
            dataset.ExtendedOffsetTableLengths,
        )
    return options


def _check_whole_jpeg(buffer: bytes, header: Header, frame: int, options: dict[str, Any]) -> None:
    """Refuse a JPEG or JPEG-LS frame that is cut short.

    The decoder of the first fills the rest with grey, in silence; that of the second takes seconds
    to find out.
    """
    jpeg = header.syntax in (JPEGBaseline8Bit, JPEGExtended12Bit) and header.bits_stored <= 8
    if not jpeg and header.syntax not in JPEGLSTransferSyntaxes:
        return
    stream = get_frame(
        buffer,
        frame - 1,
        number_of_frames=header.frames,
        extended_offsets=options.get("extended_offsets"),
    )
    if not jpeg:
        if not stream.rstrip(b"\0").endswith(JPEG_END):
            raise _undecodable("its pixel data is cut short")
        return
    picture = Image.open(BytesIO(stream), formats=("JPEG",))
    picture.load()
    if jpeg_ends_early(stream, picture):
        raise _undecodable("its pixel data is cut short")


def _undecodable(what: str) -> ImageError:
    return ImageError("undecodable", f"damaged DICOM file: {what}; {_EXPORT}")
