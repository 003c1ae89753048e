"""JPEG Lossless and 12-bit JPEG by imagecodecs, the extra ``codecs``: a decoding plugin of pydicom.

Without the extra, files of these transfer syntaxes are refused by name.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from pydicom import uid

from medmoe.data.intake.raster import with_noise

#: In pydicom's words: which package decodes what.
DECODER_DEPENDENCIES = {
    uid.JPEGExtended12Bit: ("imagecodecs",),
    uid.JPEGLossless: ("imagecodecs",),
    uid.JPEGLosslessSV1: ("imagecodecs",),
}
_LABEL = "imagecodecs"


def is_available(transfer_syntax: str) -> bool:
    """Return whether this plugin can decode a transfer syntax here; pydicom asks by this name."""
    return transfer_syntax in DECODER_DEPENDENCIES and find_spec("imagecodecs") is not None


def decode_frame(source: bytes, runner: Any) -> bytes:
    """Return the pixels of one frame; pydicom calls this.

    Args:
        source: The JPEG stream.
        runner: pydicom's ``DecodeRunner``, which is told the size of the samples.
    """
    import imagecodecs

    # No conversion of colours: the photometric interpretation of the file says what they are.
    space = "RGB" if runner.samples_per_pixel == 3 else None
    pixels, again = (
        imagecodecs.jpeg8_decode(data, colorspace=space, outcolorspace=space)
        for data in (source, with_noise(source))
    )
    if not np.array_equal(pixels, again):
        raise ValueError("the stream is cut short")
    if pixels.shape[:2] != (runner.rows, runner.columns):
        raise ValueError("size of the stream and of the header differ")
    runner.set_option("bits_allocated", 8 * pixels.dtype.itemsize)
    runner.set_option("planar_configuration", 0)
    return np.ascontiguousarray(pixels).tobytes()


def prepare() -> None:
    """Import all of the extra that is used, which it does itself when a function is first named."""
    register()
    if find_spec("imagecodecs") is not None:
        getattr(import_module("imagecodecs"), "jpeg8_decode")  # noqa: B009


def register() -> None:
    """Tell pydicom of this plugin, once; nothing happens without the extra."""
    from pydicom.pixels.decoders.base import get_decoder

    for syntax in DECODER_DEPENDENCIES:
        decoder = get_decoder(syntax)
        known = {*decoder.available_plugins, *decoder.missing_dependencies}
        if is_available(syntax) and not any(_LABEL in name for name in known):
            decoder.add_plugin(_LABEL, (__name__, decode_frame.__name__))
