"""NIfTI-1 and NIfTI-2, plain or gzip: one slice of a volume, as a radiologist looks at it.

The volume is brought to its canonical axes and shown in the plane it was acquired in, or in the one
that is asked for: axial (front up), coronal (head up), both with the patient's right on the left,
or sagittal (front on the left, head up). Slices are numbered from the feet, the back or the left of
the patient; the middle one is shown by default. Pixels are made square. Voxels that are no finite
numbers are black. Of several volumes the first is taken. Names, descriptions and extensions in the
header are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np

from medmoe.data.intake import display
from medmoe.data.intake.decode import NIFTI_SIZES, Request
from medmoe.data.intake.display import Coded, Grey, Plane, Values
from medmoe.data.intake.facts import ImageFacts, Scale, Window
from medmoe.data.intake.limits import GZIP, GZIP_START, Limits, inflated, or_else
from medmoe.errors import ImageError

_MAGIC_1, _MAGIC_2 = b"n+1\0", b"n+2\0"
_PAIR = (b"ni1\0", b"ni2\0")  # the header alone: its pixels are in another file
_SMALL = 16
#: The canonical axes (left-right, back-front, feet-head) across a slice, down it and through all.
_PLANES: dict[Plane, tuple[int, int, int]] = {
    "sagittal": (1, 2, 0),
    "coronal": (0, 2, 1),
    "axial": (0, 1, 2),
}
#: How much thicker slices are than their pixels, or fewer than those of a side, where the plane of
#: a volume goes by it.
_THICKER, _FEWER = 1.2, 4


@dataclass(frozen=True, slots=True)
class _Volume:
    """An opened file and how its slices lie.

    Attributes:
        axes: Across a slice, down it and through all slices: the axis of the array.
        flips: The same three: whether the array runs from right, front or head.
        spacing: Millimetres between rows and between columns.
        known: Whether the file says itself how its axes lie.
    """

    image: Any
    shape: tuple[int, ...]
    plane: Plane
    axes: tuple[int, ...]
    flips: tuple[bool, ...]
    spacing: tuple[float, float]
    known: bool


def plain(data: bytes, limits: Limits) -> bytes:
    """Return the bytes of a NIfTI file without its gzip.

    Raises:
        ImageError: It inflates to too much, is broken, or holds something else than NIfTI.
    """
    if not data.startswith(GZIP_START):
        return data
    whole = inflated(data, GZIP, limits.max_inflated_bytes)
    if whole[:4] not in NIFTI_SIZES:
        raise ImageError(
            "unsupported_image_type",
            "a gzip file that holds no NIfTI; convert it to .nii.gz, or give the picture itself",
        )
    return whole


def read(
    data: bytes, limits: Limits, wanted: Request
) -> tuple[Grey | Coded, ImageFacts, Scale | None]:
    """Return one slice as grey (H, W) or RGB (H, W, 3), uint8, or in 16 bits, and its facts.

    The window is by default the file's display range where that shows something, else a percentile
    window; the frame is the slice.

    Raises:
        ImageError: ``empty_or_malformed_image``, ``no_pixel_data``, ``image_too_large``,
            ``bad_aspect``, ``undecodable``, ``bad_window`` or ``bad_frame``.
    """
    volume = _open(plain(data, limits), limits, wanted.plane)
    frames = volume.shape[volume.axes[2]]
    number = display.chosen_frame(wanted.frame, frames, default=(frames + 1) // 2)
    values = _slice(volume, number)
    shown, told = None, _display_range(volume)
    coded: tuple[Coded, Scale] | None = None
    if values.ndim == 2:
        given = None if wanted.window is None else display.requested(wanted.window, None)
        pixels, shown = _grey(values, given or told)
        if wanted.values:
            background = ~np.isfinite(values)
            coded = display.coded(values, display.rescaled(1, 0), background)
    elif wanted.window is None:
        pixels = values
    else:
        raise ImageError("bad_window", "a colour picture has no window; leave the window out")
    flags = (
        *(("orientation_unknown",) if not volume.known else ()),
        *(("first_volume",) if int(np.prod(volume.shape[3:])) > 1 else ()),
        *(("small_matrix",) if min(pixels.shape[:2]) < _SMALL else ()),
        *(("window_ignored",) if told and shown and shown.origin == "percentile" else ()),
    )
    given_out, apart, scale = display.given_out(pixels, coded, volume.spacing, limits)
    found = ImageFacts(
        format="nifti",
        view=volume.plane if volume.known else None,
        window=shown,
        spacing=apart,
        frame=number,
        frames=frames,
        warnings=flags,
    )
    return given_out, found, scale


def _open(data: bytes, limits: Limits, plane: Plane | None) -> _Volume:
    number = NIFTI_SIZES.get(data[:4])
    magic = data[344:348] if number == 1 else data[4:8]
    if magic in _PAIR:
        raise ImageError(
            "no_pixel_data", "a NIfTI header whose pixels are in another file; give a .nii file"
        )
    if magic not in (_MAGIC_1, _MAGIC_2):
        raise ImageError(
            "empty_or_malformed_image", "no NIfTI file: its magic number is wrong; export it anew"
        )
    kind = nibabel.Nifti1Image if number == 1 else nibabel.Nifti2Image
    with or_else(_undecodable("its header is damaged")):
        image: Any = kind.from_bytes(data)
        shape = tuple(int(length) for length in image.shape)
        size = image.dataobj.dtype.itemsize
        offset = int(image.dataobj.offset)
    if not shape or min(shape) < 1:
        raise _undecodable(f"its dimensions are {shape}")
    needed = size * int(np.prod(shape, dtype=object))
    if needed > max(len(data), limits.max_inflated_bytes):
        raise limits.too_large(f"a volume of {'x'.join(map(str, shape))} values")
    if offset < 0 or offset + needed > len(data):
        raise _undecodable(f"{len(data):,} bytes, {offset + needed:,} are needed")
    shape = (*shape, 1, 1)[: max(3, len(shape))]
    axes, flips, known = _orientation(image)
    zooms = [abs(float(zoom)) for zoom in image.header.get_zooms()[:3]] + [1.0] * 3
    zooms = [zoom if 0 < zoom < np.inf else 1.0 for zoom in zooms]
    if plane is None:
        plane = _acquired([shape[axis] for axis in axes], [zooms[axis] for axis in axes])
    axes = tuple(axes[place] for place in _PLANES[plane])
    flips = tuple(flips[place] for place in _PLANES[plane])
    apart = zooms[axes[1]], zooms[axes[0]]
    limits.check_size(shape[axes[0]], shape[axes[1]], min_side=1, spacing=apart)
    return _Volume(image, shape, plane, axes, flips, apart, known)


def _acquired(counts: list[int], zooms: list[float]) -> Plane:
    """Return the plane of a volume's slices: they are single, thick or few, else it is axial.

    Args:
        counts: Voxels along left-right, back-front and feet-head.
        zooms: Their sizes in mm.
    """
    names = list(_PLANES)  # each in the place of the axis through it
    if 1 in counts:
        return names[2 - counts[::-1].index(1)]
    for lengths, least in ((zooms, _THICKER), ([1 / count for count in counts], _FEWER)):
        second, longest = sorted(lengths)[1:]
        if longest > least * second:
            return names[lengths.index(longest)]
    return "axial"


def _orientation(image: Any) -> tuple[tuple[int, ...], tuple[bool, ...], bool]:
    """Return where left-right, back-front and feet-head lie, which run backwards, if it is told."""
    header = image.header
    try:
        told = bool(header["qform_code"] > 0 or header["sform_code"] > 0)
        orientation = nibabel.orientations.io_orientation(image.affine)
    except Exception:  # a singular or non-finite matrix
        told, orientation = False, None
    if orientation is None or not np.isfinite(orientation).all():
        return (0, 1, 2), (False, False, False), False
    places = [int(place) for place in orientation[:, 0]]
    axes = tuple(map(places.index, range(3)))
    return axes, tuple(bool(orientation[axis, 1] < 0) for axis in axes), told


def _slice(volume: _Volume, number: int) -> Values:
    """Return one slice, head or front up, the patient's right or front on the left, rescaled."""
    across, down, through = volume.axes
    length = volume.shape[through]
    place: list[Any] = [slice(None)] * 3 + [0] * (len(volume.shape) - 3)
    place[through] = length - number if volume.flips[2] else number - 1
    stored = volume.image.dataobj
    with or_else(_undecodable("its voxels cannot be read")):
        if len(stored.shape) < 3:
            stored = np.asarray(stored).reshape(volume.shape)
        values = np.asarray(stored[tuple(place)])
    if values.dtype.fields:
        values = np.stack([values[channel] for channel in "RGB"], axis=-1)
    if values.dtype.kind not in "iufb":
        raise _undecodable("its voxels are no real numbers")
    if across > down:
        values = values.swapaxes(0, 1)
    # Now (across, down): rows run from front or head, columns from right or front.
    values = values[:: -1 if not volume.flips[0] else 1]
    values = values[:, :: -1 if not volume.flips[1] else 1]
    return np.ascontiguousarray(values.swapaxes(0, 1))


def _grey(values: Values, window: Window | None) -> tuple[Grey, Window | None]:
    background = ~np.isfinite(values)
    if background.all():
        raise _undecodable("all voxels of this slice are not finite numbers (NaN)")
    told = [(display.linear(window.center, window.width, exact=True), window)] if window else []
    return display.windowed(values, told, display.rescaled(1, 0), background)


def _display_range(volume: _Volume) -> Window | None:
    low, high = (float(volume.image.header[key]) for key in ("cal_min", "cal_max"))
    usable = -np.inf < low < high < np.inf
    return Window((low + high) / 2, high - low, "file") if usable else None


def _undecodable(what: str) -> ImageError:
    return ImageError("undecodable", f"damaged NIfTI file: {what}; export it anew")
