"""A data URL to bytes; every other address is refused unopened."""

from __future__ import annotations

import base64
import binascii
import re

from medmoe.data.intake.decode import Hint
from medmoe.errors import ImageError

_HEAD = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[\w.+-]+)*)(;base64)?,", re.IGNORECASE)
_HINTS: dict[str, Hint] = {
    "application/dicom": "dicom",
    "image/dicom": "dicom",
    "application/nifti": "nifti",
    "image/nifti": "nifti",
}


def from_data_url(text: str, max_bytes: int) -> tuple[bytes, Hint | None]:
    """Return the bytes of a data URL, and what it says they are.

    Args:
        max_bytes: Of the picture, checked before decoding.

    Raises:
        ImageError: ``remote_media_disabled`` for any other address and for a path, neither of which
            is opened; ``empty_or_malformed_image``; ``image_too_large``.
    """
    if text[:5].lower() != "data:":
        raise ImageError(
            "remote_media_disabled",
            "images are neither fetched from addresses nor read from paths; send a data URL",
        )
    match = _HEAD.match(text[:300])
    if match is None or not match.group(3):
        raise ImageError(
            "empty_or_malformed_image", "not a data URL in base64; send data:image/png;base64,…"
        )
    if (len(text) - match.end()) * 3 // 4 > max_bytes + 3:
        raise ImageError(
            "image_too_large", f"at most {max_bytes:,} bytes are accepted; give a smaller image"
        )
    try:
        data = base64.b64decode(text[match.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(
            "empty_or_malformed_image", "broken base64 in the data URL; encode the image anew"
        ) from None
    return data, _HINTS.get((match.group(1) or "").lower())
