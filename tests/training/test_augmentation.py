"""Augmented training pictures: moved and re-exposed, never mirrored."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from medmoe.data.pixels import augmented

SIDE = 64


def marked() -> Tensor:
    """Return a dark picture (1, 3, 64, 64) with a bright mark high on its left side."""
    picture = torch.full((1, 3, SIDE, SIDE), 0.2)
    picture[:, :, 10:22, 8:20] = 0.9
    return picture


def centre(picture: Tensor) -> tuple[float, float]:
    """Return row and column of the centre of mass of what is brighter than the rest."""
    grey = picture[0].mean(dim=0)
    weight = (grey - grey.median()).clamp(min=0.1 * float(grey.max() - grey.median())) - 0.1 * (
        grey.max() - grey.median()
    )
    rows = (weight.sum(dim=1) * torch.arange(SIDE)).sum() / weight.sum()
    columns = (weight.sum(dim=0) * torch.arange(SIDE)).sum() / weight.sum()
    return float(rows), float(columns)


def corners() -> list[tuple[float, ...]]:
    """Return all strongest draws: each of the six at its lowest or highest."""
    return list(itertools.product((-1.0, 1.0), repeat=6))


def test_strength_0_is_the_picture_itself() -> None:
    picture = marked()
    assert augmented(picture, torch.ones(1, 6), 0) is picture


def test_draws_of_0_leave_the_picture_as_it_is() -> None:
    # grid_sample interpolates between pixels at float32: 1e-5 is far below one grey level of 255
    assert torch.allclose(augmented(marked(), torch.zeros(1, 6), 1), marked(), atol=1e-5)


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_a_mark_on_the_left_stays_on_the_left_and_above(strength: float) -> None:
    for draws in corners():
        row, column = centre(augmented(marked(), torch.tensor([draws]), strength))
        assert column < SIDE / 2 - 4, f"draws {draws} moved the mark to column {column:.0f}"
        assert row < SIDE / 2, f"draws {draws} moved the mark to row {row:.0f}"


def test_a_mirrored_picture_would_be_noticed() -> None:
    assert centre(marked().flip(-1))[1] > SIDE / 2 + 4


def test_pixels_stay_between_0_and_1_and_keep_their_shape() -> None:
    draws = torch.tensor(corners())
    pictures = torch.rand(len(draws), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    out = augmented(pictures, draws, 1)
    assert out.shape == pictures.shape
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1


def test_each_picture_gets_its_own_draws() -> None:
    pictures = marked().repeat(2, 1, 1, 1)
    draws = torch.tensor([[1.0, 0, 0, 0, 0, 0], [-1.0, 0, 0, 0, 0, 0]])
    both = augmented(pictures, draws, 1)
    alone = [augmented(marked(), draws[i : i + 1], 1) for i in range(2)]
    # the same arithmetic on another batch size: float32 rounding only
    assert torch.allclose(both, torch.cat(alone), atol=1e-6)
    shift = centre(both[1:])[1] - centre(both[:1])[1]
    # ±0.15 of the half width each way is 2 · 0.15 · 32 pixels; the centre is read off the edges
    assert shift == pytest.approx(2 * 0.15 * SIDE / 2, abs=1)


@pytest.mark.parametrize("number", range(7))
def test_every_draw_changes_something(number: int) -> None:
    draws = torch.zeros(1, 7)
    draws[0, number] = 1
    assert not torch.allclose(augmented(marked(), draws, 1), marked(), atol=0.05)


def test_noise_is_as_strong_as_its_draw_and_the_same_again() -> None:
    grey = torch.full((2, 3, SIDE, SIDE), 0.5)
    draws = torch.zeros(2, 7)
    draws[:, 6] = torch.tensor([0.4, 0.8])
    noise = augmented(grey, draws, 0.5) - 0.5
    # The spread of 4,096 normal numbers is known to about one part in ninety.
    assert noise.std(dim=(1, 2, 3)).tolist() == pytest.approx([0.01, 0.02], rel=0.05)
    assert torch.equal(noise, augmented(grey, draws, 0.5) - 0.5)
    assert torch.equal(noise[:, 0], noise[:, 2])  # radiographs stay grey
    alone = augmented(grey[1:], draws[1:], 0.5) - 0.5
    assert torch.equal(alone[0], noise[1])
