"""Routing statistics against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medmoe.errors import DataError
from medmoe.routing.statistics import (
    confusion_matrix,
    expert_counts,
    expert_share,
    routing_entropy,
)


def test_each_of_the_k_choices_of_a_token_counts_for_its_group() -> None:
    experts = [[0, 1], [0, 2], [2, 1], [2, 0]]
    counts = expert_counts(experts, [0, 0, 1, -1], num_groups=3, num_experts=3)
    assert counts.tolist() == [[2, 1, 1], [0, 1, 1], [0, 0, 0]]


def test_counts_of_no_tokens_are_zero() -> None:
    assert expert_counts(np.zeros((0, 2)), [], 2, 3).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_counts_equal_a_loop_over_tokens() -> None:
    rng = np.random.default_rng(0)
    experts, groups = rng.integers(0, 4, (200, 2)), rng.integers(-1, 5, 200)
    expected = np.zeros((5, 4), dtype=int)
    for token, group in zip(experts, groups, strict=True):
        if group >= 0:
            expected[group, token[0]] += 1
            expected[group, token[1]] += 1
    assert np.array_equal(expert_counts(experts, groups, 5, 4), expected)


@pytest.mark.parametrize(
    ("experts", "groups", "message"),
    [
        ([[0], [1]], [0], "2 tokens and 1 groups; give one group for each token"),
        ([[4]], [0], r"expert index 4 is outside 0\.\.3"),
        ([[-1]], [0], r"expert index -1 is outside 0\.\.3"),
        ([[0]], [2], r"group index 2 is outside 0\.\.1; raise num_groups"),
    ],
)
def test_indices_that_do_not_fit_are_named(
    experts: list[list[int]], groups: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        expert_counts(experts, groups, num_groups=2, num_experts=4)


def test_shares_of_a_row_sum_to_one_and_a_row_without_tokens_is_nan() -> None:
    shares = expert_share([[3, 1], [0, 0]])
    assert shares[0].tolist() == [0.75, 0.25]
    assert np.isnan(shares[1]).all()


def test_entropy_is_zero_for_one_expert_and_one_for_all_alike() -> None:
    rows = [[8, 0, 0, 0], [2, 2, 2, 2], [4, 4, 0, 0], [0, 0, 0, 0]]
    entropy = routing_entropy(rows)
    assert entropy[:3].tolist() == [0.0, 1.0, 0.5]
    assert np.isnan(entropy[3])


def test_entropy_of_a_single_expert_is_zero() -> None:
    assert routing_entropy([[5]]).tolist() == [0.0]


def test_confusion_has_truth_in_rows_and_leaves_out_images_without_domain() -> None:
    matrix = confusion_matrix([0, 0, 1, 2, -1], [0, 1, 1, 0, 2], num_domains=3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
