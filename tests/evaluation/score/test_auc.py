from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import roc_auc_score

from medmoe.evaluation.score.auc import (
    auc_with_interval,
    label_probabilities,
    weighted_auc,
)

Array = npt.NDArray[np.float64]


def evaluator(y_true: npt.NDArray[np.int64], y_score: Array) -> float:
    """AUC by the formula of MedMNIST's Evaluator for its single-label tasks."""
    if y_score.shape[1] == 2:
        return float(roc_auc_score(y_true, y_score[:, -1]))
    each = [roc_auc_score(y_true == i, y_score[:, i]) for i in range(y_score.shape[1])]
    return float(sum(each) / len(each))


def sample(options: int, n: int = 300, seed: int = 0) -> tuple[npt.NDArray[np.int64], Array]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, options, size=n)
    scores = rng.standard_normal((n, options)) - 5.0
    scores[np.arange(n), truth] += 1.0
    return truth, np.round(scores, 1)  # rounding makes ties


@pytest.mark.parametrize("options", [2, 3, 11])
def test_auc_equals_medmnists_evaluator(options: int) -> None:
    truth, scores = sample(options)
    probabilities = label_probabilities(scores)
    found = auc_with_interval(truth, probabilities, range(300), seed=0, resamples=20)
    assert found.value == pytest.approx(evaluator(truth, probabilities), abs=1e-12)


def test_probabilities_sum_to_one_however_low_the_likelihoods() -> None:
    probabilities = label_probabilities([[-2000.0, -2001.0], [0.0, -1e4]])
    assert probabilities.sum(axis=1) == pytest.approx([1.0, 1.0])
    assert probabilities[0, 0] == pytest.approx(1 / (1 + np.exp(-1.0)))


@pytest.mark.parametrize(
    ("truth", "options", "reason"),
    [
        ([1, 1, 1], 2, "one class only in the truth (label 1)"),
        ([0, 1, 1], 3, "no record of label 2:"),
    ],
)
def test_auc_without_a_class_is_null_with_the_reason(
    truth: list[int], options: int, reason: str
) -> None:
    probabilities = label_probabilities(sample(options, n=3)[1])
    found = auc_with_interval(np.array(truth), probabilities, ["a", "b", "c"], seed=0)
    assert (found.value, found.low, found.high) == (None, None, None)
    assert found.reason is not None
    assert found.reason.startswith(reason)


def test_weighted_auc_equals_repeating_the_items() -> None:
    rng = np.random.default_rng(1)
    truth, scores = sample(2, n=60, seed=2)
    weights = rng.integers(0, 4, size=(5, 60)).astype(np.float64)
    found = weighted_auc(truth == 1, scores[:, 1], weights)
    for row, value in zip(weights.astype(int), found, strict=True):
        repeated = roc_auc_score(np.repeat(truth, row), np.repeat(scores[:, 1], row))
        assert value == pytest.approx(repeated, abs=1e-12)


def test_weighted_auc_of_one_side_only_is_not_a_number() -> None:
    found = weighted_auc([True, False], np.array([0.1, 0.2]), np.array([[1.0, 0.0], [1.0, 1.0]]))
    assert np.isnan(found[0])
    assert found[1] == 0.0


@pytest.mark.parametrize("options", [2, 3])
def test_auc_interval_equals_a_plain_loop_over_resamples(options: int) -> None:
    truth, scores = sample(options, n=120)
    probabilities = label_probabilities(scores)
    images = np.arange(120) // 2
    found = auc_with_interval(truth, probabilities, list(images), seed=3, resamples=1500)
    rng, members = np.random.default_rng(4), [np.flatnonzero(images == i) for i in range(60)]
    loop = []
    for _ in range(300):
        drawn = np.concatenate([members[i] for i in rng.integers(0, 60, size=60)])
        loop.append(evaluator(truth[drawn], probabilities[drawn]))
    low, high = np.quantile(loop, [0.025, 0.975])
    assert found.value == pytest.approx(evaluator(truth, probabilities), abs=1e-12)
    # Ends of 300 and 1,500 resamples: each varies by some 5 % of the width.
    assert found.low == pytest.approx(low, abs=0.25 * (high - low))
    assert found.high == pytest.approx(high, abs=0.25 * (high - low))
    again = auc_with_interval(truth, probabilities, list(images), seed=3, resamples=1500)
    assert again == found


def test_auc_with_too_few_images_of_a_class_has_no_interval() -> None:
    truth, scores = sample(2, n=40)
    rare = np.zeros(40, dtype=np.int64)
    rare[0] = 1
    found = auc_with_interval(rare, label_probabilities(scores), list(range(40)), seed=0)
    assert found.value is not None
    assert found.low is None
    assert found.reason == "too few images of some class for an interval"
    one_image = auc_with_interval(truth, label_probabilities(scores), ["a"] * 40, seed=0)
    assert one_image.value is not None
    assert one_image.low is None
