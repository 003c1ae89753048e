"""Opening one picture: PNG or JPEG by content, upright, RGB, 8 bits, or a clear refusal.

Conversions: EXIF orientation is applied; palette, 1-bit and grey pictures become RGB; transparent
ones are composited on black (the background of a radiograph); CMYK becomes RGB; 16-bit grey is
scaled so that its darkest pixel is 0 and its brightest 255. Of several frames the first is taken.

It knows no DICOM, opens no address and isolates nothing: callers decide what a file may be.
"""

from __future__ import annotations

import logging
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from medmoe.data.schema import Pixels
from medmoe.errors import ImageError

MAX_FILE_BYTES = 64 * 2**20
MAX_PIXELS = 50_000_000
MIN_SIDE = 16
MAX_SIDE = 16_384
MAX_ASPECT = 20

_log = logging.getLogger(__name__)

_PNG_START = b"\x89PNG\r\n\x1a\n"
#: Colour type -> samples per pixel, and the passes (left, top, steps) of an interlaced PNG.
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
_INFLATE_BYTES = 2**20
_JPEG_START = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_JPEG_SCAN = b"\xff\xda"
_KINDS = (("PNG", _PNG_START), ("JPEG", _JPEG_START))
#: What Pillow raises on broken files of these two formats.
_BROKEN = (
    *(OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError),
    *(OverflowError, struct.error, zlib.error),
)


