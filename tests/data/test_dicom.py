"""DICOM: the right picture of every kind of file, and the odd files of pydicom."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.pixels.decoders import (
    JPEGExtended12BitDecoder,
    JPEGLosslessDecoder,
    JPEGLosslessSV1Decoder,
)
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from tests.data import samples
from tests.data.samples import dataset, dicom, floats, ramp, written

from medmoe.data.intake import codecs, dicom_file
from medmoe.data.intake import dicom as dicom_module
from medmoe.data.intake.decode import Decoded, Request, decode
from medmoe.data.intake.display import WINDOW_PRESETS
from medmoe.data.intake.facts import Window
from medmoe.data.intake.limits import Limits
from medmoe.errors import ImageError

#: Never to be decoded, whatever is installed, and the one that needs the extra.
NEVER = {
    "JPEG2000-embedded-sequence-delimiter.dcm",
    "MR_truncated.dcm",
    "badVR.dcm",
    "meta_missing_tsyntax.dcm",
    "nested_priv_SQ.dcm",
}
NEEDS_CODECS = {"JPEG-lossy.dcm", "JPGExtended.dcm", "SC_rgb_jpeg_gdcm.dcm"}
#: Lossless file -> the file of the same pixels stored plainly.
PAIRS = {
    "693_J2KR.dcm": "693_UNCR.dcm",
    "MR2_J2KR.dcm": "MR2_UNCR.dcm",
    "RG1_J2KR.dcm": "RG1_UNCR.dcm",
    "RG3_J2KR.dcm": "RG3_UNCR.dcm",
    "US1_J2KR.dcm": "US1_UNCR.dcm",
    "MR_small_RLE.dcm": "MR_small.dcm",
    "MR_small_jp2klossless.dcm": "MR_small.dcm",
    "MR_small_jpeg_ls_lossless.dcm": "MR_small.dcm",
    "MR_small_bigendian.dcm": "MR_small.dcm",
    "MR_small_implicit.dcm": "MR_small.dcm",
    "MR_small_padded.dcm": "MR_small.dcm",
    "emri_small_RLE.dcm": "emri_small.dcm",
    "emri_small_jpeg_2k_lossless.dcm": "emri_small.dcm",
    "emri_small_jpeg_ls_lossless.dcm": "emri_small.dcm",
    "emri_small_big_endian.dcm": "emri_small.dcm",
    "SC_rgb_rle.dcm": "SC_rgb.dcm",
    "SC_rgb_rle_16bit.dcm": "SC_rgb_16bit.dcm",
    "SC_rgb_rle_32bit.dcm": "SC_rgb_32bit.dcm",
    "SC_rgb_rle_2frame.dcm": "SC_rgb_2frame.dcm",
    "SC_rgb_rle_16bit_2frame.dcm": "SC_rgb_16bit_2frame.dcm",
    "SC_rgb_rle_32bit_2frame.dcm": "SC_rgb_32bit_2frame.dcm",
    "SC_rgb_gdcm_KY.dcm": "SC_rgb_gdcm2k_uncompressed.dcm",
    "OBXXXX1A_rle.dcm": "OBXXXX1A.dcm",
    "OBXXXX1A_rle_2frame.dcm": "OBXXXX1A_2frame.dcm",
    "rtdose_rle.dcm": "rtdose.dcm",
    "rtdose_rle_1frame.dcm": "rtdose_1frame.dcm",
}


def show(data: bytes, **wanted: Any) -> Decoded:
    return decode(data, Request(**wanted), Limits())


def stored(path: Path, frame: int = 1) -> np.ndarray:
    found, header = dicom_file.read_header(path.read_bytes(), Limits())
    return dicom_file.read_frame(found, header, frame)


def odd(name: str) -> Path:
    for folder in (samples.ODD_FILES, samples.MORE_ODD_FILES):
        if found := sorted(folder.rglob(name)):
            return found[0]
    pytest.skip(f"no {name}: install pydicom-data")


def outcomes() -> tuple[set[str], dict[str, ImageError]]:
    """Return which of pydicom's own files with pixels give a picture, and why the others do not."""
    opened, refused = [], {}
    for path in samples.odd_files(samples.ODD_FILES):
        try:
            show(path.read_bytes())
        except ImageError as error:
            refused[path.name] = error
        else:
            opened.append(path)
    assert len(opened) + len(refused) == 107
    return {str(path) for path in opened}, refused


