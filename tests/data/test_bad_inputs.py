"""Bad inputs, one case a row: the stable code and HTTP status of each, through the decoder process.

Rows about requests, models and training data are tested where those are.
"""

from __future__ import annotations

import gzip
import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    JPEG2000,
    MPEG4HP41,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)
from tests.data import samples
from tests.data.samples import dicom, floats, nifti, ramp, without_pixels
from tests.data.test_images import JPEG, PNG, encoded, smooth, with_chunk, with_header

from medmoe.data.images import open_picture
from medmoe.data.intake.data_url import from_data_url
from medmoe.data.intake.sandbox import DecoderPool
from medmoe.errors import IMAGE_STATUS, ImageError

MALFORMED, UNDECODABLE = "empty_or_malformed_image", "undecodable"
BITS_ALLOCATED, BITS_ALLOCATED_TEXT = b"\x28\0\0\1US\2\0\x10\0", b"\x28\0\0\1IS\2\0AB"
DAMAGED_LUT = Dataset()
DAMAGED_LUT.LUTDescriptor = [256, 0, 8]


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(workers=1)
    yield pool
    pool.close()


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 255]) + data[position + 1 :]


def encapsulated(stream: bytes, syntax: str, bits: int = 8, **tags: Any) -> bytes:
    import pydicom

    found = samples.dataset(ramp(), syntax, **tags)
    found.BitsAllocated = found.BitsStored = bits
    found.PixelData = pydicom.encaps.encapsulate([stream])
    found["PixelData"].VR = "OB"
    return samples.written(found)


def grey_jpeg() -> bytes:
    return encoded(Image.fromarray((ramp() >> 4).astype(np.uint8)), "JPEG")


