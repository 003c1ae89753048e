"""No picture on both sides: training records on a picture of a reported test set.

What counts as one picture is decided by `medmoe.data.near_duplicates`, names are not asked. A
recipe may drop such training records beforehand; what is left when a corpus is settled is refused,
unless the user allows it knowingly, and then the run and every score say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medmoe.data.near_duplicates import Fingerprints, Pair, fingerprints, same_pictures
from medmoe.data.schema import Record, images_of
from medmoe.errors import DataError


@dataclass(frozen=True, slots=True)
class Leak:
    """Pictures that are trained on and scored; empty where there are none.

    Attributes:
        pairs: Train and test image of each, also where both are one image.
        test_images: How many test pictures there are.
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
    train: Sequence[Record], test: Sequence[Record], known: Fingerprints | None = None
) -> Leak:
    """Return the pictures that stand on both sides.

    Args:
        known: Fingerprints of all the images, where they are at hand.

    Raises:
        ImageError: A picture cannot be opened.
    """
    left, right = images_of(train), images_of(test)
    if not left or not right:
        return Leak((), len(right))
    known = known or fingerprints(images_of([*train, *test]))
    pairs = same_pictures(known.of([i.id for i in left]), known.of([i.id for i in right]))
    return Leak(tuple(pairs), len(right))


def drop_near_duplicates(
    train_records: Sequence[Record],
    test_records: Sequence[Record],
    known: Fingerprints | None = None,
) -> tuple[list[Record], int]:
    """Return the train records without those on a test picture, and their number.

    Raises:
        ImageError: A picture cannot be opened.
    """
    banned = {pair.left_id for pair in find_leak(train_records, test_records, known).pairs}
    kept = [record for record in train_records if record.image.id not in banned]
    return kept, len(train_records) - len(kept)


def refuse_leaks(
    train: Sequence[Record],
    test: Sequence[Record],
    allow: bool = False,
    known: Fingerprints | None = None,
) -> Leak:
    """Return the leak between two sets of records, which must be empty unless it is allowed.

    Args:
        allow: The user's ``--allow-leak``; the leak returned belongs into the run and the scores.
        known: Fingerprints of all the images, where they are at hand.

    Raises:
        DataError: A training picture is a test picture, and that is not allowed.
        ImageError: A picture cannot be opened.
    """
    leak = find_leak(train, test, known)
    if leak.pairs and not allow:
        first = leak.pairs[0]
        what = "equals" if first.kind == "exact" else "nearly equals"
        raise DataError(
            f"training image {first.left_id!r} {what} test image {first.right_id!r} ({leak}); "
            "train on an image-disjoint split, or give --allow-leak to have it stand in every score"
        )
    return leak
