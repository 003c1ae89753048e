"""Pixel values to grey levels: rescaling, windows and lookup tables (DICOM PS3.3, C.11).

All bits are kept up to the window. Integers of up to 16 bits go through a table of all their
values, wider ones in blocks of rows, so that a large picture needs little more than its own memory.
It draws no overlays and knows no file format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from medmoe.data.intake.facts import Scale, Window, spacing
from medmoe.data.intake.limits import Limits, Spacing
from medmoe.errors import ImageError

Values = npt.NDArray[Any]
#: A window as it is asked for: center and width, or a key of `WINDOW_PRESETS`.
WindowChoice = tuple[float, float] | str
#: In which a slice of a volume lies.
Plane = Literal["axial", "coronal", "sagittal"]
Grey = npt.NDArray[np.uint8]
#: Grey values before the window, see `coded`.
Coded = npt.NDArray[np.uint16]
#: Stored values (any shape, float64) to the units of the file, or those to 0–1.
Curve = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]

#: Where a picture holds no measurement: padding, or no finite number. None where it is everywhere.
Background = npt.NDArray[np.bool_] | None

#: Center and width in Hounsfield units, as radiology departments set them.
WINDOW_PRESETS: dict[str, tuple[float, float]] = {
    "abdomen": (50, 400),
    "bone": (400, 1800),
    "brain": (40, 80),
    "liver": (60, 160),
    "lung": (-600, 1500),
    "mediastinum": (50, 350),
    "stroke": (40, 40),
    "subdural": (75, 215),
}
_LOW, _HIGH = 1, 99  # percentiles shown where no window is known: a few outliers are clipped
_SAMPLE = 1_000_000  # pixels that percentiles are taken of
#: A window hides a picture of which it leaves fewer grey levels, or a smaller share between black
#: and white; of so few different values (a mask) nothing need lie between.
_LEAST_LEVELS, _LEAST_BETWEEN, _MASK_VALUES = 32, 0.001, 16
_BLOCK = 1_000_000


@dataclass(frozen=True, slots=True)
class Table:
    """A lookup table.

    Attributes:
        entries: (N,) its values.
        first: The value that the first entry belongs to; below and above, the ends hold.
        top: The highest value that its bits allow.
    """

    entries: npt.NDArray[np.float64]
    first: int
    top: float

    def __call__(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the entries of values, of the same shape."""
        places = np.clip(values - self.first, 0, len(self.entries) - 1).astype(np.intp)
        return self.entries[places]


def rescaled(slope: float, intercept: float) -> Curve:
    """Return the curve of a rescale slope and intercept.

    Raises:
        ImageError: One of them is not a finite number, or the slope is 0.
    """
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope):
        raise ImageError(
            "undecodable", "rescale slope or intercept is not a usable number; export the file anew"
        )
    return lambda values: values * slope + intercept


def linear(center: float, width: float, *, exact: bool) -> Curve:
    """Return a linear window; ``exact`` is LINEAR_EXACT of the standard, else its LINEAR."""
    if not exact:
        center, width = center - 0.5, width - 1

    def curve(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        if width == 0:
            return (values > center).astype(np.float64)
        return np.clip((values - center) / width + 0.5, 0, 1)

    return curve


def sigmoid(center: float, width: float) -> Curve:
    """Return the SIGMOID window of the standard."""

    def curve(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        # Beyond ±60 it is 0 or 1 to double precision, and exp would overflow.
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -60, 60)))

    return curve


def fitted(values: Values, rescale: Curve, background: Background = None) -> Window:
    """Return the percentile window of a picture.

    Args:
        values: (H, W), as stored.
        rescale: To the units of the file.
    """
    units = rescale(_sample(values, background).astype(np.float64))
    low, high = (float(q) for q in np.percentile(units, (_LOW, _HIGH)))
    if high <= low:
        low, high = float(units.min()), float(units.max())
    center, width = (float(f"{value:.6g}") for value in ((low + high) / 2, high - low))
    return Window(center, max(width, 1e-6), "percentile")


def windowed(
    values: Values,
    told: Iterable[tuple[Curve, Window]],
    rescale: Curve,
    background: Background,
    *,
    inverted: bool = False,
    otherwise: Curve | None = None,
) -> tuple[Grey, Window | None]:
    """Return grey levels (H, W) of stored values (H, W), and the window that was used.

    Args:
        told: Windows in the order of preference; one of the file is used if it shows something.
        otherwise: Used in place of a fitted window where none of them is.
    """
    for curve, window in told:
        pixels = grey(values, rescale, curve, inverted=inverted, background=background)
        if window.origin == "given" or not _hides(values, pixels, background):
            return pixels, window
    if otherwise is not None:
        return grey(values, rescale, otherwise, inverted=inverted, background=background), None
    window = fitted(values, rescale, background)
    curve = linear(window.center, window.width, exact=True)
    return grey(values, rescale, curve, inverted=inverted, background=background), window


