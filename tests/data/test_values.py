"""What a viewer gets of a file: the values of all its bits, which its window makes our picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.data.samples import dicom, floats, nifti, ramp, volume

from medmoe.data.intake.decode import Decoded, Request, decode
from medmoe.data.intake.limits import Limits

VALUES = Request(values=True)
LIMITS = Limits()
WINDOW = {"WindowCenter": 2000, "WindowWidth": 3001}


def in_units(decoded: Decoded) -> np.ndarray:
    assert decoded.scale is not None
    assert decoded.pixels.dtype == np.uint16
    return decoded.pixels * decoded.scale.slope + decoded.scale.intercept


@pytest.mark.parametrize(
    ("pixels", "tags"),
    [
        (ramp(), {}),
        (ramp(), {"RescaleSlope": 1, "RescaleIntercept": -1024}),
        (ramp(), {"RescaleSlope": -0.25, "RescaleIntercept": 7}),
        (ramp().astype(np.int16) - 2000, {"RescaleSlope": 2.5, "RescaleIntercept": 0}),
        (np.array([[-32768, 32767], [0, 1]], np.int16), {}),
        (np.full((4, 4), 7, np.uint16), {}),
        (ramp(top=255).astype(np.uint8), {}),
    ],
)
def test_values_of_16_bits_keep_all_of_them(pixels: np.ndarray, tags: dict[str, Any]) -> None:
    found = in_units(decode(dicom(pixels, **tags), VALUES, LIMITS))
    slope, intercept = tags.get("RescaleSlope", 1), tags.get("RescaleIntercept", 0)
    np.testing.assert_allclose(found, pixels.astype(float) * slope + intercept, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "data",
    [
        floats(np.linspace(-3, 5, 1600).reshape(40, 40)),
        nifti(np.linspace(-1, 1, 8000).astype(np.float32).reshape(20, 20, 20)),
        dicom(ramp().astype(np.uint32) * 100_000),
    ],
)
def test_wider_values_are_spread_over_65536_steps(data: bytes) -> None:
    found = decode(data, VALUES, LIMITS)
    assert (found.pixels.min(), found.pixels.max()) == (0, 65_535)


@pytest.mark.parametrize(
    "data",
    [
        dicom(**WINDOW),
        dicom(**WINDOW, PhotometricInterpretation="MONOCHROME1"),
        dicom(**WINDOW, PresentationLUTShape="INVERSE"),
        dicom(**WINDOW, RescaleSlope=-1, RescaleIntercept=4000),
        dicom(RescaleSlope=0.1, RescaleIntercept=-3),
        nifti(volume()),
    ],
)
def test_the_window_makes_of_them_what_the_model_sees(data: bytes) -> None:
    picture, found = decode(data, Request(), LIMITS), decode(data, VALUES, LIMITS)
    window, scale = found.facts.window, found.scale
    assert window is not None
    assert scale is not None
    assert (window, scale.linear) == (picture.facts.window, True)
    # A viewer's window: the standard's LINEAR.
    grey = np.clip((in_units(found) - (window.center - 0.5)) / (window.width - 1) + 0.5, 0, 1)
    shown = 255 * (1 - grey if scale.inverted else grey)
    # Half a level by rounding, and less than one where our own window has other ends than LINEAR.
    np.testing.assert_allclose(shown, picture.pixels, rtol=0, atol=1.5)


def test_a_curve_that_is_no_straight_line_is_told() -> None:
    for function, linear in (("SIGMOID", False), ("LINEAR_EXACT", True)):
        scale = decode(dicom(**WINDOW, VOILUTFunction=function), VALUES, LIMITS).scale
        assert scale is not None
        assert scale.linear is linear


def test_pixels_keep_their_number_and_tell_their_shape() -> None:
    found = decode(dicom(PixelSpacing=[1.0, 2.0]), VALUES, LIMITS)
    assert found.pixels.shape == (40, 48)
    assert found.scale is not None
    assert (found.scale.apart, found.facts.spacing) == ((1.0, 2.0), (1.0, 2.0))
    aspect = decode(dicom(PixelAspectRatio=[2, 1]), VALUES, LIMITS)
    assert aspect.scale is not None
    assert (aspect.scale.apart, aspect.facts.spacing) == ((2.0, 1.0), None)


def test_padding_is_what_is_darkest() -> None:
    pixels = ramp()
    pixels[0, :4] = 4000
    for kind, dark in (("MONOCHROME2", 0), ("MONOCHROME1", 65_535)):
        data = dicom(pixels, PixelPaddingValue=4000, PhotometricInterpretation=kind)
        found = decode(data, VALUES, LIMITS)
        assert set(found.pixels[0, :4].tolist()) == {dark}


def test_colour_has_no_values_before_a_window() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    found = decode(dicom(colour), VALUES, LIMITS)
    assert found.scale is None
    np.testing.assert_array_equal(found.pixels, colour)
