"""Radiography: thicknesses of tissue, the law of Beer and Lambert, exposure, photon counting.

Chest and knee, frontal and lateral. A scene gives centimetres of soft tissue and of bone in the way
of each ray; the picture shows the logarithm of the photons that arrive, dense parts white. Findings
add attenuation; the core of a ring takes some away, as a cavity does. There is no scatter.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from medmoe.data.phantom.anatomy import Anatomy
from medmoe.data.phantom.canvas import Canvas, Field
from medmoe.data.phantom.plan import Plan
from medmoe.data.schema import Pixels

#: Attenuation per centimetre at diagnostic energies.
_SOFT, _BONE = 0.20, 0.45


def draw(
    plan: Plan, board: Canvas, rng: np.random.Generator, findings: bool, noise: bool
) -> Pixels:
    """Draw a plan of domain ``xray`` as (size, size) grey values."""
    soft, bone = _SCENES[plan.organ, plan.plane](board, plan.anatomy)
    soft += 0.25 * board.noise(rng, "coarse")
    path = _SOFT * np.maximum(soft, 0) + _BONE * bone
    if findings:
        dense, core = board.findings(plan)
        path += 2.2 * dense - 0.5 * core
    exposure = rng.uniform(5e4, 1.5e5)
    dark = (0.65 if plan.organ == "chest" else 0.25) + rng.uniform(-0.1, 0.1)
    latitude = rng.uniform(4.5, 4.9)
    photons = exposure * np.exp(-path.astype(np.float64))
    # Last, for how many random numbers it takes depends on what is drawn.
    arrived = rng.poisson(photons) if noise else photons
    density = np.log(exposure / np.maximum(arrived, 1.0))
    shown: Pixels = (np.clip((density - dark) / latitude, 0, 1) * 255).astype(np.uint8)
    return shown


def _vertebrae(board: Canvas, centres: list[float], half: float, phase: float) -> Field:
    """Return centimetres of bone of a spine whose centre runs through heights -1, 0 and 1."""
    column = board.column([-1.1, 0, 1.1], centres, [half, half, half])
    gaps = board.waves(board.y * 21 + phase, 0.28)
    return column * (1 - 0.55 * gaps)


def _chest_frontal(board: Canvas, a: Anatomy) -> tuple[Field, Field]:
    rows, halves = [-1.1, -0.88, -0.72, 0.2, 1.1], [0.3, 0.42, 0.96, 0.92, 0.94]
    trunk = board.column(rows, [0.0] * 5, [half + 0.03 * a.width for half in halves])
    roundness = np.sqrt(np.clip(1 - (board.x / 1.08) ** 2, 0, 1))
    soft = trunk * roundness * (15.5 + 0.4 * a.wall)
    lungs, dome = board.zeros(), 0.60 + 0.04 * a.shift
    for side in (-1, 1):
        outer = 0.80 - 0.03 * a.wall
        half = (outer - 0.10) / 2
        lung = board.ellipse(side * (outer - half), -0.02, half, 0.78 + 0.03 * a.height)
        base = board.ellipse(side * 0.46, dome + 0.42 + 0.03 * side, 0.56, 0.42)
        lungs += lung * (1 - base)
    soft -= lungs * 8.5
    heart = board.dome(0.10, 0.36, 0.40 + 0.07 * a.organ, 0.34 + 0.05 * a.organ, 0.5 + 0.1 * a.lean)
    soft += lungs * heart * 6.5
    slope = np.abs(board.x) - 0.45
    phase = (board.y - 0.45 * slope * (1 + slope)) * 24
    cage = board.ellipse(0, 0.0, 0.87 - 0.03 * a.wall, 0.88, power=4) * (np.abs(board.x) > 0.13)
    bone = 0.65 * cage * board.waves(phase + a.lean, 0.42)
    bone += 1.5 * _vertebrae(board, [0.0] * 3, 0.10, a.shift)
    for side in (-1, 1):
        bone += board.ellipse(side * 0.46, -0.74, 0.40, 0.045, side * -0.12)  # clavicle
    return soft, bone


def _chest_lateral(board: Canvas, a: Anatomy) -> tuple[Field, Field]:
    rows, centres = [-1.1, -0.7, 0, 1.1], [0.1, 0.0, 0.0, 0.04]
    halves = [half + 0.02 * a.width for half in (0.5, 0.74, 0.82, 0.78)]
    trunk = board.column(rows, centres, halves)
    soft = trunk * (17.0 + 0.4 * a.wall)
    lung = board.ellipse(0.02, -0.04, 0.62 - 0.03 * a.wall, 0.80 + 0.03 * a.height, 0.08)
    base = board.ellipse(-0.1, 1.02 + 0.04 * a.shift, 0.86, 0.44, 0.2)
    lung = lung * (1 - base)
    soft -= lung * 9.5
    heart = board.dome(-0.34, 0.40, 0.48 + 0.08 * a.organ, 0.34 + 0.06 * a.organ, -0.7)
    soft += lung * heart * 4.5
    phase = (board.y - (0.55 + 0.08 * a.lean) * board.x) * 20
    cage = board.ellipse(0.0, 0.0, 0.72 - 0.03 * a.wall, 0.90, power=4)
    bone = 0.55 * cage * board.waves(phase, 0.35)
    bone += 2.2 * _vertebrae(board, [0.58, 0.70, 0.55], 0.11, a.shift)
    bone += 0.9 * board.column([-0.7, 0.4], [-0.58, -0.74], [0.04, 0.04]) * lung
    return soft, bone


def _leg(board: Canvas, a: Anatomy, centres: list[float]) -> Field:
    """Return centimetres of soft tissue of a leg through heights -1, 0 and 1."""
    halves = [half + 0.04 * a.width for half in (0.86, 0.78, 0.76)]
    limb = board.column([-1.1, 0, 1.1], centres, halves)
    depth = np.clip(1 - (board.x / 0.98) ** 2, 0.05, 1)
    soft: Field = limb * np.sqrt(depth) * (7.5 + 0.5 * a.wall)
    return soft


def _shaft(board: Canvas, mask: Field, centre: float, half: float) -> Field:
    """Return the bone of a long bone: thicker at its cortex than in its marrow."""
    marrow = board.ellipse(centre, 0, half, 3.0)
    return mask * (2.8 - 1.2 * marrow)


def _knee_frontal(board: Canvas, a: Anatomy) -> tuple[Field, Field]:
    soft = _leg(board, a, [0.0, 0.0, 0.0])
    joint = 0.06 + 0.05 * a.shift
    wide = 0.46 + 0.03 * a.organ
    thigh = 0.07 * a.lean
    cortex = 0.03 * a.wall
    femur = board.column(
        [-1.1, joint - 0.55, joint - 0.28, joint - 0.10, joint - 0.03, joint - 0.02],
        [thigh, thigh / 2, 0, 0, 0, 0],
        [0.19, 0.21, wide - 0.03, wide, wide - 0.08, 0],
    )
    notch = board.ellipse(0, joint, 0.09, 0.16)
    bone = _shaft(board, femur * (1 - notch), 0.0, 0.13 - cortex)
    tibia = board.column(
        [joint + 0.04, joint + 0.05, joint + 0.18, joint + 0.5, 1.1],
        [0, 0, 0, -0.02, -0.03],
        [0, wide, wide - 0.03, 0.21, 0.17],
    )
    bone += _shaft(board, tibia, -0.02, 0.11 - cortex)
    head = joint + 0.24 - 0.10 * a.height
    fibula = board.column([head, head + 0.04, 1.1], [0.44, 0.44, 0.36], [0, 0.09, 0.06])
    bone += 1.1 * fibula
    bone += 1.1 * board.ellipse(0, joint - 0.34 - 0.09 * a.height, 0.17, 0.18)
    return soft, bone


def _knee_lateral(board: Canvas, a: Anatomy) -> tuple[Field, Field]:
    soft = _leg(board, a, [0.02, -0.03, 0.12])
    joint = 0.06 + 0.05 * a.shift
    wide = 0.34 + 0.03 * a.organ
    cortex = 0.03 * a.wall
    femur = board.column(
        [-1.1, joint - 0.6, joint - 0.45], [-0.14 + 0.06 * a.lean, -0.06, 0.0], [0.17, 0.20, 0.27]
    ) * (board.y < joint - 0.3)
    condyle = board.ellipse(0.04, joint - 0.32, wide, 0.29)
    bone = _shaft(board, np.maximum(femur, condyle), -0.1, 0.11 - cortex)
    tibia = board.column(
        [joint + 0.04, joint + 0.05, joint + 0.16, joint + 0.45, 1.1],
        [0.06, 0.06, 0.06, 0.10, 0.20 + 0.06 * a.lean],
        [0, wide, wide - 0.03, 0.19, 0.15],
    )
    bone += _shaft(board, tibia, 0.1, 0.10 - cortex)
    head = joint + 0.22 - 0.08 * a.height
    fibula = board.column([head, head + 0.05, 1.1], [0.36, 0.36, 0.44], [0, 0.07, 0.05])
    bone += 0.9 * fibula
    knee_cap = (-0.52, joint - 0.36 - 0.09 * a.height)
    bone += 2.0 * board.ellipse(*knee_cap, 0.09, 0.20 + 0.03 * a.height, 0.2)
    return soft, bone


_SCENES: dict[tuple[str, str], Callable[[Canvas, Anatomy], tuple[Field, Field]]] = {
    ("chest", "frontal"): _chest_frontal,
    ("chest", "lateral"): _chest_lateral,
    ("knee", "frontal"): _knee_frontal,
    ("knee", "lateral"): _knee_lateral,
}
