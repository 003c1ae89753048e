"""DICOM, part two: from stored values to a picture, and the facts that may be told of it.

Grey goes through the modality table or rescale, then the window (given, else the file's lookup
table, else its first window, else a percentile window), then MONOCHROME1 is inverted. Grey of up to
8 bits without a window is shown as it is stored. Colour becomes RGB of 8 bits. Overlays are not
drawn. Window, rescale and spacing of enhanced multi-frame files are those of the frame shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from medmoe.data.intake import display, facts
from medmoe.data.intake.dicom import Header, read_frame, read_header
from medmoe.data.intake.display import Curve, Grey, Table, Values
from medmoe.data.intake.facts import ImageFacts, Window
from medmoe.data.intake.limits import Limits
from medmoe.errors import ImageError

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame kinds, .7.1 to .7.4
_ULTRASOUND = ("US", "IVUS")
_SMALL = 16
_GREY = ("MONOCHROME1", "MONOCHROME2")
_RGB = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def read(
    data: bytes, limits: Limits, window: tuple[float, float] | str | None, frame: int | None
) -> tuple[Grey, ImageFacts]:
    """Return one frame as grey (H, W) or RGB (H, W, 3), uint8, and its facts.

    Args:
        data: A whole file.
        window: Center and width, or the name of a preset; None leaves it to the file.
        frame: From 1; the first by default.

    Raises:
        ImageError: See `medmoe.data.intake.dicom`; also ``bad_window`` and ``bad_frame``.
    """
    dataset, header = read_header(data, limits)
    number = chosen_frame(frame, header.frames, default=1)
    modality = facts.modality(dataset.get("Modality", ""))
    if window is not None and header.photometric not in _GREY:
        raise ImageError("bad_window", "a colour picture has no window; leave the window out")
    wanted = None if window is None else display.requested(window, modality)
    values = read_frame(dataset, header, number)
    flags = _flags(dataset, header)
    shown: Window | None = None
    if header.photometric in _GREY:
        pixels, shown = _grey(values, dataset, header, number, wanted)
        if _ignored(dataset, number) and shown is not None and shown.origin == "percentile":
            flags = (*flags, "window_ignored")
    elif header.photometric == "PALETTE COLOR":
        pixels = _palette(values, dataset, header)
    elif header.photometric in _RGB and header.colour:
        pixels = _eight_bits(values, header.bits_stored)
    else:
        raise ImageError("undecodable", "unknown photometric interpretation; export the file anew")
    return pixels, ImageFacts(
        format="dicom",
        modality=modality,
        body_part=facts.body_part(_part(dataset, number)),
        view=facts.view(dataset.get("ViewPosition", "")),
        window=shown,
        spacing=_spacing(dataset, number),
        frame=number,
        frames=header.frames,
        warnings=flags,
    )


def chosen_frame(frame: int | None, frames: int, default: int) -> int:
    """Return the frame to show, from 1.

    Raises:
        ImageError: There is no such frame.
    """
    if frame is None:
        return default
    if not 1 <= frame <= frames:
        raise ImageError("bad_frame", f"frame {frame}: choose one of 1 to {frames}")
    return frame


def _flags(dataset: Dataset, header: Header) -> tuple[str, ...]:
    found = []
    if str(dataset.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        found.append("burned_in_annotation")
    kind = str(dataset.get("SOPClassUID", ""))
    if kind == _SECONDARY_CAPTURE or kind.startswith(f"{_SECONDARY_CAPTURE}."):
        found.append("secondary_capture")
    if str(dataset.get("Modality", "")).strip().upper() in _ULTRASOUND:
        found.append("ultrasound")
    if min(header.rows, header.columns) < _SMALL:
        found.append("small_matrix")
    return tuple(found)


def _groups(dataset: Dataset, frame: int, name: str) -> Iterator[Dataset]:
    """Yield where an attribute of a frame may stand: its own group, the shared one, the top."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for group in (*per_frame[frame - 1 : frame], *shared[:1]):
        if items := group.get(name):
            yield items[0]
    yield dataset


def _find(dataset: Dataset, frame: int, group: str, keyword: str) -> Any:
    for place in _groups(dataset, frame, group):
        value = place.get(keyword)
        if value is not None and value != "":
            return value
    return None


def _part(dataset: Dataset, frame: int) -> object:
    return _find(dataset, frame, "FrameAnatomySequence", "BodyPartExamined") or ""


def _spacing(dataset: Dataset, frame: int) -> tuple[float, float] | None:
    value = _find(dataset, frame, "PixelMeasuresSequence", "PixelSpacing")
    return facts.spacing(value or dataset.get("ImagerPixelSpacing"))


