"""What a data set's answers give away without a picture: counts, repeats and constant answers.

For each part: how the answers are distributed, which rows repeat, and what the baselines of
`medmoe.evaluation.score.baselines` would get right under the strict protocol, learned from the
training part of the same set where there is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from medmoe.data.schema import Record
from medmoe.evaluation.metrics import normalise
from medmoe.evaluation.score import baselines
from medmoe.evaluation.score.measures import RIGHT, Kinds, Values

_TOP = 10


def audit_answers(parts: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """Return, for each part, counts, repeats and baselines; captions are left out.

    Args:
        parts: Name, e.g. ``vqa_rad/train``, and records.
    """
    asked = {name: [r for r in records if r.task != "caption"] for name, records in parts.items()}
    asked = {name: records for name, records in asked.items() if records}
    rows = {name: Counter(map(_row_key, records)) for name, records in asked.items()}
    return {name: _part(name, asked, rows) for name in asked}


def _part(
    name: str, parts: Mapping[str, Sequence[Record]], rows: Mapping[str, Counter[Hashable]]
) -> dict[str, Any]:
    records, mine = parts[name], rows[name]
    train_name = _train_of(name, parts)
    train = parts[train_name] if train_name else []
    return {
        "n": len(records),
        "images": len({record.image.id for record in records}),
        "answer_types": dict(Counter(record.answer_type for record in records)),
        "question_types": dict(Counter(record.question_type for record in records).most_common()),
        "distinct_answers": len({normalise(record.answer) for record in records}),
        "top_answers": {
            kind: _top([r for r in records if r.answer_type == kind]) for kind in ("closed", "open")
        },
        "repeated_rows": sum(count - 1 for count in mine.values()),
        "contradicting_rows": _contradictions(records),
        "rows_also_in": {
            other: sum(count for row, count in mine.items() if row in theirs)
            for other, theirs in rows.items()
            if other != name
        },
        "baselines": _baselines(records, train),
        "baselines_learned_from": train_name,
    }


def _train_of(name: str, parts: Mapping[str, Sequence[Record]]) -> str | None:
    """Return the training part of the same set, None for a training part itself."""
    dataset, _, split = name.rpartition("/")
    train = f"{dataset}/train"
    return train if split != "train" and parts.get(train) else None


def _row_key(record: Record) -> Hashable:
    return record.image.id, record.question.strip().casefold(), normalise(record.answer)


def _contradictions(records: Sequence[Record]) -> int:
    """Return how many questions on an image have two different closed answers."""
    answers: dict[Hashable, set[str]] = {}
    for record in records:
        if record.answer_type == "closed":
            key = record.image.id, record.question.strip().casefold()
            answers.setdefault(key, set()).add(normalise(record.answer))
    return sum(len(distinct) > 1 for distinct in answers.values())


def _top(records: Sequence[Record]) -> list[dict[str, Any]]:
    counts = Counter(normalise(record.answer) for record in records)
    return [
        {"answer": answer, "n": n, "share": round(100 * n / len(records), 2)}
        for answer, n in counts.most_common(_TOP)
    ]


def _baselines(records: Sequence[Record], train: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Return baseline -> answer type -> percent right."""
    predictors: dict[str, baselines.Predictor] = dict(baselines.CONSTANTS)
    predictors["question_only"] = baselines.question_only
    scores = {}
    for name, predict in predictors.items():
        if train or name in ("always_yes", "always_no"):
            scores[name] = _scores(records, predict(train, records))
    return scores


def _scores(records: Sequence[Record], answers: Sequence[str]) -> dict[str, float]:
    values = Values(records, answers)
    closed = Kinds(records).closed
    chosen = {"closed": np.flatnonzero(closed), "open": np.flatnonzero(~closed)}
    means = {kind: values.mean(RIGHT, own) for kind, own in chosen.items() if len(own)}
    return {kind: round(100 * mean, 2) for kind, mean in means.items()}