def test_99_of_107_odd_files_open_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "is_available", lambda _: False)
    for decoder in (JPEGExtended12BitDecoder, JPEGLosslessDecoder, JPEGLosslessSV1Decoder):
        kept = {k: v for k, v in decoder._available.items() if k != "imagecodecs"}
        monkeypatch.setattr(decoder, "_available", kept)
    opened, refused = outcomes()
    assert len(opened) == 99
    assert set(refused) == NEVER | NEEDS_CODECS
    for name in NEEDS_CODECS:
        assert refused[name].code == "unsupported_transfer_syntax"
        assert "medmoe[codecs]" in str(refused[name])
    assert {refused[name].code for name in NEVER} == {"undecodable"}


needs_codecs = pytest.mark.skipif(
    find_spec("imagecodecs") is None, reason="the extra codecs is not installed"
)


@needs_codecs
@pytest.mark.parametrize("name", sorted(NEEDS_CODECS))
def test_a_file_that_needs_the_extra_codecs_opens_with_it(name: str) -> None:
    assert np.ptp(show(odd(name).read_bytes()).pixels) > 0


@needs_codecs
def test_102_of_107_odd_files_open_with_the_extra() -> None:
    opened, refused = outcomes()
    assert len(opened) == 102
    assert set(refused) == NEVER


@pytest.mark.parametrize("name", PAIRS)
def test_a_lossless_file_is_bit_equal_to_its_plain_twin(name: str) -> None:
    packed, plain = odd(name), odd(PAIRS[name])
    _, header = dicom_file.read_header(plain.read_bytes(), Limits())
    for frame in range(1, header.number_of_frames + 1):
        ours, twin = stored(packed, frame), stored(plain, frame)
        assert ours.dtype.kind == twin.dtype.kind
        assert np.array_equal(ours, twin)


@pytest.mark.parametrize("name", ["MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"])
def test_a_codestream_cut_short_is_refused_or_whole(name: str) -> None:
    """A decoder must not fill what is missing."""
    import pydicom

    content = pydicom.dcmread(odd(name))
    stream = pydicom.encaps.get_frame(content.PixelData, 0, number_of_frames=1)
    whole = show(odd(name).read_bytes()).pixels
    refused = 0
    for share in (0.3, 0.5, 0.7, 0.9):
        content.PixelData = pydicom.encaps.encapsulate([stream[: int(len(stream) * share)]])
        try:
            found = show(written(content)).pixels
        except ImageError as error:
            refused += error.code == "undecodable"
        else:
            assert np.array_equal(found, whole)
    assert refused >= 3


def grey(data: bytes, **wanted: Any) -> np.ndarray:
    return show(data, **wanted).pixels.astype(int)


def test_a_window_shows_its_range_after_rescale() -> None:
    data = dicom(ramp(top=4000), RescaleSlope="1", RescaleIntercept="-1024")
    values = ramp(top=4000).astype(int) - 1024
    found = grey(data, window=(40.0, 400.0))
    # LINEAR of the standard: black up to c - 0.5 - (w-1)/2, white above c - 0.5 + (w-1)/2.
    assert (found[values <= -160] == 0).all()
    assert (found[values > 239] == 255).all()
    inside = (values > -160) & (values <= 239)
    exact = ((values[inside] - 39.5) / 399 + 0.5) * 255
    assert np.abs(found[inside] - exact).max() <= 0.5
    assert show(data, window=(40.0, 400.0)).facts.window == Window(40, 400, "given")


def test_the_first_window_of_the_file_is_used() -> None:
    data = dicom(WindowCenter=[1000, 3000], WindowWidth=[500, 100])
    assert show(data).facts.window == Window(1000, 500, "file")
    assert np.array_equal(grey(data), grey(dicom(), window=(1000.0, 500.0)))


