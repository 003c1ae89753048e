from __future__ import annotations

import numpy as np
import pytest

from medmoe.errors import ConfigError
from medmoe.evaluation.reliability.abstention import (
    at_threshold,
    choose_threshold,
    risk_coverage,
)
from medmoe.evaluation.reliability.calibration import Answered


def answered(confidence: list[float], right: list[float], per_image: int = 1) -> Answered:
    images = tuple(place // per_image for place in range(len(right)))
    return Answered(np.array(confidence), np.array(right, dtype=float), images)


def drawn(seed: int, images: int, per_image: int = 3) -> Answered:
    """Answers whose confidence tells how likely they are right, alike within an image."""
    rng = np.random.default_rng(seed)
    true = np.repeat(rng.uniform(size=images), per_image)
    right = (rng.uniform(size=images * per_image) < true).astype(float)
    return Answered(true, right, tuple(np.repeat(np.arange(images), per_image).tolist()))


def test_the_curve_gives_the_most_confident_first_and_ties_together() -> None:
    curve = risk_coverage(answered([0.9, 0.5, 0.5, 0.1], [1, 1, 0, 0]))
    assert curve["coverage"] == [0.25, 0.75, 1.0]
    assert curve["risk"] == pytest.approx([0, 1 / 3, 0.5])
    assert curve["area"] == pytest.approx(0.25 * 0 + 0.5 / 3 + 0.25 * 0.5)


@pytest.mark.parametrize(("right", "area"), [([1, 1, 1], 0.0), ([0, 0, 0], 1.0)])
def test_all_right_and_all_wrong(right: list[float], area: float) -> None:
    assert risk_coverage(answered([0.3, 0.6, 0.6], right))["area"] == pytest.approx(area)


def test_the_threshold_is_the_least_that_the_rule_allows() -> None:
    # 19 images, target 0.1: (wrong + 1) / 20 <= 0.1 allows one wrong image.
    confidence = [1 - place / 100 for place in range(19)]
    right = [1.0] * 10 + [0, 1, 1, 0] + [1.0] * 5
    found = choose_threshold(answered(confidence, right), 0.1)
    assert found == pytest.approx(confidence[12])


def test_too_few_images_reach_no_target() -> None:
    assert choose_threshold(answered([0.9] * 8, [1.0] * 8), 0.1) is None
    assert choose_threshold(answered([0.9] * 9, [1.0] * 9), 0.1) == 0.9


def test_where_the_surest_are_wrong_nothing_is_answered() -> None:
    found = answered([0.9] * 5 + [0.5] * 20, [0.0] * 5 + [1.0] * 20)
    threshold = choose_threshold(found, 0.1)
    assert threshold is not None
    given = at_threshold(found, threshold)
    assert given == {"coverage": 0.0, "wrong": 0.0, "risk": None}


@pytest.mark.parametrize("target", [0.05, 0.1, 0.2])
def test_on_new_images_the_target_is_kept_in_expectation(target: float) -> None:
    wrong = []
    for seed in range(200):
        threshold = choose_threshold(drawn(seed, 100), target)
        assert threshold is not None
        wrong.append(at_threshold(drawn(10_000 + seed, 100), threshold)["wrong"])
    # Three standard errors of the mean over 200 draws, each of 100 images.
    assert np.mean(wrong) <= target + 3 * np.std(wrong) / np.sqrt(200)
    assert np.mean(wrong) >= 0.6 * target  # and it is not kept by answering nothing


@pytest.mark.parametrize("target", [0.0, 1.0, -1.0, 2.0])
def test_an_impossible_target_is_refused(target: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        choose_threshold(answered([0.5], [1.0]), target)
