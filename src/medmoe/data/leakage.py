"""Finding pictures of one set that stand, resized or compressed again, in another.

Each picture gets a 256-bit perceptual hash of its lowest spatial frequencies; two pictures are near
duplicates where at most `MAX_DISTANCE` bits differ.

The limit was read off VQA-RAD against VQA-Med 2019: the 38 known copies lie at 0 to 10 bits, the
nearest other pair (adjacent slices) at 22, the nearest two VQA-RAD pictures above 40. Resizing to
two thirds with JPEG quality 50 moves a picture by 8 bits on average and at most 20.

Not for sets of small, standardised pictures (MedNIST, PneumoniaMNIST): 28x28 chest radiographs of
two patients look the same to such a hash. The caller chooses what to compare. A crop, a flip or a
rotation is not found.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from medmoe.data.images import open_image
from medmoe.data.schema import ImageRecord, Record

MAX_DISTANCE = 20
HASH_BITS = 256

_SIDE = 64  # pixels a side before the transform
_LOW = 16  # frequencies a side that are kept
_BLOCK = 1024  # rows compared at once, bounds the memory

Hashes = npt.NDArray[np.bool_]


class Pair(NamedTuple):
    """Two near-duplicate images and the number of hash bits in which they differ."""

    left_id: str
    right_id: str
    distance: int


def image_hash(image: Image.Image) -> Hashes:
    """Return the perceptual hash of a picture, (256,), bool."""
    grey = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    basis = _cosines()
    low = (basis @ np.asarray(grey, np.float64) @ basis.T).ravel()
    # The first coefficient is the mean brightness: it says nothing about the shape.
    return np.asarray(low > np.median(low[1:]))


def hashes(images: Sequence[ImageRecord]) -> Hashes:
    """Return the hashes of images, (N, 256), bool; each picture is opened once."""
    rows = [image_hash(open_image(image.source)) for image in images]
    return np.array(rows, dtype=np.bool_).reshape(len(images), HASH_BITS)


def near_duplicates(
    train: Sequence[ImageRecord],
    test: Sequence[ImageRecord],
    *,
    max_distance: int = MAX_DISTANCE,
) -> list[Pair]:
    """Return the pairs of a train and a test image that look the same, nearest first.

    Raises:
        ImageError: A picture cannot be opened.
    """
    left, right = hashes(train), hashes(test)
    pairs = []
    for start in range(0, len(left), _BLOCK):
        distances = _distances(left[start : start + _BLOCK], right)
        for row, column in np.argwhere(distances <= max_distance):
            pairs.append(Pair(train[start + row].id, test[column].id, int(distances[row, column])))
    return sorted(pairs, key=lambda pair: (pair.distance, pair.left_id, pair.right_id))


def drop_near_duplicates(
    train_records: Sequence[Record],
    test_records: Sequence[Record],
    *,
    max_distance: int = MAX_DISTANCE,
) -> tuple[list[Record], int]:
    """Return the train records without those on near-duplicates of a test image, and their number.

    Raises:
        ImageError: A picture cannot be opened.
    """
    train = {record.image.id: record.image for record in train_records}
    test = {record.image.id: record.image for record in test_records}
    pairs = near_duplicates(list(train.values()), list(test.values()), max_distance=max_distance)
    banned = {pair.left_id for pair in pairs}
    kept = [record for record in train_records if record.image.id not in banned]
    return kept, len(train_records) - len(kept)


@functools.cache
def _cosines() -> npt.NDArray[np.float64]:
    """Return the first rows of the DCT-II matrix, (16, 64)."""
    frequency = np.arange(_LOW)[:, None]
    position = np.arange(_SIDE)[None, :] + 0.5
    return np.asarray(np.cos(np.pi / _SIDE * frequency * position))


def _distances(left: Hashes, right: Hashes) -> npt.NDArray[np.int64]:
    """Return the number of differing bits of every pair, (N, M)."""
    signs_left = np.where(left, 1.0, -1.0).astype(np.float32)
    signs_right = np.where(right, 1.0, -1.0).astype(np.float32)
    # Equal bits add 1 to the product and different ones -1; float32 is exact up to 2**24.
    return np.rint((HASH_BITS - signs_left @ signs_right.T) / 2).astype(np.int64)
