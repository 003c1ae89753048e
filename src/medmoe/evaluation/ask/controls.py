"""Pictures that tell nothing about their questions: how much of a score needs the image.

``blank`` is a uniform grey picture, ``noise`` random pixels, ``shuffled`` the picture of another
image of the same split. A score that stays where it was did not come from the pictures. The paper
has no such control.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from medmoe.data.readers.common import hash_share
from medmoe.data.schema import ImageRecord, Pixels, Record
from medmoe.errors import DataError

#: Pixels along one side of the blank and the noise picture; they are resized as any other.
_SIDE = 64
_GREY = 128


def controlled(records: Sequence[Record], control: str, seed: int) -> list[Record]:
    """Return the records with other pictures; ids, questions and answers stay.

    Args:
        records: All records of the split that are asked.
        control: A name of `CONTROLS`.
        seed: Of the noise and of the order; with the image's id it decides the picture.

    Raises:
        DataError: One image cannot be shuffled.
    """
    images = list({record.image.id: record.image for record in records}.values())
    sources = _CONTROLS[control](images, seed)
    return [
        replace(record, image=replace(record.image, source=sources[record.image.id].source))
        for record in records
    ]


def _blank(images: Sequence[ImageRecord], seed: int) -> dict[str, ImageRecord]:
    grey = np.full((_SIDE, _SIDE, 3), _GREY, dtype=np.uint8)
    return {image.id: replace(image, source=grey) for image in images}


def _noise(images: Sequence[ImageRecord], seed: int) -> dict[str, ImageRecord]:
    return {image.id: replace(image, source=_noise_of(image.id, seed)) for image in images}


def _noise_of(image_id: str, seed: int) -> Pixels:
    digest = hashlib.sha256(f"{seed}:{image_id}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    return rng.integers(0, 256, size=(_SIDE, _SIDE, 3), dtype=np.uint8)


def _shuffled(images: Sequence[ImageRecord], seed: int) -> dict[str, ImageRecord]:
    """Give each image the next one's picture, in an order drawn by the seed: none keeps its own."""
    if len(images) < 2:
        raise DataError("one image only: nothing to shuffle; leave --control shuffled out")
    order = sorted(images, key=lambda image: (hash_share(image.id, seed), image.id))
    following = [*order[1:], order[0]]
    return {image.id: other for image, other in zip(order, following, strict=True)}


_CONTROLS: Mapping[str, Callable[[Sequence[ImageRecord], int], dict[str, ImageRecord]]] = {
    "blank": _blank,
    "noise": _noise,
    "shuffled": _shuffled,
}
#: The controls by name.
CONTROLS = tuple(_CONTROLS)
