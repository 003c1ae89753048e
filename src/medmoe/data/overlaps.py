"""Which pictures several splits or sets have in common, by name and by pixels.

All pictures are opened once and compared with each other in one pass; the pairs are then sorted
into the pairs of parts they belong to. A part compared with itself shows its repeats.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medmoe.data.near_duplicates import fingerprints, repeated_pictures
from medmoe.data.schema import Record, images_of

Parts = Mapping[str, Sequence[Record]]


@dataclass(frozen=True, slots=True)
class Match:
    """One picture under two ids, or one id in two parts; ``kind`` as in INTERFACES."""

    left: str
    right: str
    kind: str
    distance: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """What two parts share; within one part, the pictures that occur more than once."""

    left: str
    right: str
    left_images: int
    right_images: int
    pairs: tuple[Match, ...]

    @property
    def shared_images(self) -> int:
        """Number of pictures of the right part that the left one has too."""
        if self.left == self.right:
            return len({name for pair in self.pairs for name in (pair.left, pair.right)})
        return len({pair.right for pair in self.pairs})

    def to_dict(self) -> dict[str, Any]:
        """Return the row of the audit's JSON."""
        return {
            "left": self.left,
            "right": self.right,
            "left_images": self.left_images,
            "right_images": self.right_images,
            "shared_images": self.shared_images,
            "pairs": [
                {"left": p.left, "right": p.right, "kind": p.kind, "distance": p.distance}
                for p in self.pairs
            ],
        }


def find_overlaps(parts: Parts) -> tuple[list[Overlap], dict[str, str]]:
    """Return the overlap of every pair of parts, and the pictures that cannot be opened.

    Args:
        parts: Name, e.g. ``vqa_rad/train``, and records; the order is kept.
    """
    images = {name: images_of(records) for name, records in parts.items()}
    everything = {image.id: image for members in images.values() for image in members}
    unreadable: dict[str, str] = {}
    prints = fingerprints(list(everything.values()), unreadable)
    alike = [Match(p.left_id, p.right_id, p.kind, p.distance) for p in repeated_pictures(prints)]
    ids = {name: frozenset(image.id for image in members) for name, members in images.items()}
    overlaps = []
    for left, right in itertools.combinations_with_replacement(parts, 2):
        pairs = [*_same_ids(ids, left, right), *_between(alike, ids[left], ids[right])]
        overlaps.append(Overlap(left, right, len(ids[left]), len(ids[right]), tuple(pairs)))
    return overlaps, unreadable


def _same_ids(ids: Mapping[str, frozenset[str]], left: str, right: str) -> list[Match]:
    if left == right:
        return []
    return [Match(name, name, "same_id", 0) for name in sorted(ids[left] & ids[right])]


def _between(
    alike: Sequence[Match], left: frozenset[str], right: frozenset[str]
) -> Iterator[Match]:
    """Yield the pairs with one picture on each side, turned so that it stands there."""
    for pair in alike:
        if pair.left in left and pair.right in right:
            yield pair
        elif pair.right in left and pair.left in right:
            yield Match(pair.right, pair.left, pair.kind, pair.distance)
