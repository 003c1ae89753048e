"""What a DICOM file holds: its header, checked before any pixel is decoded, and its stored values.

Only the elements named here are read; whatever else stands in a file is skipped unseen. Errors say
nothing of what the file holds but sizes. No path, address or file reference in a file is followed.
Of enhanced multi-frame files, what is told of one frame goes before what is told of all.

A file without preamble is read where its elements tell their own encoding. Decimal commas are read
where they can be nothing else.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any

import pydicom
from PIL import Image
from pydicom import uid
from pydicom._uid_dict import UID_dictionary
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import get_decoder

from medmoe.data.intake import codecs, facts
from medmoe.data.intake.display import Values
from medmoe.data.intake.limits import RAW_DEFLATE, Limits, inflated, or_else
from medmoe.data.intake.raster import JPEG_END, jpeg_ends_early
from medmoe.errors import ImageError

_KINDS = ("", "Float", "DoubleFloat")
_PIXELS = tuple(f"{kind}PixelData" for kind in _KINDS)
_TAGS: tuple[str, ...] = (
    *("SOPClassUID", "Modality", "BodyPartExamined", "ViewPosition", "BurnedInAnnotation"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("NumberOfFrames", "BitsAllocated", "BitsStored", "PixelRepresentation"),
    *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"),
    *(f"{kind}PixelPadding{end}" for kind in _KINDS for end in ("Value", "RangeLimit")),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence"),
    *("VOILUTFunction", "WindowCenter", "WindowWidth", "PresentationLUTShape"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(f"{c}PaletteColorLookupTableDescriptor" for c in ("Red", "Green", "Blue")),
    *(f"{c}PaletteColorLookupTableData" for c in ("Red", "Green", "Blue")),
    *(f"Segmented{c}PaletteColorLookupTableData" for c in ("Red", "Green", "Blue")),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *_PIXELS,
)
_BITS = {"PixelData": (1, 8, 16, 32, 64), "FloatPixelData": (32,), "DoubleFloatPixelData": (64,)}
#: Whether value representations are implicit, whether bytes are little-endian -> its name.
_NATIVE: dict[Any, uid.UID] = {
    (True, True): uid.ImplicitVRLittleEndian,
    (False, True): uid.ExplicitVRLittleEndian,
    (False, False): uid.ExplicitVRBigEndian,
}
_EXPORT = "export the file anew"
_EXTRA = "pip install 'medmoe[codecs]'"
#: Meta elements end where (0002,0000), their length, says so.
_GROUP_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"
_META_START = 132  # after a preamble of 128 bytes and the mark DICM, where these are
GREY = ("MONOCHROME1", "MONOCHROME2")
#: One comma in a number, but no ``1,024``, which may be a thousand and more.
_DECIMAL_COMMA = re.compile(r"(?!\W*[1-9]\d{0,2},\d{3}\s*$)[^,]*,\d[^,]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Header:
    """What describes the pixels, checked: but for the syntax in pydicom's words.

    Attributes:
        pixel_keyword: The element that holds them.
        number_of_frames: At least 1.
    """

    syntax: uid.UID
    pixel_keyword: str
    rows: int
    columns: int
    samples_per_pixel: int
    photometric_interpretation: str
    planar_configuration: int
    number_of_frames: int
    bits_allocated: int
    bits_stored: int
    pixel_representation: int

    @property
    def colour(self) -> bool:
        """Whether a pixel has three samples."""
        return self.samples_per_pixel == 3


def undecodable(what: str) -> ImageError:
    """Return the error for a file that is damaged, and how."""
    return ImageError("undecodable", f"damaged DICOM file: {what}; {_EXPORT}")


#: An element is read when it is first looked at: one that is damaged is found anywhere below.
DAMAGED = undecodable("its elements are damaged")


@or_else(DAMAGED)
def read_header(data: bytes, limits: Limits) -> tuple[Dataset, Header]:
    """Return the elements that are read of a file, and the checked description of its pixels.

    Raises:
        ImageError: ``no_pixel_data``, ``image_too_large``, ``bad_aspect``,
            ``unsupported_transfer_syntax`` or ``undecodable``.
    """
    dataset, syntax = _dataset(data, limits)
    return dataset, _header(dataset, syntax, limits)


def _dataset(data: bytes, limits: Limits) -> tuple[Dataset, uid.UID | None]:
    start = _META_START if data[128:_META_START] == b"DICM" else 0
    body = start + len(_GROUP_LENGTH) + 4
    if data[start:].startswith(_GROUP_LENGTH):
        end = body + int.from_bytes(data[body - 4 : body], "little")
        meta = pydicom.dcmread(BytesIO(data[:end]), force=True).file_meta
        if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
            # pydicom would inflate without a bound.
            whole = inflated(memoryview(data)[end:], RAW_DEFLATE, limits.max_inflated_bytes)
            tags = [pydicom.tag.Tag(tag) for tag in _TAGS]
            dataset = read_dataset(BytesIO(whole), False, True, specific_tags=tags)  # type: ignore[arg-type]
            return dataset, uid.ExplicitVRLittleEndian
    elif uid.DeflatedExplicitVRLittleEndian.encode() in data[:4096]:
        raise undecodable("it is deflated and does not say where")
    dataset = pydicom.dcmread(BytesIO(data), specific_tags=list(_TAGS), force=True)
    if not start and not any(name in dataset for name in _TAGS):
        raise ImageError("not_dicom", "no DICOM file, and no elements of one; export it anew")
    if dataset.file_meta:
        return dataset, dataset.file_meta.get("TransferSyntaxUID")
    packed = any(name in dataset and dataset[name].is_undefined_length for name in _PIXELS)
    return dataset, None if packed else _NATIVE.get(dataset.original_encoding)


def _header(dataset: Dataset, syntax: uid.UID | None, limits: Limits) -> Header:
    pixels = next((name for name in _PIXELS if name in dataset), None)
    if pixels is None or not dataset[pixels].value:
        raise ImageError(
            "no_pixel_data", "this DICOM file holds no picture; give one with pixel data"
        )
    if not syntax:
        raise undecodable("it names no transfer syntax")
    rows = _integer(dataset, "Rows", 1, 65_535)
    columns = _integer(dataset, "Columns", 1, 65_535)
    frames = _integer(dataset, "NumberOfFrames", 0, 2**31 - 1, default=1) or 1
    spacing = spacing_of(dataset, 1) or aspect_of(dataset)
    limits.check_size(columns, rows, min_side=1, spacing=spacing)
    if rows * columns * frames > limits.max_volume_pixels:
        raise ImageError(
            "image_too_large",
            f"{frames:,} frames of {columns}x{rows} pixels: at most {limits.max_volume_pixels:,} "
            "pixels are accepted; give fewer frames",
        )
    bits = _integer(dataset, "BitsAllocated", 1, 64)
    if bits not in _BITS[pixels]:
        raise undecodable(f"BitsAllocated is {bits}")
    samples = _integer(dataset, "SamplesPerPixel", 1, 4, default=1)
    if samples not in (1, 3):
        raise undecodable(f"SamplesPerPixel is {samples}")
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip().upper()
    if not photometric:
        raise undecodable("PhotometricInterpretation is missing")
    if samples == 3 and photometric in (*GREY, "PALETTE COLOR"):
        raise undecodable("SamplesPerPixel is 3 and the picture is no RGB")
    header = Header(
        syntax=uid.UID(syntax),
        pixel_keyword=pixels,
        rows=rows,
        columns=columns,
        samples_per_pixel=samples,
        photometric_interpretation=photometric,
        planar_configuration=_integer(dataset, "PlanarConfiguration", 0, 1, default=0),
        number_of_frames=frames,
        bits_allocated=bits,
        bits_stored=_integer(dataset, "BitsStored", 1, bits, default=bits),
        pixel_representation=_integer(dataset, "PixelRepresentation", 0, 1, default=0),
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
            raise undecodable(f"{keyword} is missing")
        return default
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise undecodable(f"{keyword} is no number") from None
    if not low <= number <= high:
        raise undecodable(f"{keyword} is {number}")
    return number


def _check_decodable(syntax: uid.UID) -> None:
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
    samples = 2 if header.photometric_interpretation == "YBR_FULL_422" else header.samples_per_pixel
    bits = header.rows * header.columns * samples * header.bits_allocated * header.number_of_frames
    there = len(dataset[header.pixel_keyword].value)
    if there < math.ceil(bits / 8):
        raise undecodable(f"{there:,} bytes of pixel data, {math.ceil(bits / 8):,} are needed")


def read_frame(dataset: Dataset, header: Header, frame: int) -> Values:
    """Return the stored values of one frame, (H, W) or (H, W, 3), all bits kept; YBR becomes RGB.

    Args:
        frame: From 1.

    Raises:
        ImageError: ``undecodable`` or ``unsupported_transfer_syntax``.
    """
    buffer = dataset[header.pixel_keyword].value
    options = _options(dataset, header)
    syntax, error = header.syntax, undecodable("its pixel data is damaged or cut short")
    if syntax in codecs.DECODER_DEPENDENCIES and not codecs.is_available(syntax):
        error = _unsupported(f"{syntax.name} ({syntax}) of {header.bits_stored} bits", _EXTRA)
    with or_else(error):
        _check_whole_jpeg(buffer, header, frame, options)
        values, _ = get_decoder(syntax).as_array(buffer, index=frame - 1, **options)
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


def _options(dataset: Dataset, header: Header) -> dict[str, Any]:
    """Return the description of the pixels in pydicom's words."""
    options = asdict(header) | {"pixel_vr": dataset[header.pixel_keyword].VR}
    del options["syntax"]
    if not header.colour:
        del options["planar_configuration"]
    if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
        lengths = dataset.ExtendedOffsetTableLengths
        options["extended_offsets"] = (dataset.ExtendedOffsetTable, lengths)
    return options


