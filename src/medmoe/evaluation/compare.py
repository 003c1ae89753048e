"""Two sides on the same records, each of one run or several seeds: is B worse than A?

Paired, since both answer the same questions. Several runs of a side are averaged within a record
first, and images are resampled afterwards: pooling the runs' answers as if they were more questions
would claim a precision that repeating the same questions does not give. The interval then speaks of
the questions, for these runs; how far seeds scatter stands beside it, run by run. McNemar's test
needs right and wrong, so it is given for one run on each side only. No correction is made for the
number of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medmoe.data.schema import Record
from medmoe.evaluation.files.predictions import Prediction, by_image, pair
from medmoe.evaluation.score.breakdowns import question_types
from medmoe.evaluation.score.measures import is_right, record_scores
from medmoe.evaluation.statistics import Floats, difference_interval, mcnemar

#: subset → the metrics that are compared; the first decides whether B is worse.
_METRICS: Mapping[str, tuple[str, ...]] = {
    "closed": ("accuracy",),
    "open": ("exact_match", "f1", "recall"),
    "all": ("accuracy",),
}
#: Of these, what is 1 where an answer is right, else 0.
_RIGHT = ("accuracy", "exact_match")


@dataclass(frozen=True, slots=True)
class Difference:
    """B against A in one metric of one subset; numbers in percent, differences in points.

    Attributes:
        difference: B − A; ``low`` and ``high`` are None where there is one image only.
        p: McNemar's exact p-value, 0 to 1; None for several runs or a metric that is no right
            or wrong.
        a_runs: A's value run by run, ``b_runs`` B's.
        decides: Whether a loss here makes B worse.
    """

    name: str
    subset: str
    metric: str
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    images: int
    a_runs: list[float]
    b_runs: list[float]
    decides: bool

    @property
    def worse(self) -> bool:
        """Whether the whole interval lies below zero: B is worse."""
        return self.high is not None and self.high < 0

    @property
    def better(self) -> bool:
        """Whether the whole interval lies above zero: B is better."""
        return self.low is not None and self.low > 0

    def to_dict(self) -> dict[str, Any]:
        """Return the row as it stands in ``compare --json``."""
        verdict = "worse" if self.worse else "better" if self.better else "undecided"
        return asdict(self) | {"verdict": verdict}


@dataclass(frozen=True, slots=True)
class Wins:
    """How many records of a subset A has more right than B, the other way round, and neither."""

    name: str
    subset: str
    both_right: int
    only_a: int
    only_b: int
    both_wrong: int
    n: int


@dataclass(frozen=True, slots=True)
class Flip:
    """A record that one side has right more often than the other; ``a`` and ``b`` answer by runs.

    Attributes:
        change: B's share of right runs − A's, from −1 to 1.
    """

    name: str
    record: Record
    a: tuple[str, ...]
    b: tuple[str, ...]
    change: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two sides differ in on one set of records."""

    differences: list[Difference]
    wins: list[Wins]
    flips: list[Flip]


def compare_runs(
    name: str,
    records: Sequence[Record],
    a: Sequence[Sequence[Prediction]],
    b: Sequence[Sequence[Prediction]],
    seed: int,
) -> Comparison:
    """Compare the runs of two sides on the same records.

    Args:
        name: What the rows call these records.
        a: Per run of side A, a prediction for every record; ``b`` the same of side B.

    Raises:
        DataError: The ids do not pair.
    """
    records = by_image(records)
    sides = tuple([_answers(records, run) for run in runs] for runs in (a, b))
    every = range(len(records))
    right = [_values(records, runs, "accuracy", every).mean(axis=0) for runs in sides]
    subsets = _subsets(records)
    differences = [
        _difference(name, subset, metric, records, chosen, sides, seed)
        for subset, chosen in subsets.items()
        for metric in _METRICS.get(subset, ())
    ]
    parts = {
        name: [i for i, record in enumerate(records) if belongs(record)]
        for name, belongs in question_types(records).items()
    }
    wins = [_wins(name, part, *(of[c] for of in right)) for part, c in {**subsets, **parts}.items()]
    flips = [
        Flip(
            name,
            records[i],
            tuple(run[i].text for run in sides[0]),
            tuple(run[i].text for run in sides[1]),
            float(right[1][i] - right[0][i]),
        )
        for i in np.flatnonzero(right[0] != right[1]).tolist()
    ]
    # Losses first, the surest first; then in the records' order.
    return Comparison(differences, wins, sorted(flips, key=lambda flip: flip.change))


