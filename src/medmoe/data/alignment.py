"""Lays one picture over another and says how well their fine detail agrees.

The second stage of `medmoe.data.near_duplicates`: scale and shift of each axis by Gauss-Newton
steps, coarse to fine. It knows no rotation and no flip.

Shapes: P pairs of pictures of n x n pixels. A place is (P, 4): scale and shift of x, then of y, in
halves of a side from the middle; right pixel (x, y) lies at left (scale_x x + shift_x, …).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

#: Side in pixels and steps of the two levels.
_LEVELS = ((32, 8), (64, 5))
_STEP = 0.1  # longest step of a scale or shift
#: Gaussian widths in pixels between which detail lies: finer is noise of the compression.
_BAND = (1.0, 4.0)
#: Side of small copies, the band in which they are compared, steps to align them, and correlation
#: after the first step below which a pair is given up: nearly all that are no copies, and no copy
#: that benchmarks/near_duplicates.py finds without it.
SMALL, _SMALL_BAND, _SMALL_STEPS, _AT_FIRST = 32, (0.0, 1.5), 3, 0.3

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


def promising(left: Bytes, right: Bytes, place: Floats, limit: float, frame: float) -> Rows:
    """Return the rows of the pairs that are worth `confirm`, by copies of 32 x 32 pixels.

    Args:
        left: (P, 32, 32) uint8.
        right: The same.
        place: Where to begin, (P, 4).
        limit: Correlation of what detail such copies hold.
        frame: As in `confirm`.
    """
    rows, current = np.arange(len(left)), torch.from_numpy(place)
    for steps, least in ((1, _AT_FIRST), (_SMALL_STEPS - 1, limit)):
        a, b = left[rows], right[rows]
        current = _aligned(torch.from_numpy(a).float(), torch.from_numpy(b).float(), current, steps)
        kept = _detail(a, b, current, frame, _SMALL_BAND) >= least
        rows, current = rows[kept], current[torch.from_numpy(kept)]
        if not len(rows):
            break
    return rows


def small_copies(pictures: Bytes) -> Bytes:
    """Return copies of 32 x 32 pixels, (P, 32, 32), for `promising`."""
    copies: Bytes = _pooled(pictures, SMALL).round().byte().numpy()
    return copies


def confirm(
    left: Bytes, right: Bytes, place: Floats, limits: tuple[float, float], frame: float
) -> Floats:
    """Return the correlation of the fine detail of each pair after alignment, (P,).

    Args:
        left: (P, n, n) uint8, n a multiple of 64.
        right: The same.
        place: Where to begin, (P, 4).
        limits: Correlation at each level below which a pair is given up; its result is -1.
        frame: Share of the half side left out at the edges.
    """
    likeness = np.full(len(left), -1, np.float32)
    rows = np.arange(len(left))
    current = torch.from_numpy(place)
    for (side, steps), limit in zip(_LEVELS, limits, strict=True):
        of_left, of_right = _pooled(left[rows], side), _pooled(right[rows], side)
        current = _aligned(of_left, of_right, current, steps)
        kept = _agreement(of_left, of_right, current) >= limit
        rows, current = rows[kept.numpy()], current[kept]
        if not len(rows):
            return likeness
    likeness[rows] = _detail(left[rows], right[rows], current, frame, _BAND)
    return likeness


def _pooled(pictures: Bytes, side: int) -> Tensor:
    grey = torch.from_numpy(pictures).float()[:, None]
    return functional.avg_pool2d(grey, pictures.shape[1] // side)[:, 0]


def _aligned(left: Tensor, right: Tensor, place: Tensor, steps: int) -> Tensor:
    """Return the improved place, (P, 4)."""
    for _ in range(steps):
        warped, inside = _warped(left, place)
        from_left, from_right = _centred(warped, inside), _centred(right, inside)
        gain = (from_left * from_right).sum((1, 2)) / (from_right**2).sum((1, 2)).clamp(1e-3)
        missing = gain[:, None, None] * from_right - from_left
        normal, toward = _equations(warped, inside, missing, place)
        change = torch.linalg.solve(normal, toward[:, :, None])[:, :, 0]
        place = _bounded(place + change.clamp(-_STEP, _STEP))
    return place


def _agreement(left: Tensor, right: Tensor, place: Tensor) -> Tensor:
    """Return the correlation of what lies over each other, (P,)."""
    warped, inside = _warped(left, place)
    from_left, from_right = _centred(warped, inside), _centred(right, inside)
    power = (from_left**2).sum((1, 2)) * (from_right**2).sum((1, 2))
    return (from_left * from_right).sum((1, 2)) / power.sqrt().clamp(1e-6)


def _equations(
    warped: Tensor, inside: Tensor, missing: Tensor, place: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the normal equations of a Gauss-Newton step, (P, 4, 4) and (P, 4).

    Scale and shift move a pixel along one axis by its own coordinate and by 1: sums along the other
    axis come first, and no Jacobian of (P, 4, n, n) is built.
    """
    side = warped.shape[-1]
    line = _line(side)[1:-1]
    powers = torch.stack([line, torch.ones_like(line)], 1)  # (n - 2, 2)
    along = (warped[:, :, 2:] - warped[:, :, :-2]) * inside[:, :, 1:-1]
    down = (warped[:, 2:] - warped[:, :-2]) * inside[:, 1:-1]
    normal = torch.empty(len(warped), 4, 4)
    normal[:, :2, :2] = (powers.T * (along**2).sum(1)[:, None]) @ powers
    normal[:, 2:, 2:] = (powers.T * (down**2).sum(2)[:, None]) @ powers
    normal[:, 2:, :2] = powers.T @ ((along[:, 1:-1] * down[:, :, 1:-1]) @ powers)
    normal[:, :2, 2:] = normal[:, 2:, :2].transpose(1, 2)
    toward = torch.cat(
        [
            (along * missing[:, :, 1:-1]).sum(1) @ powers,
            (down * missing[:, 1:-1]).sum(2) @ powers,
        ],
        1,
    )
    # A difference of two pixels as a slope of the left picture, which is 2 wide.
    slope = side / 4 / place[:, (0, 0, 2, 2)]
    normal = normal * slope[:, :, None] * slope[:, None]
    # A little of the identity keeps flat pictures solvable.
    return normal + 1e-3 * side**2 * torch.eye(4), toward * slope


