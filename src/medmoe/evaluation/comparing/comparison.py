"""Two systems on the same records: the paired difference, its interval and McNemar's p.

Paired, because both answer the same questions: two overlapping intervals would not tell. The
p-value takes questions as independent, the interval does not (it resamples images): both are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medmoe.data.schema import Record
from medmoe.evaluation.files.predictions import Prediction, pair
from medmoe.evaluation.scoring.scores import record_scores
from medmoe.evaluation.statistics import mcnemar, paired_bootstrap


def is_right(record: Record, prediction: Prediction) -> bool:
    """Return whether an answer is right: strict protocol, or the best-scored option."""
    if record.task == "classification":
        return prediction.text == record.answer
    key = "accuracy" if record.answer_type == "closed" else "exact_match"
    return bool(record_scores("strict", record, prediction.text)[key] == 1)


def compare_task(
    task: str,
    split: str,
    records: Sequence[Record],
    systems: Mapping[str, Sequence[Prediction]],
    seed: int,
) -> list[dict[str, Any]]:
    """Return one row per subset: the first system's right answers against the second's.

    Args:
        systems: Two systems by name, each with its predictions for all records.

    Returns:
        Rows with task, split, subset, systems, ``difference``, ``low`` and ``high`` in points
        (percent), McNemar's exact ``p`` (0-1) and n; a single image gives no interval (None).

    Raises:
        DataError: The predictions do not pair with the records by id.
    """
    right = [
        [float(is_right(record, prediction)) for record, prediction in pair(records, found)]
        for found in systems.values()
    ]
    rows = []
    for subset, chosen in _subsets(records).items():
        a, b = ([values[i] for i in chosen] for values in right)
        images = [records[i].image.id for i in chosen]
        row: dict[str, Any] = {
            "task": task,
            "split": split,
            "subset": subset,
            "systems": list(systems),
            "difference": 100 * (sum(a) - sum(b)) / len(a),
            "low": None,
            "high": None,
            "p": mcnemar(a, b),
            "n": len(a),
        }
        if len(set(images)) > 1:
            _, low, high = paired_bootstrap(a, b, images, seed)
            row |= {"low": 100 * low, "high": 100 * high}
        rows.append(row)
    return rows


def _subsets(records: Sequence[Record]) -> dict[str, list[int]]:
    """Return the positions of each subset's records: closed, open, or all of a classification."""
    found: dict[str, list[int]] = {}
    for position, record in enumerate(records):
        name = "all" if record.task == "classification" else record.answer_type
        found.setdefault(name, []).append(position)
    return found
