"""Which copies of a picture the data audit finds, and what comparing costs beside opening.

Copies are made up: cropped by up to so much of each side, resized, compressed again, re-exposed.
Found means that the copy is paired with its original; false are pairs of different pictures. The
ratio is the time of comparing all pictures with all copies ÷ the time of opening them. Pictures are
those of the phantom, and of VQA-RAD where $MEDMOE_DATA names a folder that holds it.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image
from support.timing import options, ratios

from medmoe.data import registry
from medmoe.data.images import open_image
from medmoe.data.near_duplicates import Fingerprints, fingerprints, same_pictures
from medmoe.data.phantom import read_phantom
from medmoe.data.schema import ImageRecord, images_of

COUNT, SIDE = 120, 224
CROPS = (0.0, 0.03, 0.06, 0.1, 0.15)


def encoded(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def copies(pictures: list[Image.Image], crop: float, seed: int) -> list[bytes]:
    """Return a copy of each picture, cropped by up to ``crop`` on each side."""
    rng = np.random.default_rng(seed)
    found = []
    for picture in pictures:
        left, top, right, bottom = rng.uniform(0, crop, 4)
        width, height = picture.size
        box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
        part = picture.crop(tuple(round(edge) for edge in box))
        scale = rng.uniform(0.5, 1.3)
        size = (max(100, round(part.width * scale)), max(100, round(part.height * scale)))
        small = np.asarray(part.resize(size, Image.Resampling.LANCZOS), np.float64)
        exposed = small * rng.uniform(0.8, 1.2) + rng.uniform(-15, 15)
        copy = Image.fromarray(exposed.clip(0, 255).astype(np.uint8))
        found.append(encoded(copy, int(rng.uniform(40, 95))))
    return found


def records(name: str, files: list[bytes]) -> list[ImageRecord]:
    return [ImageRecord(f"{name}/{number}", data) for number, data in enumerate(files)]


def report(name: str, pictures: list[Image.Image], repeats: int) -> None:
    originals = records("original", [encoded(picture, 95) for picture in pictures])
    known = fingerprints(originals)
    for crop in CROPS:
        changed = records("copy", copies(pictures, crop, seed=1))
        pairs = same_pictures(known, fingerprints(changed))
        right = {p.left_id for p in pairs if p.left_id.split("/")[1] == p.right_id.split("/")[1]}
        false = sum(p.left_id.split("/")[1] != p.right_id.split("/")[1] for p in pairs)
        print(
            f"{name:8} cropped by up to {100 * crop:2.0f} % a side: "
            f"found {len(right):3} of {len(pictures)}, false {false}"
        )
    prints: Fingerprints = fingerprints(changed)
    cost = ratios(
        {"open": lambda: fingerprints(changed), "compare": lambda: same_pictures(known, prints)},
        "open",
        repeats,
    )["compare"]
    print(f"{name:8} comparing ÷ opening {cost}")


def main() -> None:
    arguments = options(__doc__ or "")
    phantom = images_of(read_phantom("train", COUNT, seed=7, size=SIDE))
    report("phantom", [open_image(image.source) for image in phantom], arguments.repeats)
    root = Path(os.environ.get("MEDMOE_DATA", ""))
    if os.environ.get("MEDMOE_DATA") and registry.available(root)["vqa_rad"]:
        real = images_of(registry.read("vqa_rad", root, "test"))[:COUNT]
        report("vqa_rad", [open_image(image.source) for image in real], arguments.repeats)


if __name__ == "__main__":
    main()
