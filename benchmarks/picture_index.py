"""Near-duplicates among very many pictures: memory, minutes, and what the index saves.

Fingerprints are made up as they are read, so that a million of them need no disk: layers of noise
as pictures have it, coarse ones strongest, each cut out at a place of its own. One in a hundred is
a copy of the one before, cropped by up to 8 % a side and exposed otherwise. First, at a size that
both can do, all are compared and then by the index: pairs, and time ÷. Then `--pictures` of them
(1000000 takes over half an hour): copies found, other pairs, minutes by the clock with those that
making pictures up takes, minutes of all cores without them, and the most memory that was held.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from typing import IO, cast

import numpy as np
import torch
from scipy import ndimage

from medmoe.data import picture_index
from medmoe.data.near_duplicates import Fingerprints, Pair, repeated_pictures
from medmoe.data.picture_index import SIDE, Pictures

TEXTURE, EVERY, CROP = 2048, 100, 0.08
#: Gaussian width in pixels and strength of each layer: about as many pairs look alike at first as
#: in a sample of ROCOv2 (1.6 in 10,000), which decides what is left to align.
LAYERS = ((20.0, 60.0), (7.0, 15.0), (1.6, 12.0))


class MadeUp:
    """Pictures as a file, each made when it is read."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.seconds = 0.0
        self._row = 0
        self._layers = []
        for width, strength in LAYERS:
            noise = rng.normal(size=(TEXTURE, TEXTURE)).astype(np.float32)
            layer = ndimage.gaussian_filter(noise, width, mode="wrap")
            self._layers.append(np.tile(layer * (strength / layer.std()), (2, 2)))

    def seek(self, place: int) -> None:
        self._row = place // SIDE**2

    def read(self, size: int) -> bytes:
        start = time.thread_time()
        content = self._picture(self._row).astype(np.uint8).tobytes()
        self.seconds += time.thread_time() - start
        return content

    def _picture(self, row: int) -> np.ndarray:
        copy = row % EVERY == 1
        rng = np.random.default_rng(row - copy)
        total = np.full((SIDE, SIDE), 128, np.float32)
        for layer, (y, x) in zip(self._layers, rng.integers(0, TEXTURE, (3, 2)), strict=True):
            total += layer[y : y + SIDE, x : x + SIDE]
        if copy:
            edges = np.random.default_rng([row, 1]).uniform(0, CROP, 4) * SIDE
            lines = [np.linspace(a, SIDE - 1 - b, SIDE) for a, b in (edges[:2], edges[2:])]
            grid = np.meshgrid(*lines, indexing="ij")
            total = 0.9 * ndimage.map_coordinates(total, grid, order=1) + 8
        return total.clip(0, 255)


def fingerprints(made_up: MadeUp, count: int) -> Fingerprints:
    ids = tuple(map(str, range(count)))
    grey = Pictures(cast(IO[bytes], made_up), np.arange(count))
    return Fingerprints(ids, grey, ids, np.zeros(count, np.bool_))


def search(made_up: MadeUp, count: int) -> tuple[list[Pair], float, float]:
    """Return the pairs, seconds by the clock, and of all cores without making pictures up."""
    known = fingerprints(made_up, count)
    made_up.seconds, clock, start = 0.0, time.perf_counter(), time.process_time()
    pairs = repeated_pictures(known)
    worked = time.process_time() - start - made_up.seconds
    return pairs, time.perf_counter() - clock, worked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10,000 pictures only")
    parser.add_argument("--pictures", type=int, default=30_000, metavar="N")
    parser.add_argument("--both", type=int, default=6_000, metavar="N", help="size of the ratio")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made_up = MadeUp()

    limit = picture_index._ALL_COMPARED
    picture_index._ALL_COMPARED = options.both
    every, _, slow = search(made_up, options.both)
    picture_index._ALL_COMPARED = min(limit, options.both - 1)
    some, _, fast = search(made_up, options.both)
    picture_index._ALL_COMPARED = limit
    print(
        f"{options.both:,} pictures: {len(every)} pairs by comparing all, {len(some)} by the "
        f"index, {len({*every} & {*some})} the same; all ÷ index {slow / fast:.1f}"
    )
    count = 10_000 if options.quick else options.pictures
    pairs, clock, worked = search(made_up, count)
    copies = {(str(n - 1), str(n)) for n in range(1, count, EVERY)}
    found = sum((p.left_id, p.right_id) in copies for p in pairs)
    unit = 1 if sys.platform == "darwin" else 1024
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    print(
        f"{count:,} pictures: {found:,} of {len(copies):,} copies found, {len(pairs) - found} "
        f"other pairs; {clock / 60:.1f} minutes, {worked / 60:.1f} of all cores without making "
        f"pictures up; at most {memory:.2f} GiB held"
    )


if __name__ == "__main__":
    main()
