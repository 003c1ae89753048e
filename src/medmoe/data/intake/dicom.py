"""DICOM: one frame of a file as a picture, and the facts that may be told of it.

Grey goes through the modality table or rescale, then the window (given, else the file's lookup
table, else its first window that shows something, else a percentile window), then MONOCHROME1 and
INVERSE are inverted and padding is black. Grey of up to 8 bits without a window is shown as it is
stored. Colour becomes RGB of 8 bits. Pixels are made square. Overlays are not drawn. Window,
rescale and spacing of enhanced multi-frame files are those of the frame shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from medmoe.data.intake import display, facts
from medmoe.data.intake.decode import Request
from medmoe.data.intake.dicom_file import (
    DAMAGED,
    GREY,
    Header,
    aspect_of,
    decimal,
    find,
    read_frame,
    read_header,
    several,
    spacing_of,
    undecodable,
)
from medmoe.data.intake.display import Background, Coded, Curve, Grey, Table, Values
from medmoe.data.intake.facts import ImageFacts, Scale, Window
from medmoe.data.intake.limits import Limits, or_else
from medmoe.errors import ImageError

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame kinds, .7.1 to .7.4
_ULTRASOUND = ("US", "IVUS")
_SMALL = 16
_RGB = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


@or_else(DAMAGED)
def read(
    data: bytes, limits: Limits, wanted: Request
) -> tuple[Grey | Coded, ImageFacts, Scale | None]:
    """Return one frame as grey (H, W) or RGB (H, W, 3), uint8, or in 16 bits, and its facts.

    The frame is by default the first, the window that of the file.

    Raises:
        ImageError: As `read_header` and `read_frame` say; also ``bad_window`` and ``bad_frame``.
    """
    dataset, header = read_header(data, limits)
    number = display.chosen_frame(wanted.frame, header.number_of_frames, default=1)
    modality = facts.modality(dataset.get("Modality", ""))
    if wanted.window is not None and header.photometric_interpretation not in GREY:
        raise ImageError("bad_window", "a colour picture has no window; leave the window out")
    given = None if wanted.window is None else display.requested(wanted.window, modality)
    values = read_frame(dataset, header, number)
    flags = _flags(dataset, header)
    shown: Window | None = None
    coded: tuple[Coded, Scale] | None = None
    if header.photometric_interpretation in GREY:
        pixels, shown = _grey(values, dataset, header, number, given)
        if wanted.values:
            coded = _coded(values, dataset, header, number, shown)
        told = _raw_window(dataset, number) != (None, None) or "VOILUTSequence" in dataset
        if told and (shown is None or shown.origin == "percentile"):
            flags = (*flags, "window_ignored")
    elif header.photometric_interpretation == "PALETTE COLOR":
        pixels = _palette(values, dataset, header)
    elif header.photometric_interpretation in _RGB and header.colour:
        pixels = _eight_bits(values, header.bits_stored)
    else:
        raise undecodable("its photometric interpretation is unknown")
    apart = spacing_of(dataset, number) or aspect_of(dataset)
    given_out, apart, scale = display.given_out(pixels, coded, apart, limits)
    found = ImageFacts(
        format="dicom",
        modality=modality,
        body_part=facts.body_part(
            find(dataset, number, "FrameAnatomySequence", "BodyPartExamined") or ""
        ),
        view=facts.view(dataset.get("ViewPosition", "")),
        window=shown,
        spacing=apart if spacing_of(dataset, number) else None,
        frame=number,
        frames=header.number_of_frames,
        warnings=flags,
    )
    return given_out, found, scale


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


def _grey(
    values: Values, dataset: Dataset, header: Header, frame: int, wanted: Window | None
) -> tuple[Grey, Window | None]:
    modality = _modality_curve(dataset, header, frame)
    rescale, inverted = modality or display.rescaled(1, 0), _inverted(dataset, header)
    plain, top = None, 2**header.bits_stored - 1
    if modality is None and header.bits_stored <= 8 and not header.pixel_representation:
        plain = display.linear(top / 2, top, exact=True)
    told = [(_linear(wanted), wanted)] if wanted else _file_curves(dataset, header, frame)
    background = _background(values, dataset, header)
    return display.windowed(values, told, rescale, background, inverted=inverted, otherwise=plain)


def _inverted(dataset: Dataset, header: Header) -> bool:
    shape = str(dataset.get("PresentationLUTShape", "")).strip().upper()
    return header.photometric_interpretation == "MONOCHROME1" or shape == "INVERSE"


def _coded(
    values: Values, dataset: Dataset, header: Header, frame: int, shown: Window | None
) -> tuple[Coded, Scale]:
    """Return grey before its window, which is ``shown``."""
    rescale = _modality_curve(dataset, header, frame) or display.rescaled(1, 0)
    background = _background(values, dataset, header)
    inverted = _inverted(dataset, header)
    coded, scale = display.coded(values, rescale, background, inverted=inverted)
    from_file = shown is not None and shown.origin == "file"
    bent = from_file and _function(dataset, frame) == "SIGMOID"
    bent = bent or (shown is not None and shown.origin == "voi_lut")
    return coded, replace(scale, linear=not bent)


def _background(values: Values, dataset: Dataset, header: Header) -> Background:
    """Return which pixels are padding, or no finite numbers."""
    kind = header.pixel_keyword.removesuffix("PixelData")
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
            raise undecodable("its values are not finite numbers")
    return outside if outside.any() else None


def _linear(window: Window, exact: bool = False) -> Curve:
    """Return the window as the standard's LINEAR, unless it is narrower than 1 or LINEAR_EXACT."""
    return display.linear(window.center, window.width, exact=exact or window.width < 1)