#: What stands in the table of bad inputs -> the bytes, the code, and a word of the message.
ROWS: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "0-byte file": (lambda: b"", MALFORMED, "empty file"),
    "truncated PNG": (lambda: PNG[:-40], MALFORMED, "broken PNG"),
    "truncated JPEG": (lambda: JPEG[: len(JPEG) // 2], MALFORMED, "before its last row"),
    "bad CRC": (lambda: flipped(PNG, PNG.index(b"IDAT") + 60), MALFORMED, "broken PNG"),
    "SVG": (lambda: b"<svg xmlns='x'/>", "unsupported_image_type", "neither PNG nor"),
    "EPS": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported_image_type", "neither PNG nor"),
    "PDF": (lambda: b"%PDF-1.7\n1 0 obj\n", "unsupported_image_type", "neither PNG nor"),
    "PSD": (lambda: b"8BPS\0\1" + bytes(40), "unsupported_image_type", "neither PNG nor"),
    "HTML": (lambda: b"<!DOCTYPE html><html>", "unsupported_image_type", "neither PNG nor"),
    "animated GIF": (
        lambda: encoded(smooth(), "GIF", save_all=True, append_images=[smooth().rotate(9)]),
        "unsupported_image_type",
        "convert it to PNG",
    ),
    "animated WebP": (
        lambda: encoded(smooth(), "WEBP", save_all=True, append_images=[smooth().rotate(9)]),
        "unsupported_image_type",
        "one frame of it as PNG",
    ),
    "400 Mpx PNG": (lambda: with_header(20_000, 20_000), "image_too_large", "at most 50,000,000"),
    "64 Mpx PNG of 186 KB": (samples.png_bomb, "image_too_large", "8000x8000"),
    "zTXt bomb": (
        lambda: with_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000))),
        "image_too_large",
        "text or colour profile",
    ),
    "iCCP bomb": (
        lambda: with_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(80_000_000))),
        "image_too_large",
        "text or colour profile",
    ),
    "1x1": (lambda: with_header(1, 1), "image_too_small", "at least 16"),
    "3x3": (lambda: with_header(3, 3), "image_too_small", "at least 16"),
    "1x30000": (lambda: with_header(1, 30_000), "image_too_small", "at least 16"),
    "20x600": (lambda: with_header(20, 600), "bad_aspect", "20:1"),
    "an element of DICOM alone": (
        lambda: b"\x08\0\x05\0CS" + bytes(60),
        "not_dicom",
        "no elements of one",
    ),
    "SR": (lambda: without_pixels("1.2.840.10008.5.1.4.1.1.88.11"), "no_pixel_data", "no picture"),
    "RTPLAN": (
        lambda: without_pixels("1.2.840.10008.5.1.4.1.1.481.5"),
        "no_pixel_data",
        "no picture",
    ),
    "RTSTRUCT": (
        lambda: without_pixels("1.2.840.10008.5.1.4.1.1.481.3"),
        "no_pixel_data",
        "no picture",
    ),
    "DICOMDIR": (
        lambda: (samples.ODD_FILES / "test_files/dicomdirtests/DICOMDIR").read_bytes(),
        "no_pixel_data",
        "no picture",
    ),
    "ECG": (
        lambda: (samples.ODD_FILES / "test_files/waveform_ecg.dcm").read_bytes(),
        "no_pixel_data",
        "no picture",
    ),
    "MPEG-4": (
        lambda: encapsulated(b"x" * 64, MPEG4HP41),
        "unsupported_transfer_syntax",
        "MPEG-4",
    ),
    "unknown transfer syntax": (
        lambda: encapsulated(b"x" * 64, "1.2.3.4.5"),
        "unsupported_transfer_syntax",
        "an unknown one",
    ),
    "RLE of 60000x60000": (samples.rle_bomb, "image_too_large", "60000x60000"),
    "deflate of 1 GiB": (samples.deflate_bomb, "image_too_large", "inflates to more than"),
    "broken deflate": (lambda: broken_deflate(), MALFORMED, "broken compressed file"),
    "Rows 0": (lambda: dicom(Rows=0), UNDECODABLE, "Rows is 0"),
    "Rows missing": (lambda: dicom(Rows=None), UNDECODABLE, "Rows is missing"),
    "Rows huge": (lambda: dicom(Rows=65_535), "image_too_large", "48x65535"),
    "frames -1": (lambda: dicom(NumberOfFrames="-1"), UNDECODABLE, "NumberOfFrames is -1"),
    "frames 2**31-1": (
        lambda: dicom(NumberOfFrames=str(2**31 - 1)),
        "image_too_large",
        "2,147,483,647 frames",
    ),
    "photometric interpretation missing": (
        lambda: dicom(PhotometricInterpretation=None),
        UNDECODABLE,
        "PhotometricInterpretation is missing",
    ),
    "grey of three samples": (
        lambda: dicom(np.zeros((20, 20, 3), np.uint8), PhotometricInterpretation="MONOCHROME2"),
        UNDECODABLE,
        "SamplesPerPixel is 3",
    ),
    "DICOM of NaN": (lambda: floats(np.full((20, 20), np.nan)), UNDECODABLE, "not finite"),
    "packed pixels of no named syntax": (
        lambda: samples.bare(encapsulated(grey_jpeg(), JPEGBaseline8Bit)),
        UNDECODABLE,
        "no transfer syntax",
    ),
    "BitsStored 200": (lambda: dicom(BitsStored=200), UNDECODABLE, "BitsStored is 200"),
    "BitsAllocated 7": (lambda: dicom(BitsAllocated=7), UNDECODABLE, "BitsAllocated is 7"),
    "short pixel data": (lambda: dicom(PixelData=bytes(100)), UNDECODABLE, "100 bytes of pixel"),
    "no pixel data": (lambda: dicom(PixelData=b""), "no_pixel_data", "no picture"),
    "short JPEG frame": (
        lambda: encapsulated(grey_jpeg()[:-300] + b"\xff\xd9", JPEGBaseline8Bit),
        UNDECODABLE,
        "cut short",
    ),
    "short RLE frame": (lambda: encapsulated(bytes(80), RLELossless), UNDECODABLE, "damaged"),
    "broken JPEG 2000 frame": (lambda: encapsulated(bytes(80), JPEG2000), UNDECODABLE, "damaged"),
    "slope infinite": (
        lambda: dicom(RescaleSlope="1e999", RescaleIntercept="0"),
        UNDECODABLE,
        "slope",
    ),
    "slope 0": (lambda: dicom(RescaleSlope="0", RescaleIntercept="0"), UNDECODABLE, "slope"),
    "BitsAllocated is text": (
        lambda: dicom().replace(BITS_ALLOCATED, BITS_ALLOCATED_TEXT),
        UNDECODABLE,
        "damaged DICOM file",
    ),
    "palette without LUT": (
        lambda: dicom(np.zeros((20, 20), np.uint8), PhotometricInterpretation="PALETTE COLOR"),
        UNDECODABLE,
        "lookup table",
    ),
    "VOI LUT without data": (
        lambda: dicom(VOILUTSequence=Items([DAMAGED_LUT])),
        UNDECODABLE,
        "lookup table",
    ),
    "odd photometric interpretation": (
        lambda: dicom(PhotometricInterpretation="HSV"),
        UNDECODABLE,
        "photometric",
    ),
    "NIfTI with NaN": (
        lambda: nifti(np.full((20, 20, 4), np.nan, np.float32)),
        UNDECODABLE,
        "not finite",
    ),
    "NIfTI with infinity": (
        lambda: nifti(np.full((20, 20, 4), np.inf, np.float32)),
        UNDECODABLE,
        "not finite",
    ),
    "NIfTI with a dimension of 0": (lambda: dimension(1, 0), UNDECODABLE, "dimensions"),
    "NIfTI with a negative dimension": (lambda: dimension(1, -5), UNDECODABLE, "NIfTI"),
    "NIfTI of a huge volume": (lambda: huge_volume(), "image_too_large", "volume of"),
    "NIfTI cut short": (lambda: nifti()[:-100], UNDECODABLE, "are needed"),
    "NIfTI header alone": (lambda: nifti()[:200], MALFORMED, "magic"),
    "gzip bomb": (samples.gzip_bomb, "image_too_large", "inflates to more than"),
    "gzip of something else": (
        lambda: gzip.compress(b"hello " * 100),
        "unsupported_image_type",
        "no NIfTI",
    ),
    "gzip cut short": (lambda: gzip.compress(nifti())[:-30], MALFORMED, "broken compressed"),
    "NIfTI with bad magic": (lambda: nifti().replace(b"n+1\0", b"x+1\0", 1), MALFORMED, "magic"),
    "NIfTI pair": (
        lambda: nifti().replace(b"n+1\0", b"ni1\0", 1),
        "no_pixel_data",
        "another file",
    ),
    "NIfTI of complex numbers": (
        lambda: nifti(np.zeros((20, 20, 4), np.complex64)),
        UNDECODABLE,
        "no real numbers",
    ),
}


