"""Pathology: a section stained with haematoxylin and eosin, coloured by optical density.

Liver and muscle at low and high power. A scene gives the amount of each stain; light is absorbed as
Beer and Lambert say, with the stain vectors of Ruifrok and Johnston (2001). Findings are dense
nests of nuclei; rings enclose an empty lumen. Nuclei are round or spindle-shaped stamps, not cells.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from medmoe.data.phantom.anatomy import Anatomy
from medmoe.data.phantom.canvas import Canvas, Field, paint
from medmoe.data.phantom.plan import Plan
from medmoe.data.schema import Pixels

_HAEMATOXYLIN = np.array((0.650, 0.704, 0.286), np.float32)
_EOSIN = np.array((0.072, 0.990, 0.105), np.float32)
#: Enlargement of the patterns relative to low power.
_POWER = {"low power": 1.0, "high power": 2.0}
#: Haematoxylin between the nuclei: at low power, what is too fine to be resolved blurs into haze.
_HAZE = {1.0: 0.11, 2.0: 0.03}


def draw(
    plan: Plan, board: Canvas, rng: np.random.Generator, findings: bool, noise: bool
) -> Pixels:
    """Draw a plan of domain ``pathology`` as (size, size, 3) colours."""
    power = _POWER[plan.plane]
    blue, pink = _SCENES[plan.organ](board, plan.anatomy, power, rng)
    pink *= 1 + 0.10 * board.noise(rng, "coarse")
    nest = _nest(board, power, rng)
    if findings:
        dense, core = board.findings(plan)
        paint(blue, dense, nest)
        paint(pink, dense, 0.12)
        paint(blue, core, 0.0)
        paint(pink, core, 0.02)
    blue *= 1.55 * rng.uniform(0.9, 1.1)
    pink *= 1.05 * rng.uniform(0.9, 1.1)
    grain = board.noise(rng, "fine") * 0.03
    if noise:
        pink += grain
        blue += grain * 0.5
    density = np.maximum(blue, 0)[..., None] * _HAEMATOXYLIN
    density += np.maximum(pink, 0)[..., None] * _EOSIN
    lamp = rng.uniform(243, 252)
    return np.clip(np.exp(-density) * lamp, 0, 255).astype(np.uint8)


def _nest(board: Canvas, power: float, rng: np.random.Generator) -> Field:
    """Return the haematoxylin of crowded nuclei."""
    points = _lattice(0.075 * power, 0.35, rng)
    return 1.2 + 0.3 * _nuclei(board, points, 0.03 * power, 0.03 * power, 0)


def _lattice(step: float, jitter: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return (n, 2) points of a shaken triangular lattice over the image."""
    lines = np.arange(-1, 1, step)
    grid = np.stack(np.meshgrid(lines, lines), -1)
    grid[1::2, :, 0] += step / 2
    # From a generator of its own: how many points there are must not change what is drawn next.
    shake = rng.spawn(1)[0].uniform(-jitter, jitter, (lines.size**2, 2))
    shaken = grid.reshape(-1, 2) + shake * step
    kept = np.abs(shaken).max(1) < 1
    return np.asarray(shaken[kept], np.float64)


def _nuclei(
    board: Canvas, points: npt.NDArray[np.float64], along: float, across: float, tilt: float
) -> Field:
    """Return the mask of nuclei of one shape at many points."""
    return np.clip(board.scatter(points, board.ellipse(0, 0, along, across, tilt)), 0, 1)


def _liver(
    board: Canvas, a: Anatomy, power: float, rng: np.random.Generator
) -> tuple[Field, Field]:
    step = (0.160 + 0.012 * a.width) * power
    points = _lattice(step, 0.20 + 0.06 * a.height, rng)
    radius = (0.030 + 0.007 * a.organ) * power
    nuclei = _nuclei(board, points, radius, radius, 0)
    cells = _nuclei(board, points, step * 0.50, step * 0.50, 0)
    blue = _HAZE[power] + 0.55 * nuclei
    pink = 0.34 + 0.26 * cells * (1 - 0.6 * nuclei)
    # Sinusoids: pale clefts that wind between the cords of cells.
    turn = 0.8 + 0.5 * a.lean
    cos, sin = float(np.cos(turn)), float(np.sin(turn))
    across, along = board.x * cos + board.y * sin, board.y * cos - board.x * sin
    bend = 0.6 * np.sin(along * (7 / power) + 2 * a.shift)
    phase = across * (2 * np.pi / (2.6 * step)) + bend + rng.uniform(0, 6.3)
    clefts = board.waves(phase, 0.16 + 0.03 * a.wall, 6.0) * (1 - nuclei)
    paint(pink, clefts, 0.05)
    return blue, pink


def _muscle(
    board: Canvas, a: Anatomy, power: float, rng: np.random.Generator
) -> tuple[Field, Field]:
    step = (0.22 + 0.02 * a.width) * power
    turn = 0.45 * a.lean
    cos, sin = float(np.cos(turn)), float(np.sin(turn))
    along, across = board.x * cos + board.y * sin, board.y * cos - board.x * sin
    swing = 0.10 * (1 + 0.4 * a.height)
    wave = swing * np.sin(along * (3.5 / power**0.5) + 2 * a.shift)
    start = rng.uniform(0, step)
    phase = (across + wave - start) * (2 * np.pi / step)
    gaps = board.waves(phase, 0.20 + 0.04 * a.wall, 3.0)
    pink = 0.72 - 0.08 * np.cos(along * (80 / power))
    paint(pink, gaps, 0.08)
    # Nuclei lie flat against the borders of the fibres, as seen in a cut along them.
    rows = np.arange(-1.6, 1.6, step) + start
    count = int(5 / power) + 1
    # From a generator of its own: how many nuclei there are must not change what is drawn next.
    scattered = rng.spawn(1)[0]
    place = scattered.uniform(-1.4, 1.4, (rows.size, count))
    lift = swing * np.sin(place * 3.5 / power**0.5 + 2 * a.shift)
    high = rows[:, None] - lift + scattered.choice([-0.16, 0.16], place.shape) * step
    points = np.stack((place * cos - high * sin, place * sin + high * cos), -1).reshape(-1, 2)
    points = points[np.abs(points).max(1) < 1]
    # The part that does not grow with the power stands for blur; without it, low power hides size.
    length = 0.014 + 0.008 * a.organ + (0.036 + 0.010 * a.organ) * power
    nuclei = _nuclei(board, points, length, length * 0.38, turn)
    return _HAZE[power] + 0.55 * nuclei, pink


_Scene = Callable[[Canvas, Anatomy, float, np.random.Generator], tuple[Field, Field]]
_SCENES: dict[str, _Scene] = {"liver": _liver, "muscle": _muscle}
