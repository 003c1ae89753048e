"""NIfTI: the slice that was asked for, the right way round."""

from __future__ import annotations

import gzip
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from tests.data.samples import dicom, nifti, volume
from tests.data.test_images import encoded

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
    for plane, frames in (("axial", 18), ("coronal", 24), ("sagittal", 20)):
        ours, theirs = (show(one.to_bytes(), frame=3, plane=plane) for one in (plain, turned))
        assert np.array_equal(ours.pixels, theirs.pixels)
        assert ours.facts == theirs.facts
        assert (theirs.facts.frame, theirs.facts.frames, theirs.facts.view) == (3, frames, plane)


def test_each_plane_has_the_head_or_the_front_up_and_the_right_or_the_front_on_the_left() -> None:
    head = np.zeros((24, 30, 20), np.int16)
    head[-1, :, :] += 1  # to the patient's right, in the canonical axes
    head[:, -1, :] += 2  # to the front
    head[:, :, -1] += 4  # to the head
    corners = {
        "axial": ([[3, 2], [1, 0]], 18, (30, 24)),
        "coronal": ([[5, 4], [1, 0]], 12, (20, 24)),
        "sagittal": ([[6, 4], [2, 0]], 12, (20, 30)),
    }
    for plane, (values, frame, shape) in corners.items():
        found = show(nifti(head), frame=frame, plane=plane, window=(127.5, 255.0)).pixels
        assert found.shape == shape
        assert found[:: shape[0] - 1, :: shape[1] - 1].tolist() == values


def test_slices_are_numbered_from_the_feet_the_back_and_the_left() -> None:
    values = np.zeros((24, 30, 20), np.int16)
    values[0], values[:, 0], values[:, :, 0] = 100, 100, 100
    for plane in ("axial", "coronal", "sagittal"):
        assert show(nifti(values), frame=1, plane=plane, window=(50.0, 100.0)).pixels.all()
        assert not show(nifti(values), frame=2, plane=plane, window=(50.0, 100.0)).pixels.all()


#: Axes of the array, its voxels and their sizes -> the plane and the shape of the middle slice.
ACQUIRED: dict[str, tuple[str, tuple[int, ...], tuple[float, ...], str, tuple[int, int]]] = {
    "axial": ("RAS", (40, 48, 12), (1, 1, 4), "axial", (48, 40)),
    "sagittal spine": ("AIR", (64, 64, 9), (0.5, 0.5, 4.4), "sagittal", (64, 64)),
    "coronal": ("RSA", (64, 64, 7), (0.5, 0.5, 4.0), "coronal", (64, 64)),
    "coronal, first axis": ("ARS", (7, 40, 44), (3, 1, 1), "coronal", (44, 40)),
    "as wide as high": ("RAS", (40, 40, 40), (1, 1, 1), "axial", (40, 40)),
    "hardly thicker": ("RAS", (20, 40, 40), (1.1, 1, 1), "axial", (40, 22)),
    "sizes not told": ("PSR", (64, 64, 9), (1, 1, 1), "sagittal", (64, 64)),
    "one slice": ("PSR", (64, 50, 1), (1, 1, 1), "sagittal", (50, 64)),
    "one axial slice, not square": ("RAS", (20, 40, 1), (2, 1, 1), "axial", (40, 40)),
}


@pytest.mark.parametrize("name", ACQUIRED)
def test_a_volume_is_shown_in_the_plane_it_was_acquired_in_with_square_pixels(name: str) -> None:
    axes, shape, sizes, plane, shown = ACQUIRED[name]
    turn = nibabel.orientations.inv_ornt_aff(nibabel.orientations.axcodes2ornt(tuple(axes)), shape)
    found = show(nifti(volume(shape), np.linalg.inv(turn) @ np.diag([*sizes, 1.0])))
    assert (found.facts.view, found.pixels.shape) == (plane, shown)
    assert found.facts.spacing is not None
    assert found.facts.spacing[0] == found.facts.spacing[1] == min(sizes)