def test_decimal_commas_are_decimal_points() -> None:
    with_points = dicom(
        RescaleSlope="0.125",
        RescaleIntercept="-1024.5",
        WindowCenter=["-800.0", "1.5e2"],
        WindowWidth=["+250.75", "400"],
        PixelSpacing=["0.7", "0.70"],
    )
    with_commas = with_points
    for number in (b"0.125", b"-1024.5", b"-800.0", b"1.5e2", b"+250.75", b"0.7", b"0.70"):
        with_commas = with_commas.replace(number, number.replace(b".", b","))
    assert with_commas.count(b",") == with_points.count(b",") + 7
    shown, wanted = show(with_commas), show(with_points)
    assert shown.facts == wanted.facts
    assert shown.facts.window == Window(-800, 250.75, "file")
    assert shown.facts.spacing == (0.7, 0.7)
    assert np.array_equal(shown.pixels, wanted.pixels)


@pytest.mark.parametrize("number", ["1,024", "-100,250", "1,5,2", "1.024,5", "1,", "a,5"])
def test_a_comma_that_may_mean_something_else_is_no_decimal_one(number: str) -> None:
    stand_in = "7" * len(number)

    def odd(**tags: Any) -> bytes:
        return dicom(**tags).replace(stand_in.encode(), number.encode())

    with pytest.raises(ImageError, match="number in its header is none"):
        show(odd(RescaleSlope=stand_in))
    shown = show(odd(WindowCenter=stand_in, WindowWidth="400")).facts
    assert shown.warnings == ("window_ignored",)
    assert show(odd(PixelSpacing=[stand_in, stand_in])).facts.spacing is None


@pytest.mark.parametrize(("kind", "middle"), [("LINEAR_EXACT", 128), ("SIGMOID", 128)])
def test_other_window_functions(kind: str, middle: int) -> None:
    values = np.full((20, 20), 500, np.uint16)
    values[0, 0], values[0, 1] = 0, 4000
    found = grey(dicom(values, WindowCenter="500", WindowWidth="400", VOILUTFunction=kind))
    assert abs(found[5, 5] - middle) <= 1
    assert found[0, 0] < 3
    assert found[0, 1] > 252


@pytest.mark.parametrize(
    ("center", "width"),
    [
        ("40", "0"),
        ("40", "-5"),
        ("nan", "nan"),
        ("2000", None),
        ("40000", "100"),  # all of it black
        ("-40000", "100"),  # all of it white
        ("32767", "65535"),  # 17 of the 256 levels
    ],
)
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_that_shows_nothing_gives_a_fitted_one_and_a_warning(
    center: str, width: str | None, function: str
) -> None:
    told = {"WindowCenter": center} | ({} if width is None else {"WindowWidth": width})
    found = show(dicom(**told, VOILUTFunction=function))
    plain = show(dicom())
    assert np.array_equal(found.pixels, plain.pixels)
    assert found.facts.window == plain.facts.window
    assert plain.facts.window is not None
    assert plain.facts.window.origin == "percentile"
    assert (found.facts.warnings, plain.facts.warnings) == (("window_ignored",), ())


def test_a_lookup_table_that_shows_nothing_gives_way_to_the_window() -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4, 0, 8], b"\x50" * 4
    found = show(dicom(VOILUTSequence=[table], WindowCenter="1000", WindowWidth="500"))
    assert found.facts.window == Window(1000, 500, "file")
    assert np.array_equal(found.pixels, grey(dicom(), window=(1000.0, 500.0)))
    assert show(dicom(VOILUTSequence=[table])).facts.warnings == ("window_ignored",)


@pytest.mark.parametrize("first", ["", "0", "nan", "70000"])
def test_of_several_windows_the_first_that_shows_something_is_used(first: str) -> None:
    found = show(dicom(WindowCenter=[first, "1000"], WindowWidth=[first, "500"]))
    assert found.facts.window == Window(1000, 500, "file")
    assert found.facts.warnings == ()


