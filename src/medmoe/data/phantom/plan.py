"""What a phantom image will show, decided before anything is drawn.

A plan is a pure function of (seed, split, index). Finding, count, side and size run through all
their combinations once per block of 48 images of a domain, in shuffled order, so that answers are
balanced in any longer run of images. Positions are in the frame of the image: x to the right and y
down, both from -1 to 1. Left is the patient's left, which is on the viewer's right in a plane that
faces the viewer; in a plane without a left of the patient it is said to be the viewer's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from medmoe.data.phantom.anatomy import SPLITS, Anatomy, Split, draw_anatomy
from medmoe.domains import DOMAINS

#: The classes of the classification task, in label order.
FINDINGS: tuple[str, ...] = ("normal", "nodule", "ring", "band")
COUNTS: tuple[str, ...] = ("zero", "one", "two", "three")
#: Halves of the picture; what they are called depends on its plane.
SIDES: tuple[str, ...] = ("left", "right")
SIZES: tuple[str, ...] = ("small", "large")

#: Body parts and views of each domain; every pair of a domain is a scene of its own.
ORGANS: dict[str, tuple[str, str]] = {
    "ct": ("chest", "abdomen"),
    "mri": ("brain", "knee"),
    "pathology": ("liver", "muscle"),
    "xray": ("chest", "knee"),
}
PLANES: dict[str, tuple[str, str]] = {
    "ct": ("axial", "coronal"),
    "mri": ("axial", "sagittal"),
    "pathology": ("low power", "high power"),
    "xray": ("frontal", "lateral"),
}
#: Planes that face the viewer: the patient's left is on the viewer's right.
FACING = ("axial", "coronal", "frontal")

_CELLS = tuple(product(FINDINGS, (1, 2, 3), SIDES, SIZES))
#: Half extent of a round finding and half length of a band, (lowest, highest), in half images.
_RADIUS = {"small": (0.12, 0.13), "large": (0.20, 0.21)}
_HALF_LENGTH = {"small": (0.155, 0.17), "large": (0.28, 0.30)}
#: No finding comes nearer to the vertical axis than this (4 pixels of 64).
_CLEAR = 0.13


@dataclass(frozen=True, slots=True)
class Lesion:
    """One finding: centre, half extents along and across its axis, and the tilt of that axis."""

    x: float
    y: float
    along: float
    across: float
    tilt: float


@dataclass(frozen=True, slots=True)
class Plan:
    """All truth about one image; side, size and quadrant are None where they have no answer."""

    split: Split
    index: int
    domain: str
    organ: str
    plane: str
    anatomy: Anatomy
    finding: str
    side: str | None
    size: str | None
    quadrant: str | None
    lesions: tuple[Lesion, ...]

    @property
    def count(self) -> int:
        """Number of findings in the image."""
        return len(self.lesions)


def generator(seed: int, stream: int, split: Split, index: int) -> np.random.Generator:
    """Return the random stream of one purpose (0 plan, 1 picture, 2 words) of one image."""
    return np.random.default_rng([seed, stream, SPLITS.index(split), index])


@lru_cache(maxsize=64)
def _block(seed: int, split: Split, domain: int, block: int) -> tuple[int, ...]:
    """Return the shuffled order of the 48 combinations in one block of one domain."""
    rng = np.random.default_rng([seed, 3, SPLITS.index(split), domain, block])
    return tuple(int(cell) for cell in rng.permutation(len(_CELLS)))


def plan_image(split: Split, index: int, seed: int) -> Plan:
    """Decide everything about an image except its noise and the wording of its questions."""
    number, turn = index % len(DOMAINS), index // len(DOMAINS)
    domain = DOMAINS[number]
    order = _block(seed, split, number, turn // len(_CELLS))
    finding, count, side, size = _CELLS[order[turn % len(_CELLS)]]
    rng = generator(seed, 0, split, index)
    organ = ORGANS[domain][int(rng.integers(2))]
    plane = PLANES[domain][int(rng.integers(2))]
    anatomy = draw_anatomy(split, rng)
    if finding == "normal":
        return Plan(split, index, domain, organ, plane, anatomy, finding, None, None, None, ())
    heights, half = _heights(count, size, rng)
    lesions = tuple(_lesion(finding, side, size, y, rng) for y in heights)
    told = sides(plane)[SIDES.index(side)]
    word = told.split()[-1]
    quadrant = told.replace(word, f"{half} {word}") if half else None
    return Plan(split, index, domain, organ, plane, anatomy, finding, told, size, quadrant, lesions)


def sides(plane: str) -> tuple[str, str]:
    """Return what the left and the right half of a picture in a plane are called."""
    return ("right", "left") if plane in FACING else ("viewer's left", "viewer's right")


def _heights(count: int, size: str, rng: np.random.Generator) -> tuple[list[float], str | None]:
    """Return the height of each finding, and the half they share, if they share one.

    One finding, or two small ones, stay within a quadrant; more than that are stacked over the
    whole side, far enough apart to be told from one another.
    """
    lower = bool(rng.integers(2))
    sign, half = (1, "lower") if lower else (-1, "upper")
    if count == 1:
        nearest = 0.32 if size == "small" else 0.345
        return [sign * rng.uniform(nearest, 0.43)], half
    if count == 2 and size == "small":
        return [sign * rng.uniform(0.26, 0.27), sign * rng.uniform(0.62, 0.635)], half
    wobble = rng.uniform(-0.03, 0.03)
    slots = [-0.5, 0.0, 0.5] if count == 3 else [-0.27, 0.27]
    return [slot + wobble for slot in slots], None


def _lesion(finding: str, side: str, size: str, y: float, rng: np.random.Generator) -> Lesion:
    """Return one finding at a height, on a side of the viewer, clear of the vertical axis."""
    if finding == "band":
        along = rng.uniform(*_HALF_LENGTH[size])
        across = along * (0.36 if size == "small" else 0.27)
        tilt = rng.uniform(-0.25, 0.25)
    else:
        along = rng.uniform(*_RADIUS[size])
        across = along * rng.uniform(0.92, 1.0)
        tilt = rng.uniform(0, np.pi)
    nearest = max(0.33, _CLEAR + along)
    x = rng.uniform(nearest, max(0.42, nearest + 0.03))
    return Lesion(-x if side == "left" else x, y, along, across, tilt)
