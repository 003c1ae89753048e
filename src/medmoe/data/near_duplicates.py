"""Which pictures are one picture: byte for byte, or resized, compressed again, cropped a little.

Two stages. A cheap one proposes pairs: each picture is reduced to 16x16 pixels without its slow
shading, as a whole and in 28 windows (crops of 5 to 15 %), and pairs whose windows correlate are
candidates. Then a candidate is aligned (scale and shift of each axis, brightness and contrast) by
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
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from medmoe.data.cache import ImageCache, default_cache
from medmoe.data.images import DECODING_VERSION, made_of
from medmoe.data.schema import ImageRecord, Pixels
from medmoe.errors import ImageError

#: Correlation from which a pair is a candidate, from which it is looked at on at 32 and 64 pixels,
#: and from which its fine detail says that it is one picture.
CANDIDATE, COARSE, MEDIUM, DETAIL = 0.85, 0.90, 0.94, 0.95
#: The same of pictures with a side below `SMALL_SIDE`, compared as a whole.
SMALL_SIDE, SMALL_DETAIL = 96, 0.98

#: Raised where the same pixels give another fingerprint: every cached one is then made anew.
FINGERPRINT_VERSION = 1

_SIDE = 128  # pixels a side that are kept of a picture
_DIGEST_BYTES = 32
_CELLS = 16  # pixels a side of a descriptor
_BLOCK = 1024  # rows of the table of correlations held at once, bounds the memory
_CHUNK = 256  # candidates aligned at once
_FRAME = 0.1  # share of the half side left out at the edges, where a filter sees beyond the picture

Floats = npt.NDArray[np.float32]
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
        grey: Pictures as grey squares, (N, 128, 128), uint8.
        digests: SHA-256 of size and pixels, N.
        small: Whether a side is below `SMALL_SIDE`, (N,).
    """

    ids: tuple[str, ...]
    grey: npt.NDArray[np.uint8]
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
        return Fingerprints(tuple(ids), self.grey[rows], digests, self.small[rows])