def open_image(source: Path | bytes | Pixels) -> Image.Image:
    """Return a picture as an upright RGB image of 8 bits per channel.

    Args:
        source: A PNG or JPEG file, the bytes of one, or pixels (H, W) or (H, W, 3), uint8, which
            come from a reader and are not held to the limits for files.

    Raises:
        ImageError: With the code ``image_not_found``, ``unsupported_image_type``,
            ``empty_or_malformed_image``, ``image_too_large``, ``image_too_small`` or
            ``bad_aspect``.
    """
    if isinstance(source, np.ndarray):
        return _from_pixels(source)
    if isinstance(source, Path):
        data, name = _read_bytes(source), source.name
    else:
        data, name = source, "image"
    kind = _kind(data, name)
    try:
        picture = _open_header(data, kind)
        _check_size(*picture.size, name)
        if kind == "PNG":
            # Decoding skips the checksums of the pixel data, verifying reads them all.
            picture.verify()
            picture = _open_header(data, kind)
        picture.load()
        if _png_ends_early(data) if kind == "PNG" else _jpeg_ends_early(data, picture):
            raise OSError("the picture ends before its last row")
        if getattr(picture, "n_frames", 1) > 1:
            _log.warning("%s holds several frames; the first is used", name)
        return to_rgb(picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(name, "its header claims far more") from None
    except _BROKEN as error:
        if "too large" in str(error):
            # A small compressed text or colour profile that inflates without end.
            raise ImageError(
                "image_too_large", f"{name}: a text or colour profile in it is too large; remove it"
            ) from None
        # Pillow's own words here hold the address of an object.
        reason = "unreadable header" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ImageError(
            "empty_or_malformed_image", f"{name}: broken {kind} file ({reason}); save it again"
        ) from error


def _from_pixels(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """Return reader pixels as an image."""
    grey_or_rgb = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not grey_or_rgb or not pixels.size:
        raise ImageError(
            "unsupported_image_type",
            f"pixels are {pixels.dtype} {pixels.shape}; they must be uint8 (H, W) or (H, W, 3)",
        )
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def _read_bytes(path: Path) -> bytes:
    """Return the bytes of a file that is not too large."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ImageError(
                "image_too_large",
                f"{path.name}: {path.stat().st_size:,} bytes, at most {MAX_FILE_BYTES:,}; "
                "give a smaller picture",
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        # ValueError: a path with a NUL in it.
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(
            "image_not_found", f"cannot read image {str(path)!r}: {reason}; give an existing file"
        ) from error


def _kind(data: bytes, name: str) -> str:
    """Return ``PNG`` or ``JPEG`` by the first bytes."""
    if not data:
        raise ImageError("empty_or_malformed_image", f"{name}: empty file; give a PNG or JPEG")
    for kind, start in _KINDS:
        if data.startswith(start):
            return kind
        if start.startswith(data):
            raise ImageError(
                "empty_or_malformed_image", f"{name}: {kind} file of {len(data)} bytes; cut short"
            )
    raise ImageError(
        "unsupported_image_type", f"{name}: neither PNG nor JPEG by its content; convert it to PNG"
    )


def _open_header(data: bytes, kind: str) -> Image.Image:
    return Image.open(BytesIO(data), formats=(kind,))


def _check_size(width: int, height: int, name: str) -> None:
    """Refuse a size outside the limits, before any pixel is decoded."""
    short, long = sorted((width, height))
    size = f"{width}x{height} pixels"
    if short < MIN_SIDE:
        raise ImageError(
            "image_too_small", f"{name}: {size}, each side needs at least {MIN_SIDE}; enlarge it"
        )
    if long > MAX_SIDE or width * height > MAX_PIXELS:
        raise _too_large(name, size)
    if long > MAX_ASPECT * short:
        raise ImageError(
            "bad_aspect", f"{name}: {size}, at most {MAX_ASPECT}:1 is accepted; crop it"
        )


def _too_large(name: str, size: str) -> ImageError:
    return ImageError(
        "image_too_large",
        f"{name}: {size}, at most {MAX_PIXELS:,} pixels and {MAX_SIDE} a side; make it smaller",
    )


def _jpeg_ends_early(data: bytes, picture: Image.Image) -> bool:
    """Return whether a JPEG ran out of data before its end mark.

    The decoder then fills the rest with grey and only warns, which Pillow hides. So the bytes are
    decoded once more with noise put before the end mark: a complete picture never reads it.
    """
    end = data.rfind(_JPEG_END)
    if end < data.rfind(_JPEG_SCAN):
        end = len(data)  # no end mark of its own; the last one belongs to the thumbnail, if any
    # Not zeros, which the decoder fills in by itself; and no 255, also not before, which would
    # make a marker with the byte that follows unless that is 0.
    noise = bytes((85 + 97 * step) % 255 for step in range(1000))
    if data[:end].endswith(b"\xff"):
        noise = b"\0" + noise
    again = Image.open(BytesIO(data[:end] + noise + _JPEG_END), formats=("JPEG",))
    try:
        again.load()
    except OSError:
        return True
    return again.tobytes() != picture.tobytes()


def _png_ends_early(data: bytes) -> bool:
    """Return whether a PNG, checksums verified, holds fewer bytes than its rows need.

    Pillow takes a pixel stream that ends too soon as the end of the picture and leaves black.
    """
    missing = _png_row_bytes(data)
    stream = zlib.decompressobj()
    position = len(_PNG_START)
    while missing > 0 and position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        if data[position + 4 : position + 8] == b"IDAT":
            rest = data[position + 8 : position + 8 + length]
            while missing > 0 and (piece := stream.decompress(rest, _INFLATE_BYTES)):
                missing -= len(piece)
                rest = stream.unconsumed_tail
        position += 12 + length
    return missing > 0


def _png_row_bytes(data: bytes) -> int:
    """Return how many bytes the rows of a PNG take before compression, filter bytes included."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits = depth * _PNG_CHANNELS[colour]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    total = 0
    for left, top, step_x, step_y in passes:
        columns = -(-(width - left) // step_x)
        rows = -(-(height - top) // step_y)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return a Pillow image upright and as RGB of 8 bits, by the rules of this module.

    It checks no size and leaves the picture given as it is.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        return _from_pixels(_stretched(np.asarray(picture)))
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        black = Image.new("RGBA", layer.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, layer).convert("RGB")
    return picture.convert("RGB")


def _stretched(values: npt.NDArray[np.generic]) -> Pixels:
    """Return 16-bit grey as 8 bits from its minimum to its maximum; a flat picture keeps its level.

    Minimum to maximum, not percentiles: no pixel is clipped, whatever the device meant by it.
    """
    wide = values.astype(np.float64)
    low, high = wide.min(), wide.max()
    if high == low:
        low, high = 0.0, 65_535.0
    scaled = np.round((wide - low) * (255.0 / (high - low))).clip(0, 255)
    return np.asarray(scaled, dtype=np.uint8)
