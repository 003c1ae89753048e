"""AUC of image classification by label score, as MedMNIST's Evaluator has it.

The score of a label is the softmax over the options' summed log-likelihoods (the paper's table 3
gives accuracy only, and its code has no classification). Binary: AUC of the last class's score.
More classes: the plain mean of one-vs-rest AUCs. Several labels at once (ChestMNIST): each label as
a binary task, plain means.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medmoe.data.schema import Record
from medmoe.errors import DataError
from medmoe.evaluation.files.predictions import Prediction
from medmoe.evaluation.statistics import (
    Floats,
    Indices,
    cluster_indices,
    drawn_counts,
    percentile_interval,
    resampled_clusters,
)

#: Below this share of usable resamples an AUC interval would describe a biased selection.
_MIN_USABLE = 0.9
#: Cells of a block of resampling weights held in memory at once.
_BLOCK = 1 << 21


@dataclass(frozen=True, slots=True)
class Auc:
    """An AUC with its interval, each from 0 to 1.

    Attributes:
        value: None where it is not defined.
        low: Lower end, None where the value or its spread is not defined.
        high: Upper end, None as ``low``.
        reason: Why something is None.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


def label_auc(
    pairs: Sequence[tuple[Record, Prediction]], seed: int, *, multi_label: bool = False
) -> Auc:
    """Return the AUC of classification records by their option scores, with its interval.

    Args:
        pairs: Records with options, and predictions with a score for each.
        seed: Of the bootstrap.
        multi_label: Whether there is one record for each image and label, whose question type is
            the label and whose options are absent and present, in this order.
    """
    if len({record.options for record, _ in pairs}) > 1:
        return Auc(None, reason="the records do not share one list of options: no common AUC")
    probabilities = label_probabilities([p.option_scores or () for _, p in pairs])
    truth = np.asarray([record.options.index(record.answer) for record, _ in pairs])
    images = [record.image.id for record, _ in pairs]
    if not multi_label:
        return auc_with_interval(truth, probabilities, images, seed=seed)
    names = list(dict.fromkeys(images))
    labels = sorted({record.question_type for record, _ in pairs})
    place = {(record.image.id, record.question_type): i for i, (record, _) in enumerate(pairs)}
    if len(place) != len(pairs) or len(pairs) != len(names) * len(labels):
        return Auc(None, reason="not one record per image and label: no common AUC")
    order = np.asarray([[place[name, label] for label in labels] for name in names])
    return multi_label_auc(truth[order], probabilities[:, -1][order], names, seed=seed)


def label_probabilities(option_scores: Sequence[Sequence[float]] | Floats) -> Floats:
    """Return the softmax over options (n, options) of summed label log-likelihoods.

    Raises:
        DataError: Fewer than two options, not one row per record, or a score is not finite.
    """
    try:
        scores = np.asarray(option_scores, dtype=np.float64)
    except ValueError as error:
        raise DataError("rows of option scores differ in length; give one per option") from error
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise DataError(
            f"option scores of shape {scores.shape}; give (n, options), 2 or more options"
        )
    if not np.isfinite(scores).all():
        raise DataError("an option score is not finite; check the model's log-likelihoods")
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), dtype=np.float64)


def auc(truth: Sequence[int] | Indices, probabilities: Floats) -> Auc:
    """Return the AUC without an interval; its value is None where a class has no such record.

    Raises:
        DataError: No rows, another number of labels than rows, or a label that is no option.
    """
    labels = _labels(truth, probabilities)
    reason = _undefined(labels, probabilities.shape[1])
    if reason is not None:
        return Auc(None, reason=reason)
    from sklearn.metrics import roc_auc_score  # a second to import

    scored = _scored_classes(probabilities.shape[1])
    each = [roc_auc_score(labels == c, probabilities[:, c]) for c in scored]
    return Auc(float(np.mean(each)))


