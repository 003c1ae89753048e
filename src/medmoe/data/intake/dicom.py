"""DICOM: from the bytes of a file to one frame as a picture, and the facts that may be told of it.

The header is checked before any pixel is decoded. Only the elements named here are read; whatever
else stands in a file is skipped unseen. Errors say nothing of what the file holds but sizes. No
path, address or file reference in a file is followed.

Grey goes through the modality table or rescale, then the window (given, else the file's lookup
table, else its first window that shows something, else a percentile window), then MONOCHROME1 and
INVERSE are inverted and padding is black. Grey of up to 8 bits without a window is shown as it is
stored. Colour becomes RGB of 8 bits. Pixels are made square. Overlays are not drawn. Window,
rescale and spacing of enhanced multi-frame files are those of the frame shown.

A file without preamble is read where its elements tell their own encoding. Decimal commas are read
in rescale, window and spacing where they can be nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom._uid_dict import UID_dictionary
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut

from medmoe.data.intake import codecs, display, facts
from medmoe.data.intake.display import Background, Curve, Grey, Table, Values, WindowChoice
from medmoe.data.intake.facts import ImageFacts, Window
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
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame kinds, .7.1 to .7.4
_ULTRASOUND = ("US", "IVUS")
_SMALL = 16
_GREY = ("MONOCHROME1", "MONOCHROME2")
_RGB = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
#: One comma in a number, but no ``1,024``, which may be a thousand and more.
_DECIMAL_COMMA = re.compile(r"(?!\W*[1-9]\d{0,2},\d{3}\s*$)[^,]*,\d[^,]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Header:
    """What describes the pixels, checked.

    Attributes:
        pixels: The element that holds them.
        frames: At least 1.
    """

    syntax: uid.UID
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


def _undecodable(what: str) -> ImageError:
    return ImageError("undecodable", f"damaged DICOM file: {what}; {_EXPORT}")


#: An element is read when it is first looked at: one that is damaged is found anywhere below.
_DAMAGED = _undecodable("its elements are damaged")


@or_else(_DAMAGED)
def read(
    data: bytes, limits: Limits, window: WindowChoice | None, frame: int | None
) -> tuple[Grey, ImageFacts]:
    """Return one frame as grey (H, W) or RGB (H, W, 3), uint8, and its facts.

    Args:
        window: Center and width, or the name of a preset; None leaves it to the file.
        frame: From 1; the first by default.

    Raises:
        ImageError: As `read_header` and `read_frame` say; also ``bad_window`` and ``bad_frame``.
    """
    dataset, header = read_header(data, limits)
    number = display.chosen_frame(frame, header.frames, default=1)
    modality = facts.modality(dataset.get("Modality", ""))
    if window is not None and header.photometric not in _GREY:
        raise ImageError("bad_window", "a colour picture has no window; leave the window out")
    wanted = None if window is None else display.requested(window, modality)
    values = read_frame(dataset, header, number)
    flags = _flags(dataset, header)
    shown: Window | None = None
    if header.photometric in _GREY:
        pixels, shown = _grey(values, dataset, header, number, wanted)
        told = _raw_window(dataset, number) != (None, None) or "VOILUTSequence" in dataset
        if told and (shown is None or shown.origin == "percentile"):
            flags = (*flags, "window_ignored")
    elif header.photometric == "PALETTE COLOR":
        pixels = _palette(values, dataset, header)
    elif header.photometric in _RGB and header.colour:
        pixels = _eight_bits(values, header.bits_stored)
    else:
        raise _undecodable("its photometric interpretation is unknown")
    pixels, apart = display.squared(pixels, _spacing(dataset, number) or _aspect(dataset), limits)
    return pixels, ImageFacts(
        format="dicom",
        modality=modality,
        body_part=facts.body_part(
            _find(dataset, number, "FrameAnatomySequence", "BodyPartExamined") or ""
        ),
        view=facts.view(dataset.get("ViewPosition", "")),
        window=shown,
        spacing=apart if _spacing(dataset, number) else None,
        frame=number,
        frames=header.frames,
        warnings=flags,
    )


@or_else(_DAMAGED)
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
        raise _undecodable("it is deflated and does not say where")
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
        raise _undecodable("it names no transfer syntax")
    rows = _integer(dataset, "Rows", 1, 65_535)
    columns = _integer(dataset, "Columns", 1, 65_535)
    frames = _integer(dataset, "NumberOfFrames", 0, 2**31 - 1, default=1) or 1
    spacing = _spacing(dataset, 1) or _aspect(dataset)
    limits.check_size(columns, rows, min_side=1, spacing=spacing)
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
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip().upper()
    if not photometric:
        raise _undecodable("PhotometricInterpretation is missing")
    if samples == 3 and photometric in (*_GREY, "PALETTE COLOR"):
        raise _undecodable("SamplesPerPixel is 3 and the picture is no RGB")
    header = Header(
        syntax=uid.UID(syntax),
        pixels=pixels,
        rows=rows,
        columns=columns,
        samples=samples,
        photometric=photometric,
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
    syntax, error = header.syntax, _undecodable("its pixel data is damaged or cut short")
    if syntax in codecs.DECODER_DEPENDENCIES and not codecs.is_available(syntax):
        error = _unsupported(f"{syntax.name} ({syntax}) of {header.bits_stored} bits", _EXTRA)
    with or_else(error):
        _check_whole_jpeg(buffer, header, frame, options)
        values, _ = get_decoder(syntax).as_array(buffer, index=frame - 1, **options)
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


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
    stream = get_frame(buffer, frame - 1, number_of_frames=header.frames, extended_offsets=offsets)
    if jpeg:
        picture = Image.open(BytesIO(stream), formats=("JPEG",))
        picture.load()
        cut = jpeg_ends_early(stream, picture)
    else:
        cut = not stream.rstrip(b"\0").endswith(JPEG_END)
    if cut:
        raise _undecodable("its pixel data is cut short")


def _flags(dataset: Dataset, header: Header) -> tuple[str, ...]:
    flags = []
    if str(dataset.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        flags.append("burned_in_annotation")
    kind = str(dataset.get("SOPClassUID", ""))
    if kind == _SECONDARY_CAPTURE or kind.startswith(f"{_SECONDARY_CAPTURE}."):
        flags.append("secondary_capture")
    if str(dataset.get("Modality", "")).strip().upper() in _ULTRASOUND:
        flags.append("ultrasound")
    if min(header.rows, header.columns) < _SMALL:
        flags.append("small_matrix")
    return tuple(flags)


def _find(dataset: Dataset, frame: int, group: str, keyword: str) -> Any:
    """Return an attribute of a frame, of its own group, the shared one, or the top; else None."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    items = [one.get(group) for one in (*per_frame[frame - 1 : frame], *shared[:1])]
    values = (place.get(keyword) for place in (*(item[0] for item in items if item), dataset))
    return next((value for value in values if value is not None and value != ""), None)


