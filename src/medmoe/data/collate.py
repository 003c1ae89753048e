"""Packs the questions about one image behind one image prefix.

Each question attends to the prefix and to itself only, and its positions restart after the prefix,
so the loss equals that of unpacked questions while the image is read once, not once per question. A
conversation is packed as one question is: its turns see each other in order, and nothing else.

Shapes: B rows of the batch, N images of all, S packed length, P prefix length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from medmoe.data.tokenize import Segment

IGNORE = -100


@dataclass(frozen=True, slots=True)
class Packed:
    """The prefix of an image, or of several, and the questions behind it.

    Attributes:
        image: Row of the image in the feature or pixel table.
        prefix: Token ids of the prefix, image placeholders included.
        segments: The questions, with or without answers.
        further: Rows of the prefix's further images.
    """

    image: int
    prefix: tuple[int, ...]
    segments: tuple[Segment, ...]
    further: tuple[int, ...] = ()

    @property
    def images(self) -> tuple[int, ...]:
        """Rows of all images, in the order of their tokens."""
        return (self.image, *self.further, *(row for s in self.segments for row in s.images))


def packed_length(sample: Packed) -> int:
    """Return how many tokens a packed sample has."""
    return len(sample.prefix) + sum(len(segment.ids) for segment in sample.segments)


def packed_together(
    samples: Sequence[Packed], most: int, max_length: int | None = None
) -> list[Packed]:
    """Return the rows of a batch: up to ``most`` questions side by side behind one prefix each."""
    rows: list[Packed] = []
    for sample in samples:
        if rows and (rows[-1].image, rows[-1].further) == (sample.image, sample.further):
            joined = replace(sample, segments=rows[-1].segments + sample.segments)
            fits = max_length is None or packed_length(joined) <= max_length
            if fits and len(joined.segments) <= most:
                rows[-1] = joined
                continue
        rows.append(sample)
    return rows


def pack_batch(samples: Sequence[Packed], pad_token_id: int) -> dict[str, Tensor]:
    """Return the model inputs of a batch of packed samples, right-padded.

    Returns:
        ``input_ids`` (B, S) int64; ``position_ids`` (B, S) int64; ``labels`` (B, S) int64, -100
        everywhere but on answers; ``attention_mask`` (B, 1, S, S) bool, true where a token (row)
        may see another (column): padding sees itself only and is seen by none.
    """
    length = max(map(packed_length, samples))
    ids = torch.full((len(samples), length), pad_token_id)
    labels = torch.full((len(samples), length), IGNORE)
    positions = torch.zeros((len(samples), length), dtype=torch.int64)
    # 0 = prefix, 1.. = the question a token belongs to, -1 = padding.
    owner = torch.full((len(samples), length), -1)
    for row, sample in enumerate(samples):
        _fill_row(sample, ids[row], labels[row], positions[row], owner[row])
    return {
        "input_ids": ids,
        "position_ids": positions,
        "labels": labels,
        "attention_mask": _visible(owner).unsqueeze(1),
    }


def _fill_row(
    sample: Packed, ids: Tensor, labels: Tensor, positions: Tensor, owner: Tensor
) -> None:
    start = len(sample.prefix)
    ids[:start] = torch.tensor(sample.prefix)
    positions[:start] = torch.arange(start)
    owner[:start] = 0
    at = start
    for number, segment in enumerate(sample.segments, start=1):
        end = at + len(segment.ids)
        ids[at:end] = torch.tensor(segment.ids)
        positions[at:end] = torch.arange(start, start + len(segment.ids))
        owner[at:end] = number
        answers = ((at + first, at + after) for first, after in segment.earlier)
        for first, after in (*answers, (end - segment.answer_length, end)):
            labels[first:after] = ids[first:after]
        at = end


def _visible(owner: Tensor) -> Tensor:
    """Return (B, S, S) bool: causal, within the same question or into the prefix."""
    length = owner.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = owner.unsqueeze(2) == owner.unsqueeze(1)
    prefix = (owner == 0).unsqueeze(1) & (owner >= 0).unsqueeze(2)
    padding = (owner < 0).unsqueeze(2)
    return torch.where(padding, torch.eye(length, dtype=torch.bool), causal & (same | prefix))


class Features(Protocol):
    """A tensor (N, P, D), or anything that is indexed by rows like one."""

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Return (B, P, D) of the rows (B,)."""


class PackingCollator:
    """A Trainer data collator: packed samples plus their images' vision features.

    Args:
        features: (N, P, D_vision) float32, the frozen encoder's output for all images, or what
            gives those of some rows (B,) when indexed by them.
        pad_token_id: Fills the right end of shorter rows.
        experts: By image, int64, the expert that the records which begin with it are for.
        rows: Makes the rows of a batch out of its samples; each is a row of its own where None.
    """

    def __init__(
        self,
        features: Features,
        pad_token_id: int,
        experts: Tensor | None = None,
        rows: Callable[[Sequence[Packed]], Sequence[Packed]] | None = None,
    ) -> None:
        self._features, self._pad, self._experts = features, pad_token_id, experts
        self._rows = rows

    def __call__(self, samples: Sequence[Packed]) -> dict[str, Any]:
        """Return `pack_batch`'s tensors and ``vision_features`` (N, P, D_vision).

        With experts also ``experts`` (B,).
        """
        if self._rows is not None:
            samples = self._rows(samples)
        rows = torch.tensor([row for sample in samples for row in sample.images])
        batch = pack_batch(samples, self._pad) | {"vision_features": self._features[rows]}
        if self._experts is None:
            return batch
        return batch | {"experts": self._experts[[sample.image for sample in samples]]}
