"""Which pictures are one picture: byte for byte, or resized, compressed again, cropped a little.

Two stages. A cheap one, `medmoe.data.picture_index`, proposes pairs: a window of one looks like the
whole of the other. Then a candidate is aligned (scale and shift, brightness and contrast) by
Gauss-Newton steps at 32 and 64 pixels, and confirmed by the correlation of its fine detail at 128
pixels. Detail is what tells a copy from the next slice of the same scan: copies reach 0.97 and
more, adjacent slices stay below 0.94.

Pictures smaller than 96 pixels (MedMNIST, MedNIST) hold no such detail and look alike in hundreds;
there only whole pictures are compared, at 32 pixels, so crops of them are not found. A flip, a
rotation or another window of the grey values is another picture. Limits were set on made-up copies
(`benchmarks/near_duplicates.py`), not on the lists of known ones.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import IO, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from medmoe.data.cache import ImageCache, default_cache
from medmoe.data.images import DECODING, made_of
from medmoe.data.picture_index import (
    CROPPED,
    SIDE,
    UNCROPPED,
    Candidates,
    Floats,
    Pictures,
    Rows,
    candidates,
    side_by_side,
)
from medmoe.data.schema import ImageRecord, Pixels
from medmoe.errors import ImageError

#: Correlation of small copies' detail from which a candidate is aligned, that at 32 and 64 pixels
#: from which it is looked at on, and that of fine detail which says that it is one picture.
#: The first refuses 92 % of the candidates of real sets, and none of 913 made-up copies.
PROMISING, COARSE, MEDIUM, DETAIL = 0.75, 0.90, 0.94, 0.95
#: Pictures with a side below it are compared as a whole.
SMALL_SIDE = 96

#: Raised where the same pixels give another fingerprint: every cached one is then made anew.
FINGERPRINT_VERSION = 1

_DIGEST_BYTES = 32
_IN_MEMORY = 65_536  # pictures (1 GiB); more lie in a file
_CHUNK = 256  # candidates aligned at once
_FRAME = 0.1  # share of the half side left out at the edges, where a filter sees beyond the picture

Kind = Literal["exact", "near", "same_id"]


class Pair(NamedTuple):
    """Two images that show one picture.

    ``distance`` is 0 for equal pixels, else 100 x (1 - correlation of the fine detail), rounded.
    ``same_id``: one id in two parts of a set, found by name.
    """

    left_id: str
    right_id: str
    kind: Kind
    distance: int


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """What is kept of images to compare them.

    Attributes:
        ids: Image ids, N.
        grey: Pictures as grey squares of 128 x 128 pixels.
        digests: SHA-256 of size and pixels, N.
        small: Whether a side is below `SMALL_SIDE`, (N,).
    """

    ids: tuple[str, ...]
    grey: Pictures
    digests: tuple[str, ...]
    small: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def of(self, ids: Sequence[str]) -> Fingerprints:
        """Return the fingerprints of some of the images, in the order asked for."""
        row = {name: number for number, name in enumerate(self.ids)}
        rows = [row[name] for name in ids]
        digests = tuple(self.digests[number] for number in rows)
        grey = self.grey.of(np.array(rows, np.int64))
        return Fingerprints(tuple(ids), grey, digests, self.small[rows])


def fingerprints(
    images: Sequence[ImageRecord],
    unreadable: dict[str, str] | None = None,
    *,
    cache: ImageCache | None = None,
) -> Fingerprints:
    """Open each image once and keep what the comparison needs.

    That of a file goes to the image cache, by the file's content, and is not made again. More
    than 65,536 pictures lie in a file beside that cache while they are used (16 KiB each).

    Args:
        images: With ids that differ.
        unreadable: Receives image id -> reason for pictures that cannot be opened, which are then
            left out; without it they are an error.
        cache: By default that of this user.

    Raises:
        ImageError: A picture cannot be opened.
    """
    ids: list[str] = []
    digests: list[str] = []
    small = np.zeros(len(images), np.bool_)
    cache = cache or default_cache()
    file = _file(len(images), cache)
    for image in images:
        try:
            packed = made_of(image, _policy(), _packed, cache)
        except ImageError as error:
            if unreadable is None:
                raise
            unreadable[image.id] = str(error)
            continue
        row = len(ids)
        file.write(packed[0, :SIDE].tobytes())
        small[row] = packed[0, SIDE, _DIGEST_BYTES]
        digests.append(packed[0, SIDE, :_DIGEST_BYTES].tobytes().hex())
        ids.append(image.id)
    grey = Pictures(file, np.arange(len(ids)))
    return Fingerprints(tuple(ids), grey, tuple(digests), small[: len(ids)])


def _file(pictures: int, cache: ImageCache | None) -> IO[bytes]:
    """Return where grey squares are kept: in memory, or in a file that goes with its last user."""
    if pictures <= _IN_MEMORY:
        return io.BytesIO()
    if cache is not None:
        cache.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=None if cache is None else cache.folder)


def _packed(picture: Image.Image) -> Pixels:
    """Return grey square and, in a row below it, digest and whether it is small: (1, 129, 128)."""
    packed = np.zeros((1, SIDE + 1, SIDE), np.uint8)
    packed[0, :SIDE] = _grey(picture)
    digest = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).digest()
    packed[0, SIDE, :_DIGEST_BYTES] = np.frombuffer(digest, np.uint8)
    packed[0, SIDE, _DIGEST_BYTES] = min(picture.size) < SMALL_SIDE
    return packed


@cache
def _policy() -> str:
    """Return everything besides a file that decides its fingerprint."""
    return json.dumps({"fingerprint": FINGERPRINT_VERSION, "small": SMALL_SIDE, **DECODING})


def _grey(picture: Image.Image) -> npt.NDArray[np.uint8]:
    grey = picture.convert("L")
    shrinks = min(grey.size) >= SIDE
    filter_ = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    return np.asarray(grey.resize((SIDE, SIDE), filter_))


def same_pictures(left: Fingerprints, right: Fingerprints) -> list[Pair]:
    """Return the pairs of a left and a right image that show one picture, nearest first."""
    return _ordered(_exact(left, right) | _near(left, right, within=False))


def repeated_pictures(images: Fingerprints) -> list[Pair]:
    """Return the pairs among ``images`` that show one picture, each once, nearest first."""
    kinds = _exact(images, images) | _near(images, images, within=True)
    order = {name: number for number, name in enumerate(images.ids)}
    return _ordered({p: v for p, v in kinds.items() if order[p[0]] < order[p[1]]})


def _ordered(kinds: dict[tuple[str, str], tuple[Kind, int]]) -> list[Pair]:
    pairs = [Pair(*names, *what) for names, what in kinds.items()]
    return sorted(pairs, key=lambda pair: (pair.distance, pair.left_id, pair.right_id))


def _exact(left: Fingerprints, right: Fingerprints) -> dict[tuple[str, str], tuple[Kind, int]]:
    by_digest: defaultdict[str, list[str]] = defaultdict(list)
    for name, digest in zip(right.ids, right.digests, strict=True):
        by_digest[digest].append(name)
    return {
        (name, other): ("exact", 0)
        for name, digest in zip(left.ids, left.digests, strict=True)
        for other in by_digest.get(digest, ())
    }


def _near(
    left: Fingerprints, right: Fingerprints, *, within: bool
) -> dict[tuple[str, str], tuple[Kind, int]]:
    """Return near duplicates; pairs with equal pixels are left to `_exact`."""
    large_l, large_r = np.flatnonzero(~left.small), np.flatnonzero(~right.small)
    small_l, small_r = np.flatnonzero(left.small), np.flatnonzero(right.small)
    kinds: dict[tuple[str, str], tuple[Kind, int]] = {}

    def keep(lefts: Rows, rights: Rows, likeness: Floats) -> None:
        for a, b, alike in zip(lefts.tolist(), rights.tolist(), likeness.tolist(), strict=True):
            if left.digests[a] != right.digests[b]:
                kinds[left.ids[a], right.ids[b]] = ("near", max(0, round(100 * (1 - alike))))

    for i, j, likeness in _large_pairs(left.grey.of(large_l), right.grey.of(large_r), within):
        keep(large_l[i], large_r[j], likeness)
    # The side with small pictures alone is the one to index.
    for j, i, likeness, _ in candidates(right.grey, left.grey.of(small_l), UNCROPPED):
        keep(small_l[i], j, likeness)
    for i, j, likeness, _ in candidates(left.grey.of(large_l), right.grey.of(small_r), UNCROPPED):
        keep(large_l[i], small_r[j], likeness)
    return kinds


def _large_pairs(
    left: Pictures, right: Pictures, within: bool
) -> Iterator[tuple[Rows, Rows, Floats]]:
    """Return row, row and correlation of the detail of pictures that are one, piece by piece."""
    from medmoe.data import alignment

    def small(side: Pictures) -> npt.NDArray[np.uint8]:
        copies = np.empty((len(side), alignment.SMALL, alignment.SMALL), np.uint8)
        for start, block in side.blocks():
            copies[start : start + len(block)] = alignment.small_copies(block)
        return copies

    small_left = small(left)
    small_right = small_left if within else small(right)

    def aligned(part: tuple[Candidates, int]) -> tuple[Rows, Rows, Floats]:
        pairs, piece = part[0], slice(part[1], part[1] + _CHUNK)
        i, j, place = pairs.left[piece], pairs.right[piece], pairs.place[piece]
        likely = alignment.promising(small_left[i], small_right[j], place, PROMISING, _FRAME)
        i, j, place = i[likely], j[likely], place[likely]
        likeness = alignment.confirm(left[i], right[j], place, (COARSE, MEDIUM), _FRAME)
        same = likeness >= DETAIL
        return i[same], j[same], likeness[same]

    pieces = (
        (pairs, start)
        for pairs in candidates(left, right, CROPPED, within=within)
        for start in range(0, len(pairs.left), _CHUNK)
    )
    return side_by_side(aligned, pieces)
