"""Pictures made up for the tests of the comparison of pictures, and copies of them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy import ndimage

from medmoe.data.schema import ImageRecord, Pixels, Record, Task


def picture(seed: int, side: int = 192) -> Pixels:
    """Return a picture with coarse shapes and fine texture, in its own way for each seed."""
    rng = np.random.default_rng(seed)
    image = np.zeros((side, side))
    for sigma, strength in ((side / 8, 90.0), (side / 24, 45.0), (side / 80, 20.0)):
        layer = ndimage.gaussian_filter(rng.normal(size=(side, side)), sigma)
        image += strength * layer / layer.std()
    return np.clip(image + 128, 0, 255).astype(np.uint8)


def next_slice(pixels: Pixels, seed: int) -> Pixels:
    """Return the same coarse shapes with fine texture of its own, as the next slice of a scan."""
    coarse = ndimage.gaussian_filter(pixels.astype(float), pixels.shape[0] / 24)
    fine = picture(seed, pixels.shape[0]).astype(float)
    fine -= ndimage.gaussian_filter(fine, pixels.shape[0] / 24)
    return np.clip(coarse + fine, 0, 255).astype(np.uint8)


def copied(
    pixels: Pixels,
    *,
    scale: float = 1.0,
    quality: int = 95,
    crop: tuple[float, float, float, float] = (0, 0, 0, 0),
    gain: float = 1.0,
    offset: float = 0.0,
) -> Pixels:
    """Return a copy: cropped (shares of left, top, right, bottom), resized, re-exposed, JPEG."""
    image = Image.fromarray(pixels)
    width, height = image.size
    left, top, right, bottom = crop
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    image = image.crop(tuple(round(edge) for edge in box))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    exposed = np.asarray(image.resize(size, Image.Resampling.LANCZOS)) * gain + offset
    buffer = io.BytesIO()
    Image.fromarray(exposed.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def images(prefix: str, arrays: list[Pixels]) -> list[ImageRecord]:
    return [ImageRecord(id=f"{prefix}/{i}", source=a) for i, a in enumerate(arrays)]


def record(image: ImageRecord, name: str = "", task: Task = "vqa", **changes: object) -> Record:
    values: dict[str, object] = {
        "id": f"{image.id}/{name}" if name else image.id,
        "image": image,
        "question": "Is there a mass?",
        "answer": "yes",
        "answer_type": "closed",
        "question_type": "presence",
        "task": task,
        "dataset": image.id.partition("/")[0],
        "split": "train",
        "licence": "CC0-1.0",
        **changes,
    }
    return Record(**values)  # type: ignore[arg-type]


def records(of: list[ImageRecord]) -> list[Record]:
    """Return two questions on each image."""
    return [record(image, name) for image in of for name in "ab"]