def _spacing(dataset: Dataset, frame: int) -> tuple[float, float] | None:
    """Return millimetres between rows and between columns, None where they are not told."""
    measured = _find(dataset, frame, "PixelMeasuresSequence", "PixelSpacing")
    others = (dataset.get(f"{kind}PixelSpacing") for kind in ("Imager", "NominalScanned"))
    numbers = (map(_decimal, _several(value)) for value in (measured, *others))
    return next(filter(None, map(facts.spacing, numbers)), None)


def _aspect(dataset: Dataset) -> tuple[float, float] | None:
    """Return height and width of a pixel to each other, None where they are not told."""
    try:
        height, width = map(float, dataset.get("PixelAspectRatio"))
        return facts.spacing((height / width, 1))
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def _grey(
    values: Values, dataset: Dataset, header: Header, frame: int, wanted: Window | None
) -> tuple[Grey, Window | None]:
    modality = _modality_curve(dataset, header, frame)
    rescale = modality or display.rescaled(1, 0)
    shape = str(dataset.get("PresentationLUTShape", "")).strip().upper()
    inverted = header.photometric == "MONOCHROME1" or shape == "INVERSE"
    plain, top = None, 2**header.bits_stored - 1
    if modality is None and header.bits_stored <= 8 and not header.signed:
        plain = display.linear(top / 2, top, exact=True)
    told = [(_linear(wanted), wanted)] if wanted else _file_curves(dataset, header, frame)
    background = _background(values, dataset, header)
    return display.windowed(values, told, rescale, background, inverted=inverted, otherwise=plain)


def _background(values: Values, dataset: Dataset, header: Header) -> Background:
    """Return which pixels are padding, or no finite numbers."""
    kind = header.pixels.removesuffix("PixelData")
    ends = [dataset.get(f"{kind}PixelPadding{end}") for end in ("Value", "RangeLimit")]
    told = [end for end in ends if isinstance(end, int | float)]
    if (low := {"i": -(2**15), "u": 0}.get(values.dtype.kind)) is not None:
        # Some write them in the other of the two representations of 16 bits.
        told = [(end - low) % 2**16 + low for end in told]
    outside = np.zeros(values.shape, np.bool_)
    if told:
        outside = (values >= min(told)) & (values <= max(told))
        outside &= not outside.all()
    if values.dtype.kind == "f":
        outside |= ~np.isfinite(values)
        if outside.all():
            raise _undecodable("its values are not finite numbers")
    return outside if outside.any() else None


