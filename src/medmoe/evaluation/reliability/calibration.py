"""Calibration: does an answer given with 80 % confidence turn out right 80 % of the time?

Expected calibration error (ECE) in bins of equal width, the Brier score, and one temperature,
fitted on other records than those it is reported on. What a confidence is: of an answer in words,
the probability p of exactly these words; of a classification, the softmax over the options'
log-likelihoods. The temperature T makes them p^(1/T) and softmax(scores / T).

The paper reports no calibration. Nothing is fitted or read from files by this module but T.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from medmoe.errors import DataError
from medmoe.evaluation.score.auc import label_probabilities
from medmoe.evaluation.statistics import Floats, Indices, clustered_bootstrap

BINS = 10
#: Temperatures that are tried; one outside would say that the confidences mean nothing.
LEAST_T, MOST_T = 0.05, 20.0
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Answered:
    """Answers with their confidence.

    Attributes:
        confidence: (n,) from 0 to 1.
        right: (n,) 1 where the answer is right, else 0.
        images: The image of each, for intervals.
        scores: Of classification: (n, options) log-likelihoods, else None.
        labels: Of classification: (n,) the true option's place, else None.
    """

    confidence: Floats
    right: Floats
    images: tuple[Hashable, ...]
    scores: Floats | None = None
    labels: Indices | None = None

    def __post_init__(self) -> None:
        """Refuse what nothing can be said about.

        Raises:
            DataError: There are no answers, or a confidence is no probability.
        """
        if not len(self.confidence):
            raise DataError("no answers with a confidence; nothing can be said about calibration")
        if not ((self.confidence >= 0) & (self.confidence <= 1)).all():
            raise DataError("a confidence is no number from 0 to 1; give probabilities")

    def at_temperature(self, temperature: float) -> Answered:
        """Return the same answers with other confidences."""
        if self.scores is not None:
            confidence = label_probabilities(self.scores / temperature).max(axis=1)
        else:
            confidence = np.power(self.confidence, 1 / temperature)
        return Answered(confidence, self.right, self.images, self.scores, self.labels)


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers of like confidence: how many, their mean confidence and the share that is right."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def bins_of(answered: Answered) -> list[Bin]:
    """Return the bins that hold answers."""
    filled: list[Bin] = []
    places = _places(answered.confidence)
    for place in range(BINS):
        inside = places == place
        if inside.any():
            mean = float(answered.confidence[inside].mean())
            right = float(answered.right[inside].mean())
            ends = place / BINS, (place + 1) / BINS
            filled.append(Bin(*ends, int(inside.sum()), mean, right))
    return filled


def ece(answered: Answered) -> float:
    """Return the expected calibration error, 0–1: mean over answers of |confidence - accuracy|."""
    n = len(answered.confidence)
    return sum(p.n / n * abs(p.confidence - p.accuracy) for p in bins_of(answered))


def ece_interval(answered: Answered, *, seed: int, resamples: int = 2000) -> tuple[float, float]:
    """Return the interval of `ece`, by a bootstrap over images.

    The ECE of few answers is biased upwards, and so is its interval; (nan, nan) with one image.
    """
    places = _places(answered.confidence)
    gaps = np.zeros((len(places), BINS))
    gaps[np.arange(len(places)), places] = answered.confidence - answered.right
    low, high = clustered_bootstrap(
        gaps,
        answered.images,
        seed=seed,
        resamples=resamples,
        statistic=lambda sums, sizes: np.abs(sums).sum(axis=1) / sizes,
    )
    return float(low), float(high)


def brier(answered: Answered) -> float:
    """Return the mean squared distance of confidence and outcome, 0 (best) to 1."""
    return float(np.square(answered.confidence - answered.right).mean())


def fit_temperature(answered: Answered) -> float:
    """Return the temperature of least negative log-likelihood; its ends mean "no fit inside".

    Of classification that of the true options, of words that of being right or wrong.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        if answered.scores is not None and answered.labels is not None:
            likely = label_probabilities(answered.scores / temperature)
            chosen = likely[np.arange(len(likely)), answered.labels]
            return float(-np.log(np.maximum(chosen, _TINY)).mean())
        p = np.clip(answered.at_temperature(temperature).confidence, _TINY, 1 - _TINY)
        return float(-(answered.right * np.log(p) + (1 - answered.right) * np.log(1 - p)).mean())

    bounds = (math.log(LEAST_T), math.log(MOST_T))
    best = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(math.exp(best.x))


def _places(confidence: Floats) -> Indices:
    """Return the number of each answer's bin."""
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
