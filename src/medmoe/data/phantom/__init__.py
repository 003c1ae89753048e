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
from medmoe.data.phantom.canvas import canvas, stamp
from medmoe.data.phantom.plan import FACING, FINDINGS, Plan, generator, plan_image
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

#: Heights of the letters of the sides where the body fills the upper corners.
_BESIDE = {("abdomen", "coronal"): 0.0, ("knee", "frontal"): 0.6}


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
    """Draw one plan; without findings or noise, everything else stays the same.

    Where a plane shows the patient's sides, letters say which is which: L and R beside a slice, as
    viewers write them, L alone on a radiograph, where R would say that it is of the right knee.
    """
    rng = generator(seed, 1, plan.split, plan.index)
    picture = _DRAW[plan.domain](plan, canvas(size), rng, findings, noise)
    for letter in ("L" if plan.domain == "xray" else "LR") if plan.plane in FACING else "":
        stamp(picture, letter, _BESIDE.get((plan.organ, plan.plane), -1))
    return picture


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
