"""What a picture may cost: its size before decoding, inflating, memory and time while decoding.

And what every reader does with the errors of a library (`or_else`).
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

from medmoe.errors import ImageError

#: Between rows and between columns, None where it is not known.
Spacing = tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the intake; the defaults are those the documentation promises.

    Attributes:
        max_file_bytes: Of one file, as it is stored.
        max_inflated_bytes: Of a gzip NIfTI or a deflated DICOM file, inflated.
        max_pixels: Of one frame.
        max_volume_pixels: Of all frames together, of which one is decoded.
        min_side: Pixels a side of PNG and JPEG. A DICOM or NIfTI matrix may be smaller (dose grids
            are) and gets a warning.
        max_aspect: Long side over short side.
        memory_bytes: Address space of the decoder process.
        cpu_seconds: Processor time of one decoding.
        wall_seconds: Time of one decoding, for a decoder that sleeps.
    """

    max_file_bytes: int = 64 * 2**20
    max_inflated_bytes: int = 256 * 2**20
    max_pixels: int = 50_000_000
    max_volume_pixels: int = 2**31
    min_side: int = 16
    max_side: int = 16_384
    max_aspect: int = 20
    memory_bytes: int = 2**30
    cpu_seconds: float = 3.0
    wall_seconds: float = 10.0

    def check_file(self, size: int) -> None:
        """Refuse a file of too many bytes."""
        if size > self.max_file_bytes:
            raise ImageError(
                "image_too_large",
                f"the image file has {size:,} bytes, at most {self.max_file_bytes:,} are accepted; "
                "give a smaller picture",
            )

    def check_size(
        self, width: int, height: int, *, min_side: int | None = None, spacing: Spacing = None
    ) -> None:
        """Refuse a size outside the limits, before any pixel is decoded."""
        short, long = sorted((width, height))
        size = f"{width}x{height} pixels"
        least = self.min_side if min_side is None else min_side
        if short < least:
            raise ImageError(
                "image_too_small", f"{size}: each side needs at least {least}; give a larger image"
            )
        if long > self.max_side or width * height > self.max_pixels:
            raise self.too_large(size)
        short, long = sorted(self.squared(width, height, spacing))
        if long > self.max_aspect * short:
            raise ImageError(
                "bad_aspect", f"{size}: at most {self.max_aspect}:1 is accepted; crop the image"
            )

    def squared(self, width: int, height: int, spacing: Spacing) -> tuple[int, int]:
        """Return width and height of a picture once its pixels are square.

        The finer spacing is kept where that is not too large. Spacings that differ by no more than
        a hundredth, or more than any picture may (they are wrong), leave it as it is.
        """
        row, column = spacing or (1.0, 1.0)
        finer = min(row, column)
        if not 1.01 < max(row, column) / finer <= self.max_aspect:
            return width, height
        across, down = width * column / finer, height * row / finer
        fits = self.max_side / max(across, down), math.sqrt(self.max_pixels / (across * down))
        shrink = min(1, *fits)
        return max(1, round(across * shrink)), max(1, round(down * shrink))

    def too_large(self, size: str) -> ImageError:
        """Return the error for a picture of too many pixels."""
        return ImageError(
            "image_too_large",
            f"{size}: at most {self.max_pixels:,} pixels and {self.max_side} a side are accepted; "
            "make the image smaller",
        )


@contextmanager
def or_else(error: ImageError) -> Iterator[None]:
    """Raise an error for a library, whose own are of every kind, and whose words quote values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (ImageError, MemoryError):
            raise
        except Exception:  # anew: one that is raised again keeps the frames of the first time
            raise ImageError(error.code, str(error)) from None


GZIP = 31  # zlib's words for the container
RAW_DEFLATE = -15
GZIP_START = b"\x1f\x8b"
_STEP, _READ = 4 * 2**20, 2**16  # bytes that come out and go in at once


def inflated(data: bytes | memoryview, container: int, limit: int) -> bytes:
    """Return the inflated bytes, within a bound: a small file must not become a large one.

    All members of a gzip file are read; what else follows is not.

    Args:
        container: `GZIP` or `RAW_DEFLATE`.
        limit: The most bytes that are accepted.

    Raises:
        ImageError: There are more, or the stream is broken or ends early.
    """
    stream = zlib.decompressobj(container)
    out = BytesIO()  # gives its bytes away without another copy
    data, position, rest = memoryview(data), 0, b""
    try:
        while not stream.eof or (container == GZIP and data[position:][:2] == GZIP_START):
            if stream.eof:
                stream = zlib.decompressobj(container)
            rest = stream.unconsumed_tail or bytes(data[position : position + _READ])
            position += 0 if stream.unconsumed_tail else len(rest)
            piece = stream.decompress(rest, _STEP)
            position -= len(stream.unused_data)
            out.write(piece)
            if out.tell() > limit:
                raise ImageError(
                    "image_too_large",
                    f"the compressed file inflates to more than {limit:,} bytes; "
                    "give one picture or one volume of it",
                )
            if not (piece or rest or stream.eof):
                raise zlib.error("ends early")
    except zlib.error:
        raise ImageError(
            "empty_or_malformed_image", "broken compressed file; save or export it again"
        ) from None
    return out.getvalue()
