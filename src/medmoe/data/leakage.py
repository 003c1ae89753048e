"""Pictures on two sides: what several parts share, and training records on a test picture.

What counts as one picture is decided by `medmoe.data.near_duplicates`. A recipe may drop training
records on a test picture beforehand; what is left when a corpus is settled is refused, unless the
user allows it knowingly, and then the run and every score say so.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medmoe.data.near_duplicates import (
    Pair,
    fingerprints,
    repeated_pictures,
    same_pictures,
)
from medmoe.data.schema import Record, images_of
from medmoe.errors import DataError


@dataclass(frozen=True, slots=True)
class Leak:
    """Pictures that are trained on and scored; empty where there are none.

    Attributes:
        pairs: Train and test image of each, also where both are one image.
    """

    pairs: tuple[Pair, ...]
    test_images: int

    @property
    def shared(self) -> int:
        """Number of test pictures that are trained on."""
        return len({pair.right_id for pair in self.pairs})

    def __str__(self) -> str:
        """Return the sentence that stands beside the scores."""
        return f"{self.shared} of {self.test_images} test pictures are also trained on"


def find_leak(
    train: Sequence[Record], test: Sequence[Record], alike: Sequence[Pair] | None = None
) -> Leak:
    """Return the pictures that stand on both sides.

    Args:
        alike: Pairs of train and test images among others, where they are at hand.

    Raises:
        ImageError: A picture cannot be opened.
    """
    left, right = images_of(train), images_of(test)
    if not left or not right:
        return Leak((), len(right))
    if alike is None:
        known = fingerprints(images_of([*train, *test]))
        alike = same_pictures(known.of([i.id for i in left]), known.of([i.id for i in right]))
    of_left, of_right = {i.id for i in left}, {i.id for i in right}
    pairs = [pair for pair in alike if pair.left_id in of_left and pair.right_id in of_right]
    return Leak(tuple(pairs), len(right))


def drop_near_duplicates(
    train_records: Sequence[Record],
    test_records: Sequence[Record],
    alike: Sequence[Pair] | None = None,
) -> tuple[list[Record], int]:
    """Return the train records without those on a test picture, and their number.

    Raises:
        ImageError: A picture cannot be opened.
    """
    banned = {pair.left_id for pair in find_leak(train_records, test_records, alike).pairs}
    kept = [r for r in train_records if banned.isdisjoint(image.id for image in r.images)]
    return kept, len(train_records) - len(kept)


def refuse_leaks(
    train: Sequence[Record],
    test: Sequence[Record],
    allow: bool = False,
    alike: Sequence[Pair] | None = None,
) -> Leak:
    """Return the leak between two sets of records, which must be empty unless it is allowed.

    Args:
        allow: The user's ``--allow-leak``; the leak returned belongs into the run and the scores.
        alike: Pairs of train and test images among others, where they are at hand.

    Raises:
        DataError: A training picture is a test picture, and that is not allowed.
        ImageError: A picture cannot be opened.
    """
    leak = find_leak(train, test, alike)
    if leak.pairs and not allow:
        first = leak.pairs[0]
        what = "equals" if first.kind == "exact" else "nearly equals"
        raise DataError(
            f"training image {first.left_id!r} {what} test image {first.right_id!r} ({leak}); "
            "train on an image-disjoint split, or give --allow-leak to have it stand in every score"
        )
    return leak


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
        names = ("left", "right", "kind", "distance")
        pairs = [dict(zip(names, pair, strict=True)) for pair in self.pairs]
        return asdict(self) | {"shared_images": self.shared_images, "pairs": pairs}


def find_overlaps(parts: Parts) -> tuple[list[Overlap], dict[str, str]]:
    """Return the overlap of every pair of parts, and the pictures that cannot be opened.

    All pictures are opened once and compared with each other in one pass; the pairs are then sorted
    into the pairs of parts they belong to. A part compared with itself shows its repeats.

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
