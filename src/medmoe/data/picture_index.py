"""Which of many pictures might be one: descriptors of pictures, and an index of them.

The first stage of `medmoe.data.near_duplicates`. A descriptor is a window of a picture (the whole,
or one of 27 crops of 5 to 15 %) at a few pixels without its slow shading, as a unit vector. A pair
is a candidate where a window of one correlates with the whole of the other. Up to a few thousand
pictures every window meets every whole. Of more, the wholes are put into clusters of like ones, and
a window meets those of the clusters next to it: the work grows as N to the power of 1.5, not of 2.

Short descriptors are compared first: on the axes along which wholes differ most, with one value
more, the length of what these axes leave out. Their product is never below the correlation, so
that nothing is missed, and the full ones are compared only where it reaches the limit.

Memory: 1.3 KiB for the whole of each picture; windows are made a block at a time, and the pictures
lie in a file once they are many.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Lock
from typing import IO, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

SIDE = 128  # pixels a side that are kept of a picture

#: So many pictures are all compared with each other.
_ALL_COMPARED = 4096
#: Clusters for the root of N pictures, and how many of them a window meets. Of 914 made-up copies
#: (crops of up to 15 % a side) in clusters of 5 pictures, 16 find 99.8 % and 32 find all.
_CLUSTERS, _MET = 6, 32
_SAMPLE_PER_CLUSTER, _ROUNDS = 24, 4
_SHORTER, _SAMPLE = 4, 16_384  # times fewer values has a short descriptor; wholes to find which
_BLOCK = 1024  # pictures whose windows are compared at once, bounds the memory
_ROWS = 512  # descriptors held against all centres, or one cluster, at once
_AT_ONCE = 4  # blocks at work at once, bounds the memory on many cores
_PAIRS = 2**16  # of full descriptors, compared at once
_HELD = 2**23  # alike windows and wholes that are kept until their pairs are handed on

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Part = TypeVar("Part")
Result = TypeVar("Result")


def side_by_side(work: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
    """Yield the result of each part in order, one at work on each core, at most `_AT_ONCE`."""
    workers, parts = min(os.cpu_count() or 1, _AT_ONCE), iter(parts)
    threads = torch.get_num_threads()
    # One thread each: torch counts them for each caller, and what others begin with.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            while some := list(itertools.islice(parts, workers)):
                yield from pool.map(work, some)
        finally:
            torch.set_num_threads(threads)


class Pictures:
    """Grey squares, read as they are asked for; a selection shares them.

    Args:
        file: 128 x 128 bytes a picture.
        rows: Which of them, in order, (N,).
        lock: Of the file, while a picture is read: several threads may ask.
    """

    def __init__(self, file: IO[bytes], rows: Rows, lock: Lock | None = None) -> None:
        self._file, self._rows, self._lock = file, rows, lock or Lock()

    def __len__(self) -> int:
        """Return the number of pictures, N."""
        return len(self._rows)

    def __getitem__(self, rows: slice | Rows) -> Bytes:
        """Return some of the pictures, (n, 128, 128)."""
        wanted = self._rows[rows]
        squares = np.empty((len(wanted), SIDE, SIDE), np.uint8)
        for number, row in enumerate(wanted):
            with self._lock:
                self._file.seek(int(row) * SIDE**2)
                content = self._file.read(SIDE**2)
            squares[number] = np.frombuffer(content, np.uint8).reshape(SIDE, SIDE)
        return squares

    def of(self, rows: Rows) -> Pictures:
        """Return a selection."""
        return Pictures(self._file, self._rows[rows], self._lock)

    def blocks(self) -> Iterator[tuple[int, Bytes]]:
        """Yield the pictures a block at a time, each with the row of its first."""
        for start in range(0, len(self), _BLOCK):
            yield start, self[start : start + _BLOCK]


class Window(NamedTuple):
    """A square part of a picture, in shares of its side."""

    top: float
    left: float
    side: float


WHOLE = Window(0.0, 0.0, 1.0)
_CROPS = tuple(
    Window((1 - side) * down, (1 - side) * along, side)
    for side in (0.95, 0.9, 0.85)
    for down, along in itertools.product((0, 0.5, 1), repeat=2)
)


class Look(NamedTuple):
    """How pictures are described and compared.

    Attributes:
        cells: Pixels a side of a descriptor.
        shading: Width in cells of the Gaussian blur that is taken away.
        windows: Those that are held against wholes, `WHOLE` first.
        limit: Correlation from which a pair is a candidate.
    """

    cells: int
    shading: float
    windows: tuple[Window, ...]
    limit: float


CROPPED = Look(16, 4.0, (WHOLE, *_CROPS), 0.85)
UNCROPPED = Look(32, 2.0, (WHOLE,), 0.98)


class Candidates(NamedTuple):
    """Pairs of pictures that might be one, P.

    Attributes:
        left: Row of the left picture, (P,).
        right: Row of the right one, (P,).
        likeness: Correlation of the best window of one with the whole of the other, (P,).
        place: Where the right one lies in the left one, (P, 4): scale and shift of x, of y, in
            halves of a side from the middle.
    """

    left: Rows
    right: Rows
    likeness: Floats
    place: Floats


def candidates(
    left: Pictures, right: Pictures, look: Look, *, within: bool = False
) -> Iterator[Candidates]:
    """Yield the pairs that might be one picture; of very many, one of two sides may come again.

    Args:
        within: Both are the same pictures: the row of the left one is then the smaller.
    """
    if not len(left) or not len(right):
        return
    # A window from -1 down is one of the right picture.
    met: list[tuple[Rows, npt.NDArray[np.int8], Floats]] = []
    held = 0
    for i, j, window, likeness, asked in _meetings(left, right, look, within):
        met.append((i * len(right) + j, window, likeness))
        held += len(i)
        if held > _HELD:
            pair, window, likeness = (np.concatenate(part) for part in zip(*met, strict=True))
            # Within, the right one of a pair may still ask for the left one, and know better.
            ready = pair % len(right) < asked if within else np.ones(len(pair), bool)
            yield _best_of([(pair[ready], window[ready], likeness[ready])], len(right), look)
            met, held = [(pair[~ready], window[~ready], likeness[~ready])], 0
    if met:
        yield _best_of(met, len(right), look)


def _meetings(
    left: Pictures, right: Pictures, look: Look, within: bool
) -> Iterator[tuple[Rows, Rows, npt.NDArray[np.int8], Floats, int]]:
    """Yield rows, window and correlation of the alike, and how many pictures have asked."""
    for i, j, window, likeness, asked in _Index(right, look).met_by(left):
        if within:
            window = np.where(i < j, window, ~window)
            i, j, other = np.minimum(i, j), np.maximum(i, j), i != j
            yield i[other], j[other], window[other], likeness[other], asked
        else:
            yield i, j, window, likeness, asked
    if len(look.windows) > 1 and not within:
        for j, i, window, likeness, asked in _Index(left, look).met_by(right):
            yield i, j, ~window, likeness, asked


def _best_of(
    met: Sequence[tuple[Rows, npt.NDArray[np.int8], Floats]], width: int, look: Look
) -> Candidates:
    """Return each pair once, by its best window; of equally good ones the left picture's is it."""
    pair, window, likeness = (np.concatenate(part) for part in zip(*met, strict=True))
    order = np.lexsort((window.view(np.uint8), -likeness, pair))
    best = order[np.flatnonzero(np.diff(pair[order], prepend=-1))]
    side, left, top = np.array([(w.side, w.left, w.top) for w in look.windows], np.float32).T
    x, y = 2 * left + side - 1, 2 * top + side - 1
    in_left = np.stack([side, x, side, y], 1)
    in_right = np.stack([1 / side, -x / side, 1 / side, -y / side], 1)
    places = np.concatenate([in_left, in_right[::-1]])  # row -1 is the first window of the right
    return Candidates(*np.divmod(pair[best], width), likeness[best], places[window[best]])


