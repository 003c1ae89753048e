"""Pictures that tell nothing about their questions: how much of a score needs the image.

``blank`` is a uniform grey picture, ``noise`` random pixels, ``shuffled`` the picture of another
image of the same split. A score that stays where it was did not come from the pictures. The paper
has no such control.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from medmoe.data.readers.common import hash_share
from medmoe.data.schema import ImageRecord, Pixels, Record, images_of
from medmoe.errors import DataError
from medmoe.evaluation.ask.corruptions import drawn_by

#: Pixels along one side of the blank and the noise picture; they are resized as any other.
_SIDE = 64
_GREY = 128


def controlled(records: Sequence[Record], control: str, seed: int) -> list[Record]:
    """Return the records with other pictures; ids, questions and answers stay.

    Args:
        control: A name of `CONTROLS`.
        seed: Of the noise and of the order; with the image's id it decides the picture.

    Raises:
        DataError: One image cannot be shuffled.
    """
    images = images_of(records)
    sources = _CONTROLS[control](images, seed)
    return [
        replace(record, image=replace(record.image, source=sources[record.image.id].source))
        for record in records
    ]


def _blank(images: Sequence[ImageRecord], seed: int) -> dict[str, ImageRecord]:
    grey = np.full((_SIDE, _SIDE, 3), _GREY, dtype=np.uint8)
    return {image.id: replace(image, source=grey) for image in images}


def _noise(images: Sequence[ImageRecord], seed: int) -> dict[str, ImageRecord]:
    def pixels(image: ImageRecord) -> Pixels:
        rng = drawn_by(f"{seed}:{image.id}")
        return rng.integers(0, 256, size=(_SIDE, _SIDE, 3), dtype=np.uint8)

    return {image.id: replace(image, source=pixels(image)) for image in images}


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
