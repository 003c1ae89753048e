"""Broken pictures by number: each number always gives the same mutated file.

PNG, JPEG, DICOM of every transfer syntax that is decoded, and NIfTI, plain and gzip.
"""

from __future__ import annotations

import gzip
import io
import random
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np
from PIL import Image
from tests.data import samples

from medmoe.data.images import open_picture
from medmoe.data.intake.sandbox import DecoderPool
from medmoe.errors import IMAGE_STATUS, ImageError

#: A call that takes longer than this, in seconds, counts as a hang.
HANG = 5.0
#: Odd files of pydicom, one for each way of storing pixels; small, so that a run is short.
_DICOM_FILES = (
    "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_bigendian.dcm",
    "MR_small_jpeg_ls_lossless.dcm", "SC_rgb_rle_2frame.dcm", "SC_rgb_dcmtk_+eb+cy+np.dcm",
    "SC_ybr_full_422_uncompressed.dcm", "SC_rgb_gdcm_KY.dcm", "rtdose_rle.dcm", "image_dfl.dcm",
    "liver_1frame.dcm", "MR_small_implicit.dcm", "CT_small.dcm",
)  # fmt: skip
_PNG_START, _GZIP_START = b"\x89PNG\r\n\x1a\n", b"\x1f\x8b"
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
    volumes = [samples.nifti(), samples.nifti(samples.volume().astype(np.float32))]
    found += [*volumes, *(gzip.compress(one, mtime=0) for one in volumes)]
    enhanced = np.stack([samples.ramp(), samples.ramp()[::-1]])
    found += [samples.dicom(enhanced, RescaleSlope="2", RescaleIntercept="-9")]
    found += [next(samples.ODD_FILES.rglob(name)).read_bytes() for name in _DICOM_FILES]
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
    original = files[number % len(files)]
    if original.startswith(_GZIP_START) and rng.random() < 0.7:
        # The same for a gzip: what is inside is mutated, and packed again.
        inside = bytearray(gzip.decompress(original))
        rng.choice(_MUTATIONS)(inside, rng)
        return gzip.compress(bytes(inside), mtime=0)
    return bytes(data)


def _place(data: bytearray, rng: random.Random) -> int:
    """Return a position, most of the time in the header: DICOM and NIfTI have long ones."""
    end = min(rng.choice((64, 400, 2000, len(data))), len(data))
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


def try_all(numbers: Iterable[int], pool: DecoderPool) -> tuple[Counter[str], list[str]]:
    """Open the broken files of some numbers.

    Returns:
        How many gave a picture, and each error code; and a line for everything else, a hang too.
    """
    counts: Counter[str] = Counter()
    faults = []
    for number in numbers:
        start = time.monotonic()
        try:
            picture = open_picture(mutated(number), pool=pool).image
        except ImageError as error:
            counts[error.code] += 1
            if error.code not in IMAGE_STATUS or len(str(error).splitlines()) != 1:
                faults.append(f"{number}: {error.code}: {error}")
        except Exception as error:  # what must not happen: named here, not raised
            faults.append(f"{number}: {type(error).__name__}: {error}")
        else:
            counts["picture"] += 1
            if picture.mode != "RGB" or min(picture.size) < 1:
                faults.append(f"{number}: a picture of mode {picture.mode} and size {picture.size}")
        if time.monotonic() - start > HANG:
            faults.append(f"{number}: took {time.monotonic() - start:.1f} s")
    return counts, faults
