"""The quantised family of anatomies, split so that no split shares an anatomy with another.

An anatomy is six shape parameters of five levels each, and its id is the six digits. The sum of the
digits modulo five says which split owns it (a parity check): two anatomies of different splits
differ in at least one parameter, while every level of every parameter occurs in all splits. What a
parameter means is the business of the domain that draws it. Not part of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_LEVELS = 5
_RESIDUES: dict[Split, tuple[int, ...]] = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Six shape parameters, each between -1 and 1.

    Attributes:
        width: Of the body (pathology: spacing of the cells or fibres).
        height: Of the body (pathology: irregularity).
        wall: Thickness of wall or skull (pathology: width of the gaps).
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
    free = [int(digit) for digit in rng.integers(_LEVELS, size=5)]
    residue = int(rng.choice(_RESIDUES[split]))
    digits = [*free, (residue - sum(free)) % _LEVELS]
    half = (_LEVELS - 1) / 2
    return Anatomy("".join(map(str, digits)), *(digit / half - 1 for digit in digits))


def owner(anatomy_id: str) -> Split:
    """Return the split that owns an anatomy."""
    residue = sum(map(int, anatomy_id)) % _LEVELS
    return next(split for split in SPLITS if residue in _RESIDUES[split])
