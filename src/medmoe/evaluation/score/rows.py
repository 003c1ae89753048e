"""One score row: a value in percent with its interval, its baselines and its n.

A row is one line of a run's ``summary.json``; the paper's tables give the value alone. What is
scored, and how, is decided in `medmoe.evaluation.score.scores` and
`medmoe.evaluation.score.label_scores`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from medmoe.data.schema import Record
from medmoe.evaluation.statistics import Floats, clustered_bootstraps, wilson

_DECIMALS = 6


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One score with all that is needed to judge it; numbers in percent.

    Attributes:
        subset: ``closed``, ``open``, ``all`` or a question type.
        value: None where the metric is not defined; ``note`` then says why.
        low: Lower end of the interval, None where there is none.
        high: Upper end of the interval, None where there is none.
        n: Records that were scored.
        constant_baseline: The best constant answer as chosen on the training records.
        question_only_baseline: The most frequent training answer to the question's words.
        control: None, or what was done to the images: ``blank``, ``noise`` or ``shuffled``.
        note: Why something is None.
        shared_images: Scored pictures that were also trained on, where that was allowed by name or
            by ``--allow-leak``.
    """

    system: str
    task: str
    split: str
    subset: str
    protocol: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    constant_baseline: float | None = None
    question_only_baseline: float | None = None
    control: str | None = None
    note: str | None = None
    shared_images: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the row of ``summary.json``; note and shared images only where there are some."""
        row = asdict(self)
        for key in ("note", "shared_images"):
            if row[key] is None:
                del row[key]
        return row


def clears_baselines(row: ScoreRow) -> bool:
    """Return whether the interval lies above both baselines; False where either end is unknown."""
    known = [b for b in (row.constant_baseline, row.question_only_baseline) if b is not None]
    return row.low is not None and bool(known) and row.low > max(known)


def type_label(question_type: str) -> str:
    """Return the subset name of a question type; one called like a fixed subset is marked."""
    return f"type:{question_type}" if question_type in ("closed", "open", "all") else question_type


def filled(
    row: ScoreRow,
    values: Sequence[float],
    records: Sequence[Record],
    seed: int,
    *,
    constant: float | None,
    question_only: float | None,
) -> ScoreRow:
    """Return the row with mean, interval and baselines filled in, from values of 0 to 1."""
    low, high = interval(values, [record.image.id for record in records], seed)
    return replace(
        row,
        value=percent(math.fsum(values) / len(values)),
        low=percent(low),
        high=percent(high),
        n=len(values),
        constant_baseline=percent(constant),
        question_only_baseline=percent(question_only),
        note="one image only: no interval" if low is None else None,
    )


def interval(
    values: Sequence[float], images: Sequence[str], seed: int
) -> tuple[float | None, float | None]:
    """Clustered bootstrap; where all is right or all wrong, Wilson's interval over the images.

    A bootstrap of equal values has no width: three right answers of three would claim certainty.
    """
    (ends,) = intervals(np.asarray(values, dtype=np.float64)[:, None], images, seed)
    return ends


def intervals(
    values: Floats, images: Sequence[str], seed: int
) -> list[tuple[float | None, float | None]]:
    """Return the `interval` of each column of values (records, M); columns share their draws."""
    count = len(set(images))
    found: list[tuple[float | None, float | None]] = []
    for column, (low, high) in zip(
        values.T, clustered_bootstraps(values, images, seed=seed), strict=True
    ):
        if column[0] in (0.0, 1.0) and (column == column[0]).all():
            found.append(wilson(count if column[0] == 1.0 else 0, count))
        else:
            found.append((None, None) if math.isnan(low) else (float(low), float(high)))
    return found


def percent(share: float | None) -> float | None:
    """Return a share in percent, rounded so that files stay readable."""
    return None if share is None else round(100.0 * share, _DECIMALS)
