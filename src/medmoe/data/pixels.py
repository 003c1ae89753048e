"""All images of a run as one table of squared, resized pixels, so that each is opened once.

Shapes: N images, C = 3 channels, H = W the encoder's input side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medmoe.data.images import open_image
from medmoe.data.schema import ImageRecord


@dataclass(frozen=True, slots=True)
class PixelTable:
    """Pixels (N, 3, H, W) uint8 and the row of each image id."""

    pixels: Tensor
    rows: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalised(self, rows: Tensor) -> Tensor:
        """Return ``pixel_values`` (B, 3, H, W) float32 of the given rows (B,)."""
        return normalise(self.pixels[rows].float() / 255, self.mean, self.std)


def normalise(unit: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return pixels (B, 3, H, W) in 0–1 as the encoder wants them."""
    shape = (1, 3, 1, 1)
    return (unit - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def pixel_table(images: Sequence[ImageRecord], image_processor: Any) -> PixelTable:
    """Open every image and pad, resize it by the image processor's one policy.

    Raises:
        ImageError: An image cannot be opened.
    """
    side = image_processor.crop_size["height"]
    pixels = torch.empty((len(images), 3, side, side), dtype=torch.uint8)
    for row, image in enumerate(images):
        picture = open_image(image.source)
        if picture.size == (side, side):
            array = np.asarray(picture).transpose(2, 0, 1)
        else:
            out = image_processor(picture, do_rescale=False, do_normalize=False)
            array = np.clip(np.rint(np.asarray(out["pixel_values"][0])), 0, 255).astype(np.uint8)
        pixels[row] = torch.from_numpy(np.array(array))
    rows = {image.id: row for row, image in enumerate(images)}
    return PixelTable(
        pixels, rows, tuple(image_processor.image_mean), tuple(image_processor.image_std)
    )


def augmented(unit: Tensor, draws: Tensor, strength: float) -> Tensor:
    """Return pictures shifted, zoomed, slightly turned and re-exposed.

    Never mirrored: left and right must stay what they are.

    Args:
        unit: (B, 3, H, W) float32 in 0–1.
        draws: (B, 6) uniform numbers in -1..1, one row a picture: shift x and y, zoom, turn,
            brightness, contrast.
        strength: 0 leaves the picture as it is; 1 shifts and zooms by up to 15 %, turns by up to
            12 degrees.
    """
    if strength == 0:
        return unit
    draws = draws * strength
    zoom = 1 + 0.15 * draws[:, 2]
    angle = draws[:, 3] * (torch.pi / 15)
    theta = torch.zeros(len(unit), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = zoom * angle.cos()
    theta[:, 0, 1] = -zoom * angle.sin()
    theta[:, 1, 0] = zoom * angle.sin()
    theta[:, :, 2] = 0.15 * draws[:, :2]
    grid = functional.affine_grid(theta, list(unit.shape), align_corners=False)
    moved = functional.grid_sample(unit, grid, padding_mode="border", align_corners=False)
    contrast = (1 + 0.3 * draws[:, 5]).view(-1, 1, 1, 1)
    return ((moved - 0.5) * contrast + 0.5 + 0.15 * draws[:, 4].view(-1, 1, 1, 1)).clamp(0, 1)
