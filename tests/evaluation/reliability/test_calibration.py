from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmoe.errors import DataError
from medmoe.evaluation.reliability.calibration import (
    Answered,
    bins_of,
    brier,
    ece,
    ece_interval,
    fit_temperature,
)

PAIRS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


def answered(confidence: list[float], right: list[float]) -> Answered:
    images = tuple(f"image-{place}" for place in range(len(right)))
    return Answered(np.array(confidence, dtype=float), np.array(right, dtype=float), images)


def test_the_error_is_the_mean_distance_over_the_bins() -> None:
    # Bin 0.9-1.0: confidence 0.95, right 0.5. Bin 0.2-0.3: confidence 0.25, right 0.
    found = answered([0.95, 0.95, 0.25, 0.25], [1, 0, 0, 0])
    assert ece(found) == pytest.approx(0.5 * 0.45 + 0.5 * 0.25)
    assert [(part.n, part.accuracy) for part in bins_of(found)] == [(2, 0.0), (2, 0.5)]
    assert brier(found) == pytest.approx((0.05**2 + 0.95**2 + 2 * 0.25**2) / 4)


@pytest.mark.parametrize("right", [[1.0], [0.0], [1.0, 1.0], [0.0, 0.0]])
@pytest.mark.parametrize("confidence", [0.0, 1.0, 0.5])
def test_one_answer_and_one_outcome_are_no_division_by_zero(
    right: list[float], confidence: float
) -> None:
    found = answered([confidence] * len(right), right)
    assert ece(found) == pytest.approx(abs(confidence - right[0]))
    assert math.isfinite(fit_temperature(found))


@given(PAIRS)
def test_errors_lie_between_0_and_1_and_no_answer_is_lost(pairs: list[tuple[float, bool]]) -> None:
    found = answered([c for c, _ in pairs], [float(r) for _, r in pairs])
    assert 0 <= ece(found) <= 1
    assert sum(part.n for part in bins_of(found)) == len(pairs)


def test_the_interval_is_by_image_and_holds_the_value() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(size=400)
    right = (rng.uniform(size=400) < confidence).astype(float)
    images = tuple(place // 4 for place in range(400))
    found = Answered(confidence, right, images)
    low, high = ece_interval(found, seed=7, resamples=500)
    assert low < high
    assert (low, high) == ece_interval(found, seed=7, resamples=500)
    alone = Answered(confidence, right, ("one",) * 400)
    assert all(math.isnan(end) for end in ece_interval(alone, seed=7))


def test_the_temperature_of_words_undoes_what_was_done() -> None:
    rng = np.random.default_rng(1)
    true = rng.uniform(0.05, 0.95, size=40_000)
    right = (rng.uniform(size=40_000) < true).astype(float)
    given_as = answered((true**0.5).tolist(), right.tolist())  # too sure: T = 2 gives p back
    assert fit_temperature(given_as) == pytest.approx(0.5, rel=0.05)
    mended = given_as.at_temperature(fit_temperature(given_as))
    assert ece(mended) < 0.2 * ece(given_as)


def test_the_temperature_of_labels_is_that_of_their_scores() -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(20_000, 4)) * 2
    likely = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(4, p=row) for row in likely])
    sharp = 3 * scores
    confidence = (np.exp(sharp) / np.exp(sharp).sum(axis=1, keepdims=True)).max(axis=1)
    right = (sharp.argmax(axis=1) == labels).astype(float)
    found = Answered(confidence, right, tuple(range(20_000)), sharp, labels)
    assert fit_temperature(found) == pytest.approx(3, rel=0.05)
    assert ece(found.at_temperature(3.0)) < 0.02 < ece(found)


@pytest.mark.parametrize("confidence", [[], [1.5], [-0.1], [math.nan]])
def test_what_is_no_confidence_is_refused(confidence: list[float]) -> None:
    with pytest.raises(DataError, match="confidence"):
        answered(confidence, [1.0] * len(confidence))
