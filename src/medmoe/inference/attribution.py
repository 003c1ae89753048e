"""Which regions of the picture an answer rests on, by ablation, and a test of that claim.

A region's share is the mean of two changes of the answer's log-probability: the drop when the
region alone is greyed out in the picture that the encoder sees, and the rise when it alone is shown
on a grey picture. These are the last and the first step of the Shapley value; the drop alone is
blind to what is shown twice (either of two nodules carries the answer). The deletion test greys out
the regions that are said to matter most, together, and asks whether that costs the answer more than
as many random regions do. It shows what moves this model, not what a clinician should look at.

Shapes: N pictures, H and W pixels of the square that the encoder sees, R regions, C cells a side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from medmoe.inference.engine import MedMoe

#: Regions along one side at most: finer ones cost too many forward passes and move too little.
MAX_CELLS = 8
#: Shares of the regions that the deletion test removes, and its random orders.
SHARES, ORDERS = (0.1, 0.2, 0.3), 8


@dataclass(frozen=True, slots=True)
class DeletionTest:
    """Mean drop of the answer's log-probability when regions are greyed out together.

    Attributes:
        most_important: With the 10, 20 and 30 % of the regions of the highest shares.
        random: With as many regions drawn at random, mean of eight draws.
    """

    most_important: float
    random: float

    @property
    def passed(self) -> bool:
        """Whether the regions named cost the answer something, and more than random ones."""
        return self.most_important > max(0.0, self.random)


@dataclass(frozen=True, slots=True)
class Attribution:
    """The regions' shares in an answer.

    Attributes:
        cells: (C, C) shares in the answer's log-probability, natural logarithm; positive regions
            speak for the answer, negative ones against it. The grid covers the picture padded to
            a square.
        deletion: Whether these regions matter more than random ones for this very answer.
    """

    cells: tuple[tuple[float, ...], ...]
    deletion: DeletionTest
    method: str = "region ablation, last and first step"


def attribute(
    engine: MedMoe,
    pixel_values: Tensor,
    question: str,
    answer: str,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Attribution:
    """Return how much each region of a picture carries an answer.

    Args:
        pixel_values: (1, 3, H, W), as `MedMoe.pixel_values` gives them.
        on_progress: Told how many changed pictures the model has seen, and of how many.
    """
    config = engine.model.config
    regions = region_masks(pixel_values, config.vision_config.patch_size * config.image_pool)
    none = torch.zeros_like(regions[:1])
    masks = torch.cat([none, regions, ~none, ~regions])
    seen, total = 0, len(masks) + (1 + ORDERS) * len(SHARES)

    def left_with(greyed: Tensor) -> Tensor:
        nonlocal seen
        left = []
        for part in greyed.split(engine.batch_size):
            pictures = pixel_values.masked_fill(part[:, None], 0.0)  # the encoder's mean colour
            shown = engine.encode_pixels(pictures)
            left.append(log_probability(engine, shown, question, answer))
            seen += len(part)
            on_progress(seen, total)
        return torch.cat(left)

    (whole, *without), (blank, *alone) = left_with(masks).chunk(2)
    cells = (whole - torch.stack(without) + torch.stack(alone) - blank) / 2
    side = round(len(regions) ** 0.5)
    deletion = _deletion_test(regions, cells, whole, left_with)
    rows = cells.view(side, side).tolist()
    return Attribution(tuple(tuple(row) for row in rows), deletion)


def region_masks(pixel_values: Tensor, token_side: int) -> Tensor:
    """Return (R, H, W) bool: the regions, row by row, each some whole image tokens of that side."""
    height, width = pixel_values.shape[-2:]
    tokens = max(1, height // token_side)
    cells = max(c for c in range(1, min(MAX_CELLS, tokens) + 1) if tokens % c == 0)
    rows = (torch.arange(height) * cells).div(height, rounding_mode="floor")
    columns = (torch.arange(width) * cells).div(width, rounding_mode="floor")
    index = rows[:, None] * cells + columns
    return index == torch.arange(cells * cells)[:, None, None]


def log_probability(engine: MedMoe, features: Tensor, question: str, answer: str) -> Tensor:
    """Return (N,) float64: an answer's log-probability to encoded pictures (N, P, D_vision)."""
    count = len(features)
    scored = engine.scored_options(features, range(count), [question] * count, [(answer,)] * count)
    return torch.tensor([scores[0] for scores, _ in scored], dtype=torch.float64)


def _deletion_test(
    regions: Tensor, cells: Tensor, whole: Tensor, left_with: Callable[[Tensor], Tensor]
) -> DeletionTest:
    generator = torch.Generator().manual_seed(0)
    orders = [cells.argsort(descending=True, stable=True)]
    orders += [torch.randperm(len(regions), generator=generator) for _ in range(ORDERS)]
    counts = [max(1, round(share * len(regions))) for share in SHARES]
    masks = torch.stack([regions[order[:n]].any(0) for order in orders for n in counts])
    drops = (whole - left_with(masks)).view(len(orders), len(SHARES)).mean(1)
    return DeletionTest(float(drops[0]), float(drops[1:].mean()))
