"""The quantised family of anatomies, split so that no split has one near another's.

An anatomy is six shape parameters of five levels each, and its id is the six digits. Only the words
of a code are drawn: the last two digits check the first four such that any two anatomies, of one
split or of two, differ in at least three parameters (a Hamming code over five levels). A third
checksum says which split owns a word; every level of every parameter occurs in each split. What a
parameter means is the business of the domain that draws it. Not part of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal, get_args

import numpy as np

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_LEVELS = 5
#: A word's sums with these weights are multiples of five. No two columns are multiples of one
#: another, hence no two words differ in one or two digits only.
_CHECKS = ((1, 1, 1, 1, 1, 0), (0, 1, 2, 3, 4, 1))
#: The sum with these weights, modulo five, says which split owns a word. No combination of the
#: three rows has fewer than three weights: any two digits take all their values in each split.
_OWNER = (0, 1, 4, 4, 1, 0)
_RESIDUES: dict[Split, tuple[int, ...]] = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Six shape parameters, each between -1 and 1.

    Attributes:
        width: Of the body (pathology: spacing of the cells or fibres).
        height: Of the body or its parts (pathology: irregularity).
        wall: Thickness of wall, skull or cortex (pathology: width of the gaps).
        organ: Size of the main organ (pathology: size of the nuclei).
        shift: Vertical offset of the organs (pathology: phase of the pattern).
        lean: Tilt of the organs (pathology: direction of the fibres).
    """

    id: str
    width: float
    height: float
    wall: float
    organ: float
    shift: float
    lean: float


def draw_anatomy(split: Split, rng: np.random.Generator) -> Anatomy:
    """Return an anatomy that belongs to the split."""
    return anatomies(split)[int(rng.integers(len(anatomies(split))))]


@lru_cache(maxsize=len(SPLITS))
def anatomies(split: Split) -> tuple[Anatomy, ...]:
    """Return all anatomies of a split: 375 of train, 125 of each other."""
    half = (_LEVELS - 1) / 2
    return tuple(
        Anatomy("".join(map(str, digits)), *(digit / half - 1 for digit in digits))
        for digits in product(range(_LEVELS), repeat=len(_OWNER))
        if not any(_sum(row, digits) for row in _CHECKS)
        and _sum(_OWNER, digits) in _RESIDUES[split]
    )


def _sum(weights: Sequence[int], digits: Sequence[int]) -> int:
    return sum(map(int.__mul__, weights, digits)) % _LEVELS