def _check_whole_jpeg(buffer: bytes, header: Header, frame: int, options: dict[str, Any]) -> None:
    """Refuse a JPEG or JPEG-LS frame that is cut short.

    The decoder of the first fills the rest with grey, in silence; that of the second takes seconds
    to find out.
    """
    jpeg = (
        header.syntax in (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit) and header.bits_stored <= 8
    )
    if not jpeg and header.syntax not in uid.JPEGLSTransferSyntaxes:
        return
    offsets = options.get("extended_offsets")
    stream = get_frame(
        buffer, frame - 1, number_of_frames=header.number_of_frames, extended_offsets=offsets
    )
    if jpeg:
        picture = Image.open(BytesIO(stream), formats=("JPEG",))
        picture.load()
        cut = jpeg_ends_early(stream, picture)
    else:
        cut = not stream.rstrip(b"\0").endswith(JPEG_END)
    if cut:
        raise undecodable("its pixel data is cut short")


def find(dataset: Dataset, frame: int, group: str, keyword: str) -> Any:
    """Return an attribute of a frame, of its own group, the shared one, or the top; else None."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    items = [one.get(group) for one in (*per_frame[frame - 1 : frame], *shared[:1])]
    values = (place.get(keyword) for place in (*(item[0] for item in items if item), dataset))
    return next((value for value in values if value is not None and value != ""), None)


def spacing_of(dataset: Dataset, frame: int) -> tuple[float, float] | None:
    """Return millimetres between rows and between columns, None where they are not told."""
    measured = find(dataset, frame, "PixelMeasuresSequence", "PixelSpacing")
    others = (dataset.get(f"{kind}PixelSpacing") for kind in ("Imager", "NominalScanned"))
    numbers = (map(decimal, several(value)) for value in (measured, *others))
    return next(filter(None, map(facts.spacing, numbers)), None)


def aspect_of(dataset: Dataset) -> tuple[float, float] | None:
    """Return height and width of a pixel to each other, None where they are not told."""
    try:
        height, width = map(float, dataset.get("PixelAspectRatio"))
        return facts.spacing((height / width, 1))
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def several(value: Any) -> list[Any]:
    """Return the values of an element that may hold one or more."""
    many = not isinstance(value, str | float | int) and hasattr(value, "__getitem__")
    return list(value) if many else [value]


def decimal(value: Any) -> float:
    """Return a number as pydicom gives it: what it could not read, a decimal comma, is a text."""
    if isinstance(value, str) and _DECIMAL_COMMA.fullmatch(value):
        value = value.replace(",", ".")
    return float(value)