def _linear(window: Window, exact: bool = False) -> Curve:
    """Return the window as the standard's LINEAR, unless it is narrower than 1 or LINEAR_EXACT."""
    return display.linear(window.center, window.width, exact=exact or window.width < 1)


def _modality_curve(dataset: Dataset, header: Header, frame: int) -> Curve | None:
    if items := dataset.get("ModalityLUTSequence"):
        return _table(items[0].get("LUTDescriptor"), items[0].get("LUTData"), header)
    slope, intercept = (
        _find(dataset, frame, "PixelValueTransformationSequence", keyword)
        for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    if slope is None and intercept is None:
        return None
    return display.rescaled(
        1.0 if slope is None else _number(slope), 0.0 if intercept is None else _number(intercept)
    )


def _file_curves(dataset: Dataset, header: Header, frame: int) -> Iterator[tuple[Curve, Window]]:
    """Yield the file's first lookup table, then its windows that are any."""
    if items := dataset.get("VOILUTSequence"):
        table = _table(items[0].get("LUTDescriptor"), items[0].get("LUTData"), header)
        size = len(table.entries)
        span = Window(table.first + (size - 1) / 2, float(size), "voi_lut")
        yield (lambda values: table(values) / table.top), span
    function = _find(dataset, frame, "FrameVOILUTSequence", "VOILUTFunction")
    kind = str(function or "LINEAR").strip().upper()
    for pair in zip(*map(_several, _raw_window(dataset, frame)), strict=False):
        try:
            window = Window(_decimal(pair[0]), _decimal(pair[1]), "file")
        except (TypeError, ValueError):
            continue
        if not (window.width > 0 and np.isfinite([window.center, window.width]).all()):
            continue
        if kind == "SIGMOID":
            yield display.sigmoid(window.center, window.width), window
        else:
            yield _linear(window, exact=kind == "LINEAR_EXACT"), window


def _raw_window(dataset: Dataset, frame: int) -> tuple[Any, Any]:
    group = "FrameVOILUTSequence"
    center, width = (_find(dataset, frame, group, k) for k in ("WindowCenter", "WindowWidth"))
    return center, width


def _several(value: Any) -> list[Any]:
    """Return the values of an element that may hold one or more."""
    many = not isinstance(value, str | float | int) and hasattr(value, "__getitem__")
    return list(value) if many else [value]


def _decimal(value: Any) -> float:
    """Return a number as pydicom gives it: what it could not read, a decimal comma, is a text."""
    if isinstance(value, str) and _DECIMAL_COMMA.fullmatch(value):
        value = value.replace(",", ".")
    return float(value)


def _number(value: Any) -> float:
    """Return a decimal of the file, the first of several."""
    try:
        return _decimal(_several(value)[0])
    except (TypeError, ValueError, IndexError):
        raise _undecodable("a number in the DICOM header is none") from None


def _table(descriptor: Any, data: Any, header: Header) -> Table:
    """Return a lookup table of the file.

    Args:
        descriptor: Its length, the value of its first entry, its bits.
        data: Its entries, as bytes or as numbers.
    """
    wrong = _undecodable("its lookup table is damaged")
    if descriptor is None or data is None or len(descriptor) != 3:
        raise wrong
    count, first, bits = (int(number) for number in descriptor)
    count = count or 2**16
    if isinstance(data, bytes):
        size = 1 if len(data) < 2 * count else 2
        order = "<" if header.syntax.is_little_endian else ">"
        entries = np.frombuffer(data[: count * size], f"{order}u{size}")
    else:
        entries = np.atleast_1d(np.asarray(data))
    if len(entries) < count or not 1 <= bits <= 16:
        raise wrong
    return Table(entries[:count].astype(np.float64), first, 2.0**bits - 1)


def _palette(values: Values, dataset: Dataset, header: Header) -> Grey:
    """Return the colours of palette indices."""
    if "SegmentedRedPaletteColorLookupTableData" in dataset:
        with or_else(_undecodable("its palette is damaged")):
            colours = apply_color_lut(values, dataset)
        return _eight_bits(colours[..., :3], 8 * colours.dtype.itemsize)
    channels = []
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTable"
        table = _table(dataset.get(f"{name}Descriptor"), dataset.get(f"{name}Data"), header)
        step = (table.top + 1) / 256  # the upper eight bits
        channels.append(display.grey(values, table, lambda u, s=step: np.floor(u / s) / 255))  # type: ignore[misc]
    return np.stack(channels, axis=-1)


def _eight_bits(values: Values, bits: int) -> Grey:
    """Return RGB of 8 bits, the upper ones of more."""
    if values.dtype.kind == "i":
        raise _undecodable("its colours are signed values")
    return np.asarray(values >> max(0, bits - 8), dtype=np.uint8)