def _modality_curve(dataset: Dataset, header: Header, frame: int) -> Curve | None:
    if items := dataset.get("ModalityLUTSequence"):
        return _table(items[0].get("LUTDescriptor"), items[0].get("LUTData"), header)
    slope, intercept = (
        find(dataset, frame, "PixelValueTransformationSequence", keyword)
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
    kind = _function(dataset, frame)
    for pair in zip(*map(several, _raw_window(dataset, frame)), strict=False):
        try:
            window = Window(decimal(pair[0]), decimal(pair[1]), "file")
        except (TypeError, ValueError):
            continue
        if not (window.width > 0 and np.isfinite([window.center, window.width]).all()):
            continue
        if kind == "SIGMOID":
            yield display.sigmoid(window.center, window.width), window
        else:
            yield _linear(window, exact=kind == "LINEAR_EXACT"), window


def _function(dataset: Dataset, frame: int) -> str:
    function = find(dataset, frame, "FrameVOILUTSequence", "VOILUTFunction")
    return str(function or "LINEAR").strip().upper()


def _raw_window(dataset: Dataset, frame: int) -> tuple[Any, Any]:
    group = "FrameVOILUTSequence"
    center, width = (find(dataset, frame, group, k) for k in ("WindowCenter", "WindowWidth"))
    return center, width


def _number(value: Any) -> float:
    """Return a decimal of the file, the first of several."""
    try:
        return decimal(several(value)[0])
    except (TypeError, ValueError, IndexError):
        raise undecodable("a number in its header is none") from None


def _table(descriptor: Any, data: Any, header: Header) -> Table:
    """Return a lookup table of the file.

    Args:
        descriptor: Its length, the value of its first entry, its bits.
        data: Its entries, as bytes or as numbers.
    """
    wrong = undecodable("its lookup table is damaged")
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
    if "SegmentedRedPaletteColorLookupTableData" in dataset:
        with or_else(undecodable("its palette is damaged")):
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
        raise undecodable("its colours are signed values")
    return np.asarray(values >> max(0, bits - 8), dtype=np.uint8)
