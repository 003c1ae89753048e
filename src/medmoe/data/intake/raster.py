"""PNG, JPEG, TIFF, WebP and BMP: upright, RGB, 8 bits, or a clear refusal.

Conversions: EXIF orientation is applied; palette, 1-bit and grey pictures become RGB; transparent
ones are composited on black (the background of a radiograph); CMYK becomes RGB; grey of
more than 8 bits is scaled so that its darkest pixel is 0 and its brightest 255. Of several frames
the first is taken; an animated WebP is refused.
Texts inside a file (comments, EXIF) are dropped with the file.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageChops, ImageOps, UnidentifiedImageError

from medmoe.data.intake import display
from medmoe.data.intake.limits import Limits
from medmoe.errors import ImageError

PNG_START = b"\x89PNG\r\n\x1a\n"
JPEG_START = b"\xff\xd8\xff"

#: Colour type -> samples per pixel, and the passes (left, top, steps) of an interlaced PNG.
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
_INFLATE_BYTES = 2**20
_PHOTOMETRIC = 262  # a tag of TIFF: which colour 0 is
_BLOCK_PIXELS = 2**20
JPEG_END = b"\xff\xd9"
_JPEG_SCAN = b"\xff\xda"
#: Not zeros, which a JPEG decoder fills in by itself, and no 255, which begins a marker.
_NOISE = bytes((85 + 97 * step) % 255 for step in range(1000))
#: What Pillow raises on broken files of these two formats.
_BROKEN = (
    *(OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError),
    *(OverflowError, struct.error, zlib.error),
)


class _EndsEarlyError(OSError):
    """The pixel data stops before the last row."""


def read(data: bytes, kind: str, limits: Limits) -> tuple[Image.Image, tuple[str, ...]]:
    """Return an upright RGB picture, and warnings about it.

    Args:
        kind: In Pillow's words.

    Raises:
        ImageError: With the code ``empty_or_malformed_image``, ``image_too_large``,
            ``image_too_small`` or ``bad_aspect``.
    """
    try:
        picture = _open_header(data, kind)
        limits.check_size(*picture.size)
        if kind == "PNG":
            # Decoding skips the checksums of the pixel data, verifying reads them all.
            picture.verify()
            picture = _open_header(data, kind)
        picture.load()
        tags = getattr(picture, "tag_v2", {})
        if picture.mode == "I;16" and tags.get(_PHOTOMETRIC) == 0:  # is white, as Pillow forgets
            picture = Image.fromarray(65_535 - np.asarray(picture))
        several = getattr(picture, "n_frames", 1) > 1
        if kind == "WEBP" and several:
            raise ImageError("unsupported_image_type", "animated WebP; give one frame of it as PNG")
        if kind == "PNG" and _png_ends_early(data):
            raise _EndsEarlyError
        if kind == "JPEG" and jpeg_ends_early(data, picture):
            raise _EndsEarlyError
        return to_rgb(picture), ("first_of_several",) if several else ()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise limits.too_large("the header claims far more pixels") from None
    except _BROKEN as error:
        if "too large" in str(error):
            # A small compressed text or colour profile that inflates without end.
            raise ImageError(
                "image_too_large", "a text or colour profile in the file is too large; remove it"
            ) from None
        # Pillow's own words may quote what stands in the file.
        reason = "it is damaged"
        if isinstance(error, UnidentifiedImageError):
            reason = "unreadable header"
        elif isinstance(error, _EndsEarlyError) or "truncated" in str(error):
            reason = "the picture ends before its last row"
        raise ImageError(
            "empty_or_malformed_image", f"broken {kind} file ({reason}); save it again"
        ) from None


def _open_header(data: bytes, kind: str) -> Image.Image:
    return Image.open(BytesIO(data), formats=(kind,))


def with_noise(data: bytes) -> bytes:
    """Return a JPEG with noise put before its end mark: a complete picture never reads it.

    Where a JPEG runs out of data before its end mark, decoders fill the rest with grey and only
    warn, which Pillow hides. Decoded once more with noise there, such a picture looks different.
    """
    end = data.rfind(JPEG_END)
    if end < data.rfind(_JPEG_SCAN):
        end = len(data)  # no end mark of its own; the last one belongs to the thumbnail, if any
    # A 255 before the noise would make a marker with the byte that follows unless that is 0.
    gap = b"\0" if data[:end].endswith(b"\xff") else b""
    return data[:end] + gap + _NOISE + JPEG_END


def jpeg_ends_early(data: bytes, picture: Image.Image) -> bool:
    """Return whether a JPEG ran out of data before its end mark, see `with_noise`.

    Args:
        data: The file.
        picture: Opened from it by Pillow, and loaded.
    """
    again = Image.open(BytesIO(with_noise(data)), formats=("JPEG",))
    try:
        again.load()
    except OSError:
        return True
    return any(
        ImageChops.difference(_part(again, box), _part(picture, box)).getbbox(alpha_only=False)
        for box in _strips(picture)
    )


def _png_ends_early(data: bytes) -> bool:
    """Return whether a PNG, checksums verified, holds fewer bytes than its rows need.

    Pillow takes a pixel stream that ends too soon as the end of the picture and leaves black.
    """
    missing = _png_row_bytes(data)
    stream = zlib.decompressobj()
    position = len(PNG_START)
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
    turned = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
    if picture.mode == "RGB" and "transparency" not in picture.info and not turned:
        return picture
    picture = ImageOps.exif_transpose(picture)
    if picture.mode[0] in "IF":
        return Image.fromarray(_stretched(np.asarray(picture))).convert("RGB")
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        return _on_black(picture)
    return picture.convert("RGB")


def _on_black(picture: Image.Image) -> Image.Image:
    """Return a transparent picture composited on black, strip by strip to save memory."""
    out = Image.new("RGB", picture.size)
    for box in _strips(picture):
        strip = picture.crop(box)
        strip.info = picture.info  # the transparent colour stands there
        layer = strip.convert("RGBA")
        black = Image.new("RGBA", layer.size, (0, 0, 0, 255))
        out.paste(Image.alpha_composite(black, layer).convert("RGB"), box[:2])
    return out


def _strips(picture: Image.Image) -> list[tuple[int, int, int, int]]:
    width, height = picture.size
    step = max(1, _BLOCK_PIXELS // width)
    return [(0, top, width, min(top + step, height)) for top in range(0, height, step)]


def _part(picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Return a part of a picture; the whole of it is not copied."""
    return picture if box == (0, 0, *picture.size) else picture.crop(box)


def _stretched(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Return deep grey as 8 bits from its minimum to its maximum; a flat picture keeps its level.

    Minimum to maximum, not percentiles: no pixel is clipped, whatever the device meant by it.
    """
    numbers = values[np.isfinite(values)]
    low, high = (float(numbers.min()), float(numbers.max())) if numbers.size else (0.0, 0.0)
    if high == low:
        low, high = 0.0, 65_535.0
    return display.grey(values, lambda wide: (wide - low) * (1 / (high - low)))
