"""All images of a run as one table of squared, resized pixels, so that each is opened once.

Files are decoded on all cores and kept in the image cache for the next run; pixels that a reader
holds already (the phantom, MedMNIST) are not, they cost less than an entry.

Shapes: N images, C = 3 channels, H = W the encoder's input side.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from medmoe.data.cache import ImageCache, default_cache
from medmoe.data.images import DECODING, made_of
from medmoe.data.intake.sandbox import default_pool
from medmoe.data.schema import ImageRecord, Pixels


@dataclass(frozen=True, slots=True)
class PixelTable:
    """Pixels (N, 3, H, W) uint8 and the row of each image id.

    Attributes:
        view: 0 gives the pictures as they are, another number one augmented version of each.
        strength: Of the augmentation.
    """

    pixels: Tensor
    rows: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    view: int = 0
    strength: float = 0.0

    def normalised(self, rows: Tensor) -> Tensor:
        """Return ``pixel_values`` (B, 3, H, W) float32 of the given rows (B,)."""
        unit = self.pixels[rows].float() / 255
        if self.view:
            drawn = torch.Generator().manual_seed(self.view)
            draws = torch.rand(len(self.pixels), 7, generator=drawn) * 2 - 1
            unit = augmented(unit, draws[rows], self.strength)
        return normalise(unit, self.mean, self.std)


def normalise(unit: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return pixels (B, 3, H, W) in 0–1 as the encoder wants them."""
    shape = (1, 3, 1, 1)
    return (unit - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def pixel_table(
    images: Sequence[ImageRecord], image_processor: Any, *, cache: ImageCache | None = None
) -> PixelTable:
    """Open every image and pad, resize it by the image processor's one policy.

    Args:
        cache: Where the pixels of files are kept; by default the cache of this user.

    Raises:
        ImageError: An image cannot be opened; its id is named.
    """
    side = image_processor.crop_size["height"]
    pixels = torch.empty((len(images), 3, side, side), dtype=torch.uint8)
    table, read = pixels.numpy(), _reader(image_processor, cache)
    with ThreadPoolExecutor(max_workers=default_pool().workers) as threads:
        # A refused image raises here, and cancels those not begun.
        for row, square in enumerate(threads.map(read, images)):
            table[row] = square
    rows = {image.id: row for row, image in enumerate(images)}
    return PixelTable(
        pixels, rows, tuple(image_processor.image_mean), tuple(image_processor.image_std)
    )


def read_pixels(image: ImageRecord, image_processor: Any) -> Pixels:
    """Return one image as it stands in a table, (3, H, W): from the cache, or opened.

    Raises:
        ImageError: It cannot be opened; its id is named.
    """
    return _reader(image_processor)(image)


def _reader(image_processor: Any, cache: ImageCache | None = None) -> Callable[..., Pixels]:
    policy, make = cache_policy(image_processor), partial(squared, image_processor=image_processor)
    return partial(made_of, policy=policy, make=make, cache=cache or default_cache())


def squared(picture: Image.Image, image_processor: Any) -> Pixels:
    """Return a picture as the encoder sees it but for the normalisation, (3, H, W)."""
    side = image_processor.crop_size["height"]
    if picture.size == (side, side):  # already: the phantom's, or MedMNIST's
        return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))
    out = image_processor(picture, do_rescale=False, do_normalize=False)
    values: Any = out["pixel_values"][0]
    if values.dtype != np.uint8:
        values = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(values)


def cache_policy(image_processor: Any) -> str:
    """Return everything besides a file that decides its pixels in a table."""
    return json.dumps(image_processor.to_dict() | DECODING, sort_keys=True, default=str)


def augmented(unit: Tensor, draws: Tensor, strength: float) -> Tensor:
    """Return pictures shifted, zoomed, slightly turned, re-exposed and noisy.

    Never mirrored: left and right must stay what they are.

    Args:
        unit: (B, 3, H, W) float32 in 0–1.
        draws: (B, 6 or 7) uniform numbers in -1..1, one row a picture: shift x and y, zoom, turn,
            brightness, contrast, and noise where there are seven.
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
    exposed = (moved - 0.5) * contrast + 0.5 + 0.15 * draws[:, 4].view(-1, 1, 1, 1)
    for picture, drawn in zip(exposed, draws[:, 6:].tolist(), strict=True):
        for size in drawn:  # its grain is drawn by its strength: the same picture again and again
            grain = torch.Generator().manual_seed(int(abs(size) * 2**40))
            picture += 0.05 * size * torch.randn(picture.shape[1:], generator=grain)
    return exposed.clamp(0, 1)
