"""Lays one picture over another and says how well their fine detail agrees.

The second stage of `medmoe.data.near_duplicates`: scale and shift of each axis by Gauss-Newton
steps, coarse to fine. It knows no rotation and no flip.

Shapes: P pairs of pictures of n x n pixels. A place is (P, 4): scale and shift of x, then of y, in
halves of a side from the middle; right pixel (x, y) lies at left (scale_x x + shift_x, …).
"""

from __future__ import annotations

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
#: Side of small copies, steps to align them, and the band in which they are compared.
SMALL, _SMALL_STEPS, _SMALL_BAND = 32, 3, (0.0, 1.5)

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
    of_left, of_right = (torch.from_numpy(side).float() for side in (left, right))
    aligned, _ = _aligned(of_left, of_right, torch.from_numpy(place), _SMALL_STEPS)
    return np.flatnonzero(_detail(left, right, aligned, frame, _SMALL_BAND) >= limit)


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
        current, agreement = _aligned(
            _pooled(left[rows], side), _pooled(right[rows], side), current, steps
        )
        kept = agreement >= limit
        rows, current = rows[kept.numpy()], current[kept]
        if not len(rows):
            return likeness
    likeness[rows] = _detail(left[rows], right[rows], current, frame, _BAND)
    return likeness


def _pooled(pictures: Bytes, side: int) -> Tensor:
    grey = torch.from_numpy(pictures).float()[:, None]
    return functional.avg_pool2d(grey, pictures.shape[1] // side)[:, 0]


def _aligned(left: Tensor, right: Tensor, place: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the improved place and the correlation reached, (P, 4) and (P,)."""
    x, y = _grid(left.shape[-1])
    for step in range(steps + 1):
        warped, inside = _warped(left, place)
        from_left, from_right = _centred(warped, inside), _centred(right, inside)
        power = (from_right**2).sum((1, 2))
        both = (from_left * from_right).sum((1, 2))
        if step == steps:
            break
        gain = both / power.clamp(1e-3)
        missing = gain[:, None, None] * from_right - from_left
        along, down = _slopes(warped, place, inside)
        jacobian = torch.stack([along * x, along, down * y, down], 1).flatten(2)
        # A little of the identity keeps flat pictures solvable.
        normal = jacobian @ jacobian.transpose(1, 2) + 1e-3 * x.numel() * torch.eye(4)
        change = torch.linalg.solve(normal, jacobian @ missing.flatten(1)[:, :, None])[:, :, 0]
        place = _bounded(place + change.clamp(-_STEP, _STEP))
    scale = (power * (from_left**2).sum((1, 2))).sqrt().clamp(1e-6)
    return place, both / scale


def _bounded(place: Tensor) -> Tensor:
    low = torch.tensor([0.5, -1.0, 0.5, -1.0])
    high = torch.tensor([2.0, 1.0, 2.0, 1.0])
    return place.clamp(low, high)


def _grid(side: int) -> tuple[Tensor, Tensor]:
    """Return the pixel middles as x and y, (n, n), in -1..1."""
    line = torch.linspace(-1 + 1 / side, 1 - 1 / side, side)
    down, along = torch.meshgrid(line, line, indexing="ij")
    return along, down


def _places(side: int, place: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each right pixel lies in the left picture, (P, n, n) each."""
    x, y = _grid(side)
    scale_x, shift_x, scale_y, shift_y = (value[:, None, None] for value in place.T)
    return scale_x * x + shift_x, scale_y * y + shift_y


def _warped(left: Tensor, place: Tensor, margin: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the left pictures laid over the right ones, and where they reach, (P, n, n) each."""
    x, y = _places(left.shape[-1], place)
    grid = torch.stack([x, y], -1)
    warped = functional.grid_sample(
        left[:, None], grid, padding_mode="border", align_corners=False
    )[:, 0]
    inside = (x.abs() <= 1 - margin) & (y.abs() <= 1 - margin)
    return warped, inside.float()


def _centred(pictures: Tensor, inside: Tensor) -> Tensor:
    """Return pictures minus their mean over the part inside, zero outside of it."""
    mean = (pictures * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(1)
    return (pictures - mean[:, None, None]) * inside


def _slopes(warped: Tensor, place: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Return how fast the warped picture changes with x and with y of the left one."""
    half = warped.shape[-1] / 2
    along, down = torch.zeros_like(warped), torch.zeros_like(warped)
    along[:, :, 1:-1] = (warped[:, :, 2:] - warped[:, :, :-2]) / 2
    down[:, 1:-1] = (warped[:, 2:] - warped[:, :-2]) / 2
    along = along * half / place[:, 0, None, None] * inside
    return along, down * half / place[:, 2, None, None] * inside


def _detail(
    left: Bytes, right: Bytes, place: Tensor, frame: float, band: tuple[float, float]
) -> Floats:
    """Return the correlation of the band between two Gaussian widths, away from the edges."""
    warped, inside = _warped(torch.from_numpy(left).float(), place, frame)
    x, y = _grid(left.shape[1])
    kept = inside * ((x.abs() <= 1 - frame) & (y.abs() <= 1 - frame))
    mask = kept.numpy()
    from_left, from_right = (
        _band(picture, *band) * mask for picture in (warped.numpy(), right.astype(np.float32))
    )
    both = (from_left * from_right).sum(axis=(1, 2))
    power = (from_left**2).sum(axis=(1, 2)) * (from_right**2).sum(axis=(1, 2))
    return np.asarray(both / np.sqrt(power + 1e-6), np.float32)


def _band(pictures: Floats, fine: float, slow: float) -> Floats:
    sharp = ndimage.gaussian_filter(pictures, (0, fine, fine))
    return np.asarray(sharp - ndimage.gaussian_filter(pictures, (0, slow, slow)), np.float32)