def broken_deflate() -> bytes:
    data = samples.deflate_bomb(2**24)
    return data[:-100] + bytes(100)


def dimension(number: int, length: int) -> bytes:
    data = bytearray(nifti())
    struct.pack_into("<h", data, 40 + 2 * number, length)
    return bytes(data)


def huge_volume() -> bytes:
    data = bytearray(nifti())
    struct.pack_into("<4h", data, 40, 3, 4000, 4000, 4000)
    return bytes(data)


@pytest.mark.parametrize("row", ROWS)
def test_bad_input_has_its_code_and_one_line(row: str, pool: DecoderPool) -> None:
    make, code, part = ROWS[row]
    with pytest.raises(ImageError) as caught:
        open_picture(make(), pool=pool)
    text = str(caught.value)
    assert (caught.value.code, part in text) == (code, True), text
    assert 400 <= caught.value.status < 500
    assert len(text.splitlines()) == 1
    assert len(text) < 300
    assert not re.search(r"0x[0-9a-f]{6}|Traceback|/site-packages/", text)


def test_a_frame_that_is_claimed_but_not_there_is_refused(pool: DecoderPool) -> None:
    data = encapsulated(grey_jpeg(), JPEGBaseline8Bit, NumberOfFrames=3)
    with pytest.raises(ImageError, match="damaged"):
        open_picture(data, frame=3, pool=pool)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("renamed.dcm", b"this is a letter, not a picture", "not_dicom"),
        ("renamed.png", b"<html></html>", "unsupported_image_type"),
        ("renamed.nii", b"this is a letter, not a picture", MALFORMED),
        ("renamed.nii.gz", b"this is a letter, not a picture", MALFORMED),
    ],
)
def test_text_renamed_is_known_by_its_content(
    tmp_path: Path, name: str, content: bytes, code: str, pool: DecoderPool
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        open_picture(path, pool=pool)
    assert caught.value.code == code


def test_missing_codec_names_the_syntax_and_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels.decoders import JPEGLosslessSV1Decoder

    from medmoe.data.intake import codecs
    from medmoe.data.intake.decode import Request, decode
    from medmoe.data.intake.limits import Limits

    monkeypatch.setattr(codecs, "is_available", lambda _: False)
    monkeypatch.setattr(JPEGLosslessSV1Decoder, "_available", {})
    with pytest.raises(ImageError, match=r"JPEG Lossless.*1\.2\.840\.10008\.1\.2\.4\.70") as caught:
        decode(encapsulated(b"x" * 64, JPEGLosslessSV1), Request(), Limits())
    assert caught.value.code == "unsupported_transfer_syntax"
    assert "pip install 'medmoe[codecs]'" in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/latest/meta-data",
        "HTTPS://example.org/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "../../a.png",
        "ftp://example.org/a.png",
        "",
    ],
)
def test_addresses_and_paths_are_refused_unopened(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("something was opened")

    monkeypatch.setattr("socket.socket.connect", opened)
    monkeypatch.setattr("builtins.open", opened)
    monkeypatch.setattr("io.open", opened)
    with pytest.raises(ImageError, match="send a data URL") as caught:
        from_data_url(address, 1000)
    assert (caught.value.code, caught.value.status) == ("remote_media_disabled", 400)


@pytest.mark.parametrize(
    "text",
    [
        "data:image/png;base64,####",
        "data:image/png;base64,iVBORw0KG",
        "data:image/png;base64,aGVs=bG8",
        "data:image/png;base64,aGVsbG8%20",
        "data:image/png;base64,Größe",
        "data:image/png,plain",
        "data:image/png;base64",
        "data:",
        "data:image/png;base64,data:image/png;base64,aGVsbG8=",
    ],
)
def test_bad_base64_and_a_cut_data_url_are_malformed(text: str) -> None:
    with pytest.raises(ImageError) as caught:
        from_data_url(text, 1000)
    assert caught.value.code == MALFORMED


@pytest.mark.parametrize(
    "text",
    [
        "data:image/png;base64,+/+/aGVs\nbG8=\n",
        "data:image/png;base64,+/+/aGVs\r\nbG8=",
        "data:image/png;base64, +/+/aGVsbG8=",
        " data:image/png;base64,+/+/aGVsbG8=",
        "data:image/png;base64,-_-_aGVsbG8=",
        "data:image/png;base64,+/+/aGVsbG8",
        "data:image/png;base64,-_-_aGVsbG8",
        "data:image/png;base64,%2B%2F%2b%2faGVsbG8%3D%0A",
        "data:image/png;name=a b.png;base64,+/+/aGVsbG8=",
        'data:image/png;name="a,b;c.png";charset=utf-8;BASE64,+/+/aGVsbG8=',
    ],
)
def test_base64_is_read_as_programs_write_it(text: str) -> None:
    assert from_data_url(text, 100)[0] == b"\xfb\xff\xbfhello"


def test_a_data_url_gives_its_bytes_and_is_bounded() -> None:
    text = "data:application/dicom;base64,aGVsbG8="
    assert from_data_url(text, 5) == (b"hello", "dicom")
    with pytest.raises(ImageError) as caught:
        from_data_url("data:image/png;base64," + "A" * 4000, 1000)
    assert caught.value.code == "image_too_large"


def test_every_code_in_the_source_has_a_status(source: Path) -> None:
    used = set()
    for path in source.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        used |= set(re.findall(r'ImageError\(\s*"(\w+)"', text))
    assert used <= set(IMAGE_STATUS)
    assert set(IMAGE_STATUS) - used == set(), "a status for a code that nothing raises"
    assert set(IMAGE_STATUS.values()) <= {400, 413, 415, 422}


def test_accepted_forms_are_accepted(pool: DecoderPool) -> None:
    """The rows that say accepted: 16-bit grey, palette, 1-bit, alpha, CMYK, each by its rule."""
    deep = np.linspace(0, 65_535, 64 * 64).astype(np.uint16).reshape(64, 64)
    grey = open_picture(encoded(Image.fromarray(deep), "PNG"), pool=pool).image
    assert len(np.unique(np.asarray(grey))) == 256
    for mode, kind in (
        ("P", "PNG"),
        ("1", "PNG"),
        ("LA", "PNG"),
        ("RGBA", "PNG"),
        ("CMYK", "JPEG"),
    ):
        buffer = io.BytesIO()
        smooth().convert(mode).save(buffer, kind)
        picture = open_picture(buffer.getvalue(), pool=pool)
        assert (picture.image.mode, picture.image.size) == ("RGB", smooth().size)