class _Index:
    """The wholes of pictures, those of a cluster side by side.

    Args:
        pictures: N of them.
    """

    def __init__(self, pictures: Pictures, look: Look) -> None:
        self._look = look
        self._wholes = np.empty((len(pictures), look.cells**2), np.float32)
        for start, block in pictures.blocks():
            self._wholes[start : start + len(block)] = descriptors(block, look, (WHOLE,))[0]
        self._axes = _axes(self._wholes)
        short = self._shortened(self._wholes)
        self._centres = _centres(short)
        cluster = _nearest(short, self._centres, 1)[:, 0]
        self._rows = np.argsort(cluster, kind="stable")
        self._short = short[self._rows]
        for column in self._wholes.T:  # one after another: a second copy would be large
            column[:] = column[self._rows]
        self._starts = np.searchsorted(cluster[self._rows], np.arange(len(self._centres) + 1))

    def _shortened(self, full: Floats) -> Floats:
        """Return short descriptors of full ones."""
        short = np.empty((len(full), self._axes.shape[1] + 1), np.float32)
        short[:, :-1] = _product(full, self._axes)
        whole, kept = (np.einsum("ij,ij->i", rows, rows) for rows in (full, short[:, :-1]))
        short[:, -1] = np.sqrt(np.maximum(whole - kept, 0))
        return short

    def met_by(
        self, pictures: Pictures
    ) -> Iterator[tuple[Rows, Rows, npt.NDArray[np.int8], Floats, int]]:
        """Yield row, row in the index, window and correlation of what is alike, block by block.

        The last value is the number of pictures that have been asked about.

        Args:
            pictures: Those whose windows are held against the wholes of the index.
        """

        def meetings(
            part: tuple[int, Bytes],
        ) -> tuple[Rows, Rows, npt.NDArray[np.int8], Floats, int]:
            start, block = part
            windows = descriptors(block, self._look, self._look.windows)
            found = list(self._alike(windows.reshape(-1, windows.shape[-1])))
            nothing = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
            asked, member, likeness = (
                np.concatenate(column) for column in zip(nothing, *found, strict=True)
            )
            window, row = np.divmod(asked, len(block))
            kind = window.astype(np.int8)
            return row + start, self._rows[member], kind, likeness, start + len(block)

        return side_by_side(meetings, pictures.blocks())

    def _alike(self, asking: Floats) -> Iterator[tuple[Rows, Rows, Floats]]:
        """Yield row, place in the index and correlation of the alike, cluster by cluster."""
        short = self._shortened(asking)
        near = _nearest(short, self._centres, _MET)
        order = np.argsort(near, axis=None, kind="stable")
        bounds = np.searchsorted(near.ravel()[order], np.arange(len(self._centres) + 1))
        order //= near.shape[1]
        for cluster in np.flatnonzero(np.diff(bounds) * np.diff(self._starts)):
            first, end = self._starts[cluster : cluster + 2]
            rows = order[bounds[cluster] : bounds[cluster + 1]]
            for begin in range(0, len(rows), _ROWS):
                piece = rows[begin : begin + _ROWS]
                at_most = _product(short[piece], self._short[first:end].T)
                likely = np.flatnonzero(at_most >= self._look.limit - 1e-4)  # for the rounding
                for part in range(0, len(likely), _PAIRS):
                    row, member = np.divmod(likely[part : part + _PAIRS], end - first)
                    row, member = piece[row], member + first
                    likeness = np.einsum("ij,ij->i", asking[row], self._wholes[member])
                    alike = likeness >= self._look.limit
                    yield row[alike], member[alike], likeness[alike]