def _grey(
    values: Values, dataset: Dataset, header: Header, frame: int, wanted: Window | None
) -> tuple[Grey, Window | None]:
    modality = _modality_curve(dataset, header, frame)
    rescale = modality or display.rescaled(1, 0)
    inverted = header.photometric == "MONOCHROME1"
    curve, shown = _file_curve(dataset, header, frame)
    if wanted is not None:
        curve, shown = _linear(wanted), wanted
    if curve is None and modality is None and header.bits_stored <= 8 and not header.signed:
        shown = None
        top = 2**header.bits_stored - 1
        curve = display.linear(top / 2, top, exact=True)
    elif curve is None:
        shown = display.fitted(values, rescale, _padding(dataset))
        curve = display.linear(shown.center, shown.width, exact=True)
    return display.grey(values, rescale, curve, inverted=inverted), shown


def _linear(window: Window) -> Curve:
    """Return the window as the standard's LINEAR, which needs a width of 1 or more."""
    return display.linear(window.center, window.width, exact=window.width < 1)


def _modality_curve(dataset: Dataset, header: Header, frame: int) -> Curve | None:
    if items := dataset.get("ModalityLUTSequence"):
        return _table(items[0].get("LUTDescriptor"), items[0].get("LUTData"), header)
    group = "PixelValueTransformationSequence"
    slope = _find(dataset, frame, group, "RescaleSlope")
    intercept = _find(dataset, frame, group, "RescaleIntercept")
    if slope is None and intercept is None:
        return None
    return display.rescaled(
        1.0 if slope is None else _number(slope), 0.0 if intercept is None else _number(intercept)
    )


def _file_curve(dataset: Dataset, header: Header, frame: int) -> tuple[Curve | None, Window | None]:
    """Return the file's first lookup table, else its first window, else None."""
    if items := dataset.get("VOILUTSequence"):
        table = _table(items[0].get("LUTDescriptor"), items[0].get("LUTData"), header)
        size = len(table.entries)
        span = Window(table.first + (size - 1) / 2, float(size), "voi_lut")
        return (lambda values: table(values) / table.top), span
    window = _first_window(dataset, frame)
    if window is None:
        return None, None
    function = _find(dataset, frame, "FrameVOILUTSequence", "VOILUTFunction")
    kind = str(function or "LINEAR").strip().upper()
    if kind == "SIGMOID":
        return display.sigmoid(window.center, window.width), window
    return display.linear(
        window.center, window.width, exact=kind == "LINEAR_EXACT" or window.width < 1
    ), window


def _raw_window(dataset: Dataset, frame: int) -> tuple[Any, Any]:
    group = "FrameVOILUTSequence"
    return (
        _find(dataset, frame, group, "WindowCenter"),
        _find(dataset, frame, group, "WindowWidth"),
    )


def _first_window(dataset: Dataset, frame: int) -> Window | None:
    """Return the first window of the file, None where there is none that can be used."""
    center, width = _raw_window(dataset, frame)
    if center is None or width is None:
        return None
    try:
        found = Window(_number(center), _number(width), "file")
    except ImageError:
        return None
    return found if found.width > 0 and np.isfinite([found.center, found.width]).all() else None


def _ignored(dataset: Dataset, frame: int) -> bool:
    """Return whether the file holds a window that cannot be used."""
    return _raw_window(dataset, frame) != (None, None) and _first_window(dataset, frame) is None


def _number(value: Any) -> float:
    """Return a decimal of the file, the first of several."""
    try:
        first = value if isinstance(value, str | float | int) else value[0]
    except TypeError:
        first = value
    try:
        return float(first)
    except (TypeError, ValueError):
        raise ImageError(
            "undecodable", "a number in the DICOM header is none; export the file anew"
        ) from None


def _padding(dataset: Dataset) -> int | None:
    value = dataset.get("PixelPaddingValue")
    return value if isinstance(value, int) else None


def _table(descriptor: Any, data: Any, header: Header) -> Table:
    """Return a lookup table of the file.

    Args:
        descriptor: Its length, the value of its first entry, its bits.
        data: Its entries, as bytes or as numbers.
    """
    wrong = ImageError("undecodable", "a lookup table of the DICOM file is damaged; export it anew")
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
        try:
            found = apply_color_lut(values, dataset)
        except MemoryError:
            raise
        except Exception:  # pydicom raises of every kind
            raise ImageError(
                "undecodable", "a palette of the DICOM file is damaged; export it anew"
            ) from None
        return _eight_bits(found[..., :3], 8 * found.dtype.itemsize)
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
        raise ImageError("undecodable", "colour of signed values; export the file anew")
    return np.asarray(values >> max(0, bits - 8), dtype=np.uint8)