def auc_with_interval(
    truth: Sequence[int] | Indices,
    probabilities: Floats,
    clusters: Sequence[Hashable],
    *,
    seed: int,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Auc:
    """Return the AUC with an interval by a bootstrap over clusters (images).

    Resamples in which a class is missing have no AUC and are left out; where they are more than
    one in ten, no interval is given.

    Raises:
        DataError: As `auc`, or not one cluster per row.
    """
    labels = _labels(truth, probabilities)
    if len(clusters) != labels.size:
        raise DataError(f"{labels.size} rows with {len(clusters)} clusters; give one per row")
    point = auc(labels, probabilities)
    scored = [(labels == c, probabilities[:, c]) for c in _scored_classes(probabilities.shape[1])]
    return _with_interval(point, scored, clusters, seed, resamples, confidence)


def multi_label_auc(
    truth: Indices,
    probabilities: Floats,
    clusters: Sequence[Hashable],
    *,
    seed: int,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Auc:
    """Return the mean over labels of each label's AUC, with an interval over clusters.

    Args:
        truth: (N, L) 1 where an image has a label, else 0.
        probabilities: (N, L) of having it.
        clusters: The image of each row.

    Raises:
        DataError: The shapes differ, or a truth is neither 0 nor 1.
    """
    _check_multi_label(truth, probabilities)
    from sklearn.metrics import roc_auc_score

    constant = [str(i) for i, column in enumerate(truth.T) if np.unique(column).size < 2]
    if constant:
        point = Auc(None, reason=f"one class only of label {', '.join(constant)}: no AUC")
    else:
        each = [roc_auc_score(t, p) for t, p in zip(truth.T, probabilities.T, strict=True)]
        point = Auc(float(np.mean(each)))
    scored = [(t == 1, p) for t, p in zip(truth.T, probabilities.T, strict=True)]
    return _with_interval(point, scored, clusters, seed, resamples, confidence)


def _check_multi_label(truth: Indices, probabilities: Floats) -> None:
    if truth.shape != probabilities.shape or truth.ndim != 2 or truth.size == 0:
        raise DataError(
            f"truth of shape {truth.shape} with scores of shape {probabilities.shape}; give (N, L) "
            "of both"
        )
    if not np.isin(truth, (0, 1)).all():
        raise DataError("a truth is neither 0 nor 1; write 1 where the image has the label")


def _with_interval(
    point: Auc,
    scored: Sequence[tuple[npt.NDArray[np.bool_], Floats]],
    clusters: Sequence[Hashable],
    seed: int,
    resamples: int,
    confidence: float,
) -> Auc:
    """Add the interval of the mean AUC over pairs of who is positive and how each is scored."""
    if point.value is None:
        return point
    samples = _resampled(scored, clusters, seed=seed, resamples=resamples)
    usable = samples[np.isfinite(samples)]
    if usable.size < _MIN_USABLE * resamples:
        return Auc(point.value, reason="too few images of some class for an interval")
    low, high = percentile_interval(usable, confidence)
    return Auc(point.value, low, high)


def weighted_auc(
    positive: Sequence[bool] | Indices | npt.NDArray[np.bool_], scores: Floats, weights: Floats
) -> Floats:
    """Return the AUC (R,) of one class under each of R rows of item weights (R, n).

    The share of positive-negative pairs in the right order, a tie counted as half; nan where all
    weight lies on one side.
    """
    order = np.argsort(scores, kind="stable")
    ranked = np.asarray(scores)[order]
    is_positive = np.asarray(positive, dtype=bool)[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    by_rank = weights[:, order]
    above = np.add.reduceat(np.where(is_positive, by_rank, 0.0), starts, axis=1)
    below = np.add.reduceat(np.where(is_positive, 0.0, by_rank), starts, axis=1)
    pairs = above.sum(axis=1) * below.sum(axis=1)
    won = (above * (np.cumsum(below, axis=1) - 0.5 * below)).sum(axis=1)
    defined = pairs > 0
    return np.asarray(np.where(defined, won / np.where(defined, pairs, 1.0), np.nan))


def _resampled(
    scored: Sequence[tuple[npt.NDArray[np.bool_], Floats]],
    clusters: Sequence[Hashable],
    *,
    seed: int,
    resamples: int,
) -> Floats:
    index, count = cluster_indices(clusters)
    if count < 2:
        return np.full(resamples, np.nan)
    step = max(1, _BLOCK // len(clusters))
    found = []
    for block in resampled_clusters(count, seed=seed, resamples=resamples):
        for start in range(0, len(block), step):
            drawn = block[start : start + step]
            weights = drawn_counts(drawn, count)[:, index]
            each = [weighted_auc(positive, scores, weights) for positive, scores in scored]
            found.append(np.mean(each, axis=0))
    return np.concatenate(found)


def _scored_classes(options: int) -> range:
    # Two classes: MedMNIST scores the last one only; more: each against the rest.
    return range(1, 2) if options == 2 else range(options)


def _labels(truth: Sequence[int] | Indices, probabilities: Floats) -> Indices:
    labels = np.asarray(truth, dtype=np.int64)
    if labels.size == 0 or labels.shape != probabilities.shape[:1]:
        raise DataError(
            f"{labels.size} labels for {len(probabilities)} rows of scores; give one label per row"
        )
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        raise DataError(
            f"labels from {labels.min()} to {labels.max()} with {probabilities.shape[1]} options; "
            "number labels from 0 in the order of the options"
        )
    return labels


def _undefined(labels: Indices, options: int) -> str | None:
    present = np.unique(labels)
    if present.size == 1:
        return f"one class only in the truth (label {present[0]}): AUC is not defined"
    absent = sorted(set(range(options)) - set(present.tolist()))
    if absent:
        return f"no record of label {', '.join(map(str, absent))}: AUC is not defined"
    return None