def test_a_window_of_a_mask_or_of_a_flat_picture_stays() -> None:
    """Nothing lies between black and white in these, whatever the window."""
    for values in (ramp(top=1), np.full((20, 20), 7, np.uint16)):
        found = show(dicom(values, WindowCenter="0.5", WindowWidth="1", Modality="CT"))
        assert found.facts.window == Window(0.5, 1, "file")
        assert "window_ignored" not in found.facts.warnings


def test_a_window_that_was_asked_for_is_used_whatever_it_shows() -> None:
    found = show(dicom(), window=(40_000.0, 100.0))
    assert found.facts.window == Window(40_000, 100, "given")
    assert not found.pixels.any()


def test_eight_bits_with_a_window_that_shows_nothing_are_shown_as_stored() -> None:
    values = ramp(top=200).astype(np.uint8)
    found = show(dicom(values, WindowCenter="4000", WindowWidth="10"))
    assert np.array_equal(found.pixels, values)
    assert found.facts.warnings == ("window_ignored",)


@pytest.mark.parametrize(
    "tags",
    [
        {"PixelPaddingValue": -2000},
        {"PixelPaddingValue": 63_536},  # the same bits, of the other representation
        {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990},
        {"PixelPaddingValue": -1990, "PixelPaddingRangeLimit": -2010},
    ],
)
@pytest.mark.parametrize("shown_as", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_count(tags: dict[str, int], shown_as: str) -> None:
    values = ramp(top=1000).astype(np.int16) + 100
    values[:8] = -2000
    if "PixelPaddingRangeLimit" in tags:
        values[:4] = -1995
    found = dataset(values, PhotometricInterpretation=shown_as)
    for name, value in tags.items():
        found.add_new(tag_for_keyword(name), "US" if value > 0 else "SS", value)
    padded = show(written(found))
    assert padded.facts.window is not None
    assert padded.facts.window.center == pytest.approx(100 + 600, abs=10)
    assert padded.facts.window.width == pytest.approx(0.98 * 800, abs=10)
    assert (padded.pixels[:8] == 0).all()
    assert padded.pixels[-1, -1] == (255 if shown_as == "MONOCHROME2" else 0)
    assert padded.pixels[8, 0] == (0 if shown_as == "MONOCHROME2" else 255)


def test_high_padding_is_black_and_padding_that_is_all_of_it_is_none() -> None:
    values = ramp(top=1000)
    values[:8] = 65_535
    assert not show(dicom(values, PixelPaddingValue=65_535)).pixels[:8].any()
    whole = show(dicom(PixelPaddingValue=0, PixelPaddingRangeLimit=65_535))
    assert np.array_equal(whole.pixels, show(dicom()).pixels)


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf, -9999.0])
def test_floating_point_pixels_without_a_number_are_background(hole: float) -> None:
    values = ramp(top=1000).astype(np.float32) + 100
    values[:8] = hole
    found = show(floats(values, FloatPixelPaddingValue=-9999.0))
    assert not found.pixels[:8].any()
    assert found.facts.window is not None
    assert found.facts.window.center == pytest.approx(100 + 600, abs=10)
    assert found.pixels[-1, -1] == 255


def test_all_bits_are_kept_until_the_window() -> None:
    """A window of 100 values of a 16-bit file still has 100 levels."""
    values = np.tile(np.arange(30_000, 30_100, dtype=np.uint16), (40, 1))
    assert len(np.unique(grey(dicom(values), window=(30_050.0, 101.0)))) == 100


