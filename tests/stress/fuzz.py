"""Broken pictures by number: each number always gives the same mutated PNG or JPEG file."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from medmoe.data.images import open_image
from medmoe.errors import ImageError

CODES = {
    "image_not_found", "unsupported_image_type", "empty_or_malformed_image", "image_too_large",
    "image_too_small", "bad_aspect",
}  # fmt: skip
_PNG_START = b"\x89PNG\r\n\x1a\n"
#: Numbers that size, offset and count fields break on.
_EXTREMES = (0, 1, 2, 15, 16, 127, 255, 256, 16_384, 65_535, 2**31 - 1, 2**31, 2**32 - 1)


@lru_cache
def originals() -> tuple[bytes, ...]:
    """Return whole files of every mode that a medical picture comes in."""
    rng = np.random.default_rng(0)
    grey = Image.fromarray(rng.integers(0, 256, (24, 30), dtype=np.uint8))
    smooth = grey.resize((60, 40), Image.Resampling.BICUBIC)
    colour = Image.merge("RGB", [smooth, smooth.rotate(180), smooth.point(lambda v: 255 - v)])
    deep = Image.fromarray(rng.integers(0, 65_536, (24, 30), dtype=np.uint16))
    faint = Image.merge("LA", [smooth, smooth.rotate(180)])
    found = [_file(image, "PNG") for image in (smooth, colour, deep, faint)]
    found += [_file(smooth.convert("1"), "PNG"), _file(colour.convert("RGBA"), "PNG")]
    found.append(_file(colour.quantize(16), "PNG", transparency=3))
    found += [_file(image, "JPEG") for image in (smooth, colour, colour.convert("CMYK"))]
    found.append(_file(colour, "JPEG", progressive=True))
    upright = Image.Exif()
    upright[0x0112] = 6
    found.append(_file(colour, "JPEG", exif=upright.tobytes()))
    return tuple(found)


def _file(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def mutated(number: int) -> bytes:
    """Return the broken file of a number: one to four mutations of one of the originals."""
    rng = random.Random(number)
    files = originals()
    data = bytearray(files[number % len(files)])
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(_MUTATIONS)(data, rng)
    if data.startswith(_PNG_START) and rng.random() < 0.5:
        # Or the checksum alone would refuse the file, and nothing behind it would be tried.
        return _with_checksums(bytes(data))
    return bytes(data)


def _place(data: bytearray, rng: random.Random) -> int:
    """Return a position, half of the time in the header."""
    end = len(data) if rng.random() < 0.5 else min(64, len(data))
    return rng.randrange(end) if end else 0


def _flip_bit(data: bytearray, rng: random.Random) -> None:
    if data:
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _extreme_number(data: bytearray, rng: random.Random) -> None:
    size, start = rng.choice((1, 2, 4)), _place(data, rng)
    value = rng.choice(_EXTREMES) % 256**size
    data[start : start + size] = value.to_bytes(size, rng.choice(("big", "little")))


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[_place(data, rng) :]


def _delete(data: bytearray, rng: random.Random) -> None:
    start = _place(data, rng)
    del data[start : start + rng.choice((1, 2, 8, 64))]


def _insert(data: bytearray, rng: random.Random) -> None:
    start = _place(data, rng)
    data[start:start] = rng.randbytes(rng.choice((1, 4, 32)))


def _repeat(data: bytearray, rng: random.Random) -> None:
    start = _place(data, rng)
    data[start:start] = data[start : start + rng.choice((4, 32, 256))]


def _splice(data: bytearray, rng: random.Random) -> None:
    other = rng.choice(originals())
    data[_place(data, rng) :] = other[rng.randrange(len(other)) :]


_MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(_flip_bit, _flip_bit, _extreme_number, _extreme_number),
    *(_truncate, _delete, _insert, _repeat, _splice),
)


def _with_checksums(data: bytes) -> bytes:
    """Return a PNG whose chunks, as far as they can be followed, have right checksums."""
    out, position = bytearray(data[:8]), 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        body = data[position + 4 : end]
        out += data[position : position + 4] + body + struct.pack(">I", zlib.crc32(body))
        position = end + 4
    return bytes(out) + data[position:]


def try_all(numbers: Iterable[int], folder: Path) -> tuple[Counter[str], list[str]]:
    """Open the broken files of some numbers.

    Returns:
        How many gave a picture, and each error code; and a line for everything else.
    """
    counts: Counter[str] = Counter()
    faults = []
    path = folder / "mutated"
    for number in numbers:
        path.write_bytes(mutated(number))
        try:
            picture = open_image(path)
        except ImageError as error:
            counts[error.code] += 1
            if error.code not in CODES or len(str(error).splitlines()) != 1:
                faults.append(f"{number}: {error.code}: {error}")
        except Exception as error:  # what must not happen: named here, not raised
            faults.append(f"{number}: {type(error).__name__}: {error}")
        else:
            counts["picture"] += 1
            if picture.mode != "RGB" or min(picture.size) < 1:
                faults.append(f"{number}: a picture of mode {picture.mode} and size {picture.size}")
    return counts, faults