def _product(left: Floats, right: Floats) -> Floats:
    """Return left @ right by torch: NumPy's threads are shared, and wait for each other."""
    return np.asarray(torch.from_numpy(left) @ torch.from_numpy(right))


def _axes(wholes: Floats) -> Floats:
    """Return the axes along which wholes differ most, (cells², d); of few pictures all axes."""
    cells = wholes.shape[1]
    if len(wholes) <= _ALL_COMPARED:
        return np.eye(cells, dtype=np.float32)
    sample = wholes[:: max(1, len(wholes) // _SAMPLE)]
    return np.linalg.eigh(sample.T @ sample)[1][:, -(cells // _SHORTER) :]


def _centres(wholes: Floats) -> Floats:
    """Return the middles of the clusters as unit vectors, by spherical k-means on a sample."""
    if len(wholes) <= _ALL_COMPARED:
        return np.zeros((1, wholes.shape[1]), np.float32)
    count = round(_CLUSTERS * math.sqrt(len(wholes)))
    rng = np.random.default_rng(0)
    size = min(len(wholes), _SAMPLE_PER_CLUSTER * count)
    sample = wholes[np.sort(rng.choice(len(wholes), size, replace=False))]
    centres = sample[rng.choice(size, count, replace=False)]
    for _ in range(_ROUNDS):
        nearest = _nearest(sample, centres, 1)[:, 0]
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, sample)
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(length > 0, sums / np.maximum(length, 1e-6), centres)
    return centres


def _nearest(rows: Floats, centres: Floats, count: int) -> npt.NDArray[np.uint16]:
    """Return the nearest centres of each row, in no order, (n, count)."""
    count = min(count, len(centres))
    nearest = np.empty((len(rows), count), np.uint16)  # which numpy sorts by radix
    for start in range(0, len(rows), _ROWS):
        piece = slice(start, start + _ROWS)
        alike = torch.from_numpy(_product(rows[piece], centres.T))
        nearest[piece] = alike.topk(count, dim=1, sorted=False).indices.numpy()
    return nearest


def descriptors(grey: Bytes, look: Look, windows: Sequence[Window]) -> Floats:
    """Return windows of pictures without their slow shading, as unit vectors, (W, n, cells²)."""
    cells = look.cells
    stretches = sorted({(start, w.side) for w in windows for start in (w.top, w.left)})
    number = {stretch: i for i, stretch in enumerate(stretches)}
    average = np.concatenate([_averages(*stretch, cells) for stretch in stretches])
    along = _product(grey.reshape(-1, SIDE).astype(np.float32), average.T)
    small = _product(average, along.reshape(len(grey), SIDE, -1))
    small = small.reshape(len(grey), len(stretches), cells, len(stretches), cells)
    rows, columns = (
        [number[start, w.side] for w, start in zip(windows, starts, strict=True)]
        for starts in ([w.top for w in windows], [w.left for w in windows])
    )
    flat = small[:, rows, :, columns].reshape(len(windows), len(grey), cells**2)
    flat = _product(flat, _without_shading(cells, look.shading))
    norm = np.linalg.norm(flat, axis=2, keepdims=True)
    # An even picture has no shape that could be compared: it stays far from everything.
    return np.where(norm > cells / 4, flat / np.maximum(norm, 1e-6), np.float32(0))


@cache
def _averages(start: float, length: float, cells: int) -> Floats:
    """Return the matrix that averages a stretch of a side into cells, (cells, 128)."""
    edges = (start + np.arange(cells + 1) / cells * length) * SIDE
    pixel = np.arange(SIDE)[None, :]
    covered = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    weights = np.maximum(covered, 0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


@cache
def _without_shading(cells: int, sigma: float) -> Floats:
    """Return the matrix that takes blur and mean from a picture as a row, (cells², cells²)."""
    place = np.arange(cells)
    weights = np.exp(-((place[:, None] - place[None, :]) ** 2) / (2 * sigma**2))
    blur = weights / weights.sum(axis=1, keepdims=True)
    sharp = np.eye(cells**2) - np.kron(blur, blur)
    return np.asarray((sharp - sharp.mean(axis=0)).T, np.float32)
