"""Inflating with a bound: a small file must not become a large one."""

from __future__ import annotations

import zlib
from io import BytesIO

from medmoe.errors import ImageError

GZIP = 31  # zlib's words for the container
RAW_DEFLATE = -15
_STEP = 4 * 2**20


def inflated(data: bytes | memoryview, container: int, limit: int) -> bytes:
    """Return the inflated bytes.

    Args:
        container: `GZIP` or `RAW_DEFLATE`.
        limit: The most bytes that are accepted.

    Raises:
        ImageError: There are more, or the stream is broken or ends early.
    """
    stream = zlib.decompressobj(container)
    out = BytesIO()  # gives its bytes away without another copy
    rest = bytes(data)
    try:
        while not stream.eof:
            piece = stream.decompress(rest, _STEP)
            rest = stream.unconsumed_tail
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
