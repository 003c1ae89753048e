"""Computed tomography: Hounsfield units, a display window, noise as reconstruction leaves it.

Chest and abdomen, axial and coronal. Findings take up contrast agent: bright, rings with a core of
fluid or air. Physics is imitated where it shows; nothing is reconstructed from projections.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from medmoe.data.phantom.anatomy import Anatomy
from medmoe.data.phantom.canvas import Canvas, Field, paint
from medmoe.data.phantom.plan import Plan
from medmoe.data.schema import Pixels

_AIR, _LUNG, _FAT, _SOFT, _BONE = -1000.0, -840.0, -100.0, 45.0, 270.0


def draw(
    plan: Plan, board: Canvas, rng: np.random.Generator, findings: bool, noise: bool
) -> Pixels:
    """Draw a plan of domain ``ct`` as (size, size) grey values."""
    anatomy = plan.anatomy
    units = _SCENES[plan.organ, plan.plane](board, anatomy)
    chest = plan.organ == "chest"
    units += board.noise(rng, "coarse") * (10 if chest else 8)
    if findings:
        dense, core = board.findings(plan)
        paint(units, dense, 520.0 if chest else 440.0)
        paint(units, core, -900.0 if chest else -160.0)
    level, width = (-220.0, 1500.0) if chest else (100.0, 700.0)
    level, width = level + rng.uniform(-0.03, 0.03) * width, width * rng.uniform(0.95, 1.08)
    grain = rng.uniform(22, 34) if chest else rng.uniform(10, 15)
    speckle = board.noise(rng, "ramp") + 0.5 * _streaks(board, rng)
    if noise:
        units += grain * speckle
    shown: Pixels = (np.clip((units - level) / width + 0.5, 0, 1) * 255).astype(np.uint8)
    return shown


def _streaks(board: Canvas, rng: np.random.Generator) -> Field:
    """Return lines along one direction, such as few photons behind dense bone leave."""
    turn = rng.uniform(-0.35, 0.35)
    across = board.y * float(np.cos(turn)) + board.x * float(np.sin(turn))
    samples = rng.standard_normal(board.size)
    lines = np.interp(across, np.linspace(-1.4, 1.4, board.size), samples)
    return lines.astype(np.float32)


def _torso_axial(board: Canvas, a: Anatomy) -> tuple[Field, float, float]:
    """Return skin, fat and muscle of a transverse slice, and its inner half axes."""
    rx, ry = 0.93 + 0.03 * a.width, 0.83 + 0.03 * a.height
    wall = 0.07 + 0.022 * a.wall
    units = board.zeros(_AIR)
    paint(units, board.ellipse(0, 0, rx, ry), _FAT)
    paint(units, board.ellipse(0, 0, rx - wall, ry - wall), _SOFT)
    return units, rx - wall, ry - wall


def _vertebra(board: Canvas, units: Field, y: float) -> None:
    """Add a vertebra with its canal and spinous process."""
    paint(units, board.ellipse(0, y + 0.17, 0.05, 0.12), _BONE)
    paint(units, board.ellipse(0, y, 0.15, 0.12), _BONE)
    paint(units, board.ellipse(0, y + 0.14, 0.05, 0.05), 30.0)


def _chest_axial(board: Canvas, a: Anatomy) -> Field:
    units, rx, ry = _torso_axial(board, a)
    ring = board.ellipse(0, 0, rx, ry) - board.ellipse(0, 0, rx - 0.06, ry - 0.06)
    paint(units, ring * board.waves(board.angle * 12 + a.lean, 0.55), _BONE)
    for side in (-1, 1):
        half, tilt = 0.66 + 0.02 * a.organ, side * (0.10 + 0.05 * a.lean)
        paint(units, board.ellipse(side * 0.45, 0.05 * a.shift, 0.34, half, tilt), _LUNG)
    paint(units, board.ellipse(0.05, -0.22, 0.22 + 0.02 * a.organ, 0.26), 110.0)
    paint(units, board.ellipse(0.13, 0.32, 0.07, 0.07), 150.0)
    paint(units, board.ellipse(0, 1 - ry - 0.92, 0.13, 0.035), _BONE)
    _vertebra(board, units, 0.47)
    return units


def _abdomen_axial(board: Canvas, a: Anatomy) -> Field:
    units, rx, ry = _torso_axial(board, a)
    paint(units, board.ellipse(0, -0.04, rx - 0.06, ry - 0.08), -60.0)
    paint(units, board.ellipse(0.24, 0.02, 0.42, 0.48), 25.0)
    liver_x = 0.40 + 0.05 * a.organ
    paint(units, board.ellipse(-0.36, -0.12 + 0.04 * a.shift, liver_x, 0.56, 0.3 * a.lean), 100.0)
    paint(units, board.ellipse(0.62, 0.08, 0.19, 0.36, -0.2), 115.0)
    paint(units, board.ellipse(0.28, -0.36, 0.24, 0.2), 20.0)
    paint(units, board.ellipse(0.26, -0.44 + 0.02 * a.shift, 0.16, 0.07), -800.0)
    for side in (-1, 1):
        kidney = (side * 0.40, 0.40 + 0.03 * a.shift, 0.13 + 0.015 * a.organ, 0.17)
        paint(units, board.ellipse(*kidney, side * 0.3), 145.0)
        paint(units, board.ellipse(kidney[0] - side * 0.06, kidney[1], 0.05, 0.06), 10.0)
    paint(units, board.ellipse(0.06, 0.22, 0.07, 0.07), 150.0)
    _vertebra(board, units, 0.42)
    return units


def _coronal_wall(a: Anatomy) -> float:
    """Return the thickness of skin and fat in a frontal slice."""
    return 0.07 + 0.03 * a.wall


def _torso_coronal(board: Canvas, a: Anatomy, rows: list[float], halves: list[float]) -> Field:
    """Return skin, fat and muscle of a frontal slice, given its half width by height."""
    units = board.zeros(_AIR)
    wall = _coronal_wall(a)
    centres = [0.0] * len(rows)
    outer = [half + 0.03 * a.width for half in halves]
    paint(units, board.column(rows, centres, outer), _FAT)
    paint(units, board.column(rows, centres, [half - wall for half in outer]), _SOFT)
    return units


def _spine(board: Canvas, a: Anatomy, units: Field, top: float) -> None:
    """Add the column of vertebrae, seen from the front, below a height."""
    body = board.ellipse(0, top + 1.0, 0.09, 1.0, 0.02 * a.lean, power=4)
    discs = board.waves(board.y * 22 + a.shift, 0.25)
    paint(units, body, _BONE)
    paint(units, body * discs, 90.0)


def _chest_coronal(board: Canvas, a: Anatomy) -> Field:
    raised = 0.05 * a.height
    rows = [-1.1, -0.86 - raised, -0.68 - raised, 0, 1.1]
    units = _torso_coronal(board, a, rows, [0.28, 0.34, 0.90, 0.88, 0.84])
    dome = 0.66 + 0.04 * a.shift
    _spine(board, a, units, -1.0)
    for side in (-1, 1):
        lung = board.ellipse(side * 0.43, 0.02 - raised / 2, 0.33, 0.82 + raised / 2, side * 0.03)
        liver = board.ellipse(side * 0.45, dome + 0.36, 0.52, 0.36)
        paint(units, lung, _LUNG)
        paint(units, liver * lung, 70.0)
    heart = (0.31 + 0.045 * a.organ, 0.22 + 0.03 * a.organ)
    paint(units, board.ellipse(0.11, 0.36, *heart, 0.6 + 0.5 * a.lean), 110.0)
    paint(units, board.ellipse(0.04, -0.12, 0.10, 0.26, 0.25 * a.lean), 140.0)
    for side in (-1, 1):
        x = side * (0.90 + 0.03 * a.width - _coronal_wall(a))
        flank = board.column([-1.1, 1.1], [x, x], [0.03, 0.03])
        paint(units, flank * board.waves(board.y * 24, 0.45) * (board.y > -0.6), _BONE)
    return units


def _abdomen_coronal(board: Canvas, a: Anatomy) -> Field:
    units = _torso_coronal(board, a, [-1.1, 0, 0.55, 1.1], [0.86, 0.80, 0.88, 0.92])
    paint(units, board.ellipse(0, 0.1, 0.66, 1.0, power=4), -60.0)
    paint(units, board.ellipse(0.12, 0.35, 0.5, 0.36), 25.0)
    for side in (-1, 1):
        paint(units, board.ellipse(side * 0.2, 0.5, 0.10, 0.5, side * -0.2), 60.0)
    _spine(board, a, units, -1.1)
    pelvis = 0.84 - 0.06 * a.height
    liver_x = 0.38 + 0.05 * a.organ
    liver = board.ellipse(-0.38, -0.42 + 0.04 * a.shift, liver_x, 0.40, 0.4 + 0.25 * a.lean)
    paint(units, liver, 100.0)
    paint(units, board.ellipse(0.56, -0.42, 0.17, 0.30 + 0.03 * a.height), 115.0)
    for side in (-1, 1):
        paint(units, board.ellipse(side * 0.45, -1.08 + 0.03 * a.shift, 0.36, 0.30), _LUNG)
        kidney = (side * 0.40, 0.16 + 0.03 * a.shift, 0.13, 0.23 + 0.015 * a.organ)
        paint(units, board.ellipse(*kidney, side * 0.2), 145.0)
        paint(units, board.ellipse(kidney[0] - side * 0.06, kidney[1], 0.04, 0.09), 10.0)
        paint(units, board.ellipse(side * 0.62, pelvis, 0.24, 0.09, side * -0.9), _BONE)
    paint(units, board.ellipse(0, pelvis + 0.06, 0.24, 0.16), 5.0)
    return units


_SCENES: dict[tuple[str, str], Callable[[Canvas, Anatomy], Field]] = {
    ("chest", "axial"): _chest_axial,
    ("chest", "coronal"): _chest_coronal,
    ("abdomen", "axial"): _abdomen_axial,
    ("abdomen", "coronal"): _abdomen_coronal,
}
