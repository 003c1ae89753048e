"""NIfTI-1 and NIfTI-2, plain or gzip: one axial slice of a volume, as a radiologist looks at it.

The volume is brought to its canonical axes; slices are numbered from the feet up, the middle one
is shown by default. The patient's right is on the left of the picture, the front is up. Of several
volumes the first is taken. Names, descriptions and extensions in the header are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np

from medmoe.data.intake import display
from medmoe.data.intake.decode import GZIP_START, NIFTI_SIZES
from medmoe.data.intake.display import Grey, Values, WindowChoice
from medmoe.data.intake.facts import ImageFacts, Window, spacing
from medmoe.data.intake.limits import GZIP, Limits, inflated
from medmoe.errors import ImageError

_MAGIC_1, _MAGIC_2 = b"n+1\0", b"n+2\0"
_PAIR = (b"ni1\0", b"ni2\0")  # the header alone: its pixels are in another file
_SMALL = 16


@dataclass(frozen=True, slots=True)
class _Volume:
    """An opened file and how its axes lie.

    Attributes:
        axes: For right-left, back-front and feet-head: the axis of the array.
        flips: The same three: whether the array runs the other way.
        known: Whether the file says so itself.
    """

    image: Any
    shape: tuple[int, ...]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
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
            "unsupported_image_type", "a gzip file that holds no NIfTI; give the picture itself"
        )
    return whole


def read(
    data: bytes, limits: Limits, window: WindowChoice | None, frame: int | None
) -> tuple[Grey, ImageFacts]:
    """Return one axial slice as grey (H, W) or RGB (H, W, 3), uint8, and its facts.

    Args:
        window: Center and width, or the name of a CT preset; by default the file's display range,
            else a percentile window.
        frame: The slice, from 1 at the feet; the middle one by default.

    Raises:
        ImageError: ``empty_or_malformed_image``, ``no_pixel_data``, ``image_too_large``,
            ``bad_aspect``, ``undecodable``, ``bad_window`` or ``bad_frame``.
    """
    volume = _open(plain(data, limits), limits)
    frames = volume.shape[volume.axes[2]]
    number = display.chosen_frame(frame, frames, default=(frames + 1) // 2)
    values = _slice(volume, number)
    shown: Window | None = None
    if values.ndim == 2:
        shown = _window(volume, values, window)
        pixels = display.grey(values, display.linear(shown.center, shown.width, exact=True))
    elif window is None:
        pixels = values
    else:
        raise ImageError("bad_window", "a colour picture has no window; leave the window out")
    zooms = [abs(float(zoom)) for zoom in volume.image.header.get_zooms()[:3]] + [1.0] * 3
    flags = (
        *(("orientation_unknown",) if not volume.known else ()),
        *(("first_volume",) if int(np.prod(volume.shape[3:])) > 1 else ()),
        *(("small_matrix",) if min(pixels.shape[:2]) < _SMALL else ()),
    )
    return pixels, ImageFacts(
        format="nifti",
        view="axial" if volume.known else None,
        window=shown,
        spacing=spacing((zooms[volume.axes[1]], zooms[volume.axes[0]])),
        frame=number,
        frames=frames,
        warnings=flags,
    )


def _open(data: bytes, limits: Limits) -> _Volume:
    number = NIFTI_SIZES.get(data[:4])
    magic = data[344:348] if number == 1 else data[4:8]
    if magic in _PAIR:
        raise ImageError(
            "no_pixel_data", "a NIfTI header whose pixels are in another file; give a .nii file"
        )
    if magic not in (_MAGIC_1, _MAGIC_2):
        raise _malformed("its magic number is wrong")
    kind = nibabel.Nifti1Image if number == 1 else nibabel.Nifti2Image
    try:
        image: Any = kind.from_bytes(data)
        shape = tuple(int(length) for length in image.shape)
        size = image.dataobj.dtype.itemsize
        offset = int(image.dataobj.offset)
    except MemoryError:
        raise
    except Exception:  # nibabel raises of every kind
        raise _undecodable("its header is damaged") from None
    if not shape or min(shape) < 1:
        raise _undecodable(f"its dimensions are {shape}")
    needed = size * int(np.prod(shape, dtype=object))
    if needed > max(len(data), limits.max_inflated_bytes):
        raise limits.too_large(f"a volume of {'x'.join(map(str, shape))} values")
    if offset < 0 or offset + needed > len(data):
        raise _undecodable(f"{len(data):,} bytes, {offset + needed:,} are needed")
    shape = (*shape, 1, 1)[: max(3, len(shape))]
    axes, flips, known = _orientation(image)
    limits.check_size(shape[axes[0]], shape[axes[1]], min_side=1)
    return _Volume(image, shape, axes, flips, known)


def _orientation(image: Any) -> tuple[tuple[int, int, int], tuple[bool, bool, bool], bool]:
    """Return where right-left, back-front and feet-head lie, which run backwards, if it is told."""
    header = image.header
    try:
        told = bool(header["qform_code"] > 0 or header["sform_code"] > 0)
        orientation = nibabel.orientations.io_orientation(image.affine)
    except Exception:  # a singular or non-finite matrix
        told, orientation = False, None
    if orientation is None or not np.isfinite(orientation).all():
        return (0, 1, 2), (False, False, False), False
    places = [int(place) for place in orientation[:, 0]]
    axes = (places.index(0), places.index(1), places.index(2))
    flips = tuple(bool(orientation[axis, 1] < 0) for axis in axes)
    return axes, (flips[0], flips[1], flips[2]), told


def _slice(volume: _Volume, number: int) -> Values:
    """Return one axial slice, front up and the patient's right on the left, rescaled."""
    right, front, up = volume.axes
    length = volume.shape[up]
    place: list[Any] = [slice(None)] * 3 + [0] * (len(volume.shape) - 3)
    place[up] = length - number if volume.flips[2] else number - 1
    stored = volume.image.dataobj
    try:
        if len(stored.shape) < 3:
            stored = np.asarray(stored).reshape(volume.shape)
        values = np.asarray(stored[tuple(place)])
    except MemoryError:
        raise
    except Exception:  # nibabel raises of every kind
        raise _undecodable("its voxels cannot be read") from None
    if values.dtype.fields:
        values = np.stack([values[channel] for channel in "RGB"], axis=-1)
    if values.dtype.kind not in "iufb":
        raise _undecodable("its voxels are no real numbers")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise _undecodable("voxels of this slice are not finite numbers (NaN); replace them by 0")
    if right > front:
        values = values.swapaxes(0, 1)
    # Now (right-left, back-front): rows run from front to back, columns from right to left.
    values = values[:: -1 if not volume.flips[0] else 1]
    values = values[:, :: -1 if not volume.flips[1] else 1]
    return np.ascontiguousarray(values.swapaxes(0, 1))


def _window(volume: _Volume, values: Values, window: WindowChoice | None) -> Window:
    if window is not None:
        return display.requested(window, None)
    low, high = (float(volume.image.header[key]) for key in ("cal_min", "cal_max"))
    if np.isfinite([low, high]).all() and high > low:
        return Window((low + high) / 2, high - low, "file")
    return display.fitted(values, display.rescaled(1, 0))


def _malformed(what: str) -> ImageError:
    return ImageError("empty_or_malformed_image", f"no NIfTI file: {what}; export it anew")


def _undecodable(what: str) -> ImageError:
    return ImageError("undecodable", f"damaged NIfTI file: {what}; export it anew")
