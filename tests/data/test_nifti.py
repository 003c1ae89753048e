"""NIfTI: the slice that was asked for, the right way round."""

from __future__ import annotations

import gzip
from typing import Any

import nibabel
import numpy as np
import pytest
from tests.data.samples import nifti, volume

from medmoe.data.intake.decode import Decoded, Request, decode
from medmoe.data.intake.facts import Window
from medmoe.data.intake.limits import Limits
from medmoe.errors import ImageError


def show(data: bytes, **wanted: Any) -> Decoded:
    return decode(data, Request(**wanted), Limits())


def test_right_is_left_front_is_up_and_slices_run_from_the_feet() -> None:
    head = np.zeros((24, 30, 20), np.int16)
    head[20:, 13:17, 5] = 1000  # to the patient's right, in the canonical axes
    head[11:13, 26:, 5] = 600  # to the front
    found = show(nifti(head, sform_code=1), frame=6, window=(500.0, 1000.0)).pixels
    assert found.shape == (30, 24)
    rows, columns = np.nonzero(found == 255)
    assert columns.max() < 4, "the patient's right is on the left"
    rows, columns = np.nonzero((found > 100) & (found < 255))
    assert rows.max() < 4, "the front is up"
    assert not show(nifti(head, sform_code=1), frame=7, window=(500.0, 1000.0)).pixels.any()


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PIR", "ASL", "SRA", "IPL"])
def test_every_orientation_gives_the_same_picture(axes: str) -> None:
    plain = nibabel.Nifti1Image(volume(), np.diag([2.0, 3.0, 4.0, 1.0]))
    wanted = nibabel.orientations.axcodes2ornt(tuple(axes))
    turned = plain.as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.io_orientation(plain.affine), wanted)
    )
    ours, theirs = show(plain.to_bytes(), frame=3), show(turned.to_bytes(), frame=3)
    assert np.array_equal(ours.pixels, theirs.pixels)
    assert theirs.facts.spacing == (3.0, 2.0)
    assert (theirs.facts.frame, theirs.facts.frames, theirs.facts.view) == (3, 18, "axial")


def test_the_middle_slice_is_the_default_and_others_can_be_chosen() -> None:
    facts = show(nifti()).facts
    assert (facts.format, facts.frame, facts.frames) == ("nifti", 9, 18)
    half = np.zeros((20, 24, 18), np.int16)
    half[:, :, 9:] = 100
    assert not show(nifti(half), window=(50.0, 100.0)).pixels.any()
    assert show(nifti(half), frame=10, window=(50.0, 100.0)).pixels.all()
    with pytest.raises(ImageError, match="choose one of 1 to 18"):
        show(nifti(), frame=19)


def test_gzip_and_nifti_2_give_the_same_picture() -> None:
    plain = show(nifti(), frame=4)
    assert np.array_equal(show(gzip.compress(nifti()), frame=4).pixels, plain.pixels)
    second = nibabel.Nifti2Image(volume(), np.eye(4)).to_bytes()
    assert np.array_equal(show(second, frame=4).pixels, plain.pixels)
    assert show(second, frame=4).facts == plain.facts


def test_big_endian_gives_the_same_picture() -> None:
    image = nibabel.Nifti1Image(volume(), np.eye(4))
    big = nibabel.Nifti1Image(volume().astype(">i2"), np.eye(4), image.header.as_byteswapped(">"))
    assert np.array_equal(show(big.to_bytes(), frame=4).pixels, show(nifti(), frame=4).pixels)


def test_slope_display_range_and_window_are_used() -> None:
    values = np.tile(np.arange(100, dtype=np.int16), (20, 1))[:, :, None].repeat(3, 2)
    scaled = nifti(values, cal_min=0, cal_max=198, scl_slope=2, scl_inter=0)
    assert show(scaled).facts.window == Window(99, 198, "file")
    given = show(nifti(values), window=(49.5, 99.0))
    assert given.facts.window == Window(49.5, 99, "given")
    assert given.pixels.min() == 0
    assert given.pixels.max() == 255
    assert show(nifti(values)).facts.window is not None


def test_a_flat_slice_and_a_single_slice_are_pictures() -> None:
    flat = show(nifti(np.zeros((20, 24, 3), np.uint8)))
    assert len(np.unique(flat.pixels)) == 1
    single = show(nifti(np.arange(480, dtype=np.int16).reshape(20, 24)))
    assert single.pixels.shape == (24, 20)
    assert single.facts.frames == 1


def test_of_several_volumes_the_first_is_taken_and_said() -> None:
    several = np.stack([volume(), volume() + 5], axis=-1)
    found = show(nifti(several), frame=4)
    assert np.array_equal(found.pixels, show(nifti(), frame=4).pixels)
    assert "first_volume" in found.facts.warnings


def test_colour_volumes_are_shown_as_they_are() -> None:
    colours = np.zeros((20, 24, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["R"], colours["B"] = 200, 7
    found = show(nifti(colours))
    assert found.pixels.shape == (24, 20, 3)
    assert found.pixels[3, 3].tolist() == [200, 0, 7]
    with pytest.raises(ImageError, match="no window"):
        show(nifti(colours), window=(1.0, 2.0))


def test_unknown_orientation_is_said() -> None:
    data = bytearray(nifti())
    data[252:256] = bytes(4)  # qform_code and sform_code
    facts = show(bytes(data)).facts
    assert facts.warnings == ("orientation_unknown",)
    assert facts.view is None
    assert "orientation_unknown" not in show(nifti()).facts.warnings


def test_one_bad_slice_does_not_spoil_the_others() -> None:
    values = volume().astype(np.float32)
    values[3, 3, 0] = np.nan
    assert show(nifti(values), frame=5).pixels.any()
    with pytest.raises(ImageError, match="not finite"):
        show(nifti(values), frame=1)
