"""Magnetic resonance: tissue contrast by the signal equation, a bias field, Rician noise.

Brain and knee, axial and sagittal, each in two sequences. A tissue has proton density and times T1
and T2; a sequence turns them into a signal. Findings are bright: enhancing where the sequence is
T1-weighted, oedematous under inversion recovery; rings hold old blood, which is dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from medmoe.data.phantom.anatomy import Anatomy
from medmoe.data.phantom.canvas import Canvas, Field, paint
from medmoe.data.phantom.plan import Plan
from medmoe.data.schema import Pixels

#: Proton density, T1 and T2 in milliseconds (near 1.5 T).
_TISSUES: dict[str, tuple[float, float, float]] = {
    "white": (0.70, 600, 80),
    "grey": (0.82, 950, 100),
    "fluid": (1.00, 4000, 2000),
    "fat": (0.90, 250, 70),
    "muscle": (0.75, 900, 50),
    "bone": (0.08, 1000, 20),
    "cartilage": (0.80, 1000, 60),
    "enhancing": (1.00, 150, 100),
    "oedema": (1.00, 1400, 200),
    "blood": (0.08, 900, 30),
}


@dataclass(frozen=True, slots=True)
class _Sequence:
    """Repetition, echo and inversion time in milliseconds (0: spin echo), and the finding."""

    repetition: float
    echo: float
    inversion: float
    lesion: str
    fat: float = 1.0


_SEQUENCES: dict[str, tuple[_Sequence, _Sequence]] = {
    "brain": (_Sequence(500, 12, 0, "enhancing"), _Sequence(9000, 110, 2400, "oedema")),
    "knee": (_Sequence(500, 12, 0, "enhancing", 0.12), _Sequence(4000, 40, 170, "oedema")),
}


@lru_cache(maxsize=8)
def _signals(sequence: _Sequence) -> Mapping[str, float]:
    """Return the signal of every tissue, relative to that of a finding."""
    signals: dict[str, float] = {}
    for name, (density, t1, t2) in _TISSUES.items():
        recovered = 1 - math.exp(-sequence.repetition / t1)
        if sequence.inversion:
            left = math.exp(-sequence.repetition / t1)
            recovered = abs(1 - 2 * math.exp(-sequence.inversion / t1) + left)
        signals[name] = density * recovered * math.exp(-sequence.echo / t2)
    signals["fat"] *= sequence.fat
    return {name: min(value / signals[sequence.lesion], 1.1) for name, value in signals.items()}


def draw(
    plan: Plan, board: Canvas, rng: np.random.Generator, findings: bool, noise: bool
) -> Pixels:
    """Draw a plan of domain ``mri`` as (size, size) grey values."""
    sequence = _SEQUENCES[plan.organ][int(rng.integers(2))]
    tissue = _signals(sequence)
    signal = board.zeros()
    _SCENES[plan.organ, plan.plane](board, plan.anatomy, tissue, signal)
    signal *= 1 + 0.05 * board.noise(rng, "coarse")
    if findings:
        dense, core = board.findings(plan)
        paint(signal, dense, 1.0)
        paint(signal, core, tissue["blood"])
    signal *= _bias(board, rng) * rng.uniform(0.86, 0.96)
    spread = rng.uniform(0.025, 0.04)
    real, imaginary = rng.standard_normal((2, board.size, board.size), dtype=np.float32) * spread
    if noise:
        signal = np.hypot(signal + real, imaginary)
    # The usual display curve: it opens up the dark half of the range.
    shown: Pixels = (np.clip(signal, 0, 1) ** 0.8 * 255).astype(np.uint8)
    return shown


def _bias(board: Canvas, rng: np.random.Generator) -> Field:
    """Return the smooth sensitivity of a receive coil, between about 0.8 and 1.05."""
    x, y = rng.uniform(-0.6, 0.6, size=2).tolist()
    strength = rng.uniform(0.04, 0.09)
    far: Field = (board.x - x) ** 2 + (board.y - y) ** 2
    return 1.05 - strength * far


def _brain_axial(board: Canvas, a: Anatomy, tissue: Mapping[str, float], signal: Field) -> None:
    rx, ry = 0.79 + 0.03 * a.width, 0.94 + 0.02 * a.height
    skull = 0.05 + 0.01 * a.wall
    paint(signal, board.ellipse(0, 0, rx, ry), tissue["fat"])
    paint(signal, board.ellipse(0, 0, rx - 0.05, ry - 0.05), tissue["bone"])
    rx, ry = rx - 0.05 - skull, ry - 0.05 - skull
    paint(signal, board.ellipse(0, 0, rx, ry), tissue["fluid"])
    paint(signal, board.ellipse(0, 0, rx - 0.03, ry - 0.03), tissue["grey"])
    # The border of the white matter is folded: its radius waves with the direction.
    radius = np.sqrt((board.x / rx) ** 2 + (board.y / ry) ** 2)
    folds = 0.78 + 0.08 * np.cos(board.angle * 16 + 1.6 * a.lean)
    paint(signal, board.inside((folds - radius) * rx), tissue["white"])
    paint(signal, board.ellipse(0, 0, 0.015, ry), tissue["fluid"])
    for side in (-1, 1):
        nucleus = board.ellipse(side * 0.22, 0.08, 0.09, 0.16, side * (0.3 + 0.3 * a.lean))
        paint(signal, nucleus, tissue["grey"])
        for end, turn in ((-0.2, -0.45), (0.24, 0.5)):
            place = (side * (0.075 + 0.015 * a.organ), end + 0.04 * a.shift)
            horn = board.ellipse(*place, 0.05 + 0.01 * a.organ, 0.18, side * turn * -0.6)
            paint(signal, horn, tissue["fluid"])


def _brain_sagittal(board: Canvas, a: Anatomy, tissue: Mapping[str, float], signal: Field) -> None:
    rx, ry = 0.94 + 0.02 * a.width, 0.77 + 0.02 * a.height
    paint(signal, board.ellipse(-0.55, 0.62, 0.34, 0.44, 0.5), tissue["muscle"] * 1.5)
    paint(signal, board.ellipse(-0.86, 0.46, 0.12, 0.08, -0.5), tissue["fat"])
    paint(signal, board.column([0.3, 1.1], [0.2, 0.3], [0.4, 0.36]), tissue["muscle"] * 1.5)
    paint(signal, board.ellipse(0, -0.16, rx, ry), tissue["fat"])
    paint(signal, board.ellipse(0, -0.16, rx - 0.05, ry - 0.05), tissue["bone"])
    rx, ry = rx - 0.11 - 0.01 * a.wall, ry - 0.11 - 0.01 * a.wall
    paint(signal, board.ellipse(0, -0.16, rx, ry), tissue["fluid"])
    paint(signal, board.ellipse(0, -0.18, rx - 0.02, ry - 0.05), tissue["grey"])
    u, v = board.x / rx, (board.y + 0.18) / ry
    folds = 0.76 + 0.08 * np.cos(board.angle * 18 + 1.6 * a.lean)
    paint(signal, board.inside((folds - np.sqrt(u * u + v * v)) * ry), tissue["white"])
    middle = -0.12 + 0.03 * a.shift
    wide, high = 0.05 * a.organ, 0.02 * a.organ
    paint(signal, board.ellipse(0, middle, 0.37 + wide, 0.20 + high), tissue["grey"])
    paint(signal, board.ellipse(0, middle + 0.04, 0.29 + wide, 0.14 + high), tissue["fluid"])
    paint(signal, board.ellipse(0.02, middle + 0.10, 0.20, 0.12), tissue["grey"])
    stem = board.column([0.1, 1.1], [0.08, 0.24 + 0.08 * a.lean], [0.10, 0.06])
    paint(signal, stem, tissue["white"])
    leaves = board.ellipse(0.42, 0.36, 0.24, 0.17, 0.3)
    paint(signal, leaves, tissue["grey"])
    paint(signal, leaves * board.waves(board.y * 34, 0.45), tissue["white"])


def _bone(tissue: Mapping[str, float], signal: Field, marrow: Field) -> None:
    """Add a bone: a dark cortex around its marrow, which gives the signal of fat."""
    # A mask's own soft border is the cortex: where it is half covered, the signal is lowest.
    paint(signal, np.clip(marrow * 3, 0, 1), tissue["bone"])
    paint(signal, np.clip(marrow * 2 - 1, 0, 1), tissue["fat"] * 1.1 + 0.05)


def _knee_axial(board: Canvas, a: Anatomy, tissue: Mapping[str, float], signal: Field) -> None:
    rx, ry = 0.88 + 0.03 * a.width, 0.88 + 0.03 * a.height
    paint(signal, board.ellipse(0, 0, rx, ry), tissue["fat"] + 0.04)
    wall = 0.08 + 0.02 * a.wall
    paint(signal, board.ellipse(0, 0.06, rx - wall, ry - wall - 0.06), tissue["muscle"])
    for side in (-1, 1):
        belly = board.ellipse(side * 0.45, 0.6, 0.24, 0.16, side * -0.6)
        paint(signal, belly, tissue["muscle"] * 0.7)
    cy = 0.02 + 0.04 * a.shift
    marrow, cartilage = board.zeros(), board.zeros()
    for side in (-1, 1):
        place, half = (side * 0.27, cy + side * 0.03 * a.lean), 0.30 + 0.035 * a.organ
        for layer, grown in ((marrow, 0.0), (cartilage, 0.05)):
            condyle = board.ellipse(*place, half + grown, 0.36 + grown, side * -0.15)
            np.maximum(layer, condyle, out=layer)
    paint(signal, cartilage, tissue["cartilage"])
    _bone(tissue, signal, marrow)
    paint(signal, board.ellipse(0, cy + 0.36, 0.12, 0.17), tissue["muscle"] * 1.2)
    _bone(tissue, signal, board.ellipse(0, -0.58, 0.34, 0.13, 0.1 * a.lean))
    paint(signal, board.ellipse(0.06, 0.62, 0.06, 0.06), tissue["bone"])


def _knee_sagittal(board: Canvas, a: Anatomy, tissue: Mapping[str, float], signal: Field) -> None:
    half = 0.80 + 0.03 * a.width
    wall = 0.08 + 0.02 * a.wall
    rows, centres = [-1.1, 0.0, 1.1], [0.04, -0.02, 0.06]
    paint(signal, board.column(rows, centres, [half, half, half - 0.06]), tissue["fat"] + 0.04)
    inner = [half - wall, half - wall, half - wall - 0.06]
    paint(signal, board.column(rows, centres, inner), tissue["muscle"])
    joint = 0.10 + 0.04 * a.shift
    radius = 0.36 + 0.035 * a.organ
    paint(signal, board.ellipse(-0.3, joint, 0.26, 0.16), tissue["fat"] + 0.06)
    paint(signal, board.ellipse(0, joint - radius, radius + 0.08, radius), tissue["cartilage"])
    femur = np.maximum(
        board.ellipse(0.02, joint - radius - 0.06, radius + 0.04, radius - 0.03),
        board.column([-1.1, -0.2, -0.15], [-0.05 + 0.07 * a.lean, 0, 0], [0.22, 0.30, 0]),
    )
    _bone(tissue, signal, femur)
    tibia = board.column(
        [joint + 0.08, joint + 0.10, joint + 0.3, 1.1],
        [0.02, 0.02, 0.02, -0.02 + 0.07 * a.lean],
        [0, 0.42, 0.34, 0.22],
    )
    _bone(tissue, signal, tibia)
    y, half = joint - 0.42 - 0.09 * a.height, 0.20 + 0.04 * a.height
    _bone(tissue, signal, board.ellipse(-0.60, y, 0.11, half, 0.15))
    paint(signal, board.column([-0.1, 0.45], [-0.68, -0.5], [0.03, 0.03]), tissue["bone"])


_Scene = Callable[[Canvas, Anatomy, Mapping[str, float], Field], None]
_SCENES: dict[tuple[str, str], _Scene] = {
    ("brain", "axial"): _brain_axial,
    ("brain", "sagittal"): _brain_sagittal,
    ("knee", "axial"): _knee_axial,
    ("knee", "sagittal"): _knee_sagittal,
}