def test_monochrome1_is_inverted_after_the_window() -> None:
    plain = grey(dicom(), window=(2000.0, 1000.0))
    data = dicom(PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(grey(data, window=(2000.0, 1000.0)), 255 - plain)


def test_inverse_is_inverted_once() -> None:
    plain = grey(dicom(), window=(2000.0, 1000.0))
    for kind, shape in (
        ("MONOCHROME2", "INVERSE"),
        ("MONOCHROME1", "INVERSE"),
        ("MONOCHROME1", "IDENTITY"),
    ):
        data = dicom(PhotometricInterpretation=kind, PresentationLUTShape=shape)
        assert np.array_equal(grey(data, window=(2000.0, 1000.0)), 255 - plain)
    same = dicom(PresentationLUTShape="IDENTITY")
    assert np.array_equal(grey(same, window=(2000.0, 1000.0)), plain)
    eight = dicom(ramp(top=200).astype(np.uint8), PresentationLUTShape="INVERSE")
    assert np.array_equal(grey(eight), 255 - ramp(top=200).astype(np.uint8))


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_a_file_without_preamble_gives_the_same_picture(syntax: str) -> None:
    whole = written(dataset(ramp(), syntax, WindowCenter="1000", WindowWidth="500", Modality="MR"))
    data = samples.bare(whole)
    assert data[:4] in (b"\x08\0\x16\0", b"\0\x08\0\x16")
    for other in (data, bytes(128) + b"DICM" + data, whole[132:]):
        found = show(other)
        assert np.array_equal(found.pixels, show(whole).pixels)
        assert found.facts == show(whole).facts


def test_a_preamble_that_begins_as_another_format_is_a_preamble() -> None:
    data = dicom()
    for start in (b"II*\0", b"MM\0*", b"BM", b"\x5c\x01\0\0"):
        assert np.array_equal(show(start + data[len(start) :]).pixels, show(data).pixels)


def test_a_deflated_file_without_preamble_is_read() -> None:
    data = written(dataset(ramp(), DeflatedExplicitVRLittleEndian))
    assert np.array_equal(show(data[132:]).pixels, show(dicom()).pixels)


@pytest.mark.parametrize("told", ["0", "", None, "1"])
def test_no_number_of_frames_is_one(told: str | None) -> None:
    found = dataset(ramp())
    if told is not None:
        found.add_new(tag_for_keyword("NumberOfFrames"), "IS", told)
    shown = show(written(found))
    assert shown.facts.frames == 1
    assert np.array_equal(shown.pixels, show(dicom()).pixels)


@pytest.mark.parametrize(
    ("tags", "shape", "spacing"),
    [
        ({"PixelSpacing": [1, 2]}, (64, 64), (1.0, 1.0)),
        ({"PixelSpacing": [2, 1]}, (128, 32), (1.0, 1.0)),
        ({"ImagerPixelSpacing": [0.5, 1]}, (64, 64), (0.5, 0.5)),
        ({"NominalScannedPixelSpacing": [0.5, 1]}, (64, 64), (0.5, 0.5)),
        ({"PixelAspectRatio": [2, 1]}, (128, 32), None),
        ({"PixelAspectRatio": [1, 2]}, (64, 64), None),
        ({"PixelAspectRatio": [1000, 2000]}, (64, 64), None),
        ({"PixelAspectRatio": [1, 0]}, (64, 32), None),
        ({"PixelAspectRatio": [1, 2], "PixelSpacing": [1, 1]}, (64, 32), (1.0, 1.0)),
        ({"PixelSpacing": [1, 1.005]}, (64, 32), (1.0, 1.005)),
        ({"PixelSpacing": [0, 2]}, (64, 32), None),
        ({"PixelSpacing": [1, 100]}, (64, 32), (1.0, 100.0)),  # wrong, whatever it is
    ],
)
def test_pixels_are_made_square(
    tags: dict[str, Any], shape: tuple[int, int], spacing: tuple[float, float] | None
) -> None:
    found = show(dicom(ramp(64, 32), **tags))
    assert found.pixels.shape == shape
    assert found.facts.spacing == spacing
    assert (found.pixels[0, 0], found.pixels[-1, -1]) == (0, 255)


def test_colour_is_made_square_and_the_shape_counts_for_the_aspect() -> None:
    colour = np.zeros((20, 40, 3), np.uint8)
    colour[..., 1] = 200
    found = show(dicom(colour, PixelAspectRatio=[2, 1])).pixels
    assert found.shape == (40, 40, 3)
    assert (found == [0, 200, 0]).all()
    strip = ramp(10, 400)
    with pytest.raises(ImageError, match="at most 20:1"):
        show(dicom(strip))
    assert show(dicom(strip, PixelSpacing=[5, 1])).pixels.shape == (50, 400)


def test_square_pixels_keep_the_limits_of_a_picture() -> None:
    small = Limits(max_side=60, max_pixels=3000)
    found = decode(dicom(ramp(50, 40), PixelSpacing=[2, 1]), Request(), small)
    assert found.pixels.shape == (60, 24)
    assert found.facts.spacing == (1.667, 1.667)


def test_voi_and_modality_tables_are_applied() -> None:
    voi, modality = Dataset(), Dataset()
    voi.LUTDescriptor, voi.LUTData = [4, 10, 8], b"\x00\x80\xff\x40"
    values = np.tile(np.array([0, 10, 11, 12, 13, 99], np.uint16), (20, 5))
    found = grey(dicom(values, VOILUTSequence=[voi]))
    assert found[0, :6].tolist() == [0, 0, 128, 255, 64, 64]
    modality.LUTDescriptor, modality.ModalityLUTType = [3, 0, 16], "HU"
    modality.add_new("LUTData", "US", [5, 100, 50])
    low = np.tile(np.array([0, 1, 2, 7], np.uint16), (20, 5))
    shown = grey(dicom(low, ModalityLUTSequence=[modality]), window=(50.5, 101.0))
    assert shown[0, :4].tolist() == [13, 255, 128, 128]


def test_signed_values_and_big_endian_give_the_same_picture() -> None:
    values = ramp().astype(np.int16) - 2000
    plain = grey(dicom(values), window=(0.0, 3000.0))
    big = written(dataset(values, ExplicitVRBigEndian))
    small = written(dataset(values, ImplicitVRLittleEndian))
    assert np.array_equal(grey(big, window=(0.0, 3000.0)), plain)
    assert np.array_equal(grey(small, window=(0.0, 3000.0)), plain)
    assert plain[0, 0] == 0
    assert plain[-1, -1] == 255


def test_unused_high_bits_are_ignored() -> None:
    values = ramp(top=4095)
    dirty = values | 0xF000
    wanted = {"BitsStored": 12, "HighBit": 11}
    assert np.array_equal(grey(dicom(dirty, **wanted)), grey(dicom(values, **wanted)))


def test_planar_and_ybr_colour_give_the_same_picture() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (24, 30, 3)).astype(np.uint8)
    assert np.array_equal(grey(dicom(colour)), colour)
    planar = dataset(colour, PlanarConfiguration=1)
    planar.PixelData = colour.transpose(2, 0, 1).tobytes()
    assert np.array_equal(grey(written(planar)), colour)
    from pydicom.pixels.processing import convert_color_space

    ybr = convert_color_space(colour, "RGB", "YBR_FULL")
    found = grey(dicom(ybr, PhotometricInterpretation="YBR_FULL"))
    # Two roundings of 8 bits.
    assert np.abs(found - colour.astype(int)).max() <= 3


