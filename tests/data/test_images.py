"""Opening pictures: every accepted kind comes out right, every bad one with its stable code."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.data.samples import dicom

from medmoe.data.images import open_image, open_picture, to_rgb
from medmoe.data.intake.limits import Limits
from medmoe.errors import ImageError

WIDTH, HEIGHT = 80, 64
MALFORMED = "empty_or_malformed_image"
Chunks = list[tuple[bytes, bytes]]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth() -> Image.Image:
    """Return a picture without flat parts, so that missing rows show."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    red = 127 + 100 * np.sin(rows / 5 + columns / 9)
    green = 127 + 100 * np.cos(rows / 7 - columns / 4)
    return Image.fromarray(np.stack([red, green, 40 + 2 * rows], 2).astype(np.uint8))


def split_png(data: bytes) -> Chunks:
    chunks, position = [], 8
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        start = position + 8
        chunks.append((data[position + 4 : start], data[start : start + length]))
        position = start + length + 4
    return chunks


def join_png(chunks: Chunks) -> bytes:
    """Return a PNG with right checksums."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, body in chunks:
        checksum = struct.pack(">I", zlib.crc32(name + body))
        parts += [struct.pack(">I", len(body)), name, body, checksum]
    return b"".join(parts)


PNG = encoded(smooth(), "PNG")
JPEG = encoded(smooth(), "JPEG", quality=90)
PROGRESSIVE = encoded(smooth(), "JPEG", quality=90, progressive=True)


def with_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return join_png([(b"IHDR", header), *split_png(PNG)[1:]])


def with_chunk(name: bytes, body: bytes) -> bytes:
    first, *rest = split_png(PNG)
    return join_png([first, (name, body), *rest])


def half_the_rows() -> bytes:
    """Return a PNG with right checksums whose pixel stream ends after half of the rows."""
    chunks = split_png(PNG)
    rows = zlib.decompress(b"".join(body for name, body in chunks if name == b"IDAT"))
    half = (b"IDAT", zlib.compress(rows[: len(rows) // 2]))
    return join_png([chunks[0], half, (b"IEND", b"")])


def bmp_header(width: int, height: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head


def tiff(values: np.ndarray, white: int) -> bytes:
    """Return a grey TIFF of 8 or 16 bits whose pixels stand at its end.

    Args:
        white: 0 where the value 0 is white, else 1.
    """
    height, width = values.shape
    size = values.dtype.itemsize
    tags = ((256, width), (257, height), (258, 8 * size), (259, 1), (262, white), (273, 0),
            (277, 1), (278, height), (279, values.size * size))  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    entries = (struct.pack("<HHII", tag, 4, 1, start if tag == 273 else n) for tag, n in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4)
    return head + values.astype(values.dtype.newbyteorder("<")).tobytes()


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def open_bytes(folder: Path, data: bytes, name: str = "picture") -> Image.Image:
    path = folder / name
    path.write_bytes(data)
    return open_image(path)


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(ImageError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert not re.search("0x[0-9a-f]{6}", text), "the address of an object"
    return caught.value.code


BAD = {
    "empty": (b"", MALFORMED),
    "signature alone": (PNG[:8], MALFORMED),
    "half a signature": (PNG[:4], MALFORMED),
    "header alone": (PNG[:33], MALFORMED),
    "PNG cut in the middle": (PNG[: len(PNG) // 2], MALFORMED),
    "PNG without end": (PNG[:-12], MALFORMED),
    "wrong checksum of pixels": (flipped(PNG, PNG.index(b"IDAT") + 60), MALFORMED),
    "wrong checksum of header": (flipped(PNG, 18), MALFORMED),
    "PNG of half its rows": (half_the_rows(), MALFORMED),
    "JPEG header alone": (JPEG[:20], MALFORMED),
    "JPEG cut in the middle": (JPEG[: len(JPEG) // 2], MALFORMED),
    "JPEG cut, end mark put on": (JPEG[: len(JPEG) * 3 // 4] + b"\xff\xd9", MALFORMED),
    "progressive cut": (PROGRESSIVE[: len(PROGRESSIVE) // 2], MALFORMED),
    "progressive cut, end mark put on": (PROGRESSIVE[:-200] + b"\xff\xd9", MALFORMED),
    "text": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_image_type"),
    "GIF": (encoded(smooth(), "GIF"), "unsupported_image_type"),
    "text that begins as a BMP": (b"BMI,image,question\n" * 9, "unsupported_image_type"),
    "animated WebP": (
        encoded(smooth(), "WEBP", save_all=True, append_images=[smooth().rotate(9)]),
        "unsupported_image_type",
    ),
    "TIFF signature alone": (b"II*\0", MALFORMED),
    "BMP of 64 megapixels": (bmp_header(8_000, 8_000), "image_too_large"),
    "400 megapixels": (with_header(20_000, 20_000), "image_too_large"),
    "64 megapixels": (with_header(8_000, 8_000), "image_too_large"),
    "long side": (with_header(16_385, 2_000), "image_too_large"),
    "text bomb": (
        with_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000))),
        "image_too_large",
    ),
    "1x1": (with_header(1, 1), "image_too_small"),
    "15 high": (with_header(100, 15), "image_too_small"),
    "1x30000": (with_header(1, 30_000), "image_too_small"),
    "aspect above 20": (with_header(16 * 20 + 1, 16), "bad_aspect"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_has_its_code(tmp_path: Path, name: str) -> None:
    data, code = BAD[name]
    assert code_of(lambda: open_bytes(tmp_path, data)) == code


def test_file_type_goes_by_content_not_by_name(tmp_path: Path) -> None:
    assert open_bytes(tmp_path, PNG, "photo.jpg").size == (WIDTH, HEIGHT)
    gif = encoded(smooth(), "GIF")
    assert code_of(lambda: open_bytes(tmp_path, gif, "x.png")) == "unsupported_image_type"


@pytest.mark.parametrize("name", ["gone.png", ".", "with\0nul.png"])
def test_what_cannot_be_read_is_not_found(tmp_path: Path, name: str) -> None:
    assert code_of(lambda: open_image(tmp_path / name)) == "image_not_found"


def test_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(Limits().max_file_bytes + 1)
    assert code_of(lambda: open_image(path)) == "image_too_large"


@pytest.mark.parametrize(("width", "height"), [(16, 16), (320, 16), (16, 320)])
def test_sizes_at_the_limits_pass(tmp_path: Path, width: int, height: int) -> None:
    image = Image.new("L", (width, height), 7)
    assert open_bytes(tmp_path, encoded(image, "PNG")).size == (width, height)


def test_no_cut_of_a_png_gives_a_picture(tmp_path: Path) -> None:
    # The last four bytes are the checksum of the empty end mark: no pixel is missing there.
    for end in [*range(0, len(PNG) - 4, 41), len(PNG) - 5]:
        assert code_of(lambda end=end: open_bytes(tmp_path, PNG[:end])) == MALFORMED  # type: ignore[misc]


@pytest.mark.parametrize("tail", [b"", b"\xff\xd9"])
@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE], ids=["baseline", "progressive"])
def test_a_cut_jpeg_is_refused_or_whole(tmp_path: Path, data: bytes, tail: bytes) -> None:
    """A progressive file cut between two scans is a whole picture of lower quality, never grey."""
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int)
    refused = 0
    cuts = range(0, len(data) - 2, 11)
    for end in cuts:
        try:
            found = np.asarray(open_bytes(tmp_path, data[:end] + tail), int)
        except ImageError as error:
            refused += error.code in (MALFORMED, "unsupported_image_type")
        else:
            # A missing row would differ by up to 200 levels; lower quality by far less.
            assert np.abs(found - whole).max() < 40
    assert refused >= 0.95 * len(cuts)


def test_complete_jpeg_with_bytes_after_it_is_accepted(tmp_path: Path) -> None:
    plain = open_bytes(tmp_path, JPEG).tobytes()
    assert open_bytes(tmp_path, JPEG + b"maker notes" * 40).tobytes() == plain


#: Files without loss -> the format that is told of them.
OTHERS = {
    "TIFF": (encoded(smooth(), "TIFF"), "tiff"),
    "TIFF, LZW": (encoded(smooth(), "TIFF", compression="tiff_lzw"), "tiff"),
    "TIFF, deflate": (encoded(smooth(), "TIFF", compression="tiff_deflate"), "tiff"),
    "BigTIFF": (encoded(smooth(), "TIFF", big_tiff=True), "tiff"),
    "WebP": (encoded(smooth(), "WEBP", lossless=True), "webp"),
    "BMP": (encoded(smooth(), "BMP"), "bmp"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_tiff_webp_and_bmp_are_read_in_the_decoder_and_no_cut_of_them_is(name: str) -> None:
    data, kind = OTHERS[name]
    found = open_picture(data)
    assert found.image.tobytes() == smooth().tobytes()
    assert (found.facts.format, found.facts.warnings) == (kind, ())
    for share in range(1, 20):
        code = code_of(partial(open_picture, data[: len(data) * share // 20]))
        assert code in (MALFORMED, "unsupported_image_type")  # of a few bytes nothing is known


def test_lossy_tiff_and_webp_look_as_they_should() -> None:
    for data in (
        encoded(smooth(), "TIFF", compression="jpeg", quality=95),
        encoded(smooth(), "WEBP", quality=95),
        encoded(smooth().convert("RGBA"), "WEBP", quality=95),
    ):
        found = np.asarray(open_picture(data).image).astype(int)
        assert np.abs(found - np.asarray(smooth())).mean() < 6


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_every_mode_of_tiff_becomes_rgb(mode: str) -> None:
    image = smooth().convert(mode)
    found = open_picture(encoded(image, "TIFF")).image
    assert found.tobytes() == to_rgb(image).tobytes()


def test_of_several_pages_the_first_is_taken_and_said() -> None:
    data = encoded(smooth(), "TIFF", save_all=True, append_images=[smooth().rotate(180)])
    found = open_picture(data)
    assert found.image.tobytes() == smooth().tobytes()
    assert found.facts.warnings == ("first_of_several",)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_grey_tiff_keeps_its_range(dtype: Any) -> None:
    values = np.linspace(1000, 9000, 64 * 64).reshape(64, 64).astype(dtype)
    found = np.asarray(open_picture(encoded(Image.fromarray(values), "TIFF")).image)[..., 0]
    assert (found[0, 0], found[-1, -1], len(np.unique(found))) == (0, 255, 256)
    if dtype == np.float32:
        values[:9] = np.nan
        found = np.asarray(open_picture(encoded(Image.fromarray(values), "TIFF")).image)[..., 0]
        assert (found[:9].max(), found[9, 0], found[-1, -1]) == (0, 0, 255)
        values[:] = np.nan
        assert not np.asarray(open_picture(encoded(Image.fromarray(values), "TIFF")).image).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_whose_zero_is_white_is_inverted_and_a_cut_one_is_refused(dtype: Any) -> None:
    top = np.iinfo(dtype).max
    values = np.linspace(0, top, 40 * 40).astype(dtype).reshape(40, 40)
    dark, light = (np.asarray(open_picture(tiff(values, white)).image) for white in (1, 0))
    assert (dark[0, 0, 0], dark[-1, -1, 0]) == (0, 255)
    assert np.array_equal(light, 255 - dark)
    for missing in (1, 100, values.nbytes):
        assert code_of(partial(open_picture, tiff(values, 1)[:-missing])) == MALFORMED


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 40, 0)])
def test_a_flat_picture_is_said(kind: str, colour: tuple[int, int, int]) -> None:
    data = encoded(Image.new("RGB", (40, 30), colour), kind)
    assert open_picture(data).facts.warnings == ("flat_picture",)


def test_flat_is_said_of_pixels_of_deep_grey_and_of_dicom_but_of_no_picture_with_a_spot() -> None:
    flat = np.full((20, 20), 9, np.uint8)
    deep = encoded(Image.fromarray(np.full((20, 20), 4000, np.uint16)), "PNG")
    clear = encoded(Image.new("RGBA", (20, 20), (0, 0, 0, 0)), "PNG")
    for source in (
        flat,
        Image.fromarray(flat),
        deep,
        clear,
        dicom(np.full((20, 20), 700, np.uint16)),
    ):
        assert open_picture(source).facts.warnings == ("flat_picture",)
    nearly, spot = flat.copy(), flat.copy()
    nearly[::2] += 3
    spot[3, 3] += 4
    assert open_picture(nearly).facts.warnings == ("flat_picture",)
    assert open_picture(spot).facts.warnings == ()
    shown = dicom(np.arange(400, dtype=np.uint16).reshape(20, 20))
    assert open_picture(shown, window=(9000.0, 10.0)).facts.warnings == ("flat_picture",)


@pytest.mark.parametrize("colour", [0, 255])
def test_flat_pictures_are_no_cut_pictures(tmp_path: Path, colour: int) -> None:
    flat = Image.new("RGB", (200, 100), (colour,) * 3)
    for kind in ("PNG", "JPEG"):
        assert open_bytes(tmp_path, encoded(flat, kind)).getextrema() == ((colour, colour),) * 3


@pytest.mark.parametrize("interlaced_size", [(17, 16), (33, 21), (16, 16)])
def test_interlaced_png_is_accepted(tmp_path: Path, interlaced_size: tuple[int, int]) -> None:
    width, height = interlaced_size
    grey = np.arange(width * height, dtype=np.uint16).reshape(height, width).astype(np.uint8)
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4)]
    passes += [(1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b"".join(
        b"\0" + row.tobytes()
        for left, top, step_x, step_y in passes
        for row in grey[top::step_y, left::step_x]
        if row.size
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
    data = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    assert np.array_equal(np.asarray(open_bytes(tmp_path, join_png(data)))[..., 0], grey)
    data[1] = (b"IDAT", zlib.compress(rows[:-1]))
    assert code_of(lambda: open_bytes(tmp_path, join_png(data))) == MALFORMED


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_plain_modes_keep_their_colours(tmp_path: Path, mode: str) -> None:
    image = smooth().convert(mode)
    opened = open_bytes(tmp_path, encoded(image, "PNG"))
    assert opened.mode == "RGB"
    assert opened.tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_parts_become_black(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (20, 20), (200, 0) if mode == "LA" else (200, 200, 200, 0))
    image.paste((200, 255) if mode == "LA" else (200, 200, 200, 255), (0, 0, 10, 20))
    opened = open_bytes(tmp_path, encoded(image, "PNG"))
    assert opened.getpixel((2, 2)) == (200, 200, 200)
    assert opened.getpixel((15, 2)) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_transparent_colour_becomes_black(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (20, 20), 9)
    image.paste(5, (0, 0, 10, 20))
    if mode == "P":
        image.putpalette([value for level in range(256) for value in (level, 20, 30)])
    opened = open_bytes(tmp_path, encoded(image, "PNG", transparency=9))
    assert opened.getpixel((15, 2)) == (0, 0, 0)
    assert opened.getpixel((2, 2)) == ((5, 5, 5) if mode == "L" else (5, 20, 30))


def test_half_transparent_is_darkened_by_half(tmp_path: Path) -> None:
    image = Image.new("RGBA", (20, 20), (200, 100, 50, 128))
    assert open_bytes(tmp_path, encoded(image, "PNG")).getpixel((3, 3)) == (100, 50, 25)


def test_cmyk_keeps_its_look(tmp_path: Path) -> None:
    opened = open_bytes(tmp_path, encoded(smooth().convert("CMYK"), "JPEG", quality=95))
    # Two lossy conversions: a wrong sign of the inks would be off by more than 50 on average.
    assert np.abs(np.asarray(opened, int) - np.asarray(smooth(), int)).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_orientation_is_applied(tmp_path: Path, kind: str, orientation: int) -> None:
    upright = np.zeros((48, 96), np.uint8)
    upright[:16, :32] = 255  # bright corner at the top left
    turn: dict[int, Callable[[Any], Any]] = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turn[orientation](upright)))
    opened = open_bytes(tmp_path, encoded(stored, kind, exif=exif))
    # JPEG rings around the corner: compare light and dark only.
    assert np.array_equal(np.asarray(opened)[..., 0] > 127, upright > 127)


def test_sixteen_bit_grey_keeps_its_full_range(tmp_path: Path) -> None:
    values = np.linspace(1000, 5000, 64 * 64).astype(np.uint16).reshape(64, 64)
    opened = np.asarray(open_bytes(tmp_path, encoded(Image.fromarray(values), "PNG")))[..., 0]
    assert len(np.unique(opened)) == 256
    assert (opened[0, 0], opened[-1, -1]) == (0, 255)
    assert (np.diff(opened.ravel().astype(int)) >= 0).all()


@pytest.mark.parametrize(("level", "grey"), [(0, 0), (65_535, 255), (257 * 100, 100)])
def test_flat_sixteen_bit_grey_keeps_its_level(tmp_path: Path, level: int, grey: int) -> None:
    values = np.full((20, 20), level, np.uint16)
    opened = open_bytes(tmp_path, encoded(Image.fromarray(values), "PNG"))
    assert opened.getextrema() == ((grey, grey),) * 3


def test_first_frame_of_an_animation_is_taken_and_said() -> None:
    other = Image.new("RGB", smooth().size, (255, 0, 0))
    data = encoded(smooth(), "PNG", save_all=True, append_images=[other])
    picture = open_picture(data)
    assert picture.image.tobytes() == smooth().tobytes()
    assert picture.facts.warnings == ("first_of_several",)
    assert picture.facts.sentences() == ["the file holds several pictures; only the first is used"]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_pillow_mode_becomes_rgb_once_and_the_given_image_stays(mode: str) -> None:
    plain = smooth().convert("L") if mode in ("I;16", "I", "F") else smooth()
    image = plain.convert(mode)
    before = image.tobytes()
    found = to_rgb(image)
    assert (found.mode, found.size) == ("RGB", image.size)
    assert to_rgb(found).tobytes() == found.tobytes()
    assert (image.mode, image.tobytes()) == (mode, before)


def test_a_turned_picture_is_turned_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(encoded(smooth(), "PNG", exif=exif))) as image:
        found = to_rgb(image)
    assert found.size == (HEIGHT, WIDTH)
    assert found.tobytes() == smooth().rotate(-90, expand=True).tobytes()
    assert to_rgb(found).tobytes() == found.tobytes()


def test_reader_pixels_pass_at_any_size() -> None:
    grey = np.arange(28 * 28, dtype=np.uint16).reshape(28, 28).astype(np.uint8)
    assert np.array_equal(np.asarray(open_image(grey))[..., 2], grey)
    colour = np.asarray(smooth())
    assert open_image(colour[::-1, ::2]).size == (WIDTH // 2, HEIGHT)
    assert open_image(grey[:8, :8]).mode == "RGB"


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((8, 8), np.float32),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((2, 8, 8, 3), np.uint8),
        np.zeros((0, 8), np.uint8),
    ],
    ids=["float", "four channels", "stack", "empty"],
)
def test_other_arrays_are_refused(pixels: Any) -> None:
    assert code_of(lambda: open_image(pixels)) == "unsupported_image_type"


@pytest.mark.parametrize("pattern", ["vqa-rad/images/*1.jpg", "lc25000-lung/*/*1.jpeg"])
def test_real_pictures_open_as_pillow_opens_them(shared: Path, pattern: str) -> None:
    paths = sorted((shared / "data").glob(pattern))[:40]
    assert len(paths) >= 20
    for path in paths:
        with Image.open(path) as plain:
            assert open_image(path).tobytes() == plain.convert("RGB").tobytes()
