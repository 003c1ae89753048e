"""Pictures that tell nothing about their questions: how much of a score needs the image.

``blank`` is a uniform grey picture, ``noise`` random pixels, ``shuffled`` the picture of another
image of the same split. A score that stays where it was did not come from the pictures. The paper
has no such control.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medmoe.data.readers.common import hash_share
from medmoe.data.schema import ImageRecord, Pixels, Record, images_of, with_images
from medmoe.errors import DataError
from medmoe.evaluation.ask.corruptions import drawn_by

Source = Path | bytes | Pixels
#: Pixels along one side of the blank and the noise picture; they are resized as any other.
_SIDE = 64
_BLANK: Pixels = np.full((_SIDE, _SIDE, 3), 128, dtype=np.uint8)


def controlled(records: Sequence[Record], control: str, seed: int) -> list[Record]:
    """Return the records with other pictures; ids, questions and answers stay.

    Args:
        control: A name of `CONTROLS`.
        seed: Of the noise and of the order; with the image's id it decides the picture.

    Raises:
        DataError: One image cannot be shuffled.
    """
    images = images_of(records)
    if control == "shuffled" and len(images) < 2:
        raise DataError("one image only: nothing to shuffle; leave --control shuffled out")
    sources = _CONTROLS[control](images, seed)
    return [with_images(r, lambda image: replace(image, source=sources[image.id])) for r in records]


def _noise(image: ImageRecord, seed: int) -> Pixels:
    rng = drawn_by(f"{seed}:{image.id}")
    return rng.integers(0, 256, size=(_SIDE, _SIDE, 3), dtype=np.uint8)


def _shuffled(images: Sequence[ImageRecord], seed: int) -> dict[str, Source]:
    """Give each image the next one's picture, in an order drawn by the seed: none keeps its own."""
    order = sorted(images, key=lambda image: (hash_share(image.id, seed), image.id))
    following = [*order[1:], order[0]]
    return {image.id: other.source for image, other in zip(order, following, strict=True)}


_CONTROLS: Mapping[str, Callable[[Sequence[ImageRecord], int], Mapping[str, Source]]] = {
    "blank": lambda images, _: dict.fromkeys((image.id for image in images), _BLANK),
    "noise": lambda images, seed: {image.id: _noise(image, seed) for image in images},
    "shuffled": _shuffled,
}
#: The controls by name.
CONTROLS = tuple(_CONTROLS)
