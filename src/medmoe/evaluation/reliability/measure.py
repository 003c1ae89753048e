"""From answered records to what is said of their confidence: one object for ``summary.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from medmoe.data.schema import Record
from medmoe.errors import DataError
from medmoe.evaluation.files.predictions import Prediction, pair
from medmoe.evaluation.reliability.abstention import (
    at_threshold,
    choose_threshold,
    risk_coverage,
)
from medmoe.evaluation.reliability.calibration import (
    Answered,
    bins_of,
    brier,
    ece,
    ece_interval,
    fit_temperature,
)
from medmoe.evaluation.score.auc import label_probabilities
from medmoe.evaluation.score.measures import is_right
from medmoe.evaluation.statistics import finite, shares_of

#: Points of a curve that a summary keeps.
_POINTS = 200


def answered_by_kind(
    records: Sequence[Record], predictions: Sequence[Prediction]
) -> dict[str, Answered]:
    """Return the answers with their confidence: ``closed`` and ``open``, or ``classification``.

    Raises:
        DataError: An answer has no confidence; the record is named.
    """
    groups: dict[str, list[tuple[Record, Prediction]]] = {}
    for record, prediction in pair(records, predictions):
        kind = "classification" if record.task == "classification" else record.answer_type
        groups.setdefault(kind, []).append((record, prediction))
    return {kind: _answered(pairs) for kind, pairs in sorted(groups.items())}


def reliability(
    reported: dict[str, Answered],
    calibration: dict[str, Answered] | None,
    *,
    target: float,
    seed: int,
) -> dict[str, Any]:
    """Return what is said of each kind of answer.

    Args:
        reported: The answers that are reported on.
        calibration: Answers to other records, for the temperature and the threshold; None where
            there are none.
    """
    return {
        kind: _of_kind(answered, (calibration or {}).get(kind), target, seed)
        for kind, answered in reported.items()
    }


def robustness_row(
    task: str, corruption: str | None, severity: int, kind: str, answered: Answered, seed: int
) -> dict[str, Any]:
    """Return the share of right answers, in percent, with an interval by image.

    Args:
        corruption: None for the pictures as they are.
        severity: 0 for them.
    """
    (share,) = shares_of(answered.right[:, None], [str(i) for i in answered.images], seed)
    row = {"task": task, "corruption": corruption, "severity": severity, "kind": kind}
    return row | share | {"n": len(answered.right)}


def _of_kind(
    answered: Answered, calibration: Answered | None, target: float, seed: int
) -> dict[str, Any]:
    curve = risk_coverage(answered)
    kept = np.unique(np.linspace(0, len(curve["risk"]) - 1, _POINTS).astype(int)).tolist()
    content: dict[str, Any] = {
        "n": len(answered.right),
        "accuracy": float(answered.right.mean()),
        "mean_confidence": float(answered.confidence.mean()),
        "before": _calibration(answered, seed),
        "curve": curve | {key: [curve[key][i] for i in kept] for key in ("coverage", "risk")},
    }
    if calibration is not None:
        temperature = fit_temperature(calibration)
        after = _calibration(answered.at_temperature(temperature), seed)
        content |= {"temperature": temperature, "after": after}
        content["abstention"] = _abstention(answered, calibration, target)
    return content


def _calibration(answered: Answered, seed: int) -> dict[str, Any]:
    low, high = ece_interval(answered, seed=seed)
    return {
        "ece": ece(answered), "ece_low": finite(low), "ece_high": finite(high),
        "brier": brier(answered),
        "bins": [asdict(part) for part in bins_of(answered)],
    }  # fmt: skip


def _abstention(answered: Answered, calibration: Answered, target: float) -> dict[str, Any]:
    threshold = choose_threshold(calibration, target)
    images = len(set(calibration.images))
    content: dict[str, Any] = {"target": target, "images": images, "threshold": threshold}
    if threshold is None:
        return content
    return content | at_threshold(answered, threshold)


def _answered(pairs: Sequence[tuple[Record, Prediction]]) -> Answered:
    for record, prediction in pairs:
        if prediction.confidence is None and prediction.option_scores is None:
            raise DataError(
                f"prediction of {record.id!r} has no confidence; give one to every answer"
            )
    right = np.array([float(is_right(record, prediction)) for record, prediction in pairs])
    images = tuple(record.image.id for record, _ in pairs)
    scores = [prediction.option_scores for _, prediction in pairs]
    widths = {len(row) for row in scores if row is not None}
    if any(row is None for row in scores) or len(widths) != 1:
        return Answered(np.array([confidence_of(p) for _, p in pairs]), right, images)
    table = np.array(scores, dtype=np.float64)
    labels = np.array([list(record.options).index(record.answer) for record, _ in pairs])
    return Answered(label_probabilities(table).max(axis=1), right, images, table, labels)


def confidence_of(prediction: Prediction) -> float:
    """Return the confidence given, or the probability of the best of the options, 0–1."""
    if prediction.confidence is not None:
        return prediction.confidence
    return float(label_probabilities([list(prediction.option_scores or ())]).max())