@pytest.mark.parametrize("name", ["OBXXXX1A.dcm", "OBXXXX1A_expb.dcm"])
def test_palette_colours_are_those_of_pydicom(name: str) -> None:
    import pydicom
    from pydicom.pixels.processing import apply_color_lut

    little = pydicom.dcmread(odd("OBXXXX1A.dcm"))
    expected = apply_color_lut(little.pixel_array, little) >> 8
    assert np.array_equal(grey(odd(name).read_bytes()), expected)


def test_eight_bits_without_a_window_are_shown_as_stored() -> None:
    values = np.random.default_rng(0).integers(20, 90, (24, 30)).astype(np.uint8)
    found = show(dicom(values))
    assert np.array_equal(found.pixels, values)
    assert found.facts.window is None


def test_a_deflated_file_is_read() -> None:
    data = written(dataset(ramp(), DeflatedExplicitVRLittleEndian))
    assert np.array_equal(grey(data, window=(9.0, 90.0)), grey(dicom(), window=(9.0, 90.0)))


def test_only_the_chosen_frame_is_shown_and_said() -> None:
    frames = np.stack([np.full((20, 24), level, np.uint8) for level in (10, 20, 30)])
    for number, level in ((None, 10), (1, 10), (3, 30)):
        found = show(dicom(frames), frame=number)
        assert (found.pixels == level).all()
        assert (found.facts.frame, found.facts.frames) == (number or 1, 3)
    for number in (0, 4):
        with pytest.raises(ImageError, match="choose one of 1 to 3") as caught:
            show(dicom(frames), frame=number)
        assert caught.value.code == "bad_frame"