def pooled(
    name: str,
    sets: Iterable[tuple[Sequence[Record], Sequence[Prediction], Sequence[Prediction]]],
    seed: int,
    *,
    whole: bool = False,
) -> list[Difference]:
    """Return the deciding differences of several sets, or seeds of one, taken together.

    Args:
        sets: Records with A's and B's predictions. A picture that stands in several is one cluster.
        whole: One row over all records instead of one for each subset.

    Raises:
        DataError: The ids do not pair.
    """
    records: list[Record] = []
    a: list[Prediction] = []
    b: list[Prediction] = []
    for own, of_a, of_b in sets:
        records += by_image(own)
        a += _answers(own, of_a)
        b += _answers(own, of_b)
    places = {"all": list(range(len(records)))} if whole else _subsets(records)
    return [
        _difference(name, subset, "accuracy", records, at, ([a], [b]), seed)
        for subset, at in places.items()
    ]


def _answers(records: Sequence[Record], run: Sequence[Prediction]) -> list[Prediction]:
    return [prediction for _, prediction in pair(records, run)]


def _subsets(records: Sequence[Record]) -> dict[str, list[int]]:
    """Return the positions of closed and open questions, and of the classification's records."""
    places: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        name = "all" if record.task == "classification" else record.answer_type
        places.setdefault(name, []).append(i)
    return {name: places[name] for name in _METRICS if name in places}


def _values(
    records: Sequence[Record],
    runs: Sequence[Sequence[Prediction]],
    metric: str,
    chosen: Sequence[int],
) -> Floats:
    """Return the values (runs, chosen) of a metric, 0 to 1."""

    def value(record: Record, prediction: Prediction) -> float:
        if metric in _RIGHT:
            return float(is_right(record, prediction))
        return record_scores("strict", record, prediction.text)[metric]

    values = [[value(records[i], run[i]) for i in chosen] for run in runs]
    return np.asarray(values, dtype=np.float64)


def _difference(
    name: str,
    subset: str,
    metric: str,
    records: Sequence[Record],
    chosen: Sequence[int],
    sides: tuple[list[list[Prediction]], ...],
    seed: int,
) -> Difference:
    a, b = (_values(records, runs, metric, chosen) for runs in sides)
    images = [records[i].image.id for i in chosen]
    by_record = b.mean(axis=0) - a.mean(axis=0)
    low, high = difference_interval(by_record, images, seed)
    binary = metric in _RIGHT and len(a) == len(b) == 1
    return Difference(
        name=name,
        subset=subset,
        metric=metric,
        a=100 * float(a.mean()),
        b=100 * float(b.mean()),
        difference=100 * float(by_record.mean()),
        low=None if low is None else 100 * low,
        high=None if high is None else 100 * high,
        p=mcnemar(list(a[0]), list(b[0])) if binary else None,
        n=len(images),
        images=len(set(images)),
        a_runs=[100 * float(run.mean()) for run in a],
        b_runs=[100 * float(run.mean()) for run in b],
        decides=metric == _METRICS[subset][0],
    )


def _wins(name: str, subset: str, a: Floats, b: Floats) -> Wins:
    return Wins(
        name,
        subset,
        both_right=int(((a == b) & (a == 1)).sum()),
        only_a=int((a > b).sum()),
        only_b=int((b > a).sum()),
        both_wrong=int(((a == b) & (a < 1)).sum()),
        n=len(a),
    )
