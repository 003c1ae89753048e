"""Pictures to read: those of VQA-RAD where they are, else phantoms of the same size."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from medmoe.data.phantom import read_phantom
from medmoe.data.schema import ImageRecord

SIDE = 448  # the longest side of VQA-RAD's pictures here


def pictures(folder: Path, count: int) -> tuple[str, list[ImageRecord]]:
    """Return what the pictures are, and up to so many records of JPEG files.

    Args:
        folder: Where phantoms are written to, if VQA-RAD is absent.
    """
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    shared = Path(os.environ["MEDMOE_SHARED"]) / "data" if "MEDMOE_SHARED" in os.environ else beside
    root = Path(os.environ.get("MEDMOE_DATA", shared))
    files = sorted((root / "vqa-rad" / "images").glob("*.jpg"))[:count]
    name = "VQA-RAD"
    if not files:
        name = "phantoms"
        images = {r.image.id: r.image for r in read_phantom("train", count, seed=7, size=SIDE)}
        for number, image in enumerate(images.values()):
            files.append(folder / f"{number}.jpg")
            Image.fromarray(np.asarray(image.source)).convert("RGB").save(files[-1], quality=90)
    return f"{len(files)} pictures of {name}", [ImageRecord(path.name, path) for path in files]
