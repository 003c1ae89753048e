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
from scipy.special import softmax

from medmoe.data.schema import Record
from medmoe.evaluation.files.predictions import Prediction
from medmoe.evaluation.statistics import Floats, Indices, cluster_indices, drawn_counts

#: Below this share of usable resamples an AUC interval would describe a biased selection.
_MIN_USABLE = 0.9
#: Cells of a block of resampling weights held in memory at once.
_BLOCK = 1 << 21


@dataclass(frozen=True, slots=True)
class Auc:
    """An AUC with its interval, each from 0 to 1; None where it is not defined, for a reason."""

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
    return auc_with_interval(truth[order], probabilities[:, -1][order], names, seed=seed)


def label_probabilities(option_scores: Sequence[Sequence[float]] | Floats) -> Floats:
    """Return the softmax over options (n, options) of summed label log-likelihoods."""
    probabilities: Floats = softmax(np.asarray(option_scores, dtype=np.float64), axis=1)
    return probabilities


def auc_with_interval(
    truth: Indices,
    probabilities: Floats,
    clusters: Sequence[Hashable],
    *,
    seed: int,
    resamples: int = 2000,
) -> Auc:
    """Return the AUC of one label among options, or the mean of several labels' at once.

    Args:
        truth: (N,) indices of the true options, or (N, L) 1 where an image has a label, else 0.
        probabilities: (N, options), or (N, L) of having each label.
        clusters: The image of each row, of the bootstrap that the interval is from.
    """
    if truth.ndim == 2:
        constant = [str(i) for i, column in enumerate(truth.T) if np.unique(column).size < 2]
        if constant:
            return Auc(None, reason=f"one class only of label {', '.join(constant)}: no AUC")
        columns = [(t == 1, p) for t, p in zip(truth.T, probabilities.T, strict=True)]
        return _mean_auc(columns, clusters, seed, resamples)
    options = probabilities.shape[1]
    absent = sorted(set(range(options)) - set(truth.tolist()))
    if len(absent) == options - 1:
        reason = f"one class only in the truth (label {truth[0]}): AUC is not defined"
        return Auc(None, reason=reason)
    if absent:
        names = ", ".join(map(str, absent))
        return Auc(None, reason=f"no record of label {names}: AUC is not defined")
    # Two classes: MedMNIST scores the last one only; more: each against the rest.
    scored = range(1, 2) if options == 2 else range(options)
    columns = [(truth == c, probabilities[:, c]) for c in scored]
    return _mean_auc(columns, clusters, seed, resamples)


def _mean_auc(
    scored: Sequence[tuple[npt.NDArray[np.bool_], Floats]],
    clusters: Sequence[Hashable],
    seed: int,
    resamples: int,
) -> Auc:
    """Return the mean AUC over pairs of who is positive and how each is scored.

    Resamples in which a class is missing have no AUC and are left out; where they are more than
    one in ten, no interval is given.
    """
    from sklearn.metrics import roc_auc_score  # a second to import

    value = float(np.mean([roc_auc_score(positive, scores) for positive, scores in scored]))
    index, count = cluster_indices(clusters)
    step = max(1, _BLOCK // len(clusters))
    samples = [
        np.mean(
            [weighted_auc(*pair, times[start : start + step, index]) for pair in scored], axis=0
        )
        for times in drawn_counts(count, seed=seed, resamples=resamples)
        for start in range(0, len(times), step)
    ]
    usable = np.concatenate(samples)
    usable = usable[np.isfinite(usable)]
    if count < 2 or usable.size < _MIN_USABLE * resamples:
        return Auc(value, reason="too few images of some class for an interval")
    return Auc(value, *np.quantile(usable, [0.025, 0.975]).tolist())


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
