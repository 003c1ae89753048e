"""The drawing board: anti-aliased shapes, correlated noise, and where the findings are.

Coordinates run from -1 to 1 over the image whatever its size in pixels, so that a picture keeps its
content when it is drawn larger. A mask holds the share of each pixel that a shape covers (0 to 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from medmoe.data.phantom.plan import Plan
from medmoe.data.schema import Pixels

#: Images are float32 throughout: a plain number beside one leaves it so, a NumPy scalar would not.
Field = npt.NDArray[np.floating[Any]]

#: Letters of 3 × 5 dots.
_LETTERS = {"L": "#  #  #  #  ###", "R": "## # ### # ## #"}


class Canvas:
    """Coordinates and filters of one image size; use `canvas` to get the shared one.

    Attributes:
        size: Pixels along one side.
        x: (1, size) columns.
        y: (size, 1) rows.
        angle: (size, size) direction of each pixel as seen from the centre, in radians.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._per_pixel = size / 2
        line = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1).astype(np.float32)
        self.x: Field = line[None, :]
        self.y: Field = line[:, None]
        self.angle: Field = np.arctan2(self.y, self.x).astype(np.float32)
        # Cycles per image, so that texture keeps its scale relative to the anatomy.
        rows = np.fft.fftfreq(size, 1 / size)[:, None]
        columns = np.fft.rfftfreq(size, 1 / size)[None, :]
        self._frequency: Field = np.hypot(rows, columns).astype(np.float32)
        self._filters: dict[str, Field] = {}

    def zeros(self, value: float = 0.0) -> Field:
        """Return an image filled with one value."""
        return np.full((self.size, self.size), value, np.float32)

    def inside(self, distance: Field) -> Field:
        """Return the mask of the pixels whose signed distance to the border is positive."""
        covered: Field = np.clip(distance * self._per_pixel + 0.5, 0, 1)
        return covered

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, tilt: float = 0.0, power: int = 2
    ) -> Field:
        """Return the mask of an ellipse; power 4 makes it nearly a rectangle."""
        u, v = self._axes(x, y, rx, ry, tilt)
        if power == 4:
            u, v = u * u, v * v
        radius = np.sqrt(u * u + v * v)
        if power == 4:
            radius = np.sqrt(radius)
        return self.inside((1 - radius) * min(rx, ry))

    def _axes(self, x: float, y: float, rx: float, ry: float, tilt: float) -> tuple[Field, Field]:
        """Return each pixel's place along the axes of an ellipse, in its half axes."""
        u, v = self.x - x, self.y - y
        if tilt:
            cos, sin = float(np.cos(tilt)), float(np.sin(tilt))
            u, v = u * cos + v * sin, v * cos - u * sin
        return u / rx, v / ry

    def dome(self, x: float, y: float, rx: float, ry: float, tilt: float = 0.0) -> Field:
        """Return how thick an ellipsoid is along each ray, 1 at its centre."""
        u, v = self._axes(x, y, rx, ry, tilt)
        thickness: Field = np.sqrt(np.clip(1 - u * u - v * v, 0, 1))
        return thickness

    def column(
        self, rows: Sequence[float], centres: Sequence[float], half_widths: Sequence[float]
    ) -> Field:
        """Return the mask of an upright shape whose centre and half width change with height.

        It ends at the first and the last of the heights.
        """
        centre = np.interp(self.y, rows, centres).astype(np.float32)
        half = np.interp(self.y, rows, half_widths).astype(np.float32)
        ends = np.minimum(self.y - rows[0], rows[-1] - self.y)
        return self.inside(np.minimum(half - np.abs(self.x - centre), ends))

    def waves(self, phase: Field, share: float, sharpness: float = 4.0) -> Field:
        """Return stripes that cover a share of each period of the phase (in radians)."""
        level = float(np.cos(np.pi * share))
        stripes: Field = np.clip((np.cos(phase) - level) * sharpness, 0, 1)
        return stripes

    def noise(self, rng: np.random.Generator, kind: str) -> Field:
        """Return noise of unit variance with the spectrum of a kind.

        ``ramp`` is what filtered back-projection leaves of quantum noise (ramp filter with a
        smooth cut-off), ``fine`` is grain, ``coarse`` the slow unevenness of tissue.
        """
        white = rng.standard_normal((self.size, self.size), dtype=np.float32)
        if kind not in self._filters:
            self._filters[kind] = self._noise_filter(kind)
        spectrum = np.fft.rfft2(white) * self._filters[kind]
        return np.fft.irfft2(spectrum, white.shape).astype(np.float32)

    def _noise_filter(self, kind: str) -> Field:
        """Return the transfer function of a kind of noise, of unit gain in variance."""
        f = self._frequency
        shape = {
            "ramp": f * np.exp(-((f / 22) ** 2)),
            "fine": np.exp(-((f / 18) ** 2)),
            "coarse": np.exp(-((f / 4) ** 2)),
        }[kind].astype(np.float64)
        shape[0, 0] = 0
        # Columns between the first and the last stand for two conjugate frequencies each.
        weight = np.full(shape.shape[1], 2.0)
        weight[0] = 1.0
        if self.size % 2 == 0:
            weight[-1] = 1.0
        power = float((shape**2 * weight).sum()) / self.size**2
        gain: Field = (shape / np.sqrt(power)).astype(np.float32)
        return gain

    def scatter(self, points: npt.NDArray[np.float64], stamp: Field) -> Field:
        """Return the sum of copies of a mask (drawn at the centre) at points (n, 2) of (x, y)."""
        place = (points + 1) * (self.size / 2) - 0.5
        low = np.floor(place).astype(np.int64)
        part = place - low
        flat = np.zeros(self.size**2)
        for dx in (0, 1):
            for dy in (0, 1):
                column, row = (low[:, 0] + dx) % self.size, (low[:, 1] + dy) % self.size
                share = np.abs(1 - dx - part[:, 0]) * np.abs(1 - dy - part[:, 1])
                flat += np.bincount(row * self.size + column, share, self.size**2)
        spots = flat.reshape(self.size, self.size).astype(np.float32)
        # The stamp's centre lies between four pixels; half a pixel is below what can be seen.
        kernel = np.roll(stamp, (-(self.size // 2), -(self.size // 2)), (0, 1))
        spectrum = np.fft.rfft2(spots) * np.fft.rfft2(kernel)
        return np.fft.irfft2(spectrum, spots.shape).astype(np.float32)

    def findings(self, plan: Plan) -> tuple[Field, Field]:
        """Return the masks of what is dense in the findings, and of the hollow core of rings."""
        dense, core = self.zeros(), self.zeros()
        for lesion in plan.lesions:
            extent = (lesion.x, lesion.y, lesion.along, lesion.across, lesion.tilt)
            shape = self.ellipse(*extent, power=4 if plan.finding == "band" else 2)
            if plan.finding == "ring":
                inner = (lesion.along * 0.52, lesion.across * 0.52)
                hole = self.ellipse(lesion.x, lesion.y, *inner, lesion.tilt)
                np.maximum(core, hole, out=core)
                shape = shape - hole
            np.maximum(dense, shape, out=dense)
        return dense, core


@lru_cache(maxsize=8)
def canvas(size: int) -> Canvas:
    """Return the shared drawing board of a size."""
    return Canvas(size)


def paint(picture: Field, mask: Field, value: float | Field) -> None:
    """Replace what lies under the mask by a value, in place."""
    picture += mask * (value - picture)


def stamp(picture: Pixels, letter: str, height: float) -> None:
    """Write the letter of a side of the patient in white, in place: R at the left edge, L right.

    Args:
        height: Of its centre, -1 to 1; nearer to an end than half a letter, it begins there.
    """
    size, dot = len(picture), max(1, len(picture) // 64)
    dots = np.reshape([*_LETTERS[letter]], (5, 3)) == "#"
    mask = np.kron(dots, np.ones((dot, dot), bool))
    top = max(size // 64, round((height + 1) * size / 2) - len(mask) // 2)
    left = size // 64 if letter == "R" else size - size // 64 - 3 * dot
    picture[top : top + 5 * dot, left : left + 3 * dot][mask] = 255
