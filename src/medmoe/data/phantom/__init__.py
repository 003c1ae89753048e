"""The embedded data: pictures of four domains with findings whose truth is known.

It stands in for the medical data sets of the paper (its section 4.1) where nothing can be
downloaded: it shows that training, routing and evaluation work, and says nothing about patients.
Everything is drawn on the fly; nothing is read from disk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from medmoe.data.phantom import ct, mri, pathology, questions, xray
from medmoe.data.phantom.anatomy import SPLITS, Split
from medmoe.data.phantom.canvas import canvas
from medmoe.data.phantom.plan import FINDINGS, Plan, generator, plan_image
from medmoe.data.schema import ImageRecord, Pixels, Record
from medmoe.errors import ConfigError, DataError, one_of

__all__ = ["FINDINGS", "SPLITS", "Split", "draw_plan", "read_phantom"]

#: Below this, the smallest findings are thinner than a pixel or two.
_SMALLEST = 32

_DRAW: dict[str, Callable[..., Pixels]] = {
    "ct": ct.draw,
    "mri": mri.draw,
    "pathology": pathology.draw,
    "xray": xray.draw,
}


def read_phantom(split: str, count: int, *, seed: int, size: int = 64) -> list[Record]:
    """Return the records of the first images of a split.

    Image i of a split depends on the seed, the split and i only. Each image has one caption record,
    seven or eight ``vqa`` records and one ``classification`` record, in this order.

    Args:
        split: Splits have no anatomy in common, whatever the seed.
        count: Number of images, spread evenly over the domains.
        seed: Non-negative; another seed gives other images.
        size: Pixels along one side.

    Raises:
        DataError: The split is unknown.
        ConfigError: Count or seed is negative, or the size too small to show the findings.
    """
    return list(_drawn(_checked(split, count, seed, size), count, seed, size))


# A run trains, scores and takes baselines from the same pictures; thousands take many seconds.
@lru_cache(maxsize=4)
def _drawn(split: Split, count: int, seed: int, size: int) -> tuple[Record, ...]:
    records: list[Record] = []
    for index in range(count):
        plan = plan_image(split, index, seed)
        image = ImageRecord(
            id=f"phantom/{split}/{index:06d}",
            source=draw_plan(plan, seed=seed, size=size),
            modality=plan.domain,
            organ=plan.organ,
            labels=questions.labels(plan),
        )
        records += questions.records(plan, image, generator(seed, 2, split, index))
    return tuple(records)


def draw_plan(
    plan: Plan, *, seed: int, size: int = 64, findings: bool = True, noise: bool = True
) -> Pixels:
    """Draw one plan; without findings or noise, everything else stays the same."""
    rng = generator(seed, 1, plan.split, plan.index)
    return _DRAW[plan.domain](plan, canvas(size), rng, findings, noise)


def _checked(split: str, count: int, seed: int, size: int) -> Split:
    if split not in SPLITS:
        raise DataError(one_of(split, SPLITS, "phantom split"))
    for name, value in (("count", count), ("seed", seed)):
        if value < 0:
            raise ConfigError(f"phantom {name} ({value}) must not be negative; use 0 or more")
    if size < _SMALLEST:
        raise ConfigError(
            f"phantom size ({size}) must be at least {_SMALLEST} pixels to show its findings; "
            f"use size={_SMALLEST} or more"
        )
    return split
