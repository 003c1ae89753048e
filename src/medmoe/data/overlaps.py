"""Which pictures several splits or sets have in common, by name and by pixels.

All pictures are opened once and compared with each other in one pass; the pairs are then sorted
into the pairs of parts they belong to. A part compared with itself shows its repeats.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medmoe.data.near_duplicates import Pair, fingerprints, repeated_pictures
from medmoe.data.schema import Record, images_of

Parts = Mapping[str, Sequence[Record]]


@dataclass(frozen=True, slots=True)
class Overlap:
    """What two parts share; within one part, the pictures that occur more than once."""

    left: str
    right: str
    left_images: int
    right_images: int
    pairs: tuple[Pair, ...]

    @property
    def shared_images(self) -> int:
        """Number of pictures of the right part that the left one has too."""
        if self.left == self.right:
            return len({name for pair in self.pairs for name in pair[:2]})
        return len({pair.right_id for pair in self.pairs})

    def to_dict(self) -> dict[str, Any]:
        """Return the row of the audit's JSON."""
        return {
            "left": self.left,
            "right": self.right,
            "left_images": self.left_images,
            "right_images": self.right_images,
            "shared_images": self.shared_images,
            "pairs": [
                dict(zip(("left", "right", "kind", "distance"), pair, strict=True))
                for pair in self.pairs
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
    alike = repeated_pictures(prints)
    ids = {name: frozenset(image.id for image in members) for name, members in images.items()}
    overlaps = []
    for left, right in itertools.combinations_with_replacement(parts, 2):
        common = ids[left] & ids[right] if left != right else ()
        pairs = [Pair(name, name, "same_id", 0) for name in sorted(common)]
        pairs += _between(alike, ids[left], ids[right])
        overlaps.append(Overlap(left, right, len(ids[left]), len(ids[right]), tuple(pairs)))
    return overlaps, unreadable


def _between(alike: Sequence[Pair], left: frozenset[str], right: frozenset[str]) -> Iterator[Pair]:
    """Yield the pairs with one picture on each side, turned so that it stands there."""
    for pair in alike:
        if pair.left_id in left and pair.right_id in right:
            yield pair
        elif pair.right_id in left and pair.left_id in right:
            yield Pair(pair.right_id, pair.left_id, pair.kind, pair.distance)