def test_other_planes_have_the_shape_of_the_patient() -> None:
    slices = nifti(volume((40, 48, 12)), np.diag([1.0, 1.0, 4.0, 1.0]))
    assert show(slices, plane="coronal").pixels.shape == (48, 40)
    assert show(slices, plane="sagittal").pixels.shape == (48, 48)
    assert show(slices, plane="sagittal").facts.frames == 40


def test_planes_are_of_volumes_alone() -> None:
    for data in (dicom(), encoded(Image.new("RGB", (20, 20)), "PNG")):
        with pytest.raises(ImageError, match="has no planes") as caught:
            show(data, plane="axial")
        assert caught.value.code == "bad_frame"


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


@pytest.mark.parametrize("size", [1, 1000, 10**6])
def test_gzip_of_several_members_is_read_whole(size: int) -> None:
    data = nifti()
    members = [gzip.compress(data[at : at + size * 50]) for at in range(0, len(data), size * 50)]
    packed = b"".join(members)
    assert np.array_equal(show(packed).pixels, show(data).pixels)
    assert np.array_equal(show(packed + bytes(99)).pixels, show(data).pixels)
    with pytest.raises(ImageError, match="broken compressed"):
        show(packed[:-9])
    with pytest.raises(ImageError, match="inflates to more than"):
        decode(packed, Request(), Limits(max_inflated_bytes=len(data) - 1))


def test_big_endian_gives_the_same_picture() -> None:
    image = nibabel.Nifti1Image(volume(), np.eye(4))
    big = nibabel.Nifti1Image(volume().astype(">i2"), np.eye(4), image.header.as_byteswapped(">"))
    assert np.array_equal(show(big.to_bytes(), frame=4).pixels, show(nifti(), frame=4).pixels)


def test_slope_display_range_and_window_are_used() -> None:
    values = np.tile(np.arange(100, dtype=np.int16), (20, 1))[:, :, None].repeat(3, 2)
    scaled = nifti(values, cal_min=0, cal_max=198, scl_slope=2, scl_inter=0)
    assert show(scaled).facts.window == Window(99, 198, "file")
    for slope in (0, np.nan):
        plain = show(nifti(values, scl_slope=slope, scl_inter=5))
        assert plain.facts.window == show(nifti(values)).facts.window
    given = show(nifti(values), window=(49.5, 99.0))
    assert given.facts.window == Window(49.5, 99, "given")
    assert given.pixels.min() == 0
    assert given.pixels.max() == 255
    assert show(nifti(values)).facts.window is not None


@pytest.mark.parametrize(("low", "high"), [(0, 0.5), (0, 10**7), (-9, -8), (5000, 5001)])
def test_a_display_range_that_shows_nothing_gives_a_fitted_one_and_a_warning(
    low: float, high: float
) -> None:
    values = volume() % 977 + 1
    found = show(nifti(values, cal_min=low, cal_max=high))
    plain = show(nifti(values))
    assert found.facts.warnings == ("window_ignored",)
    assert found.facts.window == plain.facts.window
    assert np.array_equal(found.pixels, plain.pixels)


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


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_voxels_without_a_number_are_background(hole: float) -> None:
    values = volume().astype(np.float32) + 1000
    plain = show(nifti(values), frame=5)
    values[:10, :, 4] = hole
    found = show(nifti(values), frame=5)
    assert not found.pixels[:, 10:].any(), "the patient's left"
    assert found.pixels[:, :10].max() == 255
    assert found.facts.warnings == ()
    given = show(nifti(values), frame=5, window=(6500.0, 11_000.0))
    whole = show(nifti(volume() + 1000), frame=5, window=(6500.0, 11_000.0))
    assert np.array_equal(given.pixels[:, :10], whole.pixels[:, :10])
    assert plain.facts.window != found.facts.window


def test_one_bad_slice_does_not_spoil_the_others() -> None:
    values = volume().astype(np.float32)
    values[:, :, 0] = np.nan
    assert show(nifti(values), frame=5).pixels.any()
    with pytest.raises(ImageError, match="not finite"):
        show(nifti(values), frame=1)
