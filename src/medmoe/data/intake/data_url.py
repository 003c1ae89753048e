"""A data URL to bytes; every other address is refused unopened."""

from __future__ import annotations

import base64
import re

from medmoe.data.intake.decode import Hint
from medmoe.errors import ImageError

_HEAD = re.compile(
    r'data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=(?:"[^"]*"|[^;,"]*))*)(;base64)?,', re.IGNORECASE
)
# Base64 as programs write it: in lines, with the letters of addresses, with some signs escaped.
_USUAL = bytes.maketrans(b"-_", b"+/")
_SPACE = b" \t\r\n"
_ESCAPED = {b"%2B": b"+", b"%2F": b"/", b"%3D": b"=", b"%0A": b"", b"%0D": b""}
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
    text = text.strip()
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
    try:
        packed = text[match.end() :].encode("ascii").translate(_USUAL, _SPACE)
        for escaped, sign in _ESCAPED.items() if b"%" in packed else ():
            packed = packed.replace(escaped, sign).replace(escaped.lower(), sign)
        if len(packed) * 3 // 4 > max_bytes + 3:
            raise ImageError(
                "image_too_large", f"at most {max_bytes:,} bytes are accepted; give a smaller image"
            )
        packed = packed.rstrip(b"=")
        data = base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except ValueError:  # also of what is not ASCII
        raise ImageError(
            "empty_or_malformed_image", "broken base64 in the data URL; encode the image anew"
        ) from None
    return data, _HINTS.get((match.group(1) or "").lower())