def group(name: str, **tags: Any) -> Dataset:
    item, outer = Dataset(), Dataset()
    for key, value in tags.items():
        setattr(item, key, value)
    setattr(outer, name, [item])
    return outer


def test_enhanced_files_keep_window_rescale_and_spacing_per_frame() -> None:
    frames = np.stack([ramp(), ramp()])
    shared = group("PixelMeasuresSequence", PixelSpacing=[0.5, 0.25])
    first = group("FrameVOILUTSequence", WindowCenter="100", WindowWidth="50")
    second = group("FrameVOILUTSequence", WindowCenter="200", WindowWidth="60")
    name = "PixelValueTransformationSequence"
    second.update(group(name, RescaleSlope="1", RescaleIntercept="-100"))
    data = dicom(
        frames,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=[first, second],
    )
    one, two = show(data, frame=1), show(data, frame=2)
    assert one.facts.window == Window(100, 50, "file")
    assert two.facts.window == Window(200, 60, "file")
    assert one.facts.spacing == two.facts.spacing == (0.25, 0.25)
    same = dicom(PixelSpacing=[0.5, 0.25])
    assert np.array_equal(two.pixels, grey(same, window=(300.0, 60.0)))


def test_presets_are_for_ct() -> None:
    found = show(dicom(Modality="CT"), window="lung")
    assert found.facts.window == Window(*WINDOW_PRESETS["lung"], "given")
    for name, modality, part in (("lung", "MR", "this is mri"), ("lungs", "CT", "choose one of")):
        with pytest.raises(ImageError, match=part) as caught:
            show(dicom(Modality=modality), window=name)
        assert caught.value.code == "bad_window"


@pytest.mark.parametrize("window", [(40.0, 0.0), (40.0, -1.0), (float("nan"), 4.0)])
def test_a_window_without_width_is_refused(window: tuple[float, float]) -> None:
    with pytest.raises(ImageError, match="width must be above 0"):
        show(dicom(), window=window)


def test_facts_are_words_of_our_lists_and_warnings_are_raised() -> None:
    colour = np.zeros((20, 24, 3), np.uint8)
    facts = show(
        dicom(
            colour,
            Modality="US",
            BodyPartExamined="ABDOMEN",
            BurnedInAnnotation="YES",
            SOPClassUID="1.2.840.10008.5.1.4.1.1.7",
        )
    ).facts
    assert (facts.modality, facts.body_part, facts.format) == ("ultrasound", "abdomen", "dicom")
    assert facts.warnings == ("burned_in_annotation", "secondary_capture", "ultrasound")
    chest = show(dicom(Modality="DX", ViewPosition="PA", ImagerPixelSpacing=[0.14, 0.14])).facts
    assert (chest.modality, chest.view, chest.spacing) == ("xray", "pa", (0.14, 0.14))
    assert show(dicom(ramp(8, 8))).facts.warnings == ("small_matrix",)


def test_rle_of_several_frames_is_read_by_frame() -> None:
    frames = np.stack([ramp(), ramp()[::-1]])
    found = dataset(frames)
    found.compress(RLELossless, frames)
    data = written(found)
    for number in (1, 2):
        expected = grey(dicom(frames[number - 1]), window=(2000.0, 4000.0))
        assert np.array_equal(grey(data, frame=number, window=(2000.0, 4000.0)), expected)


def test_an_element_of_an_unknown_kind_is_damaged_wherever_it_is_read() -> None:
    plain = samples.dicom(Modality="CT")
    damaged = plain.replace(b"\x08\0\x60\0CS", b"\x08\0\x60\0CU")  # of Modality
    assert damaged != plain
    with pytest.raises(ImageError, match="its elements are damaged") as caught:
        dicom_module.read(damaged, Limits(), None, None)
    assert caught.value.code == "undecodable"
