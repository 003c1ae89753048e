from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmoe.evaluation.statistics import (
    clustered_bootstrap,
    mcnemar,
    wilson,
)


def test_bootstrap_equals_the_enumeration_of_all_resamples() -> None:
    # Clusters of unequal size, so that the mean of means would be wrong.
    groups = [[1.0, 0.0, 0.0], [1.0], [0.0, 1.0], [0.25]]
    values = [v for group in groups for v in group]
    clusters = [str(i) for i, group in enumerate(groups) for _ in group]
    means = [
        np.mean([v for i in drawn for v in groups[i]])
        for drawn in itertools.product(range(4), repeat=4)
    ]
    low, high = clustered_bootstrap(values, clusters, seed=0, resamples=40_000, confidence=0.8)
    # 256 equally likely resamples; the sampled quantiles fall on the same steps.
    assert low == pytest.approx(np.quantile(means, 0.1), abs=0.02)
    assert high == pytest.approx(np.quantile(means, 0.9), abs=0.02)


def test_bootstrap_agrees_with_the_normal_interval_of_independent_values() -> None:
    values = np.random.default_rng(1).random(2000)
    low, high = clustered_bootstrap(values, range(2000), seed=2)
    half = 1.96 * values.std() / math.sqrt(2000)
    # The two ends of 2,000 resamples vary by some 3 % of the width.
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_interval_is_wider_where_questions_share_images() -> None:
    per_image = np.random.default_rng(3).integers(0, 2, size=100)
    values = np.repeat(per_image, 5)
    low, high = clustered_bootstrap(values, np.repeat(np.arange(100), 5), seed=4)
    free_low, free_high = clustered_bootstrap(values, range(500), seed=4)
    # Five equal answers an image: the width grows by the square root of 5.
    assert (high - low) / (free_high - free_low) == pytest.approx(math.sqrt(5), rel=0.1)


def test_bootstrap_follows_the_seed_alone() -> None:
    values, images = [0.0, 1.0, 1.0, 0.0, 1.0, 0.3], list("aabbcc")
    first = clustered_bootstrap(values, images, seed=5).tolist()
    assert clustered_bootstrap(values, images, seed=5).tolist() == first
    assert clustered_bootstrap(values, ["x", "x", "y", "y", "z", "z"], seed=5).tolist() == first


def test_large_sets_are_drawn_in_blocks_that_cover_every_resample() -> None:
    values = np.random.default_rng(6).random(30_000)
    low, high = clustered_bootstrap(values, range(30_000), seed=7, resamples=200)
    half = 1.96 * values.std() / math.sqrt(30_000)
    assert high - low == pytest.approx(2 * half, rel=0.25)


def test_one_cluster_tells_nothing_about_the_spread() -> None:
    low, high = clustered_bootstrap([1.0, 0.0], ["a", "a"], seed=0)
    assert math.isnan(low)
    assert math.isnan(high)


def test_wilson_equals_published_values() -> None:
    # Newcombe 1998, table I: 81/263 and 15/148, 0/20 and 1/29.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@given(n=st.integers(1, 10_000), data=st.data())
def test_wilson_holds_the_share_and_mirrors(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    low, high = wilson(k, n)
    assert 0.0 <= low <= k / n <= high <= 1.0
    assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low))


def _outcomes(only_a: int, only_b: int, both: int = 3) -> tuple[list[int], list[int]]:
    return [1] * only_a + [0] * only_b + [1] * both, [0] * only_a + [1] * only_b + [1] * both


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (0, 6, 2 / 2**6),
        (1, 9, 2 * (1 + 10) / 2**10),
        (5, 5, 1.0),
        (2, 8, 2 * (1 + 10 + 45) / 2**10),
    ],
)
def test_mcnemar_is_exact(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar(*_outcomes(only_a, only_b)) == p
    assert mcnemar(*_outcomes(only_b, only_a)) == p


def test_mcnemar_equals_the_binomial_test_far_out() -> None:
    from scipy.stats import binomtest

    expected = binomtest(900, 2000).pvalue
    assert mcnemar(*_outcomes(900, 1100)) == pytest.approx(expected, rel=1e-9)