def fingerprints(
    images: Sequence[ImageRecord],
    unreadable: dict[str, str] | None = None,
    *,
    cache: ImageCache | None = None,
) -> Fingerprints:
    """Open each image once and keep what the comparison needs.

    That of a file goes to the image cache, by the file's content, and is not made again.

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
    grey = np.empty((len(images), _SIDE, _SIDE), np.uint8)
    small = np.zeros(len(images), np.bool_)
    cache = cache or default_cache()
    for image in images:
        try:
            packed = made_of(image, _policy(), _packed, cache)
        except ImageError as error:
            if unreadable is None:
                raise
            unreadable[image.id] = str(error)
            continue
        row = len(ids)
        grey[row], small[row] = packed[0, :_SIDE], packed[0, _SIDE, _DIGEST_BYTES]
        digests.append(packed[0, _SIDE, :_DIGEST_BYTES].tobytes().hex())
        ids.append(image.id)
    return Fingerprints(tuple(ids), grey[: len(ids)], tuple(digests), small[: len(ids)])


def _packed(picture: Image.Image) -> Pixels:
    """Return grey square and, in a row below it, digest and whether it is small: (1, 129, 128)."""
    packed = np.zeros((1, _SIDE + 1, _SIDE), np.uint8)
    packed[0, :_SIDE] = _grey(picture)
    digest = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).digest()
    packed[0, _SIDE, :_DIGEST_BYTES] = np.frombuffer(digest, np.uint8)
    packed[0, _SIDE, _DIGEST_BYTES] = min(picture.size) < SMALL_SIDE
    return packed


@cache
def _policy() -> str:
    """Return everything besides a file that decides its fingerprint."""
    versions = {"decoding": DECODING_VERSION, "pillow": PIL.__version__}
    return json.dumps({"fingerprint": FINGERPRINT_VERSION, "small": SMALL_SIDE, **versions})


def _grey(picture: Image.Image) -> npt.NDArray[np.uint8]:
    grey = picture.convert("L")
    shrinks = min(grey.size) >= _SIDE
    filter_ = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    return np.asarray(grey.resize((_SIDE, _SIDE), filter_))


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
    for l_rows, r_rows, pairs in (
        (large_l, large_r, partial(_large_pairs, within=within)),
        (small_l, np.arange(len(right)), _small_pairs),
        (large_l, small_r, _small_pairs),
    ):
        for i, j, likeness in pairs(left.grey[l_rows], right.grey[r_rows]):
            a, b = int(l_rows[i]), int(r_rows[j])
            if left.digests[a] != right.digests[b]:
                distance = max(0, round(100 * (1 - likeness)))
                kinds[left.ids[a], right.ids[b]] = ("near", distance)
    return kinds


def _small_pairs(
    left: npt.NDArray[np.uint8], right: npt.NDArray[np.uint8]
) -> list[tuple[int, int, float]]:
    """Return row, column and correlation of whole pictures that are one at 32 pixels."""
    whole = (0.0, 0.0, 1.0)
    of_left, of_right = (_descriptors(side, whole, 32, 2.0) for side in (left, right))
    pairs = []
    for start in range(0, len(left), _BLOCK):
        likeness = of_left[start : start + _BLOCK] @ of_right.T
        for i, j in np.argwhere(likeness >= SMALL_DETAIL):
            pairs.append((start + int(i), int(j), float(likeness[i, j])))
    return pairs


def _large_pairs(
    left: npt.NDArray[np.uint8], right: npt.NDArray[np.uint8], *, within: bool
) -> list[tuple[int, int, float]]:
    """Return row, column and correlation of the detail of pictures that are one."""
    if not len(left) or not len(right):
        return []
    from medmoe.data.alignment import confirm

    of_left, of_right = (
        np.stack([_descriptors(side, window, _CELLS, 4.0) for window in _windows()])
        for side in (left, right)
    )
    confirmed = []
    for start in range(0, len(left), _BLOCK):
        rows = slice(start, start + _BLOCK)
        pairs = np.argwhere(_best(of_left[:, rows], of_right) >= CANDIDATE)
        pairs[:, 0] += start
        if within:
            pairs = pairs[pairs[:, 0] < pairs[:, 1]]
        for piece in np.array_split(pairs, max(1, -(-len(pairs) // _CHUNK))):
            i, j = piece.T
            place = _placed(of_left[:, i], of_right[:, j])
            likeness = confirm(left[i], right[j], place, (COARSE, MEDIUM), _FRAME)
            same = np.flatnonzero(likeness >= DETAIL)
            confirmed += [(int(i[k]), int(j[k]), float(likeness[k])) for k in same]
    return confirmed


def _best(left: Floats, right: Floats) -> Floats:
    """Return the best correlation over all windows of every pair, (N, M)."""
    best: Floats = left[0] @ right[0].T
    for number in range(1, len(left)):
        np.maximum(best, left[number] @ right[0].T, out=best)
        np.maximum(best, left[0] @ right[number].T, out=best)
    return best


def _placed(left: Floats, right: Floats) -> Floats:
    """Return where each right picture lies in its left one, (P, 4): scale and shift of x, of y.

    In halves of a side from the middle. A window of the left that matches the whole right says it
    at once; a window of the right that matches the whole left says the inverse.
    """
    in_left = np.einsum("wpd,pd->pw", left, right[0])
    in_right = np.einsum("pd,wpd->pw", left[0], right)
    places = np.empty((left.shape[1], 4), np.float32)
    for row in range(len(places)):
        forward = in_left[row].max() >= in_right[row].max()
        top, side, scale = _windows()[int((in_left if forward else in_right)[row].argmax())]
        x, y = 2 * side + scale - 1, 2 * top + scale - 1
        inverse = (1 / scale, -x / scale, 1 / scale, -y / scale)
        places[row] = (scale, x, scale, y) if forward else inverse
    return places


@cache
def _windows() -> tuple[tuple[float, float, float], ...]:
    """Return top, left and side of the whole picture and of 27 crops, as shares of the side."""
    crops = [
        ((1 - scale) * down, (1 - scale) * along, scale)
        for scale in (0.95, 0.9, 0.85)
        for down in (0, 0.5, 1)
        for along in (0, 0.5, 1)
    ]
    return ((0.0, 0.0, 1.0), *crops)


def _descriptors(
    grey: npt.NDArray[np.uint8], window: tuple[float, float, float], cells: int, shading: float
) -> Floats:
    """Return a window of each picture without its slow shading, as unit vectors, (N, cells²)."""
    top, side, scale = window
    down, along = (_averages(start, scale, cells) for start in (top, side))
    small = down @ grey.astype(np.float32) @ along.T
    blur = _blur(cells, shading)
    flat = (small - blur @ small @ blur.T).reshape(len(grey), cells * cells)
    flat = flat - flat.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    # An even picture has no shape that could be compared: it stays far from everything.
    return np.where(norm > cells / 4, flat / np.maximum(norm, 1e-6), 0).astype(np.float32)


@cache
def _averages(start: float, length: float, cells: int) -> Floats:
    """Return the matrix that averages a stretch of a side into cells, (cells, 128)."""
    edges = (start + np.arange(cells + 1) / cells * length) * _SIDE
    pixel = np.arange(_SIDE)[None, :]
    covered = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    weights = np.maximum(covered, 0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


@cache
def _blur(cells: int, sigma: float) -> Floats:
    """Return the matrix of a Gaussian blur along one side, (cells, cells)."""
    place = np.arange(cells)
    weights = np.exp(-((place[:, None] - place[None, :]) ** 2) / (2 * sigma**2))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)
