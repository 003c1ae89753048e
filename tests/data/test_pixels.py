from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.model.tiny import processor
from transformers import CLIPImageProcessorPil

from medmoe.data.pixels import augmented, pixel_table, squared
from medmoe.data.schema import ImageRecord
from medmoe.errors import ImageError
from medmoe.model.processing_medmoe import square_image_processor


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    shape = (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def records(*sources: np.ndarray | Path) -> list[ImageRecord]:
    return [ImageRecord(f"image {i}", source) for i, source in enumerate(sources)]


def test_a_table_holds_what_the_processor_shows_the_encoder(tmp_path: Path) -> None:
    Image.fromarray(picture(50, 20, 1)).save(tmp_path / "a.png")
    images = records(picture(32, 32), tmp_path / "a.png", picture(20, 70, 2), picture(9, 9)[..., 0])
    table = pixel_table(images, processor().image_processor)
    assert table.pixels.dtype == torch.uint8
    assert table.pixels.shape == (4, 3, 32, 32)
    pillow = [Image.fromarray(picture(32, 32)), Image.open(tmp_path / "a.png")]
    pillow += [Image.fromarray(picture(20, 70, 2)), Image.fromarray(picture(9, 9)[..., 0])]
    expected = processor().image_processor(
        [image.convert("RGB") for image in pillow], return_tensors="pt"
    )["pixel_values"]
    found = table.normalised(torch.arange(4))
    # Same 8-bit pixels, divided in another order; the values reach 5.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (448, 367), (31, 90), (1, 200), (20, 20)])
def test_a_picture_is_squared_bit_for_bit_as_by_the_processor(size: tuple[int, int]) -> None:
    ours = square_image_processor(48, (0.48, 0.45, 0.40), (0.27, 0.26, 0.28))
    image = Image.fromarray(picture(*size))
    expected = ours(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
    assert np.array_equal(squared(image, ours), expected)


def test_a_processor_of_another_policy_is_asked_itself() -> None:
    cropping = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size=48)
    image = Image.fromarray(picture(60, 90))
    expected = cropping(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
    assert np.array_equal(squared(image, cropping), expected)


def test_rows_are_found_by_image_id_in_any_order() -> None:
    images = records(picture(32, 32, 0), picture(32, 32, 1))
    table = pixel_table(images, processor().image_processor)
    assert table.rows == {"image 0": 0, "image 1": 1}
    both = table.normalised(torch.tensor([1, 0, 1]))
    assert torch.equal(both[0], both[2])
    assert torch.equal(both[1], table.normalised(torch.tensor([0]))[0])


def test_a_table_does_not_change_with_the_picture_it_was_made_from() -> None:
    source = picture(32, 32)
    table = pixel_table(records(source), processor().image_processor)
    before = table.pixels.clone()
    source[:] = 0
    assert torch.equal(table.pixels, before)


def test_the_record_of_an_image_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="image 0: neither PNG nor JPEG"):
        pixel_table(records(tmp_path / "bad.png"), processor().image_processor)


def unit(count: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 16, 16, generator=generator)


def draws(**values: float) -> torch.Tensor:
    names = ("shift_x", "shift_y", "zoom", "turn", "brightness", "contrast")
    return torch.tensor([[values.get(name, 0.0) for name in names]])


def test_no_strength_and_no_draw_leave_a_picture_as_it_is() -> None:
    pictures = unit(2)
    wild = torch.ones(2, 6)
    assert augmented(pictures, wild, 0) is pictures
    # Resampled on its own grid: rounding of the bilinear weights.
    torch.testing.assert_close(augmented(unit(), draws(), 1), unit(), rtol=0, atol=1e-5)


def test_strength_scales_the_draws() -> None:
    mild, same = (
        augmented(unit(), draws(shift_x=d, turn=d, contrast=d), s) for d, s in ((0.5, 1), (1, 0.5))
    )
    torch.testing.assert_close(mild, same)


def test_a_shift_moves_the_picture_by_its_share() -> None:
    column = torch.zeros(1, 3, 20, 20)
    column[..., 10] = 1
    moved = augmented(column, draws(shift_x=1), 1)
    # 0.15 of half the width of 20 pixels is 1.5 pixels, to the left.
    assert moved[0, 0, 5].nonzero().flatten().tolist() == [8, 9]
    torch.testing.assert_close(moved[0, 0, 5, 8:10], torch.tensor([0.5, 0.5]))


def test_brightness_and_contrast_change_exposure_within_range() -> None:
    grey = torch.full((1, 3, 4, 4), 0.4)
    brighter = augmented(grey, draws(brightness=1), 1)
    torch.testing.assert_close(brighter, torch.full_like(grey, 0.55))
    harder = augmented(grey, draws(contrast=1), 1)
    torch.testing.assert_close(harder, torch.full_like(grey, 0.37))
    white = augmented(torch.ones(1, 3, 4, 4), draws(brightness=1, contrast=1), 1)
    assert white.max() == 1


def test_left_stays_left_and_up_stays_up_under_every_draw() -> None:
    """Sides are asked for: a mirrored picture would teach the wrong answer."""
    marks = torch.zeros(64, 3, 32, 32)
    marks[:, 0, 8:24, 6:10] = 1  # a bar on the left in the first channel
    marks[:, 1, 6:10, 8:24] = 1  # a bar at the top in the second
    generator = torch.Generator().manual_seed(1)
    random = torch.rand(64, 6, generator=generator) * 2 - 1
    random[:, 4:] = 0
    out = augmented(marks, random, 1)
    place = torch.arange(32.0)
    columns, rows = out[:, 0].sum(1), out[:, 1].sum(2)
    assert ((columns * place).sum(1) / columns.sum(1)).max() < 15
    assert ((rows * place).sum(1) / rows.sum(1)).max() < 15


def test_pictures_of_a_batch_are_moved_one_by_one() -> None:
    pictures = unit(3)
    generator = torch.Generator().manual_seed(2)
    random = torch.rand(3, 6, generator=generator) * 2 - 1
    together = augmented(pictures, random, 1)
    for row in range(3):
        alone = augmented(pictures[row : row + 1], random[row : row + 1], 1)
        torch.testing.assert_close(together[row : row + 1], alone)