def _hides(values: Values, shown: Grey, background: Background) -> bool:
    """Return whether a window leaves next to nothing of a picture that holds more."""
    levels = _sample(shown, background)
    low, high = int(levels.min()), int(levels.max())
    between = np.mean((levels > 0) & (levels < 255))
    few_levels = high - low < _LEAST_LEVELS
    if not few_levels and between >= _LEAST_BETWEEN:
        return False
    return len(np.unique(_sample(values, background))) > (1 if few_levels else _MASK_VALUES)


def _sample(values: Values, background: Background) -> Values:
    """Return pixels (N,) of a picture, measurements only where there are any."""
    step = max(1, math.ceil(math.sqrt(values.size / _SAMPLE)))
    sample = values[::step, ::step]
    if background is None or not np.any(kept := ~background[::step, ::step]):
        return sample.ravel()
    return sample[kept]


def grey(
    values: Values, *curves: Curve, inverted: bool = False, background: Background = None
) -> Grey:
    """Return grey levels (H, W) of stored values (H, W), through curves that end in 0–1.

    The background is black.
    """

    def levels(part: Values) -> Grey:
        unit = np.nan_to_num(part.astype(np.float64), posinf=0, neginf=0)
        for curve in curves:
            unit = curve(unit)
        whole = np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)
        return 255 - whole if inverted else whole

    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
        low, high = int(values.min()), int(values.max())
        table = levels(np.arange(low, high + 1))
        out = np.empty(values.shape, np.uint8)
        for rows in _blocks(values):
            out[rows] = table[values[rows].astype(np.intp) - low]
    else:
        out = np.empty(values.shape, np.uint8)
        for rows in _blocks(values):
            out[rows] = levels(values[rows])
    if background is not None:
        out[background] = 0
    return out


def coded(
    values: Values, rescale: Curve, background: Background, *, inverted: bool = False
) -> tuple[Coded, Scale]:
    """Return grey values (H, W) before the window in 16 bits, and what they stand for.

    Integers of up to 16 bits on a straight line keep all their bits; others are spread over 65,536
    steps from their lowest to their highest. The background is what is darkest.
    """
    top = 2**16 - 1
    whole = values.dtype.kind in "iu" and values.dtype.itemsize <= 2
    first = int(values.min()) if whole else 0

    def units(part: Values) -> npt.NDArray[np.float64]:
        return rescale(np.nan_to_num(part.astype(np.float64), posinf=0, neginf=0))

    parts = (
        [np.arange(first, int(values.max()) + 1)] if whole else [values[r] for r in _blocks(values)]
    )
    ends = [(float(found.min()), float(found.max())) for found in map(units, parts)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    steps = np.diff(units(parts[0])) if whole else np.empty(0)
    exact = steps.size > 0 and steps[0] != 0 and np.allclose(steps, steps[0], rtol=1e-6)
    slope = abs(float(steps[0])) if exact else (high - low) / top or 1.0
    codes = [np.rint((units(part) - low) / slope).astype(np.uint16) for part in parts]
    out = np.empty(values.shape, np.uint16)
    for number, rows in enumerate(_blocks(values)):
        out[rows] = codes[0][values[rows].astype(np.intp) - first] if whole else codes[number]
    if background is not None:
        out[background] = top if inverted else 0
    return out, Scale(slope, low, inverted)


def given_out(
    pixels: Grey, coded: tuple[Coded, Scale] | None, apart: Spacing, limits: Limits
) -> tuple[Grey | Coded, Spacing, Scale | None]:
    """Return a picture (H, W) or (H, W, 3) with square pixels, and its spacing then.

    Where there are `coded` values they take its place as they lie, with what they stand for.
    """
    if coded is not None:
        return coded[0], apart, replace(coded[1], apart=apart)
    height, width = pixels.shape[:2]
    size = limits.squared(width, height, apart)
    if apart is None or size == (width, height):
        return pixels, spacing(apart), None
    resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    return resized, spacing((apart[0] * height / size[1], apart[1] * width / size[0])), None


def _blocks(values: Values) -> list[slice]:
    height, width = values.shape
    step = max(1, _BLOCK // width)
    return [slice(start, start + step) for start in range(0, height, step)]


def requested(window: WindowChoice, modality: str | None) -> Window:
    """Return the window that a caller asks for, by numbers or by the name of a preset.

    Args:
        modality: Of the picture; presets are in Hounsfield units, which only CT has. None passes.

    Raises:
        ImageError: It is no window for this picture.
    """
    if isinstance(window, str):
        if window not in WINDOW_PRESETS:
            raise ImageError(
                "bad_window",
                f"unknown window preset; choose one of {', '.join(sorted(WINDOW_PRESETS))}",
            )
        if modality not in (None, "ct"):
            raise ImageError(
                "bad_window",
                f"window presets are Hounsfield units, for CT; this is {modality}: give C,W",
            )
        window = WINDOW_PRESETS[window]
    center, width = window
    if not (math.isfinite(center) and math.isfinite(width) and width > 0):
        raise ImageError(
            "bad_window", f"window {center:g},{width:g}: the width must be above 0; give C,W"
        )
    return Window(center, width, "given")


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