def _bounded(place: Tensor) -> Tensor:
    low = torch.tensor([0.5, -1.0, 0.5, -1.0])
    high = torch.tensor([2.0, 1.0, 2.0, 1.0])
    return place.clamp(low, high)


def _line(side: int) -> Tensor:
    """Return the pixel middles along a side, (n,), in -1..1."""
    return torch.linspace(-1 + 1 / side, 1 - 1 / side, side)


def _warped(left: Tensor, place: Tensor, margin: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the left pictures laid over the right ones, and where they reach, (P, n, n) each."""
    line = _line(left.shape[-1])
    x, y = (place[:, n, None] * line + place[:, n + 1, None] for n in (0, 2))
    grid = torch.empty(*left.shape, 2)
    grid[..., 0], grid[..., 1] = x[:, None], y[:, :, None]
    warped = functional.grid_sample(
        left[:, None], grid, padding_mode="border", align_corners=False
    )[:, 0]
    along, down = ((of.abs() <= 1 - margin).float() for of in (x, y))
    return warped, down[:, :, None] * along[:, None]


def _centred(pictures: Tensor, inside: Tensor) -> Tensor:
    """Return pictures minus their mean over the part inside, zero outside of it."""
    mean = (pictures * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(1)
    return (pictures - mean[:, None, None]) * inside


def _detail(
    left: Bytes, right: Bytes, place: Tensor, frame: float, band: tuple[float, float]
) -> Floats:
    """Return the correlation of the band between two Gaussian widths, away from the edges."""
    warped, inside = _warped(torch.from_numpy(left).float(), place, frame)
    central = (_line(left.shape[1]).abs() <= 1 - frame).float()
    mask = inside * central * central[:, None]
    from_left, from_right = (
        _band(picture, *band) * mask for picture in (warped, torch.from_numpy(right).float())
    )
    both = (from_left * from_right).sum((1, 2))
    power = (from_left**2).sum((1, 2)) * (from_right**2).sum((1, 2))
    return np.asarray(both / (power + 1e-6).sqrt(), np.float32)


def _band(pictures: Tensor, fine: float, slow: float) -> Tensor:
    def blurred(width: float) -> Tensor:
        blur = _blur(pictures.shape[-1], width)
        return blur @ pictures @ blur.T

    return (blurred(fine) if fine else pictures) - blurred(slow)


@cache
def _blur(side: int, width: float) -> Tensor:
    """Return the matrix that blurs a line of pixels by a Gaussian, (n, n)."""
    return torch.from_numpy(ndimage.gaussian_filter1d(np.eye(side, dtype=np.float32), width, 0))
